"""Writes generate.json: continuations by transformers' generate, greedy and by beam search.

Usage: python generate.py SHARED > generate.json
"""

import json
import pathlib
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPTS = {
    "stories260K": ["Once upon a time", "The dog was", "Lily and Tom went to the park. They", "One day,"],
    "babyllama105": ["Once upon a time", "The king said", "What is", "They went to the"],
}
# Random models of this folder and prompts of token ids, so that a clone without SHARED searches too.
RANDOM = ["model-gqa-llama3", "model-qwen2", "model-gpt2", "model-opt", "model-bloom"]
IDS = [[3, 7, 11, 4], [5, 9], [12, 20, 8, 6, 15, 3]]
# Beams, length penalty, further end tokens, new tokens at most.
SETTINGS = [(1, 1.0, 0, 40), (2, 1.0, 0, 24), (4, 1.0, 1, 24), (4, 2.0, 1, 30), (3, 0.0, 2, 30), (5, -0.5, 1, 16)]
# The same, and what else is asked for.
ASKED = [
    ((1, 1.0, 0, 20), {"repetition_penalty": 1.3}),
    ((1, 1.0, 2, 24), {"repetition_penalty": 0.8, "min_new_tokens": 9}),
    ((1, 1.0, 2, 24), {"min_length": 14}),
    ((3, 1.0, 2, 20), {"repetition_penalty": 1.7, "min_new_tokens": 7, "min_length": 8}),
]


def continuations(model, prompts, settings, stop, asked):
    """What each prompt, alone, goes on with; a continuation ends with its stop token."""
    beams, penalty, tokens = settings
    cases = []
    for ids in prompts:
        ids = torch.tensor([ids])
        made = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, num_beams=beams, do_sample=False,
            length_penalty=penalty, eos_token_id=stop, pad_token_id=0, early_stopping=False, **asked,
        )
        cases.append([ids[0].tolist(), made[0, ids.shape[1] :].tolist()])
    return cases


def main():
    torch.set_num_threads(1)
    shared, golden = pathlib.Path(sys.argv[1]), pathlib.Path(__file__).parent
    out = []

    def add(name, model, prompts, ends, most):
        for (beams, penalty, further, tokens), asked in [(settings, {}) for settings in SETTINGS] + ASKED:
            tokens, stop = min(tokens, most), ends[: 1 + further]
            cases = continuations(model, prompts, (beams, penalty, tokens), stop, asked)
            case = {"model": name, "beams": beams, "length_penalty": penalty, "stop": stop, "tokens": tokens}
            out.append(case | asked | {"cases": cases})

    for name, prompts in PROMPTS.items():
        path = shared / "models" / name
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(path)
        # The end of a sentence and a common letter end sequences too, so that results end at many lengths.
        ends = [tokenizer.eos_token_id, tokenizer.encode("a.")[-1], tokenizer.encode("ae")[-1]]
        add(name, model, [tokenizer(prompt).input_ids for prompt in prompts], ends, 40)
    for name in RANDOM:
        model = AutoModelForCausalLM.from_pretrained(golden / name, dtype=torch.float32).eval()
        # Prompt and continuation stay within the positions of GPT-2 and OPT.
        add(name, model, IDS, [2, 17, 23], 16)
    json.dump(out, sys.stdout, separators=(",", ":"))
    print()


if __name__ == "__main__":
    main()
