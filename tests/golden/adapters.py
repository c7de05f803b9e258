"""Writes adapters.json (which modules PEFT adapts for a configuration, with which rank and scale; the modules of a model of
each family, and PEFT's defaults for it) and peft_adapter/ (an adapter directory as PEFT saves it).

Usage: python adapters.py FOLDER
"""

import json
import pathlib
import shutil
import sys

import torch
from families import CASES as FAMILIES
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import LlamaConfig, LlamaForCausalLM

CASES = [
    dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]),
    dict(r=4, lora_alpha=8, target_modules="all-linear"),
    dict(r=3, lora_alpha=7.5, target_modules=r".*\.(q|down)_proj", use_rslora=True),
    dict(r=4, lora_alpha=8, target_modules=r"model\.layers\.[02]\.mlp\..*_proj"),
    dict(r=4, lora_alpha=8, target_modules=["q_proj", "up_proj"], layers_to_transform=[0, 2]),
    dict(r=4, lora_alpha=8, target_modules=["q_proj"], layers_to_transform=1),
    dict(r=4, lora_alpha=8, target_modules=["q_proj"], layers_to_transform=[1], layers_pattern="layers"),
    dict(r=4, lora_alpha=8, target_modules=["self_attn.q_proj", "layers.1.mlp.gate_proj"]),
    dict(r=4, lora_alpha=8, target_modules=["model.layers.0.self_attn.q_proj", "v_proj"], layers_to_transform=[1]),
    dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 32}),
    dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"],
         rank_pattern={"layers.1.self_attn.q_proj": 6, "q_proj": 2}, alpha_pattern={r".*\.0\..*": 3, "q_proj": 5}),
    dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], rank_pattern={"^model.layers.0.self_attn.v_proj": 1}),
    dict(r=4, lora_alpha=8, target_modules="all-linear", exclude_modules=["o_proj", "layers.1.mlp.up_proj"]),
    dict(r=4, lora_alpha=8, target_modules="all-linear", exclude_modules=r".*\.mlp\..*"),
]


def model():
    torch.manual_seed(1)
    return LlamaForCausalLM(LlamaConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4,
                                        num_key_value_heads=2, head_dim=6, vocab_size=32))


def slots(given):
    peft = get_peft_model(model(), LoraConfig(task_type="CAUSAL_LM", **given))
    out = []
    for name, module in peft.named_modules():
        if isinstance(module, LoraLayer):
            path = name.removeprefix("base_model.model.")
            out.append([path, module.r["default"], module.scaling["default"]])
    return out


def lora_modules(model, **given):
    """The paths of the modules that PEFT adapts, or None where it does not know which."""
    try:
        peft = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **given))
    except ValueError as error:
        assert "target_modules" in str(error), error
        return None
    return sorted(name.removeprefix("base_model.model.") for name, module in peft.named_modules() if isinstance(module, LoraLayer))


def family(kind, config, _):
    """What PEFT makes of a model of a family."""
    modules = sorted(name for name, _ in kind(config).named_modules() if name and not name.startswith(("model.vision_tower.", "model.multi_modal_projector.")))
    prompts = {}
    for method in (PrefixTuningConfig, PromptTuningConfig):
        settings = get_peft_model(kind(config), method(task_type="CAUSAL_LM", num_virtual_tokens=2)).peft_config["default"]
        prompts[settings.peft_type.value] = [settings.token_dim, settings.num_attention_heads, settings.num_layers]
    return {
        "modules": modules,
        "default": lora_modules(kind(config)),
        "all-linear": lora_modules(kind(config), target_modules="all-linear", exclude_modules=r"model\.vision_tower(\..*)?"),
        "prompts": prompts,
    }


def main():
    folder = pathlib.Path(sys.argv[1])
    cases = [{"config": c, "slots": slots(c)} for c in CASES]
    families = {name: family(*FAMILIES[name]) for name in sorted(FAMILIES)}
    json.dump({"cases": cases, "families": families}, open(folder / "adapters.json", "w"), separators=(",", ":"))
    config = LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=8, lora_dropout=0.25,
                        target_modules=["q_proj", "v_proj", "down_proj"], rank_pattern={"down_proj": 3}, init_lora_weights=False)
    peft = get_peft_model(model(), config)
    with torch.no_grad():
        for i, p in enumerate(p for n, p in peft.named_parameters() if "lora_" in n):
            p.copy_(torch.arange(p.numel()).reshape(p.shape) / 64 + i)
    peft.save_pretrained(folder / "peft_adapter")
    (folder / "peft_adapter" / "README.md").unlink()


main()
