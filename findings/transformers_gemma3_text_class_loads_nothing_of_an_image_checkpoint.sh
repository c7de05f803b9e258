#!/usr/bin/env bash
# transformers 5.24.0: `Gemma3ForCausalLM.from_pretrained` on a checkpoint of Gemma3ForConditionalGeneration (which is how the published ones
# above 1B are) finds none of the text model's tensors and gives a model of random weights; missing tensors are a line of the
# logger. `AutoModelForCausalLM` on the same folder gives the checkpoint's logits.
#
# Expected: the class of the text model reads the text part, or raises an error.
# Who takes a reference by the class's name compares with noise.
source "$(dirname "$0")/findings.sh"
python transformers==5.24.0 torch==2.15.0 <<'PY'
import pathlib, sys, tempfile
import torch, transformers
from transformers import AutoModelForCausalLM, Gemma3Config, Gemma3ForCausalLM, Gemma3ForConditionalGeneration

folder = pathlib.Path(tempfile.mkdtemp(dir="."))
text = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8, initializer_range=0.3)
vision = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=28, patch_size=14)
torch.manual_seed(0)
model = Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=vision, image_token_index=63)).eval()
model.save_pretrained(folder)
ids = torch.tensor([[1, 5, 9, 13, 17]])
with torch.no_grad():
    whole = model(input_ids=ids).logits
    by_class = Gemma3ForCausalLM.from_pretrained(folder).eval()(input_ids=ids).logits
    by_auto = AutoModelForCausalLM.from_pretrained(folder).eval()(input_ids=ids).logits
_, info = Gemma3ForCausalLM.from_pretrained(folder, output_loading_info=True)
apart = lambda x: ((x - whole).abs().max() / whole.abs().max()).item()
print(f"transformers {transformers.__version__}, torch {torch.__version__}")
print(f"missing by the class: {len(info['missing_keys'])} tensors; logits differ by {apart(by_class):.2f} of the largest, by AutoModelForCausalLM by {apart(by_auto):.1e}")
sys.exit(not (len(info["missing_keys"]) > 20 and apart(by_class) > 0.3 and apart(by_auto) < 1e-5))
PY
