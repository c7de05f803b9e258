#!/usr/bin/env bash
# transformer-lens 4.3.0: the tensors at `attn.q_norm` and `attn.k_norm` are `[batch, head, position, d_head]` in Qwen 3, where
# `attn.q.hook_out` beside them is `[batch, position, head, d_head]`, and `[batch, position, head * d_head]` in OLMo 2. With as many
# positions as heads the shapes do not tell.
#
# Expected: one order of axes for one name, that of hook_q.
# Who reads such a cache has to know the family.
source "$(dirname "$0")/findings.sh"
python transformer-lens==4.3.0 transformers==5.24.0 torch==2.15.0 <<'PY'
import sys, tempfile
import torch, transformers
from importlib.metadata import version
from tokenizers import Tokenizer, models
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, Olmo2Config, Olmo2ForCausalLM, Qwen3Config, Qwen3ForCausalLM, PreTrainedTokenizerFast

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


def shapes(model):
    _, bridge = bridged(model)
    with torch.no_grad():
        _, cache = bridge.run_with_cache(IDS)
    names = ["attn.q.hook_out", "attn.q_norm.hook_in", "attn.q_norm.hook_out", "attn.k_norm.hook_out"]
    return {name: tuple(cache[f"blocks.0.{name}"].shape) for name in names}


torch.manual_seed(0)
qwen, olmo = shapes(Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=8))), shapes(Olmo2ForCausalLM(Olmo2Config(**SIZES)))
print(f"transformer-lens {version('transformer-lens')}, transformers {transformers.__version__}, torch {torch.__version__}")
print(f"7 positions, 4 query heads and 2 of keys of 8 each; Qwen 3: {qwen}; OLMo 2: {olmo}")
sys.exit(not (list(qwen.values()) == [(1, 7, 4, 8), (1, 4, 7, 8), (1, 4, 7, 8), (1, 2, 7, 8)] and list(olmo.values()) == [(1, 7, 4, 8), (1, 7, 32), (1, 7, 32), (1, 7, 16)]))
PY
