#!/usr/bin/env python3
"""llamaprobe beside transformers + peft on the same work, alternating, in one run; prints ratios with their spread.

    python3 benches/peers/compare.py step BINARY [--shape 15M] [--tokens 256] [--dtype bf16] [--threads 2] [--rounds 5] [--device cuda:0]
    python3 benches/peers/compare.py probe BINARY --peer peer_probe.py --train F --test F --model DIR
    python3 benches/peers/compare.py probe BINARY --peer peer_probe.py --train F --test F --size 110m --make random_llama.py --tokenizer DIR
    python3 benches/peers/compare.py gemm BENCH_OPS [--rounds 3] [--dtype bf16]
    python3 benches/peers/compare.py capture|runs|prefix BENCH_MODEL [--dtype bf16]
    python3 benches/peers/compare.py load BENCH_LOAD

`step`: a LoRA step (r 8 on q and v, every token labelled, AdamW) of a LLaMA of random weights: of 15M parameters (288 x
6, 32000 tokens), 110M or 1.1B, or of LLaMA-2-7B's shape, or one layer of that. `probe`: the whole experiment of
in-context learning against tuning, as the peer script runs it; of a model of random weights in bf16 if a size is given
(110m: 10 demonstrations, 100 queries, 10 seeds, 10 epochs; 1b: 1 seed, 20 queries). Before, a small one is computed
again by tests/golden/check_probe.py, which must agree. The others take a bench, the program whose path `cargo bench
--no-run --bench ops|model|load` prints: `gemm`, a forward through a weight beside torch's; `capture`, the
residual stream after all layers against no capture, ours and transformers' (output_hidden_states); `runs`, 8 runs of 16
tokens one after another against all in one pass; `prefix`, queries behind repeated demonstrations against shared ones,
as a share of what the tokens promise; `load`, mapping a checkpoint of 13.5 GB, beside safetensors.
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
p.add_argument("what", choices=["step", "probe", "gemm", "capture", "runs", "prefix", "load"])
p.add_argument("binary")
p.add_argument("--threads", type=int, default=2)
p.add_argument("--rounds", type=int, default=5)
p.add_argument("--steps", type=int, default=20)
p.add_argument("--sequences", type=int, default=1, help="step: the tokens are this many sequences")
p.add_argument("--tokens", type=int, default=256)
p.add_argument("--shape", default="15M", choices=["15M", "110M", "1.1B", "7B-layer", "7B"])
p.add_argument("--device", default="cpu")
p.add_argument("--json", action="store_true", help="a line of JSON for each comparison")
p.add_argument("--peer")
p.add_argument("--model")
p.add_argument("--train")
p.add_argument("--test")
p.add_argument("--size", choices=["110m", "1b"], help="probe: of random weights, made by the script --make")
p.add_argument("--make")
p.add_argument("--tokenizer")
p.add_argument("--demos", type=int, default=10)
p.add_argument("--queries", type=int, help="default 100; 20 of size 1b")
p.add_argument("--seeds", type=int, help="default 3; 10 of size 110m, 1 of size 1b")
p.add_argument("--epochs", type=int, default=10)
p.add_argument("--check-queries", type=int, default=3, help="probe: queries of the experiment that is computed again; 0 for none")
p.add_argument("--dtype", choices=["f32", "bf16"], help="default f32; bf16 of a size")
a = p.parse_args()
a.dtype = a.dtype or ("bf16" if a.size else "f32")
a.queries = a.queries or (20 if a.size == "1b" else 100)
a.seeds = a.seeds or {"110m": 10, "1b": 1}.get(a.size, 3)
# Width, feed-forward, layers, heads, key-value heads, tied head.
SHAPES = {"15M": (288, 768, 6, 6, 6, True), "110M": (768, 2048, 12, 12, 12, False), "1.1B": (2048, 5632, 22, 32, 4, False),
          "7B-layer": (4096, 11008, 1, 32, 32, False), "7B": (4096, 11008, 32, 32, 32, False)}


def spread(ratios):
    ratios = sorted(ratios)
    return f"{statistics.median(ratios):.3g} ({ratios[0]:.3g} to {ratios[-1]:.3g}, {len(ratios)} rounds, {a.threads} threads)"


def report(name, ours, peers, unit, peer_name="transformers + peft"):
    ratios = sorted(peer / our for our, peer in zip(ours, peers))
    if a.json:
        print(json.dumps({"name": name, "unit": unit, "ours": statistics.median(ours), "peer": statistics.median(peers),
                          "ratio": statistics.median(ratios), "least": ratios[0], "most": ratios[-1]}), flush=True)
        return
    print(f"{name}: llamaprobe {statistics.median(ours):.4g} {unit}, {peer_name} {statistics.median(peers):.4g} {unit}, ratio {spread(ratios)}", flush=True)


def bench(name):
    """Seconds of an iteration of a bench, the low end of what the harness believes."""
    environment = {**os.environ, "RAYON_NUM_THREADS": str(a.threads)}
    out = subprocess.run([a.binary, "--bench", f"^{name}$"], check=True, capture_output=True, text=True, env=environment).stdout
    if "time:" not in out:
        sys.exit(f"{a.binary} has no bench {name}")
    low, unit = out.split("time:")[1].replace("[", " ").split()[:2]
    return float(low) * {"ps": 1e-12, "ns": 1e-9, "µs": 1e-6, "us": 1e-6, "ms": 1e-3, "s": 1.0}[unit]


def best(f, times):
    found = []
    for _ in range(times):
        start = time.perf_counter()
        f()
        found.append(time.perf_counter() - start)
    return min(found)


def llama(shape, head=32000):
    """transformers' model of random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    torch.manual_seed(0)
    width, feed_forward, layers, heads, kv_heads, tied = SHAPES[shape]
    config = LlamaConfig(vocab_size=head, hidden_size=width, intermediate_size=feed_forward, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads,
                         max_position_embeddings=4096, tie_word_embeddings=tied)
    torch.set_default_dtype({"f32": torch.float32, "bf16": torch.bfloat16}[a.dtype])
    model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    return model


