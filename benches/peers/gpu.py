#!/usr/bin/env python3
"""The table of benches/gpu.sh: every check, every kernel with its share of the ceiling measured in the same run, and
torch (cuBLAS, scaled_dot_product_attention), transformers and peft beside it.

    python3 benches/peers/gpu.py DIR OUT
"""
import glob
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile

directory, out = sys.argv[1:3]
here = os.path.dirname(os.path.abspath(__file__))
tiny = os.environ.get("LLAMAPROBE_BENCH") == "tiny"
# Width, feed-forward width, query heads, key-value heads, as in benches/common/mod.rs.
SHAPES = {"15M": (288, 768, 6, 6), "110M": (768, 2048, 12, 12), "1B": (2048, 8192, 32, 8), "7B": (4096, 11008, 32, 32), "tiny": (64, 96, 2, 1)}
# What a capture on the GPU may be off by, as a share of a tensor's largest magnitude.
LIMIT = 1e-3
try:
    import torch
    import torch.nn.functional as F
    gpu = torch.cuda.is_available()
    why = "no torch with a GPU"
except ImportError:
    gpu, why = False, "no torch"


def benches():
    """Every bench: group, name, nanoseconds, and bytes or operations."""
    for path in sorted(glob.glob(f"{out}/criterion/**/new/benchmark.json", recursive=True)):
        about, found = json.load(open(path)), json.load(open(path.replace("benchmark.json", "estimates.json")))
        work = about["throughput"] or {}
        name = "/".join(part for part in (about["function_id"], about["value_str"]) if part)
        yield about["group_id"].split("/")[0], name, found["median"]["point_estimate"], work.get("Bytes"), work.get("Elements")


def timed(work):
    """Milliseconds of some work on the GPU: the median of ten, each of as many rounds as take a while."""
    def once(rounds):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(rounds):
            work()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / rounds
    once(3)
    rounds = max(1, min(1000, math.ceil(20 / max(once(3), 1e-3))))
    return statistics.median(once(rounds) for _ in range(10))


def noise(*shape, grad=False):
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16, requires_grad=grad)


