#!/usr/bin/env python3
"""Golden files of the families: tiny random models, and what transformers and peft compute with them.

    families.py            # writes tests/golden/model-NAME/ of every case (needs torch, transformers, peft, safetensors)

Each directory is a checkpoint. `expected.safetensors` in it holds, for each sequence s, `ids.s` and, in f32,
`resid_pre.s`, `resid_post.{layer}.s`, `final_norm.s`, `logits.s`, and `adapted.s`: the logits with the LoRA in `adapter/`.
Where queries and keys are normed, `norm_last.s` are the logits of a model that norms them behind the rotation.
"""
import json
import os
import shutil
import sys

import torch
import transformers as T
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM

HERE = os.path.dirname(os.path.abspath(__file__))
LENGTHS = [1, 6, 19]
VOCAB = 29
DROP = dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
OPT = dict(vocab_size=VOCAB, hidden_size=12, ffn_dim=20, num_hidden_layers=2, num_attention_heads=3, max_position_embeddings=24, dropout=0.0, pad_token_id=1, bos_token_id=2, eos_token_id=2)
BASE = dict(vocab_size=VOCAB, hidden_size=12, intermediate_size=20, num_hidden_layers=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=None)
HEADS = dict(num_attention_heads=4, num_key_value_heads=2)
# The width of a head is not that of the stream over the heads; the scale is that of another width.
GEMMA = dict(**BASE, **HEADS, head_dim=6, query_pre_attn_scalar=5, sliding_window=5)
WINDOWS = ["sliding_attention", "full_attention"]
ROPES = {"sliding_attention": {"rope_type": "default", "rope_theta": 50.0}, "full_attention": {"rope_type": "linear", "rope_theta": 900.0, "factor": 4.0}}
YARN = {"rope_type": "yarn", "rope_theta": 900.0, "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 2.0, "beta_slow": 0.5}
LONG = {"rope_type": "longrope", "rope_theta": 50.0, "partial_rotary_factor": 0.75, "short_factor": [1.0, 1.3, 2.5], "long_factor": [1.5, 4.0, 9.0]}
VISION = dict(hidden_size=4, intermediate_size=4, num_hidden_layers=1, num_attention_heads=1, image_size=4, patch_size=2)
CASES = {
    "gpt2": (GPT2LMHeadModel, GPT2Config(vocab_size=VOCAB, n_embd=12, n_inner=20, n_layer=2, n_head=3, n_positions=24, scale_attn_by_inverse_layer_idx=True,
                                         bos_token_id=0, eos_token_id=0, **DROP), ["c_attn", "mlp.c_proj"]),
    "opt": (OPTForCausalLM, OPTConfig(**OPT), ["q_proj", "out_proj", "fc1"]),
    "opt-behind": (OPTForCausalLM, OPTConfig(**OPT, do_layer_norm_before=False, word_embed_proj_dim=8), ["k_proj", "v_proj", "fc2"]),
    "bloom": (BloomForCausalLM, BloomConfig(vocab_size=VOCAB, hidden_size=12, n_layer=2, n_head=3, bos_token_id=1, eos_token_id=2), ["query_key_value", "dense_h_to_4h"]),
    "qwen3": (T.Qwen3ForCausalLM, T.Qwen3Config(**BASE, **HEADS, head_dim=6, tie_word_embeddings=True), ["q_proj", "o_proj", "gate_proj"]),
    "qwen3-window": (T.Qwen3ForCausalLM, T.Qwen3Config(**BASE, num_attention_heads=3, num_key_value_heads=3, head_dim=4, attention_bias=True, use_sliding_window=True, sliding_window=7, max_window_layers=1,
                                                      tie_word_embeddings=False), ["k_proj", "v_proj", "down_proj"]),
    "gemma2": (T.Gemma2ForCausalLM, T.Gemma2Config(**GEMMA, attn_logit_softcapping=1.5, final_logit_softcapping=2.0), ["q_proj", "v_proj", "up_proj"]),
    "gemma2-uncapped": (T.Gemma2ForCausalLM, T.Gemma2Config(**GEMMA, attn_logit_softcapping=None, final_logit_softcapping=None, tie_word_embeddings=False), ["k_proj", "o_proj"]),
    "gemma3": (T.Gemma3ForCausalLM, T.Gemma3TextConfig(**GEMMA, layer_types=WINDOWS, rope_parameters=ROPES, final_logit_softcapping=2.0), ["q_proj", "gate_proj", "down_proj"]),
    "gemma3-images": (T.Gemma3ForConditionalGeneration, T.Gemma3Config(text_config=T.Gemma3TextConfig(**GEMMA, layer_types=WINDOWS, final_logit_softcapping=2.0), vision_config=VISION, mm_tokens_per_image=1, image_token_index=28, boi_token_index=26,
                                                                      eoi_token_index=27), r"model.language_model.layers.\d+.self_attn.(k|v)_proj"),
    "olmo2": (T.Olmo2ForCausalLM, T.Olmo2Config(**BASE, **HEADS | dict(num_attention_heads=2), attention_bias=True, tie_word_embeddings=True), ["q_proj", "o_proj", "up_proj"]),
    "olmo3": (T.Olmo3ForCausalLM, T.Olmo3Config(**BASE | dict(hidden_size=16), **HEADS, sliding_window=5, layer_types=WINDOWS,
                                               rope_parameters={"sliding_attention": {"rope_type": "default", "rope_theta": 900.0}, "full_attention": YARN}), ["k_proj", "v_proj", "gate_proj"]),
    "neox": (T.GPTNeoXForCausalLM, T.GPTNeoXConfig(**BASE | dict(hidden_size=16), num_attention_heads=2, rotary_pct=0.25), ["query_key_value", "dense_h_to_4h"]),
    "neox-sequential": (T.GPTNeoXForCausalLM, T.GPTNeoXConfig(**BASE, num_attention_heads=2, rotary_pct=0.7, use_parallel_residual=False, tie_word_embeddings=True, attention_bias=False), ["dense", "dense_4h_to_h"]),
    "phi3-long": (T.Phi3ForCausalLM, T.Phi3Config(**BASE | dict(hidden_size=16), num_attention_heads=2, num_key_value_heads=1, original_max_position_embeddings=8, tie_word_embeddings=True, rope_parameters=LONG),
                  ["o_proj", "down_proj"]),
    "phi3": (T.Phi3ForCausalLM, T.Phi3Config(**BASE | dict(hidden_size=16), **HEADS, sliding_window=7), ["qkv_proj", "gate_up_proj"]),
    # As EmbeddingGemma; a window of 6 is 3 tokens to either side.
    "gemma3-two-sided": (T.Gemma3ForCausalLM, T.Gemma3TextConfig(**GEMMA | dict(sliding_window=6), layer_types=WINDOWS, rope_parameters=ROPES, use_bidirectional_attention=True), ["v_proj", "o_proj"]),
    "phi": (T.PhiForCausalLM, T.PhiConfig(**BASE | dict(hidden_size=16), num_attention_heads=2, num_key_value_heads=1, partial_rotary_factor=0.5), ["q_proj", "dense", "fc1"]),
    "phi-tied": (T.PhiForCausalLM, T.PhiConfig(**BASE, num_attention_heads=2, partial_rotary_factor=0.75, tie_word_embeddings=True), ["k_proj", "v_proj", "fc2"]),
    "gptj": (T.GPTJForCausalLM, T.GPTJConfig(vocab_size=VOCAB, n_embd=16, n_inner=20, n_layer=2, n_head=2, n_positions=24, rotary_dim=4, bos_token_id=1, eos_token_id=2), ["q_proj", "out_proj", "fc_in"]),
    "gptj-tied": (T.GPTJForCausalLM, T.GPTJConfig(vocab_size=VOCAB, n_embd=12, n_layer=2, n_head=2, n_positions=24, rotary_dim=6, bos_token_id=1, eos_token_id=2, tie_word_embeddings=True), ["k_proj", "v_proj", "fc_out"]),
    "smollm3": (T.SmolLM3ForCausalLM, T.SmolLM3Config(**BASE | dict(hidden_size=16), **HEADS, no_rope_layer_interval=2, rope_parameters={"rope_type": "default", "rope_theta": 50.0}, tie_word_embeddings=False), ["q_proj", "v_proj", "down_proj"]),
    "starcoder2": (T.Starcoder2ForCausalLM, T.Starcoder2Config(**BASE | dict(hidden_size=16), **HEADS, sliding_window=7), ["q_proj", "o_proj", "c_fc"]),
    "stablelm": (T.StableLmForCausalLM, T.StableLmConfig(**BASE | dict(hidden_size=16), num_attention_heads=2, num_key_value_heads=1, use_qkv_bias=True, partial_rotary_factor=0.5), ["k_proj", "gate_proj", "down_proj"]),
}


def parts(model):
    """The blocks and the final norm, if there is one."""
    if hasattr(model, "gpt_neox"):
        return model.gpt_neox.layers, model.gpt_neox.final_layer_norm
    if hasattr(model.base_model, "language_model"):
        return model.model.language_model.layers, model.model.language_model.norm
    if hasattr(model, "transformer"):
        return model.transformer.h, model.transformer.ln_f
    if hasattr(model.model, "decoder"):
        return model.model.decoder.layers, model.model.decoder.final_layer_norm
    return model.model.layers, getattr(model.model, "norm", None) or model.model.final_layernorm


def states(model, ids):
    """What enters the first block, what leaves each, and the final norm's output (the last state where there is none)."""
    blocks, norm = parts(model)
    found = []
    first = lambda x: x[0] if isinstance(x, tuple) else x
    hooks = [blocks[0].register_forward_pre_hook(lambda m, a, k: found.append(a[0] if a else k["hidden_states"]), with_kwargs=True)]
    hooks += [block.register_forward_hook(lambda m, a, out: found.append(first(out))) for block in blocks]
    if norm is not None:
        hooks.append(norm.register_forward_hook(lambda m, a, out: found.append(out)))
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0]
    for hook in hooks:
        hook.remove()
    found = [x.reshape(ids.shape[1], -1).clone() for x in found]
    return (found if norm is not None else found + found[-1:]), logits.clone()


