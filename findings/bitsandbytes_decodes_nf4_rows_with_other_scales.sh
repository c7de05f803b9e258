#!/usr/bin/env bash
# bitsandbytes 0.50.2 on a CPU with AVX-512: `dequantize_4bit` of a matrix whose rows are a multiple of 16 elements and no multiple of the
# block (64) gives other numbers than were quantised. Blocks run over the ends of rows, and the kernel for such processors counts
# them anew in every row, so that rows after the first take the scales of others. Nothing raises or warns. A Linear4bit in training mode,
# and in eval mode wherever it falls back, computes with these numbers.
#
# Expected: the numbers that the same codes and scales are when they are decoded as one row: off by no more than the quantisation.
# A checkpoint is right nevertheless: it is decoded by blocks, as it was made.
source "$(dirname "$0")/findings.sh"
python bitsandbytes==0.50.2 torch==2.15.0 numpy==2.4.6 <<'PY'
import sys
import bitsandbytes as bnb
import bitsandbytes.functional as F
import torch

if not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
    sys.exit("this needs a CPU with AVX-512: elsewhere another kernel decodes")
print(f"bitsandbytes {bnb.__version__}, torch {torch.__version__}")
wrong = {}
for rows, columns in [(64, 64), (64, 192), (64, 40), (96, 96), (64, 32), (3, 160)]:
    torch.manual_seed(0)
    weight = torch.randn(rows, columns)
    codes, state = F.quantize_4bit(weight, quant_type="nf4", blocksize=64)
    flat = F.QuantState(absmax=state.absmax, shape=torch.Size([weight.numel()]), code=state.code, blocksize=64, quant_type="nf4", dtype=state.dtype)
    errors = [(F.dequantize_4bit(codes, how).view(rows, columns) - weight).abs().max().item() for how in (state, flat)]
    print(f"[{rows}, {columns}]: largest error {errors[0]:.2f}, of the same codes as one row {errors[1]:.2f}")
    wrong[rows, columns] = errors[0] > 2 * errors[1]
sys.exit(not ([shape for shape, is_wrong in wrong.items() if is_wrong] == [(96, 96), (64, 32), (3, 160)]))
PY
