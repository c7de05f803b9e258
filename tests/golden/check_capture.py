#!/usr/bin/env python3
"""`llamaprobe capture` against transformers, live, on checkpoints of any size.

    python3 tests/golden/check_capture.py BINARY MODEL...     # needs torch, transformers, safetensors
    python3 tests/golden/check_capture.py BINARY --random     # random models of other shapes, made here

Captures every hook_resid_post, what enters the first block, the final norm and the logits of a pack of ragged sequences (1 to 500
tokens) in f32, and prints for each kind of tensor the largest difference as a share of the expected tensor's largest
magnitude. Exits 1 above 2e-5. Also captures each sequence alone and demands the same bytes.
"""
import json
import os
import subprocess
import sys
import tempfile

import torch
from safetensors import safe_open
from transformers import (AutoModelForCausalLM, BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MistralConfig,
                          MistralForCausalLM, OPTConfig, OPTForCausalLM, Qwen2Config, Qwen2ForCausalLM)

from families import states

LIMIT = 2e-5
SITES = "blocks.0.hook_resid_pre,resid_post,ln_final.hook_out,logits"


def random_models(root):
    base = dict(vocab_size=777, intermediate_size=200, num_hidden_layers=4, max_position_embeddings=1024, bos_token_id=1, eos_token_id=2, pad_token_id=None)
    llama3 = dict(rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=128)
    opt = dict(vocab_size=777, hidden_size=64, ffn_dim=200, num_hidden_layers=4, num_attention_heads=4, max_position_embeddings=1024)
    made = {
        "gqa3-untied-llama3": (LlamaForCausalLM, LlamaConfig(**base, hidden_size=96, num_attention_heads=6, num_key_value_heads=2, head_dim=32, tie_word_embeddings=False, rope_parameters=llama3)),
        "mha-tied-biases": (LlamaForCausalLM, LlamaConfig(**base, hidden_size=80, num_attention_heads=5, num_key_value_heads=5, tie_word_embeddings=True, attention_bias=True, mlp_bias=True)),
        "wide-heads": (LlamaForCausalLM, LlamaConfig(**base, hidden_size=64, num_attention_heads=2, num_key_value_heads=1, head_dim=80, tie_word_embeddings=False)),
        "mistral": (MistralForCausalLM, MistralConfig(**base, hidden_size=64, num_attention_heads=4, num_key_value_heads=2, sliding_window=100, tie_word_embeddings=False)),
        "qwen2": (Qwen2ForCausalLM, Qwen2Config(**base, hidden_size=64, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True)),
        "gpt2": (GPT2LMHeadModel, GPT2Config(vocab_size=777, n_embd=96, n_layer=4, n_head=6, bos_token_id=0, eos_token_id=0)),
        "opt": (OPTForCausalLM, OPTConfig(**opt)),
        "opt-behind-projected": (OPTForCausalLM, OPTConfig(**opt, do_layer_norm_before=False, word_embed_proj_dim=40)),
        "opt-projected-gelu": (OPTForCausalLM, OPTConfig(**opt, word_embed_proj_dim=40, activation_function="gelu", enable_bias=False)),
        "bloom": (BloomForCausalLM, BloomConfig(vocab_size=777, hidden_size=96, n_layer=4, n_head=6, bos_token_id=1, eos_token_id=2)),
    }
    for seed, (name, (kind, config)) in enumerate(made.items()):
        torch.manual_seed(seed)
        model = kind(config)
        with torch.no_grad():
            for key, w in model.named_parameters():
                w.copy_((1.0 - key.endswith("bias")) + 0.2 * torch.randn_like(w) if "norm" in key or "ln_" in key else (0.3 if key.endswith("bias") else w.shape[-1] ** -0.5) * torch.randn_like(w))
        model.save_pretrained(os.path.join(root, name))
        yield os.path.join(root, name)


def capture(binary, model, sequences, out):
    lines = os.path.join(out, "input.jsonl")
    with open(lines, "w") as f:
        for ids in sequences:
            f.write(json.dumps({"input_ids": ids}) + "\n")
    subprocess.run([binary, "capture", "--model", model, "--input", lines, "--sites", SITES, "--layers", "all", "--tokens", "all", "--dtype", "f32", "--device", "cpu", "--out", os.path.join(out, "acts")], check=True, stdout=subprocess.DEVNULL)
    with safe_open(os.path.join(out, "acts", "activations.safetensors"), "pt") as f:
        return {k: f.get_tensor(k) for k in f.keys()}


def main():
    binary, models = sys.argv[1], sys.argv[2:]
    failed = False
    with tempfile.TemporaryDirectory() as root:
        for path in random_models(root) if models == ["--random"] else models:
            model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
            config = model.config
            longest = min(500, getattr(config, "max_position_embeddings", 500))
            generator = torch.Generator().manual_seed(0)
            lengths = [1, 2, 17, longest, 64, 129, longest // 2]
            sequences = [torch.randint(3, config.vocab_size, (n,), generator=generator).tolist() for n in lengths]
            with tempfile.TemporaryDirectory() as out:
                got = capture(binary, path, sequences, out)
            expected = {k: [] for k in got if k not in ("doc_id", "pos", "token_id")}
            for ids in sequences:
                (pre, *post, final), logits = states(model, torch.tensor([ids]))
                expected["blocks.0.hook_resid_pre"].append(pre)
                for layer, x in enumerate(post):
                    expected[f"blocks.{layer}.hook_resid_post"].append(x)
                expected["ln_final.hook_out"].append(final)
                expected["logits"].append(logits)
            worst = {}
            for name, parts in expected.items():
                want = torch.cat(parts)
                assert want.shape == got[name].shape, (name, want.shape, got[name].shape)
                kind = name.split(".")[-1]
                worst[kind] = max(worst.get(kind, 0.0), ((got[name] - want).abs().max() / want.abs().max()).item())
            docs = torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)])
            assert torch.equal(got["doc_id"], docs) and torch.equal(got["pos"], torch.cat([torch.arange(n) for n in lengths]))
            assert got["token_id"].tolist() == [t for ids in sequences for t in ids]
            same, start = True, 0
            for ids in sequences:
                with tempfile.TemporaryDirectory() as out:
                    alone = capture(binary, path, [ids], out)
                same &= all(torch.equal(alone[k], got[k][start:start + len(ids)]) for k in expected)
                start += len(ids)
            ok = max(worst.values()) <= LIMIT and same
            failed |= not ok
            figures = ", ".join(f"{k} {v:.1e}" for k, v in worst.items())
            print(f"{os.path.basename(path.rstrip('/'))}: {figures}; alone {'the same bits' if same else 'OTHER BITS'}{'' if ok else '  FAILED'}")
    sys.exit(failed)


main()
