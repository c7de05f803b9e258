#!/usr/bin/env bash
# transformers 5.24.0: a key of config.json that one family reads is passed over by its neighbours, without a warning, although the
# loaded configuration has it as an attribute. `sliding_window` with `layer_types` of sliding attention makes no window
# in model_type llama, and does in mistral; `attention_bias` makes biases in llama, and none in mistral;
# in qwen2 it is false and the biases are there; `partial_rotary_factor` rotates half of a head in phi3 and all of it in llama.
#
# Expected: the key does what its name says, or a warning that this model has no such thing.
# A reader has to refuse such keys where they would change a number, or follow the family and not the key.
source "$(dirname "$0")/findings.sh"
python transformers==5.24.0 torch==2.15.0 <<'PY'
import json, logging, pathlib, sys, tempfile
import torch, transformers
from transformers import AutoModelForCausalLM

shape = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4,
         "max_position_embeddings": 64, "initializer_range": 0.2, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
records = []
handler = logging.Handler(logging.WARNING)
handler.emit = lambda record: records.append(record.getMessage())
logging.getLogger("transformers").addHandler(handler)


def model(family, **keys):
    folder = pathlib.Path(tempfile.mkdtemp(dir="."))
    (folder / "config.json").write_text(json.dumps({"model_type": family, **shape, **keys}))
    torch.manual_seed(0)
    config = transformers.AutoConfig.from_pretrained(folder)
    return AutoModelForCausalLM.from_config(config).eval()


def window(family):
    keys = {"layer_types": ["sliding_attention"] * 2} if family == "llama" else {}
    with torch.no_grad():
        far, near = (model(family, sliding_window=w, **keys)(input_ids=torch.arange(1, 17)[None]).logits for w in [64, 4])
    return bool((far - near).abs().max() > 1e-3)


def bias(family, key):
    return model(family, attention_bias=key).model.layers[0].self_attn.q_proj.bias is not None


def rotated(family):
    return 2 * len(model(family, partial_rotary_factor=0.5).model.rotary_emb.inv_freq)


print(f"transformers {transformers.__version__}, torch {torch.__version__}")
seen = {
    "sliding_window 4 changes logits": {family: window(family) for family in ["mistral", "llama"]},
    "attention_bias true makes biases": {family: bias(family, True) for family in ["llama", "mistral"]},
    "attention_bias false leaves biases": {family: bias(family, False) for family in ["llama", "qwen2"]},
    "rotated of 8 with partial_rotary_factor 0.5": {family: rotated(family) for family in ["phi3", "llama"]},
}
for name, families in seen.items():
    print(f"{name}: {families}")
print(f"warnings logged: {records}")
sys.exit([list(families.values()) for families in seen.values()] != [[True, False], [True, False], [False, True], [4, 8]] or records != [])
PY
