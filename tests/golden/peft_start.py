#!/usr/bin/env python3
"""Twenty steps by peft in f32 of LoRAs that start or step otherwise: writes peft_start/, the reference of tests/engine/golden_start.rs.

    peft_start.py OUT

`pissa*`: `init/` are A and B of the residual base; `final/` is what peft saves with `path_initial_model_for_weight_conversion`.
`loraplus*`: the optimiser of `create_loraplus_optimizer`. The models are peft/tiny and model-gpt2, which must be there.
"""
import os, shutil, sys, tempfile
import torch
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from transformers import AutoModelForCausalLM

import peft_train as P

HERE = os.path.dirname(os.path.abspath(__file__))
CASES = {
    "pissa": dict(model="tiny", seed=5, init_lora_weights="pissa", r=3, lora_alpha=12, target_modules=P.ALL, learning_rate=2e-3, schedule="linear", warmup=2),
    "pissa_gpt2": dict(model="gpt2", seed=6, init_lora_weights="pissa", use_rslora=True, target_modules=["c_attn", "mlp.c_proj"], learning_rate=2e-3),
    "loraplus": dict(model="tiny", seed=7, init_lora_weights=True, ratio=16.0, weight_decay=0.1, learning_rate=1e-3, schedule="linear", warmup=3, max_grad_norm=0.5),
    "loraplus_gpt2": dict(model="gpt2", seed=8, init_lora_weights=True, ratio=4.0, target_modules=["c_attn", "mlp.c_proj"], learning_rate=2e-3),
}


def run(name, case, out):
    case = P.DEFAULTS | dict(ratio=None) | case
    where = os.path.join(out, name)
    base = AutoModelForCausalLM.from_pretrained(os.path.join(HERE, {"tiny": "peft/tiny", "gpt2": "model-gpt2"}[case["model"]]), dtype=torch.float32)
    torch.manual_seed(case["seed"])
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **{k: case[k] for k in ("r", "lora_alpha", "target_modules", "use_rslora", "init_lora_weights")}))
    if case["init_lora_weights"] is True:
        for n, w in model.named_parameters():
            if "lora_B" in n:
                torch.nn.init.normal_(w, 0.0, 0.05)
    P.save(model, os.path.join(where, "init"))
    with tempfile.TemporaryDirectory() as start:
        start = os.path.join(start, "start")
        model.peft_config["default"].init_lora_weights = True
        model.save_pretrained(start)
        data = P.sequences(torch.Generator().manual_seed(case["seed"]), base.config.vocab_size)
        if case["ratio"]:
            plain = torch.optim.AdamW
            torch.optim.AdamW = lambda params, lr, weight_decay, foreach: create_loraplus_optimizer(
                model, plain, lr=lr, loraplus_lr_ratio=case["ratio"], loraplus_weight_decay=weight_decay, foreach=foreach)
        result = P.train(model, data, case)
        if case["ratio"]:
            torch.optim.AdamW = plain
        if case["init_lora_weights"] == "pissa":
            save = model.save_pretrained
            model.save_pretrained = lambda path: save(path, path_initial_model_for_weight_conversion=start)
        P.save(model, os.path.join(where, "final"))
    P.write(where, {k: v for k, v in case.items()}, result)


def main():
    out = sys.argv[1]
    shutil.rmtree(out, ignore_errors=True)
    for name, case in CASES.items():
        run(name, case, out)


main()
