#!/usr/bin/env python3
"""Loads the adapters that tests/engine/golden_peft.rs, golden_prompt.rs, golden_start.rs and golden_variants.rs have trained into peft, and compares logits.

    LLAMAPROBE_KEEP=DIR cargo test --test engine golden_
    check_adapter.py STORIES260K DIR

Each DIR/case is an adapter with `logits.json`, this program's logits after the last token of the case's first sequence.
"""
import json, os, sys, warnings
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

stories, kept = sys.argv[1], sys.argv[2]
golden = os.path.dirname(os.path.abspath(__file__))
for name in sorted(os.listdir(kept)):
    where = next(w for w in (os.path.join(golden, part, name) for part in ("peft", "peft_prompt", "peft_start", "peft_variants")) if os.path.isdir(w))
    case = json.load(open(os.path.join(where, "case.json")))
    base = AutoModelForCausalLM.from_pretrained({"tiny": os.path.join(golden, "peft", "tiny"), "gpt2": os.path.join(golden, "model-gpt2")}.get(case["model"], stories), dtype=torch.float32)
    ids = torch.tensor([case["data"][0]["input_ids"]])
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error", UserWarning)  # peft only warns of a missing tensor
        plain = base(input_ids=ids).logits[0, -1]
        theirs = PeftModel.from_pretrained(base, os.path.join(kept, name)).eval()(input_ids=ids).logits[0, -1]
    ours = torch.tensor(json.load(open(os.path.join(kept, name, "logits.json"))))
    apart = ((ours - theirs).abs().max() / theirs.abs().max()).item()
    print(f"{name}: {apart:.1e} of the largest logit; the adapter moves it by {((plain - theirs).abs().max() / theirs.abs().max()).item():.1e}")
    assert apart <= 2e-5, name
