#!/usr/bin/env python3
"""Twenty steps by peft of adapters that are more than A and B: writes peft_variants/, the reference of tests/engine/golden_variants.rs.

    peft_variants.py OUT

Each case is a directory: `case.json` as of peft_train.py, in f32; `init/` and `final/` as peft saves them; `exact.safetensors`, the
final tensors of the same steps in f64, and in `case.json` as `gap` the Euclidean distance of all tensors of `final/` from those.
The models are peft/tiny, model-gpt2 and model-qwen2, which must be there.
"""
import json, os, shutil, sys, tempfile
import torch
from peft import IA3Config, LoraConfig, PeftConfig, get_peft_model, set_peft_model_state_dict
from peft.optimizers import create_loraplus_optimizer
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import peft_train as P

HERE = os.path.dirname(os.path.abspath(__file__))
CASES = {
    "dora": dict(model="tiny", seed=11, use_dora=True, use_rslora=True, target_modules=["q_proj", "down_proj"], rank_pattern={"q_proj": 2}, schedule="linear", warmup=2,
                 weight_decay=0.1, max_grad_norm=0.5),
    "dora_gpt2": dict(model="gpt2", seed=12, use_dora=True, target_modules=["c_attn", "mlp.c_proj"], ratio=4.0, learning_rate=5e-3),
    "ia3": dict(model="tiny", seed=13, kind="ia3", target_modules=["k_proj", "v_proj", "down_proj", "o_proj"], feedforward_modules=["down_proj", "o_proj"], schedule="cosine", warmup=2,
                weight_decay=0.1, max_grad_norm=0.5),
    "ia3_gpt2": dict(model="gpt2", seed=14, kind="ia3"),
    # Of the tables of tokens: of an untied model with their base weights beside them, of a tied one each on its own.
    "tables": dict(model="tiny", seed=15, use_rslora=True, target_modules=["q_proj", "embed_tokens", "lm_head"], rank_pattern={"lm_head": 2}, schedule="linear", warmup=2,
                   weight_decay=0.1, max_grad_norm=0.5),
    "head": dict(model="tiny", seed=16, target_modules=r"(.*v_proj|lm_h...)", ratio=4.0, learning_rate=5e-3),
    "tables_gpt2": dict(model="gpt2", seed=17, target_modules=["wte", "lm_head", "mlp.c_proj"]),
    # Modules that are trained whole: untied, of a tied model each on its own, and tied.
    "saved": dict(model="tiny", seed=19, target_modules=["q_proj", "down_proj"], modules_to_save=["embed_tokens", "lm_head", "norm", "v_proj"], schedule="linear", warmup=2, weight_decay=0.1,
                  max_grad_norm=0.5),
    "saved_plus": dict(model="tiny", seed=23, target_modules=["o_proj"], modules_to_save=["lm_head", "norm"], ratio=4.0, learning_rate=5e-3, weight_decay=0.1),
    "saved_gpt2": dict(model="gpt2", seed=20, target_modules=["c_attn"], modules_to_save=["wte", "ln_f", "h.1.ln_2"]),
    "saved_head_gpt2": dict(model="gpt2", seed=21, target_modules=["c_attn"], modules_to_save=["lm_head", "wpe"], learning_rate=5e-3),
    "saved_tied": dict(model="qwen2", seed=22, target_modules=["q_proj"], modules_to_save=["lm_head"], ensure_weight_tying=True, learning_rate=5e-3),
    # Rows of the embedding table: of an untied model and of tied ones.
    "tokens": dict(model="tiny", seed=24, target_modules=["q_proj"], trainable_token_indices=[11, 3, 17], schedule="linear", warmup=2, weight_decay=0.1, max_grad_norm=0.5),
    "tokens_gpt2": dict(model="gpt2", seed=25, target_modules=["c_attn"], trainable_token_indices=[18, 2, 9], ratio=4.0, learning_rate=5e-3, weight_decay=0.1),
    "tokens_tied": dict(model="qwen2", seed=26, target_modules=["v_proj"], trainable_token_indices={"embed_tokens": [7, 30]}, modules_to_save=["norm"], learning_rate=5e-3),
    "dora_tokens": dict(model="qwen2", seed=27, use_dora=True, target_modules=["q_proj", "up_proj"], trainable_token_indices=[7, 30], weight_decay=0.1, max_grad_norm=0.5),
    "embed_gpt2": dict(model="gpt2", seed=18, target_modules=["wte"]),
}
OWN = {"kind", "model", "seed", "ratio", "schedule", "warmup", "weight_decay", "max_grad_norm", "learning_rate", "batch_size", "accumulation"}