def peer(group, name):
    """Milliseconds that torch needs for the same, where there is the same."""
    parts = name.split("/")
    if not gpu or len(parts) < 3 or parts[1] not in SHAPES:
        return None
    width, feed_forward, heads, kv_heads = SHAPES[parts[1]]
    if group == "linear" and parts[0] in ("fwd", "bwd_input"):
        rows, output = int(parts[3]), width if parts[2] == "attention" else feed_forward
        weight = noise(output, width)
        if parts[0] == "fwd":
            x = noise(rows, width)
            return timed(lambda: F.linear(x, weight))
        d_out = noise(rows, output)
        return timed(lambda: d_out @ weight)
    if group == "attention" and "+" not in parts[2] and "alibi" not in parts[2]:
        batch, rows = (int(n) for n in parts[2].split("x")) if "x" in parts[2] else (1, int(parts[2]))
        q, k, v = (noise(batch, h, rows, width // heads, grad=True) for h in (heads, kv_heads, kv_heads))
        attend = lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=heads != kv_heads)
        if parts[0] == "fwd":
            with torch.no_grad():
                return timed(attend)
        z = attend()
        d_z = torch.randn_like(z)
        return timed(lambda: torch.autograd.grad(z, (q, k, v), d_z, retain_graph=True))
    return None


def capture(device, model, dtype, to):
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as texts:
        texts.write(json.dumps({"input_ids": [1 + i % 30 for i in range(64)]}) + "\n" + json.dumps({"input_ids": list(range(20, 30))}) + "\n")
        texts.flush()
        subprocess.run([f"{directory}/llamaprobe", "capture", "--model", model, "--input", texts.name, "--sites", "resid_post,logits", "--device", device,
                        "--dtype", dtype, "--out", to], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    raw = open(f"{to}/activations.safetensors", "rb").read()
    size = int.from_bytes(raw[:8], "little")
    header = {k: v for k, v in json.loads(raw[8:8 + size]).items() if k != "__metadata__" and v["dtype"] == "F32"}
    return {k: memoryview(raw)[8 + size + v["data_offsets"][0]:8 + size + v["data_offsets"][1]].cast("f") for k, v in header.items()}


def end_to_end(model):
    """The largest difference of a capture on both devices, as a share of each tensor's largest magnitude, judged."""
    with tempfile.TemporaryDirectory() as root:
        try:
            ours, theirs = (capture(device, model, "f32", f"{root}/{device[:3]}") for device in ("cuda:0", "cpu"))
        except subprocess.CalledProcessError as failed:
            return "FAILED: " + (failed.stderr.strip().splitlines() or ["?"])[-1]
        off = [abs(a - b) / max(map(abs, theirs[k])) for k in theirs for a, b in zip(ours[k], theirs[k])]
        # Written so that what is no number fails.
        return f"off by {max(off):.1e}" if all(x <= LIMIT for x in off) else f"FAILED: off by more than {LIMIT}"


rows = []


def row(*cells):
    rows.append([str(cell) for cell in cells] + [""] * (5 - len(cells)))


def compare(what, *arguments):
    """A row of compare.py, which runs both sides alternating."""
    command = [sys.executable, f"{here}/compare.py", *arguments[:1], f"{directory}/llamaprobe", *arguments[1:], "--device", "cuda:0", "--json"]
    if not gpu:
        return row(what, "", "", "", f"not run: {why}")
    found = subprocess.run(command, capture_output=True, text=True)
    if found.returncode:
        return row(what, "", "", "", "FAILED: " + (found.stderr.strip().splitlines() or ["?"])[-1])
    for line in map(json.loads, found.stdout.splitlines()):
        row(line["name"], f"{line['ours']:.4g} {line['unit']}", "", "", f"{line['peer']:.4g} {line['unit']}, {line['ratio']:.2f}x ({line['least']:.2f} to {line['most']:.2f})")


for line in open(f"{out}/checks.tsv"):
    name, verdict = line.rstrip("\n").split("\t")
    row(name, verdict)
measured = list(benches())
by_name = {(group, name): (ns, bytes_, flops) for group, name, ns, bytes_, flops in measured}
ceiling = {}
for name, kind in (("copy", 1), ("product", 2)):
    if ("ceiling", name) in by_name:
        ceiling[kind] = by_name["ceiling", name][kind] / by_name["ceiling", name][0]
for group, name, ns, bytes_, flops in measured:
    kind, work, unit = (1, bytes_, "GB/s") if bytes_ else (2, flops, "GFLOP/s")
    if not work:
        continue
    share = f"{work / ns / ceiling[kind]:.0%}" if kind in ceiling and not name.startswith("to the") else ""
    theirs = peer(group, name)
    beside = "" if theirs is None else f"{1e3 * theirs:.4g} us, {1e6 * theirs / ns:.2f}x"
    row(f"{group} {name}", f"{ns / 1e3:.4g} us", f"{work / ns:.4g} {unit}", share, beside)
model = os.environ.get("MODEL")
if model:
    row(f"capture of {os.path.basename(model.rstrip('/'))} in f32, GPU against CPU", end_to_end(model))
if tiny:
    row("LoRA steps", "", "", "", "not run: LLAMAPROBE_BENCH=tiny")
else:
    for shape, tokens, sequences in (("15M", 256, 1), ("7B-layer", 64, 1), ("7B-layer", 512, 1), ("7B", 64, 1), ("7B", 4096, 8)):
        compare(f"LoRA step, {shape}, {tokens} tokens", "step", "--shape", shape, "--tokens", str(tokens), "--sequences", str(sequences), "--dtype", "f32" if shape == "15M" else "bf16")
if model and all(os.environ.get(name) for name in ("TRAIN", "TEST", "PEER")):
    e = os.environ
    compare("experiment", "probe", "--peer", e["PEER"], "--model", model, "--train", e["TRAIN"], "--test", e["TEST"])
else:
    row("experiment", "", "", "", "not run: MODEL, TRAIN, TEST or PEER is not set")

head = ["", "llamaprobe", "rate", "of the ceiling", "torch, transformers, peft" if gpu else f"torch ({why})"]
widths = [max(len(line[i]) for line in [head, *rows]) for i in range(5)]
for line in [head, ["-" * width for width in widths], *rows]:
    print("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |")
sys.exit(any("FAILED" in cell for line in rows for cell in line))
