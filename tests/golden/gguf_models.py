"""Writes gguf/: tiny random models and small tokenizers as GGUF files, and what transformers computes with the same weights.

    gguf_models.py FOLDER      # beside tokenizers/

Names of tensors are those of the `gguf` package's own table, keys and values of its writer; rows of q and k of the architecture
`llama` are permuted, 1 is added to Gemma's norms and GPT-2's matrices are transposed as llama.cpp's converter does it. NAME.gguf
is a model and NAME.safetensors has `ids.S` and `logits.S` of its sequences, of the values that the `gguf` package decodes; for
llama `unpermuted.S` are those of the mistake of leaving rows as they are stored. NAME.gguf without the latter is a tokenizer of
tokenizers/NAME. lora.gguf is an adapter of llama.gguf in llama.cpp's form, whose logits are `adapted.S`.
"""

import json
import pathlib
import sys

import gguf
import numpy as np
import torch
import transformers as T
from gguf import GGMLQuantizationType as Type
from safetensors.torch import save_file

VOCAB, LENGTHS = 29, [1, 6, 19]
BASE = dict(vocab_size=VOCAB, hidden_size=16, intermediate_size=20, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64,
            bos_token_id=1, eos_token_id=2, pad_token_id=None)
LLAMA3 = {"rope_type": "llama3", "rope_theta": 50.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 2.0, "original_max_position_embeddings": 16}
LONG = {"rope_type": "longrope", "rope_theta": 50.0, "partial_rotary_factor": 0.75, "short_factor": [1.0, 1.3, 2.5], "long_factor": [1.5, 4.0, 9.0]}
GEMMA = dict(head_dim=6, query_pre_attn_scalar=6, sliding_window=5)
ROPES = {"sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}, "full_attention": {"rope_type": "linear", "rope_theta": 900.0, "factor": 4.0}}
# Blocks of 256 need rows of as many.
WIDE = BASE | dict(hidden_size=256, intermediate_size=32, num_hidden_layers=1, head_dim=32)
BLOCKS = {"q": Type.Q6_K, "k": Type.Q5_K, "v": Type.Q4_K, "output": Type.Q8_0, "gate": Type.Q4_0, "up": Type.Q8_0, "down": Type.Q4_0, "token_embd": Type.Q6_K}
# What llama.cpp takes in place of blocks of 256 where rows are no multiples of them.
NARROW = BASE | dict(hidden_size=64, intermediate_size=96, num_hidden_layers=1)
FALLBACKS = {"q": Type.Q5_0, "k": Type.Q5_1, "v": Type.Q4_1, "output": Type.Q5_0, "gate": Type.Q5_0, "up": Type.Q4_1, "down": Type.Q5_1, "token_embd": Type.Q5_0}
CASES = {
    "llama": ("llama", T.LlamaForCausalLM, T.LlamaConfig(**BASE, rope_parameters=LLAMA3), Type.F32),
    "llama-f16": ("llama", T.LlamaForCausalLM, T.LlamaConfig(**BASE, tie_word_embeddings=True, attention_bias=True, mlp_bias=True), Type.F16),
    "llama-blocks": ("llama", T.LlamaForCausalLM, T.LlamaConfig(**WIDE, tie_word_embeddings=True), BLOCKS),
    "qwen2": ("qwen2", T.Qwen2ForCausalLM, T.Qwen2Config(**BASE), Type.BF16),
    "qwen3": ("qwen3", T.Qwen3ForCausalLM, T.Qwen3Config(**BASE, head_dim=6, tie_word_embeddings=True), Type.F32),
    "gemma2": ("gemma2", T.Gemma2ForCausalLM, T.Gemma2Config(**BASE, **GEMMA, attn_logit_softcapping=1.5, final_logit_softcapping=2.0), Type.F32),
    "gemma3": ("gemma3", T.Gemma3ForCausalLM, T.Gemma3TextConfig(**BASE | dict(num_hidden_layers=6), **GEMMA, rope_parameters=ROPES), Type.F32),
    "gpt2": ("gpt2", T.GPT2LMHeadModel, T.GPT2Config(vocab_size=VOCAB, n_embd=16, n_inner=20, n_layer=2, n_head=2, n_positions=24, bos_token_id=0, eos_token_id=0), Type.F32),
    "phi3": ("phi3", T.Phi3ForCausalLM, T.Phi3Config(**BASE, original_max_position_embeddings=8, tie_word_embeddings=True, rope_parameters=LONG), Type.F32),
    "qwen2-blocks": ("qwen2", T.Qwen2ForCausalLM, T.Qwen2Config(**NARROW, tie_word_embeddings=True), FALLBACKS),
}


def randomise(model):
    one_plus = "gemma" in model.config.model_type
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if "norm" in key or "ln_" in key:
                weight.copy_((1.0 if key.endswith("weight") and not one_plus else 0.0) + 0.2 * torch.randn_like(weight))
            else:
                weight.copy_(torch.randn_like(weight) * 0.3)


def permute(rows, heads):
    """`LlamaModel.permute` of convert_hf_to_gguf.py."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def back(rows, heads):
    return rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def blocks(values, kind, seed):
    """Bytes of a type and their values: quantised where the package can, else any with scales of ordinary size."""
    try:
        data = gguf.quantize(values, kind)
    except NotImplementedError:
        random = np.random.default_rng(seed)
        per, size = gguf.GGML_QUANT_SIZES[kind]
        data = random.integers(0, 256, (values.size // per, size), dtype=np.uint8)
        for at in {Type.Q6_K: [208]}.get(kind, [0, 2]):
            scale = 6e-5 if kind == Type.Q6_K else 2e-4
            data[:, at : at + 2] = random.normal(0, scale, (len(data), 1)).astype(np.float16).view(np.uint8)
        data = data.reshape(values.shape[0], -1)
    return data, gguf.dequantize(data, kind)


def metadata(writer, arch, config):
    gpt2 = arch == "gpt2"
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.n_inner if gpt2 else config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    if gpt2:
        return writer.add_layer_norm_eps(config.layer_norm_epsilon)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    ropes = config.rope_parameters
    writer.add_rope_freq_base(ropes.get("full_attention", ropes)["rope_theta"])
    if arch in ("llama", "qwen3", "gemma2", "gemma3"):
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    if arch == "llama":
        writer.add_rope_dimension_count(head_dim)
        writer.add_vocab_size(config.vocab_size)
        if ropes["rope_type"] == "llama3":
            rope = T.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")[0]
            plain = 1.0 / ropes["rope_theta"] ** (torch.arange(0, head_dim, 2).float() / head_dim)
            writer.add_tensor("rope_freqs.weight", (plain / rope).numpy())
    if "gemma" in arch:
        writer.add_sliding_window(config.sliding_window)
    if arch == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if arch == "gemma3":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(ropes["full_attention"]["factor"])
    if arch == "phi3":
        scale = config.max_position_embeddings / config.original_max_position_embeddings
        writer.add_rope_dimension_count(int(head_dim * ropes["partial_rotary_factor"]))
        writer.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings)
        writer.add_rope_scaling_attn_factors((1 + np.log(scale) / np.log(config.original_max_position_embeddings)) ** 0.5)
        for name in ("long", "short"):
            writer.add_tensor(f"rope_factors_{name}.weight", np.array(ropes[f"{name}_factor"], dtype=np.float32))


def names(arch, layers):
    kind = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    return gguf.get_tensor_name_map(kind, layers)


def model(folder, seed, name, arch, kind, config, types):
    torch.manual_seed(200 + seed)
    config._attn_implementation = "eager"
    net = kind(config).eval()
    randomise(net)
    writer = gguf.GGUFWriter(folder / f"{name}.gguf", arch)
    metadata(writer, arch, config)
    table, state = names(arch, config.num_hidden_layers), net.state_dict()
    tied = config.tie_word_embeddings
    mistaken = {}
    for i, (key, tensor) in enumerate(state.items()):
        if tied and key == "lm_head.weight":
            continue
        stored = table.get_name(key, try_suffixes=(".weight", ".bias"))
        values = tensor.numpy()
        heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(stored.split(".")[2] if stored.startswith("blk") else "", 0) if arch == "llama" else 0
        transposed = arch == "gpt2" and values.ndim == 2 and stored.startswith("blk")
        values = permute(values, heads) if heads else values.T if transposed else values
        wanted = types if isinstance(types, Type) else next((t for part, t in types.items() if f"_{part}." in f"_{stored}"), Type.F32)
        if "gemma" in arch and stored.endswith("norm.weight"):
            values = values + 1
        if values.ndim == 1 or wanted == Type.F32:
            writer.add_tensor(stored, np.ascontiguousarray(values, dtype=np.float32))
        else:
            data, values = blocks(np.ascontiguousarray(values), wanted, i)
            writer.add_tensor(stored, data, raw_dtype=wanted if wanted != Type.F16 else None)
        if "gemma" in arch and stored.endswith("norm.weight"):
            values = values - 1
        mistaken[key] = torch.tensor(np.ascontiguousarray(values.T if transposed else values))
        tensor.copy_(torch.tensor(np.ascontiguousarray(back(values, heads) if heads else values.T if transposed else values)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    out, sequences = {}, [torch.randint(3, VOCAB, (1, length)) for length in LENGTHS]
    with torch.no_grad():
        for s, ids in enumerate(sequences):
            out |= {f"ids.{s}": ids[0], f"logits.{s}": net(input_ids=ids).logits[0]}
        if name == "llama":
            out |= lora(folder, net, table, sequences)
            net.load_state_dict(mistaken)
            out |= {f"unpermuted.{s}": net(input_ids=ids).logits[0] for s, ids in enumerate(sequences)}
    save_file({key: value.clone().contiguous() for key, value in out.items()}, folder / f"{name}.safetensors")


def lora(folder, net, table, sequences):
    """An adapter as convert_lora_to_gguf.py writes it, and the logits of the model with it."""
    writer = gguf.GGUFWriter(folder / "lora.gguf", "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 3.0)
    before, heads = {key: value.clone() for key, value in net.state_dict().items()}, {"q": 2, "k": 1}
    for key in ("self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj"):
        for layer in range(2):
            weight = net.get_submodule(f"model.layers.{layer}.{key}").weight
            a, b = torch.randn(2, weight.shape[1]) * 0.3, torch.randn(weight.shape[0], 2) * 0.3
            weight += 3.0 / 2 * b @ a
            stored = table.get_name(f"model.layers.{layer}.{key}.weight", try_suffixes=(".weight",))
            b, part = b.numpy(), key.split(".")[1][0]
            writer.add_tensor(f"{stored}.lora_a", a.numpy())
            writer.add_tensor(f"{stored}.lora_b", permute(b, heads[part]) if part in heads else b)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    out = {f"adapted.{s}": net(input_ids=ids).logits[0].clone() for s, ids in enumerate(sequences)}
    net.load_state_dict(before)
    return out


def tokenizer(folder, name, arch, kind, pre, bos):
    """tokenizers/NAME as llama.cpp's converter would write its vocabulary."""
    source = pathlib.Path(__file__).parent / "tokenizers" / name
    file = json.loads((source / "tokenizer.json").read_text())
    vocab, merges = file["model"]["vocab"], file["model"]["merges"]
    added = {token["id"]: token for token in file["added_tokens"]}
    tokens = {id: text for text, id in vocab.items()} | {id: token["content"] for id, token in added.items()}
    order = range(max(tokens) + 1)
    scores = {"".join(merge): -float(rank) for rank, merge in reversed(list(enumerate(merges)))}
    kinds = [3 if added.get(id, {}).get("special") else 4 if id in added else 6 if tokens[id].startswith("<0x") else 1 for id in order]
    writer = gguf.GGUFWriter(folder / f"{name}.gguf", arch)
    writer.add_tokenizer_model(kind)
    writer.add_token_list([tokens[id] for id in order])
    writer.add_token_types(kinds)
    if kind == "llama":
        writer.add_token_scores([scores.get(tokens[id], -1e6) for id in order])
        writer.add_unk_token_id(vocab["<unk>"])
    else:
        writer.add_tokenizer_pre(pre)
        writer.add_token_merges([" ".join(merge) for merge in merges])
    ids = {text: id for id, text in tokens.items()}
    if bos is not None:
        writer.add_bos_token_id(ids[bos])
    writer.add_add_bos_token(name in ("gemma", "llama3"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(exist_ok=True)
    for seed, (name, (arch, kind, config, types)) in enumerate(CASES.items()):
        model(folder, seed, name, arch, kind, config, types)
    folder = folder / "tokenizers"
    folder.mkdir(exist_ok=True)
    tokenizer(folder, "llama", "llama", "llama", None, "<s>")
    tokenizer(folder, "gemma", "gemma2", "llama", None, "<bos>")
    tokenizer(folder, "gpt2", "gpt2", "gpt2", "gpt-2", "<|endoftext|>")
    tokenizer(folder, "qwen2", "qwen2", "gpt2", "qwen2", None)
    tokenizer(folder, "llama3", "llama", "gpt2", "llama-bpe", "<|begin_of_text|>")


if __name__ == "__main__":
    main()
