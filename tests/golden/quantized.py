"""Writes quantized.safetensors: matrices of every block format and the values that their own libraries decode.

NF4 and int8 by bitsandbytes, int8 weight-only by torchao, the blocks of GGUF by the `gguf` package. Where a matrix has many
blocks, every STRIDE-th value is kept. Two ways of bitsandbytes must agree here before a value is written: its kernel of this
machine, and the formula from the stored parts.
"""

import pathlib

import bitsandbytes.functional as bnb
import gguf
import numpy as np
import torch
from safetensors.torch import save_file
from torchao.quantization import Int8WeightOnlyConfig, quantize_

STRIDE = 31
out = {}


def nf4(name, shape, block, nested, dtype=torch.float32):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(len(out))).to(dtype)
    weight.view(-1)[block : 2 * block] = 0
    weight.view(-1)[0], weight.view(-1)[1] = 10, -10
    codes, state = bnb.quantize_4bit(weight, blocksize=block, compress_statistics=nested, quant_type="nf4")
    values = bnb.dequantize_4bit(codes, state)
    if not nested:
        out[f"{name}.weight"] = weight.float()
    assert values.dtype == dtype and values.shape == weight.shape
    absmax = state.absmax
    if nested:
        parts = {"nested_absmax": state.state2.absmax, "nested_quant_map": state.state2.code, "nested_offset": state.offset}
        count = torch.arange(len(absmax)) // state.state2.blocksize
        absmax = state.state2.code[state.absmax.int()] * state.state2.absmax[count] + state.offset
        out.update({f"{name}.{part}": tensor.clone() for part, tensor in parts.items()})
    flat = codes.view(-1)
    halves = torch.stack([flat >> 4, flat & 15], 1).view(-1)[: weight.numel()].int()
    formula = state.code[halves] * absmax[torch.arange(weight.numel()) // block]
    assert torch.equal(formula.to(dtype).view(shape), values), name
    out.update({f"{name}.shape": torch.tensor(shape), f"{name}.codes": flat, f"{name}.absmax": state.absmax})
    out[f"{name}.values"] = values.float().view(-1)[:: STRIDE if weight.numel() > 1024 else 1].clone()


def int8():
    weight = torch.randn((5, 7), generator=torch.Generator().manual_seed(5))
    weight[2], weight[3, 4] = 0, -9
    codes, absmax, _ = bnb.int8_vectorwise_quant(weight.half())
    out.update({"int8.weight": weight, "int8.codes": codes, "int8.absmax": absmax, "int8.values": bnb.int8_vectorwise_dequant(codes, absmax)})
    for name, dtype in {"int8_ao": torch.float32, "int8_ao_bf16": torch.bfloat16}.items():
        layer = torch.nn.Sequential(torch.nn.Linear(7, 5, bias=False))
        layer[0].weight.data = weight.to(dtype)
        quantize_(layer, Int8WeightOnlyConfig())
        quantized = layer[0].weight
        out.update({f"{name}.codes": quantized.qdata, f"{name}.scales": quantized.scale.float().view(-1)})
        out[f"{name}.values"] = quantized.dequantize().float()


def ggml(kind, scales):
    """Any bytes are codes; the scales in f16 at these places are numbers of ordinary size."""
    random = np.random.default_rng(kind.value)
    values, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = random.integers(0, 256, (4, size), dtype=np.uint8)
    for at in scales:
        blocks[:, at : at + 2] = random.normal(0, 0.02, (4, 1)).astype(np.float16).view(np.uint8)
    rows = blocks.reshape(2, 2 * size)
    out[f"{kind.name}.codes"] = torch.from_numpy(rows)
    out[f"{kind.name}.values"] = torch.from_numpy(gguf.dequantize(rows, kind))
    assert out[f"{kind.name}.values"].shape == (2, 2 * values)


def q8_0():
    """What the package makes of numbers: halves among them, and a block of zeros."""
    weight = np.random.default_rng(8).normal(size=(3, 32)).astype(np.float32)
    weight[1] = 0
    weight[2] = np.arange(-16, 16) / 2
    weight[2, 0] = 127
    codes = gguf.quantize(weight, gguf.GGMLQuantizationType.Q8_0)
    out.update({"encoded.weight": torch.from_numpy(weight), "encoded.codes": torch.from_numpy(codes)})


nf4("nf4", (3, 74), 64, False)
nf4("nf4_odd", (5, 37), 64, False)
nf4("nf4_bf16", (2, 64), 32, False, torch.bfloat16)
nf4("nf4_nested", (132, 63), 32, True)
int8()
q8_0()
places = {"Q8_0": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2]}
places |= {"Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}
for kind, scales in places.items():
    ggml(gguf.GGMLQuantizationType[kind], scales)
save_file({name: tensor.contiguous() for name, tensor in out.items()}, pathlib.Path("quantized.safetensors"))
