#!/usr/bin/env bash
# transformer-lens 4.3.0 with transformers 5.24.0: the bridge of a Gemma 3 whose configuration has `attn_logit_softcapping` caps the
# attention scores, which the model that it wraps does not. Its logits, in the default mode that changes no weights, are others than the model's.
#
# Expected: TransformerBridge in its default mode gives the logits of the transformers model that it wraps.
# Whoever checks states of such a model has to know which of the two is meant.
source "$(dirname "$0")/findings.sh"
python transformer-lens==4.3.0 transformers==5.24.0 torch==2.15.0 <<'PY'
import sys, tempfile
import torch, transformers
from importlib.metadata import version
from tokenizers import Tokenizer, models
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedTokenizerFast

SIZES = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, pad_token_id=None,
             bos_token_id=1, eos_token_id=2)
IDS = torch.tensor([[1, 5, 9, 13, 17, 21, 25]])


def bridged(model):
    """The model as it is saved, in transformers and in TransformerLens."""
    folder = tempfile.mkdtemp(dir=".")
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({f"w{i}": i for i in range(64)}, unk_token="w0")), bos_token="w1", eos_token="w2",
                            pad_token="w0").save_pretrained(folder)
    plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    return plain, TransformerBridge.boot_transformers(folder, device="cpu", dtype=torch.float32)


def apart(cap):
    torch.manual_seed(0)
    model = Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, head_dim=8, query_pre_attn_scalar=8, attn_logit_softcapping=cap, initializer_range=0.5))
    plain, bridge = bridged(model)
    with torch.no_grad():
        ours, theirs = plain(input_ids=IDS).logits, bridge(IDS)
    return ((ours - theirs).abs().max() / ours.abs().max()).item()


without, capped = apart(None), apart(0.2)
print(f"transformer-lens {version('transformer-lens')}, transformers {transformers.__version__}, torch {torch.__version__}")
print(f"logits of the bridge differ from the model's by {without:.1e} of the largest without a cap, by {capped:.1e} with one of 0.2")
sys.exit(not (without < 1e-5 and capped > 1e-2))
PY
