#!/usr/bin/env bash
# transformers 5.24.0: yarn looks for `truncate` in `config.rope_parameters` itself, and not in the dictionary of the layer type, where all other
# keys are read: in families with a rotation by layer type (Gemma 3, OLMo 3) `truncate: false` does nothing, with no warning. In other families it acts.
#
# Expected: the key of a rotation is read where its rotation is.
# A reader that honours it turns queries and keys by other angles, and finds other logits from equal weights.
source "$(dirname "$0")/findings.sh"
python transformers==5.24.0 torch==2.15.0 <<'PY'
import sys
import torch
import transformers
from transformers import LlamaConfig, Olmo3Config
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.olmo3.modeling_olmo3 import Olmo3RotaryEmbedding

sizes = dict(vocab_size=64, hidden_size=64, intermediate_size=48, num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=512)


def angles(family, truncate):
    yarn = {"rope_type": "yarn", "rope_theta": 500000.0, "factor": 4.0, "original_max_position_embeddings": 128, "truncate": truncate}
    if family == "llama":
        return LlamaRotaryEmbedding(LlamaConfig(**sizes, rope_parameters=yarn)).inv_freq
    by_type = {"full_attention": yarn, "sliding_attention": {"rope_type": "default", "rope_theta": 500000.0}}
    return Olmo3RotaryEmbedding(Olmo3Config(**sizes, rope_parameters=by_type)).full_attention_inv_freq


print(f"transformers {transformers.__version__}")
moved = {}
for family in ("llama", "olmo3"):
    exact, rounded = angles(family, False), angles(family, True)
    moved[family] = ((exact - rounded).abs() / rounded).max().item()
    print(f"{family}: truncate moves a frequency by up to {moved[family]:.2g} of it")
sys.exit(not (moved["llama"] > 0.1 and moved["olmo3"] == 0.0))
PY
