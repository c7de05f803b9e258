"""Writes gguf_written/: tiny random models, and the GGUF files that llama.cpp's converter makes of them with `--outtype q8_0`.

    gguf_written.py FOLDER

NAME/ is the model as transformers saves it, with `expected.safetensors`: `ids.S`, and `logits.S` of the values that the `gguf`
package decodes. NAME.gguf has its tensors as `quants.quantize` of that package makes them: matrices in Q8_0, in F16 where rows are
no multiple of 32, norms, biases and learned positions in F32, names of its own table, rows of q and k of `llama` permuted,
GPT-2's matrices transposed. Its keys and values are those of `set_gguf_parameters` of `conversion/base.py`, `llama.py`, `qwen.py` and
`gpt2.py` in llama.cpp; there is no vocabulary.
"""

import pathlib
import sys

import gguf
import numpy as np
import torch
import transformers as T
from gguf import GGMLQuantizationType as Type
from gguf_models import LENGTHS, VOCAB, back, names, permute, randomise
from safetensors.torch import save_file

BASE = dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=40, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
            bos_token_id=1, eos_token_id=2, pad_token_id=None)
LLAMA3 = {"rope_type": "llama3", "rope_theta": 50.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 2.0, "original_max_position_embeddings": 16}
YARN = {"rope_type": "yarn", "rope_theta": 700.0, "factor": 4.0, "original_max_position_embeddings": 16}
GPT2 = dict(vocab_size=VOCAB, n_embd=32, n_layer=1, n_head=2, n_positions=24, bos_token_id=0, eos_token_id=0)
CASES = {
    "llama": ("llama", T.LlamaForCausalLM, T.LlamaConfig(**BASE)),
    "llama3": ("llama", T.LlamaForCausalLM, T.LlamaConfig(**BASE, attention_bias=True, tie_word_embeddings=True, rope_parameters=LLAMA3)),
    "mistral": ("llama", T.MistralForCausalLM, T.MistralConfig(**BASE, sliding_window=None, rope_parameters=YARN)),
    "qwen2": ("qwen2", T.Qwen2ForCausalLM, T.Qwen2Config(**BASE, tie_word_embeddings=True)),
    "qwen3": ("qwen3", T.Qwen3ForCausalLM, T.Qwen3Config(**BASE, head_dim=16)),
    "gpt2": ("gpt2", T.GPT2LMHeadModel, T.GPT2Config(**GPT2)),
}


def metadata(writer, arch, config, name):
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(4 * config.n_embd if arch == "gpt2" else config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    if arch == "gpt2":
        return writer.add_layer_norm_eps(config.layer_norm_epsilon)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if arch == "llama":
        writer.add_vocab_size(config.vocab_size)
        writer.add_rope_dimension_count(head_dim)
    if rope["rope_type"] == "llama3":
        scaled = T.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")[0]
        plain = 1.0 / rope["rope_theta"] ** (torch.arange(0, head_dim, 2).float() / head_dim)
        writer.add_tensor("rope_freqs.weight", (plain / scaled).numpy())


def main():
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(exist_ok=True)
    for seed, (name, (arch, kind, config)) in enumerate(CASES.items()):
        torch.manual_seed(500 + seed)
        config._attn_implementation = "eager"
        net = kind(config).eval()
        randomise(net)
        net.to(torch.bfloat16).save_pretrained(folder / name)
        (folder / name / "generation_config.json").unlink()
        net = kind.from_pretrained(folder / name, dtype=torch.float32, attn_implementation="eager").eval()
        writer = gguf.GGUFWriter(folder / f"{name}.gguf", arch)
        metadata(writer, arch, config, name)
        table = names(arch, config.num_hidden_layers)
        for key, tensor in net.state_dict().items():
            if config.tie_word_embeddings and key == "lm_head.weight":
                continue
            stored = table.get_name(key, try_suffixes=(".weight", ".bias"))
            heads = {"attn_q": config.num_attention_heads, "attn_k": getattr(config, "num_key_value_heads", 0)}.get(stored.split(".")[2] if stored.startswith("blk") else "", 0) if arch == "llama" else 0
            values = tensor.numpy()
            transposed = arch == "gpt2" and values.ndim == 2 and stored.startswith("blk")
            values = np.ascontiguousarray(permute(values, heads) if heads else values.T if transposed else values)
            if values.ndim == 1 or stored == "position_embd.weight":
                writer.add_tensor(stored, values)
                continue
            wanted = Type.F16 if values.shape[1] % 32 else Type.Q8_0
            data = gguf.quantize(values, wanted)
            writer.add_tensor(stored, data, raw_dtype=wanted)
            values = gguf.dequantize(data, wanted).astype(np.float32)
            tensor.copy_(torch.tensor(np.ascontiguousarray(back(values, heads) if heads else values.T if transposed else values)))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        out, sequences = {}, [torch.randint(3, VOCAB, (1, length)) for length in LENGTHS]
        with torch.no_grad():
            for s, ids in enumerate(sequences):
                out |= {f"ids.{s}": ids[0], f"logits.{s}": net(input_ids=ids).logits[0]}
        save_file({key: value.clone().contiguous() for key, value in out.items()}, folder / name / "expected.safetensors")


if __name__ == "__main__":
    main()
