#!/usr/bin/env bash
# transformers 5.24.0: a layer's cache with a window of w keeps the last w - 1 tokens as `keys[:, :, -w + 1 :]`, which with a window of 1 is
# `keys[:, :, 0:]`: all of them. A generated token then sees every earlier one, and `generate` writes other tokens with the cache than without, and
# than the model's own forward says, with no warning. Windows from 2 on are as without.
#
# Expected: under a window of 1 a token sees itself alone, with the cache and without.
# A comparison of generated tokens finds a difference that is the cache's.
source "$(dirname "$0")/findings.sh"
python transformers==5.24.0 torch==2.15.0 <<'PY'
import sys
import torch
import transformers
from transformers import MistralConfig, MistralForCausalLM

print(f"transformers {transformers.__version__}")
agree = {}
for window in (1, 2, 3):
    torch.manual_seed(0)
    model = MistralForCausalLM(MistralConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, sliding_window=window,
                                             initializer_range=0.5, eos_token_id=None, attn_implementation="eager")).eval()
    ids = torch.arange(3, 11)[None]
    settings = dict(attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
    with_cache, without = (model.generate(ids, use_cache=cache, **settings)[0, 8:].tolist() for cache in (True, False))
    agree[window] = with_cache == without
    print(f"window {window}: {with_cache} with the cache, {without} without")
sys.exit(agree != {1: False, 2: True, 3: True})
PY
