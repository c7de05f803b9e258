#!/usr/bin/env bash
# peft 0.21.2 with transformers 5.24.0: a soft prompt stands before the text once. In `generate` with its cache, which is the default, it is
# put in again before every new token, so that the continuation is another than that of the same model's own forward. Transformers
# hands the cache on as `cache`, peft looks for it as `past_key_values`, finds none and takes every step for the first.
#
# The input is a tiny random model with a random soft prompt, of PROMPT_TUNING and P_TUNING, greedy.
# Expected: the tokens of the forward, as without the cache; the first pass of 5 + 4 rows, each further one of one.
# Continuations of such adapters are to be compared with forwards, or with `use_cache=False`.
source "$(dirname "$0")/findings.sh"
python peft==0.21.2 transformers==5.24.0 torch==2.15.0 <<'PY'
import sys
import peft, torch, transformers
from peft import PromptEncoderConfig, PromptTuningConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

print(f"peft {peft.__version__}, transformers {transformers.__version__}, torch {torch.__version__}")
IDS, NEW = torch.tensor([[5, 9, 11, 7]]), 8
unchanged = True
for kind in [PromptTuningConfig, PromptEncoderConfig]:
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64,
                                        bos_token_id=1, eos_token_id=None, pad_token_id=0, initializer_range=0.3)).eval()
    model = get_peft_model(base, kind(task_type="CAUSAL_LM", num_virtual_tokens=5)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_()
        ids = IDS
        for _ in range(NEW):
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
            ids = torch.cat([ids, logits[:, -1].argmax(-1, keepdim=True)], 1)
    forward = ids[0, IDS.shape[1]:].tolist()
    rows = []
    base.model.register_forward_pre_hook(lambda _, args, given: rows.append(next(given[k].shape[1] for k in ("inputs_embeds", "input_ids") if given.get(k) is not None)), with_kwargs=True)
    tokens = {}
    for use_cache in [True, False]:
        rows.clear()
        found = model.generate(input_ids=IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=NEW, do_sample=False, use_cache=use_cache)
        tokens[use_cache] = found[0, IDS.shape[1]:].tolist()
        print(f"{kind.__name__}: use_cache={use_cache}: rows of the passes {rows}, the forward's tokens: {tokens[use_cache] == forward}")
        unchanged &= rows == ([9] + [6] * (NEW - 1) if use_cache else list(range(9, 9 + NEW)))
    unchanged &= tokens[False] == forward and tokens[True] != forward
sys.exit(not unchanged)
PY
