"""Writes tokenizer_ids.json: ids and decoded text of transformers for the full-size tokenizers of SHARED.

Usage: python tokenizer_ids.py SHARED > tokenizer_ids.json
"""

import json
import pathlib
import shutil
import sys
import tempfile

from transformers import AutoTokenizer, GPT2Tokenizer

TEXTS = [
    "",
    " ",
    "  ",
    "\n",
    "Hello world",
    " lead",
    "  two leading",
    "trail ",
    "a  b   c",
    "line\nthen\ttab\r\nend",
    "x</s> y",
    "</s>",
    "<s>begins",
    "<unk><s></s>",
    "a<|endoftext|>b",
    "é café naïve",
    "漢字かな交じり文",
    "emoji 😀👩‍👩‍👧 end",
    "Příliš žluťoučký kůň úpěl ďábelské ódy.",
    "e\u0301 combining",
    "numbers 123456 3.14 1e-5 0x1F",
    "don't we'll they've I'm",
    "▁already ▁there",
    "Review: it 's a charming and often affecting journey .\nSentiment: positive\n\n",
    "Once upon a time, there was a little girl named Lily.",
    "CamelCase snake_case kebab-case",
    "tabs\t\t\tand spaces    and\n\n\nnewlines",
    "\u00a0nbsp\u2003em space\u200bzero",
    "(a)[b]{c}<d>\"e\"'f'`g`",
    "\x00\x01\x7f control",
    "مرحبا שלום",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "The quick brown fox jumps over the lazy dog. " * 4,
]

# Files, what the model beside them is, and keys of tokenizer_config.json above the file's own.
DIRECTORIES = [
    ("tokenizers/llama2", "mistral", {}),
    ("tokenizers/llama2", "llama", {"add_bos_token": False, "add_eos_token": True}),
    ("tokenizers/llama2", "llama", {"legacy": True, "tokenizer_class": "LlamaTokenizerFast"}),
    ("tokenizers/gpt2", "gpt2", {"add_prefix_space": True}),
    ("tokenizers/gpt2", "llama", {"add_prefix_space": True, "add_bos_token": True, "bos_token": "<|endoftext|>", "tokenizer_class": "PreTrainedTokenizerFast"}),
    ("tokenizers/gpt2", "qwen2", {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|endoftext|>"}),
    ("tokenizers/opt", "opt", {"add_prefix_space": True, "add_bos_token": True, "tokenizer_class": "GPT2Tokenizer",
                               "bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}),
]


def ids_of(path):
    """Ids with and without special tokens of every text, and the decoded text."""
    if (path / "tokenizer.json").exists():
        tok = AutoTokenizer.from_pretrained(path)
    else:
        special = dict(bos_token="</s>", eos_token="</s>", unk_token="</s>", pad_token="<pad>")
        tok = GPT2Tokenizer(str(path / "vocab.json"), str(path / "merges.txt"), **special)
    return {
        "ids": [tok(t)["input_ids"] for t in TEXTS],
        "plain": [tok(t, add_special_tokens=False)["input_ids"] for t in TEXTS],
        "decoded": [tok.decode(tok(t)["input_ids"]) for t in TEXTS],
    }


def directory_ids(root, files, model_type, keys):
    """Ids with special tokens of every text, and the first and last tokens, where `tokenizer_config.json` has further keys."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for file in (root / files).iterdir():
            shutil.copyfile(file, folder / file.name)
        path = folder / "tokenizer_config.json"
        config = {**(json.loads(path.read_text()) if path.exists() else {}), **keys}
        path.write_text(json.dumps(config))
        (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
        tok = AutoTokenizer.from_pretrained(folder)
        special = [tok.bos_token_id, tok.eos_token_id]
        return {"files": files, "model_type": model_type, "tokenizer_config": config, "special": special, "ids": [tok(t)["input_ids"] for t in TEXTS]}


def main():
    shared = pathlib.Path(sys.argv[1])
    out = {"texts": TEXTS, "tokenizers": {}}
    for name in ["models/stories260K", "models/babyllama105", "tokenizers/llama2", "tokenizers/gpt2", "tokenizers/opt"]:
        out["tokenizers"][name] = ids_of(shared / name)
    out["directories"] = [directory_ids(shared, *directory) for directory in DIRECTORIES]
    json.dump(out, sys.stdout, ensure_ascii=True, separators=(",", ":"))
    print()


if __name__ == "__main__":
    main()
