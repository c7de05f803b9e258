#!/usr/bin/env bash
# transformers 5.24.0: in families with a rotation by layer type (Gemma 3, OLMo 3) `rope_scaling` with its kind under the older key `type` is
# laid over a dictionary that already says `rope_type: default`, so that it does nothing; a line of the logger calls `factor`
# unrecognized, and nothing names the kind. Under `rope_type`, and in
# other families under either key, it acts.
#
# Expected: `type` and `rope_type` mean the same, as everywhere.
# A reader that honours `type` computes another model; one that is to warn has to look for it.
source "$(dirname "$0")/findings.sh"
python transformers==5.24.0 torch==2.15.0 <<'PY'
import json, pathlib, sys, tempfile, warnings
import transformers
from transformers import AutoConfig

folder = pathlib.Path(tempfile.mkdtemp(dir="."))
sizes = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=64,
             eos_token_id=2, bos_token_id=1, pad_token_id=0)


def kind(family, key):
    (folder / "config.json").write_text(json.dumps(sizes | {"model_type": family, "rope_theta": 1e6, "rope_scaling": {key: "linear", "factor": 8.0}}))
    found = AutoConfig.from_pretrained(folder).rope_parameters
    return found.get("full_attention", found)["rope_type"]


with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    found = {(family, key): kind(family, key) for family in ("gemma3_text", "olmo3", "llama") for key in ("type", "rope_type")}
about = [str(w.message) for w in said if "rope" in str(w.message)]
print(f"transformers {transformers.__version__}")
for (family, key), rope_type in found.items():
    print(f"{family}: rope_scaling {{{key}: linear, factor: 8}} is {rope_type}")
print(f"warnings: {about}")
expected = {case: "default" if case[1] == "type" and case[0] != "llama" else "linear" for case in found}
sys.exit(not (found == expected and about == []))
PY
