#!/usr/bin/env bash
# bm25s 0.3.16: which of two documents of equal score comes first, and which are returned when none matches, depends on whether jax
# is installed beside it. The same call on the same index gives the later document first without jax and the earlier one
# with it, since the default of `backend_selection` is "auto". Cut at k, other documents are returned.
#
# Expected: one order for equal scores, or jax only where it is asked for.
# Who retrieves demonstrations has to name the backend, or sort ties, for two machines to give the same prompt.
source "$(dirname "$0")/findings.sh"
look() {
    python "$@" <<'PY'
import importlib.util
from importlib.metadata import version
import bm25s

index = bm25s.BM25()
index.index(bm25s.tokenize(["red fox", "blue fox", "green cat"], show_progress=False), show_progress=False)
found = {}
for query in ["fox", "zebra"]:
    documents, scores = index.retrieve(bm25s.tokenize([query], show_progress=False), k=2, show_progress=False)
    found[query] = documents[0].tolist()
jax = f"jax {version('jax')}" if importlib.util.find_spec("jax") else "no jax"
print(f"bm25s {version('bm25s')}, {jax}: {found}")
PY
}
without=$(look bm25s==0.3.16 numpy==2.4.6)
with=$(look bm25s==0.3.16 numpy==2.4.6 jax==0.10.2)
echo "$without"
echo "$with"
[[ $without == *"{'fox': [1, 0], 'zebra': [2, 1]}" && $with == *"{'fox': [0, 1], 'zebra': [0, 1]}" ]]
