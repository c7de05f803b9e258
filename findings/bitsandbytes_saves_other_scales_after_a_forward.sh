#!/usr/bin/env bash
# bitsandbytes 0.50.2, on a CPU with AVX512-BF16: the first forward of a Linear4bit in eval mode rewrites its weight for the
# CPU's kernel, with the blocks' scales in bfloat16, and `state_dict` turns back the codes but not the scales. A model that is
# saved after it was evaluated is another model than the one that was quantised, with double quantisation and without.
#
# Expected: to evaluate changes nothing, or what is saved is what was quantised. Compare with the checkpoint as it was written
# before any forward; llamaprobe decodes what the file says.
source "$(dirname "$0")/findings.sh"
python bitsandbytes==0.50.2 torch==2.15.0 numpy==2.4.6 <<'PY'
import sys
import bitsandbytes as bnb
import torch

from_dict = bnb.functional.QuantState.from_dict
worst = {}
for nested in (False, True):
    torch.manual_seed(0)
    layer = bnb.nn.Linear4bit(64, 64, bias=False, quant_type="nf4", compute_dtype=torch.float32)
    layer.weight = bnb.nn.Params4bit(torch.randn(64, 64), requires_grad=False, quant_type="nf4", compress_statistics=nested)
    layer = layer.to("cpu").eval()
    if not layer.support_avx512bf16_for_cpu:
        sys.exit("this needs a CPU with AVX512-BF16: elsewhere bitsandbytes leaves the weight as it is")

    def saved():
        state = layer.state_dict()
        parts = {name.removeprefix("weight."): tensor for name, tensor in state.items() if name != "weight"}
        return bnb.functional.dequantize_4bit(state["weight"], from_dict(parts, device="cpu")).clone()

    before = saved()
    with torch.no_grad():
        layer(torch.randn(4, 64))
    after = saved()
    worst[nested] = ((after - before).abs().max() / before.abs().max()).item(), (after != before).float().mean().item()
print(f"bitsandbytes {bnb.__version__}, torch {torch.__version__}")
for nested, (far, share) in worst.items():
    print(f"double quantisation {nested}: saved after one forward, {100 * share:.0f}% of the values are others, by up to {far:.1e} of the largest")
sys.exit(not all(1e-4 < far < 2e-2 and share > 0.5 for far, share in worst.values()))
PY
