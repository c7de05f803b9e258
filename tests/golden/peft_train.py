#!/usr/bin/env python3
"""Twenty steps of LoRA tuning by peft in f32: writes peft/, the reference of tests/engine/golden_peft.rs.

    peft_train.py STORIES260K OUT

Each case is a directory: `case.json` (settings, data, losses, gradient norms, learning rates, logits), `init/` and
`final/` (adapters as peft saves them). `tiny/` is the random model of all cases but one.
"""
import json, os, shutil, sys
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, get_scheduler

torch.set_num_threads(1)
STEPS = 20
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
DEFAULTS = dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], rank_pattern={}, alpha_pattern={}, use_rslora=False,
                learning_rate=1e-2, schedule="constant", warmup=0, weight_decay=0.0, max_grad_norm=None, batch_size=4, accumulation=1, b_std=0.0)
CASES = {
    "query_value": dict(model="tiny", seed=1),
    "all_linear": dict(model="tiny", seed=2, r=3, lora_alpha=12, target_modules=ALL, schedule="linear", warmup=4, weight_decay=0.1, max_grad_norm=0.3,
                       batch_size=2, accumulation=2, b_std=0.1),
    "patterns": dict(model="tiny", seed=3, target_modules=["q_proj", "down_proj"], rank_pattern={"q_proj": 2}, alpha_pattern={"down_proj": 3},
                     use_rslora=True, schedule="cosine", warmup=2, batch_size=3, b_std=0.05),
    "stories260K": dict(model="stories260K", seed=4, learning_rate=1e-3, schedule="linear", max_grad_norm=1.0, batch_size=4),
}


def tiny(out):
    torch.manual_seed(0)
    config = LlamaConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=64,
                         max_position_embeddings=64, rms_norm_eps=1e-5, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2)
    model = LlamaForCausalLM(config)
    for name, w in model.named_parameters():
        torch.nn.init.normal_(w, 1.0 if "norm" in name else 0.0, 0.2)
    model.save_pretrained(os.path.join(out, "tiny"))
    os.remove(os.path.join(out, "tiny", "generation_config.json"))


def sequences(g, vocab):
    """Ten ragged sequences, some with a common beginning; each with a label stretch of its own."""
    rand = lambda lo, hi, n: torch.randint(lo, hi, (n,), generator=g).tolist()
    stems, data = [[1] + rand(3, vocab, 7), [1] + rand(3, vocab, 12)], []
    for i in range(10):
        ids = stems[i % 2] + rand(3, vocab, 1 + int(rand(0, 10, 1)[0])) if i < 7 else [1] + rand(3, vocab, 1 + 3 * (i - 7))
        first = 1 + rand(0, len(ids) - 1, 1)[0]
        labels = [-100] * first + ids[first:]
        if i == 4:
            labels[-1] = -100
            labels[1] = ids[1]
        data.append(dict(input_ids=ids, labels=labels))
    return data


def pad(batch):
    n = max(len(s["input_ids"]) for s in batch)
    fill = lambda key, x: torch.tensor([s[key] + [x] * (n - len(s[key])) for s in batch])
    mask = torch.tensor([[1] * len(s["input_ids"]) + [0] * (n - len(s["input_ids"])) for s in batch])
    return dict(input_ids=fill("input_ids", 0), labels=fill("labels", -100), attention_mask=mask)


def save(model, path):
    model.save_pretrained(path)
    os.remove(os.path.join(path, "README.md"))
    f = os.path.join(path, "adapter_config.json")
    config = json.load(open(f))
    config["base_model_name_or_path"] = None
    json.dump(config, open(f, "w"), indent=2, sort_keys=True)


def run(name, case, stories, out):
    case = DEFAULTS | case
    where = os.path.join(out, name)
    base = AutoModelForCausalLM.from_pretrained(os.path.join(out, "tiny") if case["model"] == "tiny" else stories, dtype=torch.float32)
    torch.manual_seed(case["seed"])
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **{k: case[k] for k in
        ("r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern", "use_rslora")}))
    for n, w in model.named_parameters():
        if "lora_B" in n and case["b_std"]:
            torch.nn.init.normal_(w, 0.0, case["b_std"])
    save(model, os.path.join(where, "init"))
    data = sequences(torch.Generator().manual_seed(case["seed"]), base.config.vocab_size)
    result = train(model, data, case)
    save(model, os.path.join(where, "final"))
    write(where, case, result)


def train(model, data, case):
    """Twenty steps over `data` in order; what the case file keeps of them."""
    params = [w for w in model.parameters() if w.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=case["learning_rate"], weight_decay=case["weight_decay"], foreach=False)
    scheduler = get_scheduler("constant_with_warmup" if case["schedule"] == "constant" else case["schedule"], optimizer, case["warmup"], STEPS)
    losses, norms, rates, position = [], [], [], 0
    model.train()
    for _ in range(STEPS):
        step = data[position:position + case["batch_size"] * case["accumulation"]]
        position = (position + len(step)) % len(data)
        count, total = sum(l != -100 for s in step for l in s["labels"]), 0.0
        for i in range(0, len(step), case["batch_size"]):
            batch = pad(step[i:i + case["batch_size"]])
            loss = model(**batch).loss if case["accumulation"] == 1 else model(**batch, num_items_in_batch=count).loss
            loss.backward()
            total += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(params, case["max_grad_norm"] or float("inf"))
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step(), scheduler.step(), optimizer.zero_grad()
        losses.append(total), norms.append(norm.item())
    model.eval()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([data[0]["input_ids"]])).logits[0, -1].tolist()
    return dict(steps=STEPS, data=data, losses=losses, grad_norms=norms, learning_rates=rates, logits=[float(f"{x:.9g}") for x in logits])


def write(where, case, result):
    json.dump({k: v for k, v in case.items() if k not in ("b_std", "seed")} | result, open(os.path.join(where, "case.json"), "w"), separators=(",", ":"))
    print(where, result["losses"][0], result["losses"][-1], max(result["grad_norms"]))


def main():
    stories, out = sys.argv[1], sys.argv[2]
    shutil.rmtree(out, ignore_errors=True)
    tiny(out)
    for name, case in CASES.items():
        run(name, case, stories, out)
    rates = {f"{kind}-{warmup}-{total}": [get_scheduler(kind, torch.optim.SGD([torch.zeros(1)], lr=1.0), warmup, total).lr_lambdas[0](s) for s in range(total + 1)]
             for kind in ("linear", "cosine", "constant_with_warmup") for warmup, total in ((0, 7), (3, 10), (10, 10), (12, 10), (0, 1))}
    json.dump(rates, open(os.path.join(out, "schedules.json"), "w"), separators=(",", ":"))


if __name__ == "__main__":
    main()