def base(case, dtype):
    return AutoModelForCausalLM.from_pretrained(os.path.join(HERE, {"tiny": "peft/tiny", "gpt2": "model-gpt2", "qwen2": "model-qwen2"}[case["model"]]), dtype=dtype)


def train(model, data, case):
    if not case["ratio"]:
        return P.train(model, data, case)
    plain = torch.optim.AdamW
    torch.optim.AdamW = lambda params, lr, weight_decay, foreach: create_loraplus_optimizer(
        model, plain, lr=lr, loraplus_lr_ratio=case["ratio"], loraplus_weight_decay=weight_decay, foreach=foreach)
    try:
        return P.train(model, data, case)
    finally:
        torch.optim.AdamW = plain


def start(model):
    """Away from where nothing is learnt yet, so that every gradient counts from the first step on."""
    for n, w in model.named_parameters():
        if "lora_B" in n or "lora_embedding_A" in n:
            torch.nn.init.normal_(w, 0.0, 0.05)
        if "lora_magnitude_vector" in n:
            w.data.mul_(1 + 0.1 * torch.randn_like(w))
        if "ia3_l" in n:
            torch.nn.init.normal_(w, 1.0, 0.2)


def run(name, given, out):
    settings = dict(learning_rate=1e-2, schedule="constant", warmup=0, weight_decay=0.0, max_grad_norm=None, batch_size=4, accumulation=1, ratio=None)
    case = settings | {k: v for k, v in given.items() if k in OWN}
    config = {k: v for k, v in given.items() if k not in OWN}
    config = IA3Config(task_type="CAUSAL_LM", **config) if case.get("kind") == "ia3" else LoraConfig(task_type="CAUSAL_LM", **(dict(r=3, lora_alpha=6) | config))
    where = os.path.join(out, name)
    torch.manual_seed(case["seed"])
    model = get_peft_model(base(case, torch.float32), config)
    with torch.no_grad():
        start(model)
    P.save(model, os.path.join(where, "init"))
    data = P.sequences(torch.Generator().manual_seed(case["seed"]), model.config.vocab_size)
    result = train(model, data, case)
    P.save(model, os.path.join(where, "final"))
    config = PeftConfig.from_pretrained(os.path.join(where, "init"))
    config.inference_mode = False
    exact = get_peft_model(base(case, torch.float64), config, autocast_adapter_dtype=False)
    set_peft_model_state_dict(exact, load_file(os.path.join(where, "init", "adapter_model.safetensors")))
    train(exact.to(torch.float64), data, case)
    with tempfile.TemporaryDirectory() as folder:
        exact.save_pretrained(folder)
        best = load_file(os.path.join(folder, "adapter_model.safetensors"))
    found = load_file(os.path.join(where, "final", "adapter_model.safetensors"))
    assert found.keys() == best.keys()
    gap = sum((found[k].double() - best[k].double()).pow(2).sum().item() for k in best) ** 0.5
    save_file({k: v.float().contiguous() for k, v in best.items()}, os.path.join(where, "exact.safetensors"))
    P.write(where, case | dict(gap=gap), result)


def main():
    out = sys.argv[1]
    shutil.rmtree(out, ignore_errors=True)
    for name, case in CASES.items():
        run(name, case, out)


main()
