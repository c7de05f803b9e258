#!/usr/bin/env bash
# peft 0.21.2: `modules_to_save` takes every module whose name ends with the given letters, where `target_modules` asks for a
# whole part between dots. In a LLaMA, ["norm"] is meant for the last norm and also wraps input_layernorm and
# post_attention_layernorm of each block: they are trained and saved as well.
#
# Expected: the rule of `target_modules`, with which "norm" is the last norm alone.
# A count of what is trained, and a reader that looks for the tensors of a configuration, go wrong by two norms a block.
source "$(dirname "$0")/findings.sh"
python peft==0.21.2 transformers==5.24.0 torch==2.15.0 <<'PY'
import pathlib, sys, tempfile
import peft, torch, transformers
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from transformers import LlamaConfig, LlamaForCausalLM

model = LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4))
folder = pathlib.Path(tempfile.mkdtemp(dir="."))
model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], modules_to_save=["norm"]))
model.save_pretrained(folder)
trained = [name for name, p in model.named_parameters() if p.requires_grad and "lora_" not in name]
with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
    saved = sorted(name.removeprefix("base_model.model.model.") for name in file.keys() if "lora_" not in name)

print(f"peft {peft.__version__}, transformers {transformers.__version__}, torch {torch.__version__}")
print(f"trained besides LoRA: {len(trained)} parameters")
print(f"saved besides LoRA: {saved}")
expected = sorted(["norm.weight"] + [f"layers.{i}.{norm}.weight" for i in range(2) for norm in ["input_layernorm", "post_attention_layernorm"]])
sys.exit(not (saved == expected and len(trained) == 5))
PY
