#!/usr/bin/env python3
"""Golden files of the forward: tiny random models of every family, and what transformers computes with them.

    python3 tests/golden/model.py            # writes tests/golden/model-*/ (needs torch, transformers, safetensors)

Each directory is a checkpoint; `expected.safetensors` in it holds, for each sequence s, `ids.s` and, in f32, every
`hidden_states` of transformers (`embed.s`, `resid_post.{layer}.s`, `final_norm.s`) and `logits.s`.
"""
import json
import os

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM

HERE = os.path.dirname(os.path.abspath(__file__))
LENGTHS = [1, 7, 40]
SMALL = dict(vocab_size=41, hidden_size=24, intermediate_size=32, num_hidden_layers=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=None)


def llama(**more):
    return LlamaForCausalLM, LlamaConfig(**{**SMALL, **more})


def rope(**more):
    return {"rope_theta": 10000.0, **more}


CASES = {
    "gqa-llama3": llama(num_attention_heads=6, num_key_value_heads=2, head_dim=6, tie_word_embeddings=False, rms_norm_eps=1e-5,
                        rope_parameters=rope(rope_type="llama3", rope_theta=500.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)),
    "biases-linear": llama(num_attention_heads=4, num_key_value_heads=4, tie_word_embeddings=True, attention_bias=True, mlp_bias=True,
                           rope_parameters=rope(rope_type="linear", factor=2.5)),
    "yarn": llama(num_attention_heads=3, num_key_value_heads=1, head_dim=16, tie_word_embeddings=True, max_position_embeddings=256, rope_parameters=rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=64)),
    "dynamic": llama(num_attention_heads=3, num_key_value_heads=3, tie_word_embeddings=False, max_position_embeddings=16,
                     rope_parameters=rope(rope_type="dynamic", factor=2.0)),
    "mistral-window": (MistralForCausalLM, MistralConfig(**SMALL, num_attention_heads=4, num_key_value_heads=2, head_dim=8, sliding_window=5, tie_word_embeddings=False)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**SMALL, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True)),
}

for seed, (name, (kind, config)) in enumerate(CASES.items()):
    torch.manual_seed(seed)
    config._attn_implementation = "eager"
    model = kind(config).eval()
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if "norm" in key:
                weight.copy_(1 + 0.2 * torch.randn_like(weight))
            elif key.endswith("bias"):
                weight.copy_(0.3 * torch.randn_like(weight))
            else:
                weight.copy_(torch.randn_like(weight) * weight.shape[-1] ** -0.5)
    out = os.path.join(HERE, f"model-{name}")
    model.save_pretrained(out)
    if os.path.exists(os.path.join(out, "generation_config.json")):
        os.remove(os.path.join(out, "generation_config.json"))
    expected = {}
    for s, length in enumerate(LENGTHS):
        ids = torch.randint(3, config.vocab_size, (1, length))
        with torch.no_grad():
            o = model(input_ids=ids, output_hidden_states=True)
            before_norm = []
            hook = model.model.norm.register_forward_pre_hook(lambda m, a: before_norm.append(a[0]))
            model(input_ids=ids)
            hook.remove()
        expected[f"ids.{s}"] = ids[0].clone()
        expected[f"embed.{s}"] = o.hidden_states[0][0].clone()
        for layer in range(config.num_hidden_layers - 1):
            expected[f"resid_post.{layer}.{s}"] = o.hidden_states[layer + 1][0].clone()
        expected[f"resid_post.{config.num_hidden_layers - 1}.{s}"] = before_norm[0][0].clone()
        expected[f"final_norm.{s}"] = o.hidden_states[-1][0].clone()
        expected[f"logits.{s}"] = o.logits[0].clone()
    save_file(expected, os.path.join(out, "expected.safetensors"), metadata={"format": "pt"})
    print(name, json.dumps({k: list(v.shape) for k, v in list(expected.items())[:3]}))
