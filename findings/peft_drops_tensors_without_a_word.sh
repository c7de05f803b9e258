#!/usr/bin/env bash
# peft 0.21.2: `PeftModel.from_pretrained` loads an adapter file with tensors that the configuration beside it has no place
# for. Missing tensors are warned of; those left over are dropped without a warning, and the logits are not the saved model's.
#
# The input is an adapter of q_proj and v_proj as peft saves it, whose configuration then names q_proj alone.
# Expected: a warning that names the tensors left over, as `load_adapter` does return them (`unexpected_keys`).
# A reader should refuse such a file, or say what it drops.
source "$(dirname "$0")/findings.sh"
python peft==0.21.2 transformers==5.23.0 torch==2.15.0 <<'PY'
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


folder = pathlib.Path(tempfile.mkdtemp(dir="."))
saved = get_peft_model(base(), LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)).eval()
saved.save_pretrained(folder)
config = json.loads((folder / "adapter_config.json").read_text())
config["target_modules"] = ["q_proj"]
(folder / "adapter_config.json").write_text(json.dumps(config))

with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    loaded = PeftModel.from_pretrained(base(), folder).eval()
about_keys = [str(w.message) for w in said if "key" in str(w.message).lower()]
unexpected = loaded.load_adapter(folder, "again").unexpected_keys
loaded.set_adapter("default")
moved = (logits(loaded) - logits(saved)).abs().max().item()

print(f"peft {peft.__version__}, transformers {transformers.__version__}, torch {torch.__version__}")
print(f"warnings of from_pretrained about keys: {about_keys}")
print(f"unexpected keys that load_adapter returns: {len(unexpected)}")
print(f"largest difference from the saved model's logits: {moved:.2f} of {logits(saved).abs().max().item():.2f}")
sys.exit(not (about_keys == [] and len(unexpected) == 4 and moved > 0.1))
PY
