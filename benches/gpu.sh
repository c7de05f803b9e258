#!/usr/bin/env bash
# Proof and measurement on a GPU, in two steps, since the machine with the GPU need not be able to build:
#
#   benches/gpu.sh collect DIR    build the program, the tests of the operations and the benches, and put them into DIR
#   benches/gpu.sh run DIR [OUT]  run them there, and print one table
#
# `collect` needs cargo and Python. `run` needs DIR, this folder, bash, a driver and Python, no packages. NVRTC and
# cuBLASLt are taken from the Python environment where they are not on the loader's path (pip install nvidia-cuda-nvrtc
# nvidia-cublas); with torch, transformers and peft in it the table has their times beside ours, with compute-sanitizer
# on PATH or in $CUDA_HOME the parity tests run under it. The table says what has not been run, and why.
#   PROFILE=release      the profile of `collect`
#   PYTHON=python3       the Python
#   MODEL=DIR            a model for the comparison of the devices end to end, and of the experiment with that of the
#   TRAIN=F TEST=F PEER=F  script PEER (see compare.py) on the files TRAIN and TEST
#   LLAMAPROBE_BENCH=tiny  next to no work, for machines that only pretend to have a GPU
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

usage() {
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2
    exit 2
}

# Builds by a command of cargo, and copies the targets of some kinds to $dir under their names behind a prefix.
built() {
    local kinds=$1 prefix=$2
    shift 2
    cargo "$@" --locked --message-format json | "${PYTHON:-python3}" -c '
import json, shutil, sys
kinds, prefix, to = sys.argv[1:]
for found in map(json.loads, sys.stdin):
    if found.get("executable") and found["target"]["kind"][0] in kinds.split():
        shutil.copy2(found["executable"], to + "/" + prefix + found["target"]["name"])
' "$kinds" "$prefix" "$dir"
}

[ $# -ge 2 ] || usage
dir=$2
profile=${PROFILE:-release}
case $1 in
collect)
    mkdir -p "$dir"
    dir=$(cd "$dir" && pwd)
    cd "$here/.."
    # A test comes with the program; by itself, without what only tests depend on, it would be a second build of it all.
    built "bin test" "" test --profile "$profile" --test ops --no-run
    built bench bench- bench --profile "$profile" --bench '*' --no-run
    ;;
run)
    dir=$(cd "$dir" && pwd)
    out=${3:-$dir/results}
    mkdir -p "$out"
    out=$(cd "$out" && pwd)
    python=${PYTHON:-python3}
    libraries=$("$python" -c '
import glob, site, sysconfig
roots = {sysconfig.get_paths()["purelib"], *site.getsitepackages()}
print(":".join(p for r in sorted(roots) for d in ("cu13", "cuda_nvrtc", "cublas") for p in glob.glob(f"{r}/nvidia/{d}/lib")))')
    export LLAMAPROBE_REQUIRE_CUDA=1 LLAMAPROBE_CUDA_LIBS=${LLAMAPROBE_CUDA_LIBS:-$libraries}
    export LLAMAPROBE_CUDA_CACHE=${LLAMAPROBE_CUDA_CACHE:-$out/kernels} CRITERION_HOME=$out/criterion
    export LLAMAPROBE_BENCH=${LLAMAPROBE_BENCH:-cuda}
    rm -rf "$CRITERION_HOME"
    rm -f "$out/checks.tsv"

    # A check, its verdict in the table and its words in a file.
    check() {
        local name=$1 verdict=passed
        shift
        printf '== %s\n' "$name" >&2
        "$@" > "$out/${name// /-}.log" 2>&1 || verdict="FAILED, see ${name// /-}.log"
        printf '%s\t%s\n' "$name" "$verdict" >> "$out/checks.tsv"
    }
    # The parity tests on the GPU; that there are none of that name is a failure too.
    parity() {
        local said
        said=$("$@" parity::cuda_ --test-threads 1) || { echo "$said"; return 1; }
        echo "$said"
        [[ $said == *"test result: ok. "[1-9]* ]]
    }
    check parity parity "$dir/ops"
    # What a device of compute capability 9.0 uses only if it is asked to; others do the same again.
    check "parity with LLAMAPROBE_HOPPER" parity env LLAMAPROBE_HOPPER=1 "$dir/ops"
    # Kernels that are launched before the one before them has ended, on devices of compute capability 9.0 and newer.
    check "parity with LLAMAPROBE_PDL" parity env LLAMAPROBE_PDL=1 "$dir/ops"
    sanitizer=$(command -v compute-sanitizer || ls "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer" 2> /dev/null || true)
    for tool in memcheck racecheck; do
        if [ -n "$sanitizer" ]; then
            check "parity under $tool" parity "$sanitizer" --tool "$tool" --error-exitcode 99 "$dir/ops"
        else
            printf 'parity under %s\tnot run: no compute-sanitizer\n' "$tool" >> "$out/checks.tsv"
        fi
    done
    for bench in device ops prompt model; do
        check "bench $bench" "$dir/bench-$bench" --bench
    done
    check "bench attention with LLAMAPROBE_HOPPER" env LLAMAPROBE_HOPPER=1 CRITERION_HOME="$out/criterion-hopper" \
        "$dir/bench-ops" --bench '^attention'
    # The words of the second say how it differs from the first.
    for pdl in 0 1; do
        check "bench steps with LLAMAPROBE_PDL $pdl" env LLAMAPROBE_PDL=$pdl CRITERION_HOME="$out/criterion-pdl" \
            "$dir/bench-model" --bench '^step'
    done
    for gemm in first timed; do
        check "bench steps with LLAMAPROBE_GEMM $gemm" env LLAMAPROBE_GEMM=$gemm CRITERION_HOME="$out/criterion-gemm" \
            "$dir/bench-model" --bench '^step'
    done
    exec "$python" "$here/peers/gpu.py" "$dir" "$out"
    ;;
*) usage ;;
esac