def norm_last(model, ids):
    """The logits of the mistake of norming queries and keys behind their rotation; None where they are not normed."""
    blocks, _ = parts(model)
    if not hasattr(blocks[0], "self_attn") or not hasattr(blocks[0].self_attn, "q_norm"):
        return None
    module = sys.modules[type(blocks[0]).__module__]
    rotate, norms = module.apply_rotary_pos_emb, []

    def rotated(q, k, cos, sin, *rest, **more):
        q, k = rotate(q, k, cos, sin, *rest, **more)
        # Over the whole row, where the weight is as wide.
        wide = lambda norm, x: norm(x) if norm.weight.numel() == x.shape[-1] else norm(x.transpose(1, 2).flatten(2)).view(x.transpose(1, 2).shape).transpose(1, 2)
        q_norm, k_norm = norms.pop(0)
        return wide(q_norm, q), wide(k_norm, k)

    kept = [(block.self_attn.q_norm, block.self_attn.k_norm) for block in blocks]
    for block, pair in zip(blocks, kept):
        norms.append(pair)
        block.self_attn.q_norm = block.self_attn.k_norm = torch.nn.Identity()
    module.apply_rotary_pos_emb = rotated
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0].clone()
    module.apply_rotary_pos_emb = rotate
    for block, (q, k) in zip(blocks, kept):
        block.self_attn.q_norm, block.self_attn.k_norm = q, k
    return logits


