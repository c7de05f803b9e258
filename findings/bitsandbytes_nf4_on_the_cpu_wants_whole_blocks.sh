#!/usr/bin/env bash
# bitsandbytes 0.50.2, on a CPU with AVX512-BF16: a Linear4bit of NF4 whose outputs are no multiple of 32, or whose inputs are
# no multiple of the block (64), is quantised, saved, loaded and trained, but a forward in eval mode without gradients raises.
# Such layers are common in small models (widths of 48, 72, 96). It goes through in training mode.
#
# Expected: the same result in both modes, as on every other device, where blocks run over the ends of rows.
source "$(dirname "$0")/findings.sh"
python bitsandbytes==0.50.2 torch==2.15.0 numpy==2.4.6 <<'PY'
import sys
import bitsandbytes as bnb
import torch


def forward(outputs, inputs, train):
    torch.manual_seed(0)
    layer = bnb.nn.Linear4bit(inputs, outputs, bias=False, quant_type="nf4", compute_dtype=torch.float32)
    layer.weight = bnb.nn.Params4bit(torch.randn(outputs, inputs), requires_grad=False, quant_type="nf4", compress_statistics=False)
    layer = layer.to("cpu").train(train)
    if not layer.support_avx512bf16_for_cpu:
        sys.exit("this needs a CPU with AVX512-BF16: elsewhere both modes go one way")
    try:
        with torch.no_grad():
            return type(layer(torch.randn(4, inputs))).__name__
    except (AssertionError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"


print(f"bitsandbytes {bnb.__version__}, torch {torch.__version__}")
found = {}
for outputs, inputs in [(64, 64), (48, 64), (64, 96)]:
    found[outputs, inputs] = [forward(outputs, inputs, train) for train in (False, True)]
    print(f"{inputs} inputs, {outputs} outputs: eval {found[outputs, inputs][0]!r}, train {found[outputs, inputs][1]!r}")
raised = [results[0] != "Tensor" for results in found.values()]
sys.exit(not (raised == [False, True, True] and all(results[1] == "Tensor" for results in found.values())))
PY
