#!/usr/bin/env bash
# transformers 5.24.0: with `is_causal: false` in config.json, a model with a sliding window of w looks w tokens back and w ahead, w * 2 + 1
# in all. The same window is of w tokens, w - 1 of them back, as long as attention is causal: the edge moves by one
# token on the side that both have, in eager attention and in sdpa.
#
# Expected: the keys at a distance of less than w on both sides, so that turning the mask off only adds what lies ahead.
# A reader has to make the edge depend on the direction of attention.
source "$(dirname "$0")/findings.sh"
python transformers==5.24.0 torch==2.15.0 <<'PY'
import sys
import torch, transformers
from transformers import MistralConfig, MistralForCausalLM

ids = torch.arange(1, 17)[None]
keys, logits = {}, {}
for causal in [True, False]:
    for attention in ["eager", "sdpa"]:
        torch.manual_seed(0)
        config = MistralConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=4,
                               sliding_window=4, initializer_range=0.2, is_causal=causal, attn_implementation=attention)
        with torch.no_grad():
            out = MistralForCausalLM(config).eval()(input_ids=ids, output_attentions=attention == "eager")
        logits[causal, attention] = out.logits
        if attention == "eager":
            keys[causal] = out.attentions[0][0, 0, 8].nonzero().flatten().tolist()
apart = max((logits[causal, "eager"] - logits[causal, "sdpa"]).abs().max().item() for causal in [True, False])

print(f"transformers {transformers.__version__}, torch {torch.__version__}")
for causal, seen in keys.items():
    print(f"is_causal {causal}, window 4: token 8 looks at {seen}")
print(f"eager and sdpa differ by {apart:.1e}")
sys.exit(not (keys == {True: [5, 6, 7, 8], False: [4, 5, 6, 7, 8, 9, 10, 11, 12]} and apart < 1e-4))
PY
