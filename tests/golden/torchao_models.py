"""Writes torchao/: tiny random models quantised to int8 by transformers and torchao, and what transformers computes with their values.

    torchao_models.py FOLDER

Each directory is a checkpoint as `save_pretrained` writes it. `expected.safetensors` in it has `ids.S` and, in f32, `logits.S` of
the model whose weights are the values that torchao decodes, `exact.S` of the weights before they were quantised, and under its own
name every fifth value of each quantised weight. Of GPT-2, whose matrices are no `nn.Linear`, nothing is quantised, and of the tables
of `include_input_output_embeddings` the head alone.
"""

import pathlib
import sys
import tempfile

import torch
import transformers as T
from safetensors.torch import save_file
from torchao.quantization import Int8Tensor, Int8WeightOnlyConfig

VOCAB, LENGTHS = 29, [1, 6, 19]
LLAMA = dict(vocab_size=VOCAB, hidden_size=24, intermediate_size=20, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64, bos_token_id=1, eos_token_id=2,
             pad_token_id=None)
OPT = dict(vocab_size=VOCAB, hidden_size=24, word_embed_proj_dim=24, ffn_dim=20, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=24, bos_token_id=2, eos_token_id=2, pad_token_id=1)
GPT2 = dict(vocab_size=VOCAB, n_embd=16, n_inner=20, n_layer=1, n_head=2, n_positions=24, bos_token_id=0, eos_token_id=0)
CASES = {
    "llama": (T.LlamaForCausalLM, T.LlamaConfig(**LLAMA), torch.bfloat16, {}),
    "llama-head": (T.LlamaForCausalLM, T.LlamaConfig(**LLAMA), torch.float32, dict(include_input_output_embeddings=True)),
    "opt": (T.OPTForCausalLM, T.OPTConfig(**OPT), torch.float16, {}),
    "gpt2": (T.GPT2LMHeadModel, T.GPT2Config(**GPT2), torch.float32, {}),
}


def logits(model, sequences, name):
    with torch.no_grad():
        return {f"{name}.{s}": model(input_ids=ids).logits[0].clone() for s, ids in enumerate(sequences)}


def main():
    folder = pathlib.Path(sys.argv[1])
    for seed, (name, (kind, config, dtype, how)) in enumerate(CASES.items()):
        torch.manual_seed(400 + seed)
        plain = kind(config)
        with torch.no_grad():
            for key, weight in plain.named_parameters():
                one = 1.0 if key.endswith("weight") and ("norm" in key or "ln_" in key) else 0.0
                weight.copy_((one + torch.randn_like(weight) * (0.2 if one else 0.3)).to(dtype))
        with tempfile.TemporaryDirectory() as base:
            plain.to(dtype).save_pretrained(base)
            quantized = kind.from_pretrained(base, quantization_config=T.TorchAoConfig(Int8WeightOnlyConfig(), **how), dtype=dtype)
            out = folder / name
            quantized.save_pretrained(out)
            # Read anew: what was cast to a narrow dtype has a rotation of rounded frequencies.
            plain = kind.from_pretrained(base, dtype=torch.float32).eval()
        (out / "generation_config.json").unlink()
        sequences = [torch.randint(3, VOCAB, (1, length)) for length in LENGTHS]
        expected = logits(plain, sequences, "exact")
        with torch.no_grad():
            for key, weight in quantized.named_parameters():
                if isinstance(weight, Int8Tensor):
                    values = weight.dequantize().float()
                    plain.get_parameter(key).copy_(values)
                    expected[key] = values.flatten()[::5].clone()
        expected |= {f"ids.{s}": ids[0] for s, ids in enumerate(sequences)} | logits(plain, sequences, "logits")
        save_file(expected, out / "expected.safetensors")


if __name__ == "__main__":
    main()
