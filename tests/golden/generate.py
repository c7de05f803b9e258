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
# Beams, length penalty, further end tokens, new tokens at most.
SETTINGS = [(1, 1.0, 0, 40), (2, 1.0, 0, 24), (4, 1.0, 1, 24), (4, 2.0, 1, 30), (3, 0.0, 2, 30), (5, -0.5, 1, 16)]


def main():
    torch.set_num_threads(1)
    shared = pathlib.Path(sys.argv[1])
    out = []
    for name, prompts in PROMPTS.items():
        path = shared / "models" / name
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(path)
        # The end of a sentence and a common letter end sequences too, so that results end at many lengths.
        ends = [tokenizer.encode("a.")[-1], tokenizer.encode("ae")[-1]]
        for beams, penalty, further, tokens in SETTINGS:
            stop = [tokenizer.eos_token_id, *ends[:further]]
            cases = []
            for prompt in prompts:
                ids = tokenizer(prompt, return_tensors="pt").input_ids
                made = model.generate(
                    ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, num_beams=beams, do_sample=False,
                    length_penalty=penalty, eos_token_id=stop, pad_token_id=0, early_stopping=False,
                )
                cases.append([ids[0].tolist(), [t for t in made[0, ids.shape[1] :].tolist()]])
            out.append({"model": name, "beams": beams, "length_penalty": penalty, "stop": stop, "tokens": tokens, "cases": cases})
    json.dump(out, sys.stdout, separators=(",", ":"))
    print()


if __name__ == "__main__":
    main()
