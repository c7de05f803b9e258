#!/usr/bin/env bash
# gguf 0.19.0, whose `LlamaHfVocab` llama.cpp's convert_hf_to_gguf.py uses for a LLaMA that has a tokenizer.json and no tokenizer.model:
# every token gets the score -1000. llama.cpp merges pieces by their scores, so that of such a file it makes other ids than
# transformers (seen with llama-cpp-python 0.3.36 on stories260K, whose ids are the same once the scores are the merges' ranks).
#
# Expected: scores in the order of the merges, which `llamaprobe quantize --to q8_0` writes.
source "$(dirname "$0")/findings.sh"
python gguf==0.19.0 transformers==5.24.0 tokenizers==0.23.3 sentencepiece==0.2.3 protobuf==7.36.2 numpy==2.4.6 <<'PY'
import json
import pathlib
import sys
from importlib.metadata import version

pieces = ["<unk>", "<s>", "</s>", "▁", "a", "b", "c", "ab", "bc", "▁a", "abc"]
merges = [["b", "c"], ["a", "b"], ["▁", "a"], ["a", "bc"]]
model = {"type": "BPE", "dropout": None, "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True, "vocab": {piece: id for id, piece in enumerate(pieces)}, "merges": merges}
special = [{"id": id, "content": pieces[id], "special": True, "normalized": False, "lstrip": False, "rstrip": False, "single_word": False} for id in range(3)]
decoder = {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]}
pathlib.Path("tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": special, "decoder": decoder, "model": model}))
pathlib.Path("tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}))
pathlib.Path("config.json").write_text(json.dumps({"model_type": "llama"}))
import gguf

scores = {text.decode(): score for text, score, _ in gguf.LlamaHfVocab(pathlib.Path(".")).all_tokens()}
print(f"gguf {version('gguf')}: bc is merged before ab, and their scores are {scores['bc']} and {scores['ab']}; all scores: {sorted(set(scores.values()))}")
sys.exit(set(scores.values()) != {-1000.0})
PY
