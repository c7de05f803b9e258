#!/usr/bin/env bash
# peft 0.21.2: of the entries of `alpha_pattern` that fit a module the first counts, and adapter_config.json is
# written with its keys sorted. A general entry before a special one wins in training, and after saving and loading
# the special one may: the same tensors are scaled by another number, with no warning.
#
# The input has q_proj at 32 and then layers.1.self_attn.q_proj at 8; "layers..." sorts first.
# Expected: the reloaded model gives the logits of the saved one.
# A reader has to follow the order in the file, and a writer that sorts has to put the entries so that none hides another.
source "$(dirname "$0")/findings.sh"
python peft==0.21.2 transformers==5.24.0 torch==2.15.0 <<'PY'
import json, pathlib, sys, tempfile, warnings
import peft, torch, transformers
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM


def base():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                                        max_position_embeddings=64, initializer_range=0.2)).eval()


def logits(model):
    with torch.no_grad():
        return model(input_ids=torch.tensor([[1, 5, 9, 13, 17, 21]])).logits


def scaling(model):
    return [layer.self_attn.q_proj.scaling["default"] for layer in model.base_model.model.model.layers]


folder = pathlib.Path(tempfile.mkdtemp(dir="."))
pattern = {"q_proj": 32, "layers.1.self_attn.q_proj": 8}
saved = get_peft_model(base(), LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=4, target_modules=["q_proj"], alpha_pattern=pattern,
                                          init_lora_weights=False)).eval()
saved.save_pretrained(folder)
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    loaded = PeftModel.from_pretrained(base(), folder).eval()
about_pattern = [str(w.message) for w in said if "pattern" in str(w.message)]
moved = (logits(loaded) - logits(saved)).abs().max().item()

print(f"peft {peft.__version__}, transformers {transformers.__version__}, torch {torch.__version__}")
print(f"given: {pattern}, in the file: {json.loads((folder / 'adapter_config.json').read_text())['alpha_pattern']}")
print(f"scaling of the two layers: {scaling(saved)} saved, {scaling(loaded)} loaded, warnings: {about_pattern}")
print(f"largest difference of logits: {moved:.2f} of {logits(saved).abs().max().item():.2f}")
sys.exit(not (scaling(saved) == [8.0, 8.0] and scaling(loaded) == [8.0, 2.0] and moved > 0.1 and about_pattern == []))
PY