def step():
    import torch
    from peft import LoraConfig, get_peft_model
    torch.set_num_threads(a.threads)
    model = llama(a.shape)
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
    with tempfile.TemporaryDirectory() as root:
        if a.size:
            a.model = os.path.join(root, a.size)
            subprocess.run([sys.executable, a.make, a.model, "--shape", a.size, "--tokenizer", a.tokenizer], check=True, stdout=subprocess.DEVNULL)
        experiment()


def experiment():
    def flags(queries, seeds):
        return ["--model", a.model, "--train", a.train, "--test", a.test, "--demos", str(a.demos), "--queries", str(queries), "--seeds", str(seeds), "--epochs", str(a.epochs), "--threads", str(a.threads)]

    def peer():
        out = subprocess.run([sys.executable, a.peer, *flags(a.queries, a.seeds), "--device", a.device.split(":")[0], "--dtype", {"f32": "float32", "bf16": "bfloat16"}[a.dtype]], check=True, capture_output=True, text=True).stdout
        return json.loads(out.strip().splitlines()[-1])

    def ours(queries, seeds, out, *more):
        subprocess.run([a.binary, "probe", *flags(queries, seeds), "--task", "sst2", "--dtype", a.dtype, "--device", a.device, "--out", out, *more], check=True, stdout=subprocess.DEVNULL)
        return json.load(open(os.path.join(out, "report.json")))

    if a.check_queries:
        with tempfile.TemporaryDirectory() as out:
            ours(a.check_queries, 1, out, "--save-adapters")
            check = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../tests/golden/check_probe.py")
            agreed = subprocess.run([sys.executable, check, os.path.join(out, "report.json"), "--model", a.model, "--train", a.train, "--test", a.test], capture_output=True, text=True)
            print(agreed.stdout.strip().splitlines()[-1] if agreed.stdout else agreed.stderr, file=sys.stderr if a.json else sys.stdout, flush=True)
            if agreed.returncode:
                sys.exit(f"the experiment does not agree with transformers:\n{agreed.stdout}{agreed.stderr}")

    pairs = []
    for _ in range(a.rounds):
        with tempfile.TemporaryDirectory() as out:
            pairs.append((ours(a.queries, a.seeds, out), peer()))
    report(f"experiment, {os.path.basename(a.model.rstrip('/'))}, {a.seeds} seeds, {a.queries} queries, {a.dtype}", [o["seconds"]["total"] for o, _ in pairs], [p["total_s"] for _, p in pairs], "s")
    if not a.json:
        print("tokens: llamaprobe", pairs[0][0]["tokens"], "peer", pairs[0][1]["tokens"])


