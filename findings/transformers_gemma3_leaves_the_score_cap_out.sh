#!/usr/bin/env bash
# transformers 5.24.0: Gemma3TextConfig has `attn_logit_softcapping`, documents it as the factor of the soft cap of attention scores,
# and every attention layer keeps it; the forward does not hand it to the attention, so that it changes nothing, with no
# warning. In Gemma 2, from which the code comes, it does.
#
# Expected: a cap of 0.1 on scores of several units changes the logits, in both families.
# A reader that applies the cap as the configuration says it computes another model than the library.
source "$(dirname "$0")/findings.sh"
python transformers==5.24.0 torch==2.15.0 <<'PY'
import sys, warnings
import torch, transformers
from transformers import Gemma2Config, Gemma2ForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig

IDS = torch.tensor([[1, 5, 9, 13, 17, 21]])
SIZES = dict(vocab_size=32, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
             query_pre_attn_scalar=8, final_logit_softcapping=None, initializer_range=0.5, pad_token_id=None)


def moved(kind, config):
    """By how much the cap moves the logits, and the largest logit."""
    found = []
    for cap in (0.1, None):
        torch.manual_seed(0)
        model = kind(config(**SIZES, attn_logit_softcapping=cap, attn_implementation="eager")).eval()
        assert all(layer.self_attn.attn_logit_softcapping == cap for layer in model.model.layers)
        with torch.no_grad():
            found.append(model(input_ids=IDS).logits)
    return (found[0] - found[1]).abs().max().item(), found[0].abs().max().item()


with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    three, two = moved(Gemma3ForCausalLM, Gemma3TextConfig), moved(Gemma2ForCausalLM, Gemma2Config)
about = [str(w.message) for w in said if "softcap" in str(w.message)]
print(f"transformers {transformers.__version__}, torch {torch.__version__}")
print(f"a cap of 0.1 moves the logits of Gemma 3 by {three[0]:.3g} of {three[1]:.3g}, of Gemma 2 by {two[0]:.3g} of {two[1]:.3g}; warnings: {about}")
sys.exit(not (three[0] == 0.0 and two[0] > 1e-3 * two[1] and about == []))
PY
