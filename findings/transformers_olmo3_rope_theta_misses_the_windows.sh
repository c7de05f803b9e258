#!/usr/bin/env bash
# transformers 5.24.0: in the old dialect of config.json, `rope_theta` of an OLMo 3 is the base of the layers with full attention
# alone. The layers with a window, three in four, keep the class's default of 500,000, with no warning: the key is taken out of the
# arguments for the first kind of layer, and is gone when the second kind asks for it.
#
# Expected: one `rope_theta` at the top is that of all layers, as in every other family.
# A reader has to do the same, or it rotates three quarters of the layers otherwise.
source "$(dirname "$0")/findings.sh"
python transformers==5.24.0 torch==2.15.0 <<'PY'
import json, pathlib, sys, tempfile, warnings
import transformers
from transformers import AutoConfig

folder = pathlib.Path(tempfile.mkdtemp(dir="."))
sizes = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4, max_position_embeddings=64, eos_token_id=2)


def bases(family):
    (folder / "config.json").write_text(json.dumps(sizes | {"model_type": family, "rope_theta": 1234.0}))
    return AutoConfig.from_pretrained(folder).rope_parameters


with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    three, two = bases("olmo3"), bases("olmo2")
found = {kind: parameters["rope_theta"] for kind, parameters in three.items()}
about = [str(w.message) for w in said if "theta" in str(w.message)]
print(f"transformers {transformers.__version__}")
print(f"rope_theta 1234 becomes, of OLMo 3: {found}; of OLMo 2: {two['rope_theta']}; warnings: {about}")
sys.exit(not (found == {"sliding_attention": 500000.0, "full_attention": 1234.0} and two["rope_theta"] == 1234.0 and about == []))
PY
