#!/usr/bin/env bash
# peft 0.21.2: a LoRA of a tied embedding table and head under `ensure_weight_tying=True` has its A and B as two Parameters
# each over one storage: the table's A is the head's B. Every optimizer holds both, with moments of their own, and steps the
# same numbers twice; AdamW moves an element by up to twice the learning rate in its first step, where it is once without.
#
# Expected: one Parameter that both modules use, as torch ties the weights themselves, and one step of the summed gradient.
# Who compares a tied adapter with an untied one, or with another trainer, compares other effective learning rates.
source "$(dirname "$0")/findings.sh"
python peft==0.21.2 transformers==5.24.0 torch==2.15.0 numpy==2.4.6 <<'PY'
import sys
import peft, torch, transformers
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

RATE = 0.01
torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, tie_word_embeddings=True))
config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["embed_tokens", "lm_head"], ensure_weight_tying=True)
model = get_peft_model(model, config)
trained = [weight for weight in model.parameters() if weight.requires_grad]
for weight in trained:
    torch.nn.init.normal_(weight)
storages = {weight.data_ptr() for weight in trained}
before = [weight.detach().clone() for weight in trained]
ids = torch.randint(0, 32, (2, 6))
optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
model(input_ids=ids, labels=ids).loss.backward()
optimizer.step()
moved = max((weight - old).abs().max().item() for weight, old in zip(trained, before)) / RATE

print(f"peft {peft.__version__}, transformers {transformers.__version__}, torch {torch.__version__}")
print(f"{len(trained)} parameters over {len(storages)} storages; the first step of AdamW moves an element by {moved:.2f} learning rates")
sys.exit(not (len(trained) == 4 and len(storages) == 2 and 1.9 < moved < 2.1))
PY
