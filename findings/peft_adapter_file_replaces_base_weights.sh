#!/usr/bin/env bash
# peft 0.21.2: an adapter file may hold a tensor under the name that a weight of the base has inside the wrapped model, and
# `PeftModel.from_pretrained` then loads it over the base's, without a warning. Disabling the adapter does not bring the base
# back. Only of a module that the adapter wraps is the plain name (q_proj.weight) passed over, and `q_proj.base_layer.weight` taken.
#
# The input is a LoRA adapter of q_proj as peft saves it, with one tensor more that its configuration does not ask for.
# Expected: the tensor is dropped, as others that the configuration has no place for are, or reported; and in any case a base
# that `disable_adapter` gives back.
# A reader that compares a model with and without an adapter has to refuse such a file, or say which weights it changes.
source "$(dirname "$0")/findings.sh"
python peft==0.21.2 transformers==5.24.0 torch==2.15.0 <<'PY'
import pathlib, sys, tempfile, warnings
import peft, torch, transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM


def base():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                                        max_position_embeddings=64, initializer_range=0.2)).eval()


def logits(model):
    with torch.no_grad():
        return model(input_ids=torch.tensor([[1, 5, 9, 13, 17, 21]])).logits


folder = pathlib.Path(tempfile.mkdtemp(dir="."))
saved = get_peft_model(base(), LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], init_lora_weights=False)).eval()
saved.save_pretrained(folder)
file = folder / "adapter_model.safetensors"
tensors = load_file(file)

print(f"peft {peft.__version__}, transformers {transformers.__version__}, torch {torch.__version__}")
moved, about_keys = {}, []
for name, shape in {"norm.weight": [32], "layers.0.self_attn.k_proj.weight": [32, 32],
                    "layers.0.self_attn.q_proj.base_layer.weight": [32, 32], "layers.0.self_attn.q_proj.weight": [32, 32]}.items():
    save_file({**tensors, f"base_model.model.model.{name}": torch.full(shape, 0.3)}, file, {"format": "pt"})
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        loaded = PeftModel.from_pretrained(base(), folder).eval()
    about_keys += [str(w.message) for w in said if "key" in str(w.message).lower() or name in str(w.message)]
    with loaded.disable_adapter():
        without = (logits(loaded) - logits(base())).abs().max().item()
    moved[name] = (logits(loaded) - logits(saved)).abs().max().item(), without
    print(f"{name}: logits differ by {moved[name][0]:.2f} from the adapter's, with it disabled by {without:.2f} from the base's")
print(f"warnings about keys: {about_keys}")
*taken, passed_over = moved.values()
sys.exit(not (about_keys == [] and all(min(pair) > 0.1 for pair in taken) and passed_over == (0.0, 0.0)))
PY
