#!/usr/bin/env bash
# transformers 5.24.0: Qwen2Tokenizer adds the tokens that are its eos_token, pad_token or unk_token once more, with plain flags.
# A token that tokenizer.json and added_tokens_decoder both give `lstrip` and `rstrip` no longer takes the spaces beside it, so
# that the text has more tokens. GPT2Tokenizer and the generic class keep the flags of the same two files.
#
# Expected: the flags of the files, which agree with each other.
# A reader that runs tokenizer.json gets other ids than this class.
source "$(dirname "$0")/findings.sh"
python transformers==5.24.0 tokenizers==0.23.3 <<'PY'
import json, pathlib, sys, tempfile
import tokenizers, transformers
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer

text = "x <end> y"
flags = {"lstrip": True, "rstrip": True, "normalized": False, "single_word": False, "special": True}
backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[]))
backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
backend.add_special_tokens([AddedToken("<end>", **flags)])

print(f"transformers {transformers.__version__}, tokenizers {tokenizers.__version__}")
ids = {"tokenizers": backend.encode(text).ids}
for name in ["TokenizersBackend", "GPT2Tokenizer", "Qwen2Tokenizer"]:
    folder = pathlib.Path(tempfile.mkdtemp(dir="."))
    backend.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": name, "eos_token": "<end>", "added_tokens_decoder": {"256": {"content": "<end>", **flags}}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    ids[name] = AutoTokenizer.from_pretrained(folder)(text).input_ids
for name, given in ids.items():
    print(f"{name}: {given}")
same = ids["tokenizers"] == ids["TokenizersBackend"] == ids["GPT2Tokenizer"]
sys.exit(not (same and len(ids["tokenizers"]) == 3 and len(ids["Qwen2Tokenizer"]) == 5))
PY
