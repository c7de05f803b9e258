#!/usr/bin/env python3
"""Ten steps of tuning towards a teacher, as a plain script with torch and peft in f32: writes the reference of
tests/engine/golden_objective.rs to standard output.

    objectives.py > objectives.json

Models and adapters are those of peft_train.py and peft_prompt.py. The teacher is the base model behind other tokens: `before`
stands in place of a sequence's first token. States are the outputs of `self_attn` in all layers, whose loss is `mse_loss` times
the number of layers, as in IA2 (arXiv 2509.22621); distributions have the loss of Hinton et al. (arXiv 1503.02531).
"""
import json, os, sys
import torch
import torch.nn.functional as F
from peft import PeftModel
from transformers import AutoModelForCausalLM
import peft_train

torch.set_num_threads(1)
STEPS, BATCH, TEMPERATURE = 10, 4, 1.5
HERE = os.path.dirname(os.path.abspath(__file__))
CASES = {
    "lora activations": dict(adapter="peft/query_value/init", weights=[0.0, 1.0, 0.0]),
    "lora logits": dict(adapter="peft/query_value/init", weights=[0.0, 0.0, 1.0]),
    "lora mixed": dict(adapter="peft/all_linear/init", weights=[0.02, 0.98, 0.5]),
    "prompt mixed": dict(adapter="peft_prompt/embeddings/init", weights=[0.1, 1.0, 0.3]),
    "prefix mixed": dict(adapter="peft_prompt/prefix/init", weights=[0.1, 1.0, 0.3]),
}


def base():
    return AutoModelForCausalLM.from_pretrained(os.path.join(HERE, "peft", "tiny"), dtype=torch.float32)


def read(model, ids, rows):
    """Outputs of self_attn [layers, rows, width] and logits [rows, vocab] at rows counted from the end."""
    states, hooks = [], []
    for layer in model.get_base_model().model.layers if isinstance(model, PeftModel) else model.model.layers:
        hooks.append(layer.self_attn.register_forward_hook(lambda _, __, output: states.append(output[0][0])))
    logits = model(input_ids=torch.tensor([ids])).logits[0]
    for hook in hooks:
        hook.remove()
    back = [row - len(ids) for row in rows]
    return torch.stack([x[back] for x in states]), logits[back]


def run(case, data, before):
    prompt = case["adapter"].startswith("peft_prompt")
    teacher, model = base().eval(), PeftModel.from_pretrained(base(), os.path.join(HERE, case["adapter"]), is_trainable=not prompt).eval()
    if prompt:  # peft loads prompts for inference alone
        model.prompt_encoder["default"].embedding.weight.requires_grad_(True)
    learnt = lambda s: [i for i, label in enumerate(s["labels"]) if label != -100]
    with torch.no_grad():
        taught = []
        for s in data:
            ids = before + s["input_ids"][1:]
            taught.append(read(teacher, ids, [i - 1 + len(before) - 1 for i in learnt(s)]))
    params = [w for w in model.parameters() if w.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=1e-2, weight_decay=0.0, foreach=False)
    losses, norms, position = [], [], 0
    for _ in range(STEPS):
        step = list(range(position, min(position + BATCH, len(data))))
        position = (position + len(step)) % len(data)
        count, parts, total = sum(len(learnt(data[i])) for i in step), [0.0, 0.0, 0.0], 0.0
        for i in step:
            s, (t_states, t_logits) = data[i], taught[i]
            states, logits = read(model, s["input_ids"], [i - 1 for i in learnt(s)])
            share = len(learnt(s)) / count
            labels = torch.tensor([label for label in s["labels"] if label != -100])
            p, q = F.log_softmax(logits / TEMPERATURE, -1), F.log_softmax(t_logits / TEMPERATURE, -1)
            terms = [F.cross_entropy(logits, labels), F.mse_loss(states, t_states) * len(states),
                     F.kl_div(p, q, reduction="batchmean", log_target=True) * TEMPERATURE**2]
            total = total + share * sum(w * term for w, term in zip(case["weights"], terms))
            parts = [part + share * term.item() for part, term in zip(parts, terms)]
        total.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(params, float("inf")).item())
        optimizer.step(), optimizer.zero_grad()
        losses.append(parts)
    return dict(case, losses=losses, grad_norms=norms)


def main():
    torch.manual_seed(0)
    data = peft_train.sequences(torch.Generator().manual_seed(7), 64)
    before = [1, 40, 41, 42, 43, 44, 45]
    cases = {name: run(case, data, before) for name, case in CASES.items()}
    for name, case in cases.items():
        print(name, case["losses"][0], case["losses"][-1], file=sys.stderr)
    json.dump(dict(steps=STEPS, batch_size=BATCH, temperature=TEMPERATURE, before=before, data=data, cases=cases), sys.stdout, separators=(",", ":"))


main()
