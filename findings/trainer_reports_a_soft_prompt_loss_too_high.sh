#!/usr/bin/env bash
# transformers 5.24.0, peft 0.21.2: under prompt tuning, the Trainer divides the sum over all predicted tokens by their number
# less one for each text whose first token has a label. With a soft prompt in front that token is predicted too, but it is
# not counted. Reported losses and gradients, in training and in evaluation, are too high by n / (n - 1): by half for texts
# of three tokens. With the first label masked, as in training on answers alone, they are the model's.
#
# Expected: the loss that the model itself gives for the batch, as with LoRA.
# Losses of soft prompts and of LoRA out of the same Trainer must not be compared unless the first label is masked.
source "$(dirname "$0")/findings.sh"
python peft==0.21.2 transformers==5.24.0 torch==2.15.0 accelerate==1.15.0 <<'PY'
import sys
import peft, torch, transformers
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

ids = torch.tensor([1, 5, 9, 13, 17, 21])
masked = torch.cat([torch.tensor([-100]), ids[1:]])
lora, prompt = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"]), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
print(f"transformers {transformers.__version__}, peft {peft.__version__}, torch {torch.__version__}")
ratios = []
for name, config, labels in [("LoRA", lora, ids), ("soft prompt", prompt, ids), ("soft prompt, first label masked", prompt, masked)]:
    data = [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}]
    torch.manual_seed(0)
    model = get_peft_model(LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                                                        num_attention_heads=4, initializer_range=0.2)), config).eval()
    with torch.no_grad():
        own = model(input_ids=ids[None], labels=labels[None]).loss.item()
    arguments = TrainingArguments(output_dir="out", max_steps=1, learning_rate=0.0, logging_steps=1, report_to=[], save_strategy="no", use_cpu=True)
    trainer = Trainer(model=model, args=arguments, train_dataset=data, eval_dataset=data)
    trainer.train()
    trained = next(line["loss"] for line in trainer.state.log_history if "loss" in line)
    evaluated = trainer.evaluate()["eval_loss"]
    ratios.append((trained / own, evaluated / own))
    print(f"{name}: the model's loss {own:.4f}, of training {trained:.4f}, of evaluation {evaluated:.4f}")
near = [abs(ratio - expected) < 1e-3 for pair, expected in zip(ratios, [1.0, 6 / 5, 1.0]) for ratio in pair]
sys.exit(not all(near))
PY
