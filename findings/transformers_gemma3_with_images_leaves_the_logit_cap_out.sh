#!/usr/bin/env bash
# transformers 5.24.0: Gemma3ForConditionalGeneration does not apply `final_logit_softcapping` of its text configuration; Gemma3ForCausalLM does,
# for the same weights and configuration.
#
# Expected: the text part of the one computes what the other does.
# A reader of the text part has to know in which of the two files it stands.
source "$(dirname "$0")/findings.sh"
python transformers==5.24.0 torch==2.15.0 <<'PY'
import sys
import torch, transformers
from transformers import Gemma3Config, Gemma3ForCausalLM, Gemma3ForConditionalGeneration, Gemma3TextConfig

text = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8, initializer_range=0.3,
            final_logit_softcapping=0.5)
vision = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=28, patch_size=14)
torch.manual_seed(0)
images = Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=vision, image_token_index=63)).eval()
alone = Gemma3ForCausalLM(Gemma3TextConfig(**text)).eval()
alone.model.load_state_dict(images.model.language_model.state_dict())
alone.tie_weights()
ids = torch.tensor([[1, 5, 9, 13, 17]])
with torch.no_grad():
    one, two = images(input_ids=ids).logits, alone(input_ids=ids).logits
    by_hand = 0.5 * torch.tanh(one / 0.5)
print(f"transformers {transformers.__version__}, torch {torch.__version__}")
print(f"largest logit under a cap of 0.5: {one.abs().max():.3f} with the vision tower beside, {two.abs().max():.3f} without; capped by hand they differ by {(by_hand - two).abs().max():.1e}")
sys.exit(not (one.abs().max() > 0.6 and two.abs().max() <= 0.5 and (by_hand - two).abs().max() < 1e-5))
PY
