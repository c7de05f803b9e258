#!/usr/bin/env python3
"""Golden files of GPT-2, OPT and BLOOM: tiny random models, and what transformers and peft compute with them.

    families.py            # writes tests/golden/model-{gpt2,opt,opt-behind,bloom}/ (needs torch, transformers, peft, safetensors)

Each directory is a checkpoint. `expected.safetensors` in it holds, for each sequence s, `ids.s` and, in f32,
`resid_pre.s`, `resid_post.{layer}.s`, `final_norm.s`, `logits.s`, and `adapted.s`: the logits with the LoRA in `adapter/`.
"""
import json
import os
import shutil

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM

HERE = os.path.dirname(os.path.abspath(__file__))
LENGTHS = [1, 6, 19]
VOCAB = 29
DROP = dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
OPT = dict(vocab_size=VOCAB, hidden_size=12, ffn_dim=20, num_hidden_layers=2, num_attention_heads=3, max_position_embeddings=24, dropout=0.0, pad_token_id=1, bos_token_id=2, eos_token_id=2)
CASES = {
    "gpt2": (GPT2LMHeadModel, GPT2Config(vocab_size=VOCAB, n_embd=12, n_inner=20, n_layer=2, n_head=3, n_positions=24, scale_attn_by_inverse_layer_idx=True,
                                         bos_token_id=0, eos_token_id=0, **DROP), ["c_attn", "mlp.c_proj"]),
    "opt": (OPTForCausalLM, OPTConfig(**OPT), ["q_proj", "out_proj", "fc1"]),
    "opt-behind": (OPTForCausalLM, OPTConfig(**OPT, do_layer_norm_before=False, word_embed_proj_dim=8), ["k_proj", "v_proj", "fc2"]),
    "bloom": (BloomForCausalLM, BloomConfig(vocab_size=VOCAB, hidden_size=12, n_layer=2, n_head=3, bos_token_id=1, eos_token_id=2), ["query_key_value", "dense_h_to_4h"]),
}


def parts(model):
    """The blocks and the final norm, if there is one."""
    if hasattr(model, "transformer"):
        return model.transformer.h, model.transformer.ln_f
    if hasattr(model.model, "decoder"):
        return model.model.decoder.layers, model.model.decoder.final_layer_norm
    return model.model.layers, model.model.norm


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


def randomise(model):
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if "norm" in key or "ln_" in key:
                weight.copy_((1.0 if key.endswith("weight") else 0.0) + 0.2 * torch.randn_like(weight))
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
        os.remove(os.path.join(out, "generation_config.json"))
        expected = {}
        sequences = [torch.randint(3, VOCAB, (1, length)) for length in LENGTHS]
        for s, ids in enumerate(sequences):
            (pre, *post, last), logits = states(model, ids)
            expected |= {f"ids.{s}": ids[0], f"resid_pre.{s}": pre, f"final_norm.{s}": last, f"logits.{s}": logits}
            expected |= {f"resid_post.{layer}.{s}": x for layer, x in enumerate(post)}
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
