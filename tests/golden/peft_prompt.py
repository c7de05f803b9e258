#!/usr/bin/env python3
"""Twenty steps of prompt tuning by peft in f32: writes peft_prompt/, the reference of tests/engine/golden_prompt.rs.

    peft_prompt.py OUT

Each case is a directory as peft_train.py makes it, on the same `tiny` model. Where an MLP makes the prompt, `init/` and
`final/` also hold its parameters, which peft does not save: `prompt_encoder.safetensors`, with peft's names.
"""
import os, shutil, sys
import torch
from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
import peft_train

CASES = {
    "embeddings": dict(config=PromptTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM"), seed=1, std=0.2, max_grad_norm=1.0),
    "one_row": dict(config=PromptTuningConfig(num_virtual_tokens=1, task_type="CAUSAL_LM"), seed=2, schedule="linear", warmup=3, weight_decay=0.1,
                    batch_size=2, accumulation=2, learning_rate=5e-2),
    "mlp": dict(config=PromptEncoderConfig(num_virtual_tokens=4, encoder_hidden_size=24, task_type="CAUSAL_LM"), seed=3, learning_rate=3e-3,
                max_grad_norm=0.5),
    "prefix": dict(config=PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"), seed=4),
    "projection": dict(config=PrefixTuningConfig(num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=12, task_type="CAUSAL_LM"), seed=5,
                       learning_rate=3e-3),
}
KINDS = {"mlp": "mlp", "projection": "projection"}


def save(model, where, name):
    peft_train.save(model, where)
    if name in KINDS:
        tensors = {n: w.detach().contiguous() for n, w in model.named_parameters() if w.requires_grad}
        save_file(tensors, os.path.join(where, "prompt_encoder.safetensors"), {"format": "pt", "reparameterization": KINDS[name]})


def main():
    out = sys.argv[1]
    golden = os.path.join(os.path.dirname(os.path.abspath(__file__)), "peft")
    shutil.rmtree(out, ignore_errors=True)
    for name, case in CASES.items():
        case = peft_train.DEFAULTS | dict(model="tiny") | case
        where, config = os.path.join(out, name), case.pop("config")
        base = AutoModelForCausalLM.from_pretrained(os.path.join(golden, "tiny"), dtype=torch.float32)
        torch.manual_seed(case["seed"])
        model = get_peft_model(base, config)
        if "std" in case:
            torch.nn.init.normal_(model.prompt_encoder["default"].embedding.weight, 0.0, case.pop("std"))
        save(model, os.path.join(where, "init"), name)
        data = peft_train.sequences(torch.Generator().manual_seed(case["seed"]), base.config.vocab_size)
        # The prompt's last row may predict the first token, and must not where nothing stands before it.
        data[5]["labels"][0] = data[5]["input_ids"][0]
        result = peft_train.train(model, data, case)
        save(model, os.path.join(where, "final"), name)
        keep = {k: case[k] for k in case if k in ("model", "seed", "learning_rate", "schedule", "warmup", "weight_decay", "max_grad_norm", "batch_size", "accumulation")}
        peft_train.write(where, keep, result)


main()
