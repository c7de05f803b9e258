#!/usr/bin/env bash
# transformers 5.24.0: in float64 with eager attention, a padded batch through a model with a sliding window gives nan for the
# loss and for every gradient, where padding rows lie further than the window behind the last token: they see no key at all, and the
# masked scores of float64 are minus infinity. In float32, and by sdpa in float64, the same batch is finite.
#
# Expected: float64 as a reference differs from float32 in the last digits alone, whatever the padding.
# Who makes a reference in float64 has to run such sequences one by one.
source "$(dirname "$0")/findings.sh"
python transformers==5.24.0 torch==2.15.0 <<'PY'
import sys
import torch, transformers
from transformers import MistralConfig, MistralForCausalLM

SIZES = dict(vocab_size=32, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, sliding_window=3, pad_token_id=None)
ids = torch.tensor([[1, 5, 6, 7, 8, 9, 10, 11, 12, 13], [1, 5, 6, 0, 0, 0, 0, 0, 0, 0]])
mask = torch.tensor([[1] * 10, [1] * 3 + [0] * 7])
labels = ids.masked_fill(mask == 0, -100)


def losses(dtype, attention, rows):
    torch.manual_seed(0)
    model = MistralForCausalLM(MistralConfig(**SIZES, attn_implementation=attention)).to(dtype)
    loss = model(input_ids=ids[rows], attention_mask=mask[rows], labels=labels[rows]).loss
    loss.backward()
    return loss.item(), all(p.grad.isnan().any() for p in model.parameters())


found = {(str(dtype).split(".")[1], attention): losses(dtype, attention, slice(None)) for dtype in (torch.float32, torch.float64) for attention in ("eager", "sdpa")}
print(f"transformers {transformers.__version__}, torch {torch.__version__}")
for case, (loss, broken) in found.items():
    print(f"{case}: loss {loss:.4f}, every gradient has nan: {broken}")
bad = found.pop(("float64", "eager"))
sys.exit(not (bad[0] != bad[0] and bad[1] and all(loss == loss and not broken for loss, broken in found.values())))
PY
