#!/usr/bin/env python3
"""Writes models as GGUF files with llamaprobe, and compares: bytes with the gguf package, logits and ids with transformers.

    check_gguf.py LLAMAPROBE MODEL...          # directories of LLaMAs with a tokenizer
    check_gguf.py --converter convert_hf_to_gguf.py LLAMAPROBE MODEL...   # tensors and keys with llama.cpp's too
"""
import argparse, json, os, subprocess, sys, tempfile
import gguf
import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

TEXT = "Once upon a time, there was a little girl named Lily. She's 3, \n\n  naïve!"
# Only of the converter, or otherwise by intent: scores are the merges' ranks here.
OTHERS = {"general.name", "general.size_label", "tokenizer.ggml.add_sep_token", "tokenizer.ggml.add_eos_token", "tokenizer.ggml.scores"}

parser = argparse.ArgumentParser()
parser.add_argument("--converter")
parser.add_argument("program")
parser.add_argument("models", nargs="+")
args = parser.parse_args()
failed = False


def contents(reader):
    return {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}


def stored(reader):
    return {tensor.name: (tensor.tensor_type, tuple(tensor.shape), tensor.data.tobytes()) for tensor in reader.tensors}


for model in args.models:
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = os.path.join(folder, "ours.gguf")
        subprocess.run([args.program, "quantize", "--model", model, "--to", "q8_0", "--out", path], check=True)
        reader = gguf.GGUFReader(path)
        plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        table = plain.get_input_embeddings().weight.numpy()
        own = next(tensor for tensor in reader.tensors if tensor.name == "token_embd.weight")
        bits = own.data.tobytes() == gguf.quantize(np.ascontiguousarray(table), own.tensor_type).tobytes()
        theirs = AutoModelForCausalLM.from_pretrained(folder, gguf_file="ours.gguf", dtype=torch.float32).eval()
        ids = AutoTokenizer.from_pretrained(model)(TEXT)["input_ids"]
        same_ids = AutoTokenizer.from_pretrained(folder, gguf_file="ours.gguf")(TEXT)["input_ids"] == ids
        expected = theirs(input_ids=torch.tensor([ids])).logits[0]
        with open(os.path.join(folder, "ids.jsonl"), "w") as file:
            file.write(json.dumps({"input_ids": ids}) + "\n")
        capture = ["--input", os.path.join(folder, "ids.jsonl"), "--sites", "logits", "--tokens", "all", "--device", "cpu", "--dtype", "f32"]
        subprocess.run([args.program, "capture", "--model", path, *capture, "--out", os.path.join(folder, "states")], check=True, capture_output=True)
        found = load_file(os.path.join(folder, "states", "activations.safetensors"))["logits"].reshape(expected.shape)
        apart = ((found - expected).abs().max() / expected.abs().max()).item()
        print(f"{model}: logits {apart:.1e} of the largest, ids {'the same' if same_ids else 'OTHERS'}, table {'the same bytes' if bits else 'OTHER BYTES'}")
        failed |= apart > 5e-6 or not same_ids or not bits
        if args.converter:
            other = os.path.join(folder, "theirs.gguf")
            subprocess.run([sys.executable, args.converter, model, "--outtype", "q8_0", "--outfile", other], check=True, capture_output=True)
            other = gguf.GGUFReader(other)
            tensors, (a, b) = stored(reader) == stored(other), map(contents, (reader, other))
            keys = sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key) and key not in OTHERS)
            print(f"{model}: tensors {'those' if tensors else 'NOT THOSE'} of the converter, keys that differ: {keys}")
            failed |= not tensors or bool(keys)
sys.exit(failed)
