#!/usr/bin/env python3
"""llamaprobe beside transformers + peft on the same work, alternating, in one run; prints ratios with their spread.

    python3 benches/peers/compare.py step BINARY [--threads 2] [--rounds 5] [--shape 15M] [--tokens 256] [--device cuda:0]
    python3 benches/peers/compare.py probe BINARY --peer peer_probe.py --model DIR --train F --test F [--rounds 3]
    python3 benches/peers/compare.py gemm BENCH [--rounds 3] [--dtype bf16]

`step`: a LoRA step (r 8 on q and v, every token labelled, AdamW) of a LLaMA of random weights: of 15M parameters (288 x
6, 32000 tokens), or of LLaMA-2-7B's shape, or one layer of that. `probe`: the whole experiment of in-context learning
against tuning, as the peer script runs it. `gemm`: a forward through a weight, as the bench of that name
(target/release/deps/gemm-*) measures it, beside torch's.
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
p.add_argument("what", choices=["step", "probe", "gemm"])
p.add_argument("binary")
p.add_argument("--threads", type=int, default=2)
p.add_argument("--rounds", type=int, default=5)
p.add_argument("--steps", type=int, default=20)
p.add_argument("--sequences", type=int, default=1, help="step: the tokens are this many sequences")
p.add_argument("--tokens", type=int, default=256)
p.add_argument("--shape", default="15M", choices=["15M", "7B-layer", "7B"])
p.add_argument("--device", default="cpu")
p.add_argument("--json", action="store_true", help="a line of JSON for each comparison")
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
    peer_name = "torch" if a.what == "gemm" else "transformers + peft"
    ratios = sorted(peer / our for our, peer in zip(ours, peers))
    if a.json:
        print(json.dumps({"name": name, "unit": unit, "ours": statistics.median(ours), "peer": statistics.median(peers),
                          "ratio": statistics.median(ratios), "least": ratios[0], "most": ratios[-1]}))
        return
    print(f"{name}: llamaprobe {statistics.median(ours):.4g} {unit}, {peer_name} {statistics.median(peers):.4g} {unit}, "
          f"ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}, {len(ratios)} rounds, {a.threads} threads)")


def step():
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM
    torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    width, feed_forward, layers, heads, tied = {"15M": (288, 768, 6, 6, True), "7B-layer": (4096, 11008, 1, 32, False), "7B": (4096, 11008, 32, 32, False)}[a.shape]
    config = LlamaConfig(vocab_size=32000, hidden_size=width, intermediate_size=feed_forward, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=heads,
                         max_position_embeddings=4096, tie_word_embeddings=tied)
    torch.set_default_dtype({"f32": torch.float32, "bf16": torch.bfloat16}[a.dtype])
    model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    with tempfile.TemporaryDirectory() as root:
        model.save_pretrained(root)
        length = a.tokens // a.sequences
        ids = torch.randint(3, 32000, (a.sequences, length))
        data = os.path.join(root, "train.jsonl")
        with open(data, "w") as f:
            for row in ids.tolist():
                f.write(json.dumps({"input_ids": row, "labels": row}) + "\n")
        device = a.device.split(":")[0]
        ids, model = ids.to(device), model.to(device)
        tuned = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
        tuned.train()
        optimiser = torch.optim.AdamW([w for w in tuned.parameters() if w.requires_grad], lr=1e-3, weight_decay=0.0)

        wait = torch.cuda.synchronize if device == "cuda" else lambda: None

        def peer():
            for i in range(a.steps + 2):
                if i == 2:
                    wait()
                    start = time.perf_counter()
                tuned(input_ids=ids, labels=ids).loss.backward()
                torch.nn.utils.clip_grad_norm_(tuned.parameters(), 1.0)
                optimiser.step()
                optimiser.zero_grad()
            wait()
            return (time.perf_counter() - start) / a.steps

        def run(steps):
            out = tempfile.mkdtemp(dir=root)
            start = time.perf_counter()
            subprocess.run([a.binary, "train-lora", "--model", root, "--train", data, "--out", os.path.join(out, "adapter"), "--r", "8", "--lora-alpha", "16", "--target-modules", "q_proj,v_proj", "--learning-rate", "1e-3",
                            "--batch-size", str(a.sequences), "--max-steps", str(steps), "--seed", "0", "--dtype", a.dtype, "--device", a.device, "--threads", str(a.threads)], check=True, stdout=subprocess.DEVNULL)
            return time.perf_counter() - start

        def ours():
            return (run(a.steps + 5) - run(5)) / a.steps

        ours(), peer()
        pairs = [(ours(), peer()) for _ in range(a.rounds)]
        report(f"LoRA step, {a.shape}, {a.tokens} tokens in {a.sequences} sequence(s), {a.dtype}", [1e3 * x for x, _ in pairs], [1e3 * y for _, y in pairs], "ms")


def probe():
    common = ["--model", a.model, "--train", a.train, "--test", a.test, "--demos", str(a.demos), "--queries", str(a.queries), "--seeds", str(a.seeds), "--epochs", str(a.epochs), "--threads", str(a.threads)]

    def peer():
        out = subprocess.run([sys.executable, a.peer, *common, "--device", a.device.split(":")[0], "--dtype", {"f32": "float32", "bf16": "bfloat16"}[a.dtype]], check=True, capture_output=True, text=True).stdout
        return json.loads(out.strip().splitlines()[-1])

    def ours():
        with tempfile.TemporaryDirectory() as out:
            subprocess.run([a.binary, "probe", *common, "--task", "sst2", "--dtype", a.dtype, "--device", a.device, "--out", out], check=True, stdout=subprocess.DEVNULL)
            return json.load(open(os.path.join(out, "report.json")))

    pairs = [(ours(), peer()) for _ in range(a.rounds)]
    report(f"experiment, {os.path.basename(a.model.rstrip('/'))}, {a.seeds} seeds, {a.queries} queries, {a.dtype}",
           [sum(o["seconds"].values()) if "total" not in o["seconds"] else o["seconds"]["total"] for o, _ in pairs], [p["total_s"] for _, p in pairs], "s")
    if not a.json:
        print("tokens: llamaprobe", pairs[0][0]["tokens"], "peer", pairs[0][1]["tokens"])


def gemm():
    import torch
    torch.set_num_threads(a.threads)
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[a.dtype]
    sizes = {"15M": (288, 768), "110M": (768, 2048), "1B": (2048, 8192), "7B": (4096, 11008)}
    for name, (width, feed_forward) in sizes.items():
        for rows in (1, 16, 64, 128, 256, 512):
            x, weight = torch.randn(rows, width).to(dtype), torch.randn(feed_forward, width).to(dtype)

            def peer():
                best = float("inf")
                for _ in range(max(3, int(2e9 / (rows * width * feed_forward)))):
                    start = time.perf_counter()
                    torch.nn.functional.linear(x, weight)
                    best = min(best, time.perf_counter() - start)
                return best

            def ours():
                only = f"^gemm/cpu {a.dtype}/fwd/{name}/mlp/{rows}$"
                environment = {**os.environ, "RAYON_NUM_THREADS": str(a.threads)}
                out = subprocess.run([a.binary, "--bench", only], check=True, capture_output=True, text=True, env=environment).stdout
                low, unit = out.split("time:")[1].replace("[", " ").split()[:2]
                return float(low) * {"ns": 1e-9, "µs": 1e-6, "ms": 1e-3, "s": 1.0}[unit]

            peer()
            pairs = [(ours(), peer()) for _ in range(a.rounds)]
            flops = 2 * rows * width * feed_forward
            report(f"{rows} x {feed_forward} x {width}, {a.dtype} ({flops / min(x for x, _ in pairs) / 1e9:.0f} GFLOP/s)", [1e3 * x for x, _ in pairs], [1e3 * y for _, y in pairs], "ms")


{"step": step, "probe": probe, "gemm": gemm}[a.what]()