def randomise(model):
    one_plus = "gemma" in model.config.model_type
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if "norm" in key or "ln_" in key:
                weight.copy_((1.0 if key.endswith("weight") and not one_plus else 0.0) + 0.2 * torch.randn_like(weight))
            elif key.endswith("bias"):
                weight.copy_(0.3 * torch.randn_like(weight))
            else:
                weight.copy_(torch.randn_like(weight) * 12 ** -0.5)


def main():
    for seed, (name, (kind, config, modules)) in enumerate(CASES.items()):
        torch.manual_seed(100 + seed)
        config._attn_implementation = "eager"
        model = kind(config).eval()
        randomise(model)
        out = os.path.join(HERE, f"model-{name}")
        shutil.rmtree(out, ignore_errors=True)
        model.save_pretrained(out)
        generation = os.path.join(out, "generation_config.json")
        if os.path.exists(generation):
            os.remove(generation)
        expected = {}
        sequences = [torch.randint(3, VOCAB, (1, length)) for length in LENGTHS]
        for s, ids in enumerate(sequences):
            (pre, *post, last), logits = states(model, ids)
            expected |= {f"ids.{s}": ids[0], f"resid_pre.{s}": pre, f"final_norm.{s}": last, f"logits.{s}": logits}
            expected |= {f"resid_post.{layer}.{s}": x for layer, x in enumerate(post)}
            if (mistaken := norm_last(model, ids)) is not None:
                expected[f"norm_last.{s}"] = mistaken
        adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=3, target_modules=modules, init_lora_weights="gaussian")).eval()
        with torch.no_grad():
            for key, weight in adapted.named_parameters():
                if "lora_B" in key:
                    weight.copy_(0.4 * torch.randn_like(weight))
            for s, ids in enumerate(sequences):
                expected[f"adapted.{s}"] = adapted(input_ids=ids).logits[0].clone()
        where = os.path.join(out, "adapter")
        adapted.save_pretrained(where)
        os.remove(os.path.join(where, "README.md"))
        file = os.path.join(where, "adapter_config.json")
        settings = json.load(open(file))
        settings["base_model_name_or_path"] = None
        json.dump(settings, open(file, "w"), indent=2, sort_keys=True)
        save_file({k: v.clone().contiguous() for k, v in expected.items()}, os.path.join(out, "expected.safetensors"), metadata={"format": "pt"})
        print(name, {k: list(v.shape) for k, v in expected.items() if k.endswith(".1")})


if __name__ == "__main__":
    main()
