#!/usr/bin/env python3
"""Merges the adapters of the golden models with llamaprobe, and compares with peft's merge_and_unload: transformers' logits, and tensors.

    check_merge.py LLAMAPROBE
"""
import json, os, subprocess, sys, tempfile
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Gemma3ForConditionalGeneration

golden = os.path.dirname(os.path.abspath(__file__))
failed = False
for name in sorted(os.listdir(golden)):
    where = os.path.join(golden, name)
    if not os.path.isdir(os.path.join(where, "adapter")):
        continue
    kind = Gemma3ForConditionalGeneration if name == "model-gemma3-images" else AutoModelForCausalLM
    ids = load_file(os.path.join(where, "expected.safetensors"))["ids.2"][None]
    for dtype in (torch.float32, torch.bfloat16):
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            out, flag = os.path.join(folder, "merged"), {torch.float32: "auto", torch.bfloat16: "bf16"}[dtype]
            subprocess.run([sys.argv[1], "merge", "--model", where, "--adapter", os.path.join(where, "adapter"), "--out", out, "--dtype", flag], check=True, capture_output=True)
            base = kind.from_pretrained(where, dtype=torch.float32)
            theirs = PeftModel.from_pretrained(base, os.path.join(where, "adapter")).merge_and_unload().to(dtype)
            ours, report = kind.from_pretrained(out, dtype="auto", output_loading_info=True)
            assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"], report
            assert ours.dtype == dtype, (ours.dtype, dtype)
            a, b = (m.float()(input_ids=ids).logits for m in (ours, theirs))
            apart = ((a - b).abs().max() / b.abs().max()).item()
            print(f"{name} {flag}: {apart:.1e} of the largest logit")
            # In bf16 a value next to the middle of two may be rounded to the other.
            failed |= apart > (2e-6 if dtype == torch.float32 else 2e-2)
sys.exit(failed)
