#!/usr/bin/env bash
# peft 0.21.2: a soft prompt is put in front of the text by the class that `task_type` of adapter_config.json names. Where it is null
# or not there, which a configuration made without it is saved with, the plain class loads the trained tensors and
# never uses them: the logits are the base's to the last bit, with no warning.
#
# The input is a prompt, a prefix and a P-tuning adapter as peft saves them, but for that key.
# Expected: the prompt is applied, or an error.
# A reader has to tell the two apart by the type of the adapter, and say that peft would not apply it.
source "$(dirname "$0")/findings.sh"
python peft==0.21.2 transformers==5.24.0 torch==2.15.0 <<'PY'
import json, pathlib, sys, tempfile, warnings
import peft, torch, transformers
from peft import PeftModel, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM


def base():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                                        max_position_embeddings=64, initializer_range=0.2)).eval()


def logits(model):
    with torch.no_grad():
        return model(input_ids=torch.tensor([[1, 5, 9, 13, 17, 21]])).logits


print(f"peft {peft.__version__}, transformers {transformers.__version__}, torch {torch.__version__}")
unchanged = True
for kind in [PromptTuningConfig, PrefixTuningConfig, PromptEncoderConfig]:
    folder = pathlib.Path(tempfile.mkdtemp(dir="."))
    saved = get_peft_model(base(), kind(task_type="CAUSAL_LM", num_virtual_tokens=4)).eval()
    saved.save_pretrained(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["task_type"] = None
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        loaded = PeftModel.from_pretrained(base(), folder).eval()
        given = logits(loaded)
    about_task = [str(w.message) for w in said if "task" in str(w.message).lower() or "prompt" in str(w.message).lower()]
    from_base = (given - logits(base())).abs().max().item()
    from_saved = (given - logits(saved)[:, -6:]).abs().max().item()
    print(f"{kind.__name__}: {type(loaded).__name__}, differs by {from_base} from the base and by {from_saved:.2f} from the prompted model, "
          f"warnings: {about_task}")
    unchanged &= from_base == 0.0 and from_saved > 0.1 and about_task == []
sys.exit(not unchanged)
PY
