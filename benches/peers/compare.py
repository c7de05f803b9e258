#!/usr/bin/env python3
"""llamaprobe beside transformers + peft on the same work, alternating, in one run; prints ratios with their spread.

    python3 benches/peers/compare.py step BINARY [--threads 2] [--rounds 5]
    python3 benches/peers/compare.py probe BINARY --peer peer_probe.py --model DIR --train F --test F [--rounds 3]

`step`: a LoRA step (r 8 on q and v, every token labelled, AdamW) of a 15M-parameter LLaMA (288 x 6, 32000 tokens) on
256 tokens in f32. `probe`: the whole experiment of in-context learning against tuning, as the peer script runs it.
Needs torch, transformers, peft.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

p = argparse.ArgumentParser()
p.add_argument("what", choices=["step", "probe"])
p.add_argument("binary")
p.add_argument("--threads", type=int, default=2)
p.add_argument("--rounds", type=int, default=5)
p.add_argument("--steps", type=int, default=20)
p.add_argument("--sequences", type=int, default=1, help="step: the 256 tokens are this many sequences")
p.add_argument("--peer")
p.add_argument("--model")
p.add_argument("--train")
p.add_argument("--test")
p.add_argument("--demos", type=int, default=10)
p.add_argument("--queries", type=int, default=100)
p.add_argument("--seeds", type=int, default=3)
p.add_argument("--epochs", type=int, default=10)
p.add_argument("--dtype", default="f32", choices=["f32", "bf16"])
a = p.parse_args()


def report(name, ours, peers, unit):
    ratios = sorted(peer / our for our, peer in zip(ours, peers))
    print(f"{name}: llamaprobe {statistics.median(ours):.4g} {unit}, transformers + peft {statistics.median(peers):.4g} {unit}, "
          f"ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}, {len(ratios)} rounds, {a.threads} threads)")


def step():
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM
    torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=32000, hidden_size=288, intermediate_size=768, num_hidden_layers=6, num_attention_heads=6, num_key_value_heads=6, max_position_embeddings=512, tie_word_embeddings=True)
    model = LlamaForCausalLM(config)
    with tempfile.TemporaryDirectory() as root:
        model.save_pretrained(root)
        length = 256 // a.sequences
        ids = torch.randint(3, 32000, (a.sequences, length))
        data = os.path.join(root, "train.jsonl")
        with open(data, "w") as f:
            for row in ids.tolist():
                f.write(json.dumps({"input_ids": row, "labels": row}) + "\n")
        tuned = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
        tuned.train()
        optimiser = torch.optim.AdamW([w for w in tuned.parameters() if w.requires_grad], lr=1e-3, weight_decay=0.0)

        def peer():
            for i in range(a.steps + 2):
                if i == 2:
                    start = time.perf_counter()
                tuned(input_ids=ids, labels=ids).loss.backward()
                torch.nn.utils.clip_grad_norm_(tuned.parameters(), 1.0)
                optimiser.step()
                optimiser.zero_grad()
            return (time.perf_counter() - start) / a.steps

        def run(steps):
            out = tempfile.mkdtemp(dir=root)
            start = time.perf_counter()
            subprocess.run([a.binary, "train-lora", "--model", root, "--train", data, "--out", os.path.join(out, "adapter"), "--r", "8", "--lora-alpha", "16", "--target-modules", "q_proj,v_proj", "--learning-rate", "1e-3",
                            "--batch-size", str(a.sequences), "--max-steps", str(steps), "--seed", "0", "--dtype", "f32", "--threads", str(a.threads)], check=True, stdout=subprocess.DEVNULL)
            return time.perf_counter() - start

        def ours():
            return (run(a.steps + 5) - run(5)) / a.steps

        ours(), peer()
        pairs = [(ours(), peer()) for _ in range(a.rounds)]
        report(f"LoRA step, 15M, 256 tokens in {a.sequences} sequence(s), f32", [1e3 * x for x, _ in pairs], [1e3 * y for _, y in pairs], "ms")


def probe():
    common = ["--model", a.model, "--train", a.train, "--test", a.test, "--demos", str(a.demos), "--queries", str(a.queries), "--seeds", str(a.seeds), "--epochs", str(a.epochs), "--threads", str(a.threads)]

    def peer():
        out = subprocess.run([sys.executable, a.peer, *common, "--dtype", {"f32": "float32", "bf16": "bfloat16"}[a.dtype]], check=True, capture_output=True, text=True).stdout
        return json.loads(out.strip().splitlines()[-1])

    def ours():
        with tempfile.TemporaryDirectory() as out:
            subprocess.run([a.binary, "probe", *common, "--task", "sst2", "--dtype", a.dtype, "--out", out], check=True, stdout=subprocess.DEVNULL)
            return json.load(open(os.path.join(out, "report.json")))

    pairs = [(ours(), peer()) for _ in range(a.rounds)]
    report(f"experiment, {os.path.basename(a.model.rstrip('/'))}, {a.seeds} seeds, {a.queries} queries, {a.dtype}",
           [sum(o["seconds"].values()) if "total" not in o["seconds"] else o["seconds"]["total"] for o, _ in pairs], [p["total_s"] for _, p in pairs], "s")
    print("tokens: llamaprobe", pairs[0][0]["tokens"], "peer", pairs[0][1]["tokens"])


step() if a.what == "step" else probe()
