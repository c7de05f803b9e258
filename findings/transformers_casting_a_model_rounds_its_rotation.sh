#!/usr/bin/env bash
# transformers 5.24.0: a model that was cast to bfloat16 and back to float32 (`model.to(torch.bfloat16).float()`) is another model
# than the one that `from_pretrained(..., dtype=torch.float32)` makes of its file, although all weights are equal: the
# cast rounds the frequencies of the rotation too, a buffer that no file has, and nothing computes them anew.
#
# The weights here are numbers that bfloat16 has, so that the casts change none of them.
# Expected: the same logits, or frequencies that stay in float32 as they do in `from_pretrained(..., dtype=torch.bfloat16)`.
# Reference values that are computed behind `.to(dtype)` or `.half()` have other angles than the checkpoint has for its users.
source "$(dirname "$0")/findings.sh"
python transformers==5.24.0 torch==2.15.0 numpy==2.4.6 <<'PY'
import sys, tempfile
import torch, transformers
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(vocab_size=32, hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)).eval()
for weight in model.parameters():
    weight.data = weight.data.bfloat16().float()
ids = torch.arange(1, 31)[None].repeat(1, 8)


def rotation(model):
    return model.model.rotary_emb.inv_freq


with torch.no_grad():
    logits, exact = model(ids).logits, rotation(model).clone()
    weights = [weight.clone() for weight in model.parameters()]
    model.to(torch.bfloat16)
    with tempfile.TemporaryDirectory(dir=".") as folder:
        model.save_pretrained(folder)
        loaded = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        narrow = LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model.float()
    same = all(torch.equal(a, b) for a, b in zip(weights, model.parameters()))
    apart = lambda other: ((other(ids).logits - logits).abs().max() / logits.abs().max()).item()
    rounded = ((rotation(model) - exact) / exact).abs().max().item()

print(f"transformers {transformers.__version__}, torch {torch.__version__}")
print(f"weights equal: {same}; frequencies, cast and cast back: {rounded:.1e} off; of a model loaded in bfloat16: {rotation(narrow).dtype}")
print(f"logits, as a share of the largest: cast and cast back {apart(model):.1e} off, loaded in float32 {apart(loaded):.1e}")
sys.exit(not (same and 1e-3 < rounded < 4e-3 and apart(model) > 1e-5 and apart(loaded) == 0 and rotation(narrow).dtype == torch.float32))
PY
