#!/usr/bin/env bash
# peft 0.21.2 with transformers 5.24.0: a GPT-J or Phi whose head is tied to the embedding table still has a bias of its own in the head
# (lm_head.bias). An adapter of `trainable_token_indices` wraps the tied head in a layer that multiplies by the table alone: logits of the
# adapted model lose that bias, though nothing has been trained. Merging the adapter brings the bias back.
#
# Expected: an adapter that has not been trained leaves the logits as they are, and merging does not change them.
source "$(dirname "$0")/findings.sh"
python torch==2.15.0 transformers==5.24.0 peft==0.21.2 <<'PY'
import sys
import peft, torch, transformers
from peft import LoraConfig, get_peft_model

print(f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}")
ids = torch.arange(1, 9)[None]


def losses(config, target, tied):
    """Largest differences of logits: of the adapted model from the base model, of it from the bias, and of the merged model."""
    torch.manual_seed(0)
    config.tie_word_embeddings = tied
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    bias = torch.linspace(-2, 2, config.vocab_size)
    with torch.no_grad():
        model.lm_head.bias.copy_(bias)
        before = model(ids).logits
        adapted = get_peft_model(model, LoraConfig(r=2, target_modules=[target], trainable_token_indices=[3, 5])).eval()
        lost = before - adapted(ids).logits
        merged = adapted.merge_and_unload()(ids).logits
    return [x.abs().max().item() for x in (lost, lost - bias, before - merged)]


wrong = []
sizes = dict(vocab_size=32, bos_token_id=0, eos_token_id=0)
phi = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, **sizes)
gptj = dict(n_embd=32, n_layer=2, n_head=4, rotary_dim=4, n_positions=64, **sizes)
for name, config, target in [
    ("phi", lambda: transformers.PhiConfig(**phi), "q_proj"),
    ("gptj", lambda: transformers.GPTJConfig(**gptj), "q_proj"),
]:
    for tied in (True, False):
        from_base, from_bias, merged = losses(config(), target, tied)
        print(f"{name}, head {'tied' if tied else 'of its own'}: adapted differs by {from_base:.1e}; that less the bias by {from_bias:.1e}; merged differs by {merged:.1e}")
        found = from_base > 1.9 and from_bias < 1e-5 if tied else from_base < 1e-5
        wrong += [] if found and merged < 1e-5 else [(name, tied)]
sys.exit(bool(wrong))
PY
