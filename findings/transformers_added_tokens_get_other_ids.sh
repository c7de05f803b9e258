#!/usr/bin/env bash
# transformers 5.24.0, tokenizers 0.23.3: the ids that files write beside added tokens are not kept. `added_tokens_decoder` of
# tokenizer_config.json and `added_tokens` of tokenizer.json name an id for each token, but tokens are added in the order of
# these ids and each gets the next free one: a gap after the vocabulary, or between two tokens, is closed without a warning.
#
# The input is a vocabulary of 256 bytes and tokens with the ids 260, 300 and 301, as for a model whose embedding has rows
# that were kept free.
# Expected: these ids, or an error, as the rows of the embedding belong to them.
# A reader has to take the ids as written, and say so where this library would give others.
source "$(dirname "$0")/findings.sh"
python transformers==5.24.0 tokenizers==0.23.3 <<'PY'
import json, pathlib, sys, tempfile
import tokenizers, transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer

written = {260: "<a>", 300: "<b>", 301: "<c>"}
flags = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": False}
byte_level = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[]))
byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)

folder = pathlib.Path(tempfile.mkdtemp(dir="."))
byte_level.save(str(folder / "tokenizer.json"))
decoder = {str(i): {"content": token, **flags} for i, token in written.items()}
(folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "TokenizersBackend", "added_tokens_decoder": decoder}))
auto = AutoTokenizer.from_pretrained(folder)
from_config = dict(zip(written, auto.convert_tokens_to_ids(list(written.values()))))

file = json.loads(byte_level.to_str())
file["added_tokens"] = [{"id": i, "content": token, **flags} for i, token in written.items()]
alone = Tokenizer.from_str(json.dumps(file))
from_file = {i: alone.token_to_id(token) for i, token in written.items()}

print(f"transformers {transformers.__version__}, tokenizers {tokenizers.__version__}")
print(f"ids in added_tokens_decoder and those that AutoTokenizer gives: {from_config}")
print(f"ids in tokenizer.json and those that tokenizers gives: {from_file}")
closed = {260: 256, 300: 257, 301: 258}
sys.exit(not (from_config == closed and from_file == closed))
PY
