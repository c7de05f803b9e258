#!/usr/bin/env python3
"""All residual states of texts through Python, in f32: the package beside TransformerLens and nnsight, and the program.

    python3 benches/peers/python.py MODEL TEXTS.jsonl --ours PYTHON --peers PYTHON [--program BINARY] [--rounds 3] [--threads 2] [--batch 20]

PYTHON is an interpreter that has the package, or TransformerLens and nnsight. Every round runs each in a process of its own, one
after another: the time of the whole process, that of the runs alone (behind import and load, after a first run of one text), and
the peak of its memory. Peers take texts in batches of `--batch`, padded, as they must; states are compared by their sum over the
first text's tokens. Prints the best round of each, and ratios.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

OURS = """
import llamaprobe
model = llamaprobe.Model.load(MODEL, dtype="f32", device="cpu", threads=THREADS)
model.run_with_cache(texts[0], names_filter="resid_post", return_type=None)
begun()
_, cache = model.run_with_cache(texts, names_filter="resid_post", return_type=None)
states = [cache[name].numpy() for name in cache]
ended(sum(float(s[: cache.doc_start[1]].sum(dtype="f8")) for s in states))
"""
TRANSFORMER_LENS = """
import torch
torch.set_num_threads(THREADS)
from transformer_lens.model_bridge import TransformerBridge
model = TransformerBridge.boot_transformers(MODEL, device="cpu", dtype=torch.float32)
tokenizer = model.tokenizer
ids = [tokenizer(text)["input_ids"] for text in texts]
def run(batch):
    longest = max(map(len, batch))
    tokens = torch.tensor([one + [0] * (longest - len(one)) for one in batch])
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens, names_filter=lambda name: name.endswith(".hook_out") and name.count(".") == 2, return_type=None)
    # Other names of the same states stand beside it.
    return {name: value for name, value in cache.items() if name.endswith(".hook_out") and name.count(".") == 2}
run(ids[:1])
begun()
kept = [run(ids[i : i + BATCH]) for i in range(0, len(ids), BATCH)]
ended(sum(float(value[0, : len(ids[0])].double().sum()) for value in kept[0].values()))
"""
NNSIGHT = """
import torch
torch.set_num_threads(THREADS)
from nnsight import LanguageModel
model = LanguageModel(MODEL, device_map="cpu", dispatch=True, torch_dtype=torch.float32)
ids = [model.tokenizer(text)["input_ids"] for text in texts]
layers = len(model.model.layers)
def run(batch):
    longest = max(map(len, batch))
    tokens = torch.tensor([one + [0] * (longest - len(one)) for one in batch])
    with torch.no_grad(), model.trace(tokens):
        kept = list().save()
        for layer in model.model.layers:
            out = layer.output
            kept.append(out[0] if isinstance(out, tuple) else out)
    return kept
run(ids[:1])
begun()
kept = [run(ids[i : i + BATCH]) for i in range(0, len(ids), BATCH)]
ended(sum(float(value[0, : len(ids[0])].double().sum()) for value in kept[0]))
"""
FRAME = """
import json, resource, sys, time
MODEL, TEXTS, THREADS, BATCH = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
texts = [json.loads(line)["text"] for line in open(TEXTS, encoding="utf-8")]
def begun():
    global start
    start = time.perf_counter()
def ended(total):
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"runs": seconds, "peak": peak, "sum": total}))
"""


def of_process(words):
    """What a process prints, its wall time and the peak of its memory."""
    start = time.perf_counter()
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    out, err = process.communicate()
    wall = time.perf_counter() - start
    if process.returncode:
        sys.exit(f"{words[0]}: {err}")
    return out, wall


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("texts")
    parser.add_argument("--ours", required=True)
    parser.add_argument("--peers", required=True)
    parser.add_argument("--program")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=20)
    a = parser.parse_args()
    peers = {"llamaprobe": (a.ours, OURS), "TransformerLens": (a.peers, TRANSFORMER_LENS), "nnsight": (a.peers, NNSIGHT)}
    best = {}
    for _ in range(a.rounds):
        for name, (python, code) in peers.items():
            out, wall = of_process([python, "-c", FRAME + code, a.model, a.texts, str(a.threads), str(a.batch)])
            found = {**json.loads(out.splitlines()[-1]), "whole": wall}
            print(name, {key: round(value, 3) for key, value in found.items()}, flush=True)
            kept = best.setdefault(name, dict(found))
            best[name] = {key: min(kept[key], value) for key, value in found.items()}
        if a.program:
            with tempfile.TemporaryDirectory() as out:
                words = ["capture", "--model", a.model, "--input", a.texts, "--dtype", "f32", "--device", "cpu"]
                wall = of_process([a.program, *words, "--threads", str(a.threads), "--out", os.path.join(out, "o")])[1]
            print("program", round(wall, 3), flush=True)
            best["program"] = {"whole": min(wall, best.get("program", {"whole": wall})["whole"])}
    ours = best["llamaprobe"]
    for name in ("TransformerLens", "nnsight"):
        ratios = {key: round(best[name][key] / ours[key], 2) for key in ("runs", "whole", "peak")}
        apart = abs(best[name]["sum"] - ours["sum"]) / abs(ours["sum"])
        print(f"{name}: of ours {ratios}; sums {apart:.1e} apart")
    if "program" in best:
        print(f"llamaprobe of the program: {ours['whole'] / best['program']['whole']:.3f}")


main()
