#!/usr/bin/env bash
# transformers 5.24.0: the first text with <FILL_ME> changes CodeLlamaTokenizer for good. To come back from infilling it puts in a
# normalizer that it did not begin with, so that every later text is prepared twice: one that begins with a space gets a token
# more, and so does what follows a special token. The same text has other ids before and after, with no warning.
#
# Expected: ids that depend on the text alone.
# A comparison of ids has to use a tokenizer that has never seen <FILL_ME>, or one that has, but not both.
source "$(dirname "$0")/findings.sh"
python transformers==5.24.0 tokenizers==0.23.3 <<'PY'
import string, sys
import tokenizers, transformers
from transformers import CodeLlamaTokenizer

pieces = ["<unk>", "<s>", "</s>", "▁<PRE>", "▁<MID>", "▁<SUF>", "▁<EOT>", "▁", *string.ascii_lowercase, ":"]
tokenizer = CodeLlamaTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[])
texts = ["a b", " a", "a</s>b"]
before = [tokenizer(text).input_ids for text in texts]
filled = tokenizer.convert_ids_to_tokens(tokenizer("a<FILL_ME>b").input_ids)
after = [tokenizer(text).input_ids for text in texts]

print(f"transformers {transformers.__version__}, tokenizers {tokenizers.__version__}")
print(f"a<FILL_ME>b: {filled}")
for text, old, new in zip(texts, before, after):
    print(f"{text!r}: {old} before, {new} after")
sys.exit([len(new) - len(old) for old, new in zip(before, after)] != [0, 1, 1])
PY
