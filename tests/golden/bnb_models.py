"""Writes bnb/: tiny random models quantised by transformers and bitsandbytes, and what transformers computes with their values.

    bnb_models.py FOLDER

Each directory is a checkpoint as `save_pretrained` writes it. `expected.safetensors` in it has `ids.S` and, in f32, `logits.S` of
the model whose weights are the values that bitsandbytes decodes; and `exact.S`, of the weights before they were
quantised, which are in `base/`.
"""

import pathlib
import shutil
import sys
import tempfile

import bitsandbytes as bnb
import torch
import transformers as T
from safetensors.torch import save_file

VOCAB, LENGTHS = 29, [1, 6, 19]
LLAMA = dict(vocab_size=VOCAB, hidden_size=24, intermediate_size=20, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64, bos_token_id=1, eos_token_id=2,
             pad_token_id=None)
GPT2 = dict(vocab_size=VOCAB, n_embd=24, n_inner=20, n_layer=1, n_head=2, n_positions=24, bos_token_id=0, eos_token_id=0)
NF4 = dict(load_in_4bit=True, bnb_4bit_quant_type="nf4")
CASES = {
    "llama-nf4": (T.LlamaForCausalLM, T.LlamaConfig(**LLAMA), torch.bfloat16, dict(**NF4)),
    "llama-nested": (T.LlamaForCausalLM, T.LlamaConfig(**LLAMA), torch.float32, dict(**NF4, bnb_4bit_use_double_quant=True)),
    "gpt2-nf4": (T.GPT2LMHeadModel, T.GPT2Config(**GPT2), torch.float32, dict(**NF4)),
    "llama-int8": (T.LlamaForCausalLM, T.LlamaConfig(**LLAMA), torch.float16, dict(load_in_8bit=True)),
}


def values(module):
    """What bitsandbytes decodes, `[output, input]`."""
    if isinstance(module, bnb.nn.Linear4bit):
        return bnb.functional.dequantize_4bit(module.weight, module.weight.quant_state)
    scales = module.state.SCB if module.weight.SCB is None else module.weight.SCB
    return bnb.functional.int8_vectorwise_dequant(module.weight.data, scales)


def logits(model, sequences, name):
    with torch.no_grad():
        return {f"{name}.{s}": model(input_ids=ids).logits[0].clone() for s, ids in enumerate(sequences)}


def main():
    folder = pathlib.Path(sys.argv[1])
    for seed, (name, (kind, config, dtype, how)) in enumerate(CASES.items()):
        torch.manual_seed(300 + seed)
        plain = kind(config)
        with torch.no_grad():
            for key, weight in plain.named_parameters():
                one = 1.0 if key.endswith("weight") and ("norm" in key or "ln_" in key) else 0.0
                weight.copy_((one + torch.randn_like(weight) * (0.2 if one else 0.3)).to(dtype))
        with tempfile.TemporaryDirectory() as base:
            plain.to(dtype).save_pretrained(base)
            quantized = kind.from_pretrained(base, quantization_config=T.BitsAndBytesConfig(**how), dtype=dtype, device_map="cpu")
            out = folder / name
            quantized.save_pretrained(out)
            if "nested" not in name:
                shutil.copytree(base, out / "base", dirs_exist_ok=True)
            # Read anew: what was cast to a narrow dtype has a rotation of rounded frequencies.
            plain = kind.from_pretrained(base, dtype=torch.float32).eval()
        for file in out.rglob("generation_config.json"):
            file.unlink()
        sequences = [torch.randint(3, VOCAB, (1, length)) for length in LENGTHS]
        expected = logits(plain, sequences, "exact")
        with torch.no_grad():
            for key, module in quantized.named_modules():
                if isinstance(module, (bnb.nn.Linear4bit, bnb.nn.Linear8bitLt)):
                    weight = plain.get_submodule(key).weight
                    decoded = values(module).float()
                    weight.copy_(decoded.T if "gpt2" in name else decoded)
        expected |= {f"ids.{s}": ids[0] for s, ids in enumerate(sequences)} | logits(plain, sequences, "logits")
        save_file(expected, out / "expected.safetensors")


if __name__ == "__main__":
    main()
