#!/usr/bin/env bash
# torch 2.15.0 with bitsandbytes 0.50.2: `number / tensor` is not a division. torch multiplies the number by the tensor's reciprocal, which is
# rounded twice, so that of f32 quotients 127 / x a quarter are other numbers than numpy's, or than those of torch.div of the same two, which
# is rounded once. bitsandbytes scales the rows of int8 weights by such a quotient: a weight that would lie halfway between two codes gets
# another code than its formula says.
#
# Expected: a quotient that is correctly rounded, as IEEE 754 has it and as `tensor / tensor` and `tensor / number` are.
source "$(dirname "$0")/findings.sh"
python torch==2.15.0 bitsandbytes==0.50.2 numpy==2.4.6 <<'PY'
import sys
import bitsandbytes, numpy, torch
from bitsandbytes.functional import int8_vectorwise_quant

print(f"torch {torch.__version__}, bitsandbytes {bitsandbytes.__version__}, numpy {numpy.__version__}")
x = torch.arange(1, 65505, dtype=torch.float32) / 256
by_number = 127.0 / x
by_tensor = torch.div(torch.tensor(127.0), x)
correct = torch.from_numpy(numpy.float32(127) / x.numpy())
others = int((by_number != correct).sum())
print(f"of {len(x)} quotients 127 / x: `127.0 / x` has {others} others than numpy, torch.div {int((by_tensor != correct).sum())}")
assert torch.equal(by_number, x.reciprocal() * 127.0)

# Rows of a largest magnitude and of what lies nearest to the middle between two codes.
halves = torch.arange(0.5, 127, 1)
largest = torch.arange(1, 2049, dtype=torch.float32) / 256
rows = torch.cat([largest[:, None], (halves * largest[:, None] / 127)], dim=1).half()
codes = int8_vectorwise_quant(rows)[0]
absmax = rows.float().abs().amax(dim=1, keepdim=True)
once = torch.round(rows.float() * torch.div(torch.tensor(127.0), absmax)).to(torch.int8)
apart = int((codes != once).sum())
print(f"of {codes.numel()} int8 codes of bitsandbytes {apart} are others than those of a division that is rounded once")
sys.exit(not (torch.equal(by_tensor, correct) and 0.2 < others / len(x) < 0.3 and apart > 0))
PY
