# Sourced by the scripts of findings: `python PACKAGE==VERSION... <<'PY'` runs a program in a fresh environment.
set -euo pipefail

python() {
    local folder status=0
    folder=$(mktemp -d)
    python3 -m venv "$folder/venv"
    "$folder/venv/bin/pip" install --quiet --disable-pip-version-check "$@"
    # Nothing is fetched but the packages, and the working folder is the temporary one.
    (cd "$folder" && env -u PYTHONPATH HF_HUB_OFFLINE=1 PYTHONWARNINGS=default venv/bin/python -) || status=$?
    rm -rf "$folder"
    return "$status"
}
