#!/usr/bin/env bash
# tokenizers 0.23.3: under NFC or NFKC, a letter and a combining mark become one character whose offsets are those of the
# letter alone. No token covers the mark, and text[start:end] of the last token of a word that ends with one has lost it.
# Without a normalizer the mark is covered. (tokenizers#1201 saw the same with Hangul jamo, and was closed as stale.)
#
# Expected: the composed character has the offsets of both that it was made of, as Qwen2's tokenizers (NFC) would need for
# spans of texts in decomposed form (file names of macOS, many corpora of Vietnamese).
# A program that cuts a text by offsets has to give what lies between two tokens to one of them.
source "$(dirname "$0")/findings.sh"
python tokenizers==0.23.3 <<'PY'
import sys
import tokenizers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

print(f"tokenizers {tokenizers.__version__}")
vocab = {character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
text = "cafe\u0301 x"
uncovered = {}
for name, normalizer in {"NFC": normalizers.NFC(), "NFKC": normalizers.NFKC(), "none": None}.items():
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    offsets = tokenizer.encode(text).offsets
    uncovered[name] = [i for i in range(len(text)) if not any(start <= i < end for start, end in offsets)]
    print(f"{name}: offsets of {ascii(text)} are {offsets}, characters of no token: {uncovered[name]}")
sys.exit(uncovered != {"NFC": [4], "NFKC": [4], "none": []})
PY