def gemm():
    import torch
    torch.set_num_threads(a.threads)
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[a.dtype]
    for name in ("15M", "110M", "1B", "7B"):
        width, feed_forward = (2048, 8192) if name == "1B" else SHAPES[name][:2]
        for rows in (1, 16, 64, 128, 256, 512):
            x, weight = torch.randn(rows, width).to(dtype), torch.randn(feed_forward, width).to(dtype)
            times = min(200, max(3, int(2e9 / (rows * width * feed_forward))))
            peer = lambda: best(lambda: torch.nn.functional.linear(x, weight), times)
            ours = lambda: bench(f"linear/cpu {a.dtype}/fwd/{name}/mlp/{rows}")
            peer()
            pairs = [(ours(), peer()) for _ in range(a.rounds)]
            flops = 2 * rows * width * feed_forward
            report(f"{rows} x {feed_forward} x {width}, {a.dtype} ({flops / min(x for x, _ in pairs) / 1e9:.0f} GFLOP/s)", [1e3 * x for x, _ in pairs], [1e3 * y for _, y in pairs], "ms", "torch")


def capture():
    import torch
    torch.set_num_threads(a.threads)
    for shape in ("15M", "110M"):
        model, ids = llama(shape).eval().model, torch.randint(3, 300, (1, 256))

        def peer(states):
            with torch.no_grad():
                return best(lambda: model(input_ids=ids, output_hidden_states=states, use_cache=False), 5)

        ours = lambda what: bench(f"states/cpu {a.dtype}/{shape}/{what}")
        peer(True)
        rounds = [(ours("no site"), ours("resid_post of all layers"), peer(False), peer(True)) for _ in range(a.rounds)]
        report(f"forward of 256 tokens, {shape}, {a.dtype}, all states captured", [1e3 * r[1] for r in rounds], [1e3 * r[3] for r in rounds], "ms", "transformers")
        if not a.json:
            print(f"capture of all layers against none, {shape}, {a.dtype}: llamaprobe {spread(r[1] / r[0] for r in rounds)}")
            print(f"capture of all layers against none, {shape}, {a.dtype}: transformers {spread(r[3] / r[2] for r in rounds)}", flush=True)


def ways(group, shapes, slow, fast, what, promised=1.0):
    """Two ways of ours to do the same: the ratio of their times, as a share of what it promises to be."""
    for shape in shapes:
        rounds = [(bench(f"{group}/cpu {a.dtype}/{shape}/{fast}"), bench(f"{group}/cpu {a.dtype}/{shape}/{slow}")) for _ in range(a.rounds)]
        if a.json:
            report(f"{what}, {shape}, {a.dtype}", [1e3 * x for x, _ in rounds], [1e3 * y / promised for _, y in rounds], "ms")
            continue
        print(f"{what}, {shape}, {a.dtype}: {spread(y / x / promised for x, y in rounds)}", flush=True)


def runs():
    ways("runs", ("7B layer", "15M"), "one after another", "in one pass", "8 runs of 16 tokens, one after another against in one pass")


def prefix():
    promised = 8 * (256 + 16) / (256 + 8 * 16)
    ways("prefix", ("15M", "110M"), "repeated", "shared", f"8 queries of 16 tokens behind 256, gain as a share of the tokens' {promised:.2f}", promised)


def load():
    import torch
    from safetensors import safe_open
    width, feed_forward, layers, *_ = SHAPES["7B"]
    with tempfile.TemporaryDirectory() as root:
        names, end = {}, 0

        def tensor(name, *shape):
            nonlocal end
            start, end = end, end + 2 * torch.Size(shape).numel()
            names[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}

        tensor("embed", 32000, width)
        tensor("head", 32000, width)
        for layer in range(layers):
            for part in "qkvo":
                tensor(f"{layer}.{part}", width, width)
            for part in ("gate", "up", "down"):
                tensor(f"{layer}.{part}", feed_forward, width)
        header = json.dumps(names).encode()
        header += b" " * (-len(header) % 8)
        path = os.path.join(root, "model.safetensors")
        with open(path, "wb") as f:
            f.write(len(header).to_bytes(8, "little") + header)
            f.truncate(8 + len(header) + end)

        def peer():
            with safe_open(path, "pt") as f:
                return [f.get_tensor(name) for name in f.keys()]

        best(peer, 1)
        pairs = [(bench("load/cpu bf16/7B"), best(peer, 5)) for _ in range(a.rounds)]
        report("mapping a checkpoint of 13.5 GB", [1e3 * x for x, _ in pairs], [1e3 * y for _, y in pairs], "ms", "safetensors")


{"step": step, "probe": probe, "gemm": gemm, "capture": capture, "runs": runs, "prefix": prefix, "load": load}[a.what]()
