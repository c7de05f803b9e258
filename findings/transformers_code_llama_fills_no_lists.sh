#!/usr/bin/env bash
# transformers 5.24.0: CodeLlamaTokenizer looks for <FILL_ME> in a single text only. In a list of texts, even of one, the mark stays
# a token of its own: no prefix, suffix and middle tokens are written, and the model is not asked to fill anything. Nothing
# is said.
#
# Expected: a list gives what its texts give one by one, as for any other input, or an error.
# What runs a batch has to split the texts itself.
source "$(dirname "$0")/findings.sh"
python transformers==5.24.0 tokenizers==0.23.3 <<'PY'
import string, sys
import transformers
from transformers import CodeLlamaTokenizer

pieces = ["<unk>", "<s>", "</s>", "▁<PRE>", "▁<MID>", "▁<SUF>", "▁<EOT>", "▁", *string.ascii_lowercase]
seen = {}
for name, text in {"text": "a<FILL_ME>b", "list": ["a<FILL_ME>b"]}.items():
    tokenizer = CodeLlamaTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[])
    ids = tokenizer(text).input_ids
    seen[name] = tokenizer.convert_ids_to_tokens(ids[0] if name == "list" else ids)

print(f"transformers {transformers.__version__}")
for name, tokens in seen.items():
    print(f"{name}: {tokens}")
marks = {name: [token for token in tokens if "<" in token] for name, tokens in seen.items()}
sys.exit(marks != {"text": ["<s>", "▁<PRE>", "▁<SUF>", "▁<MID>"], "list": ["<s>", "<FILL_ME>"]})
PY
