#!/usr/bin/env bash
# transformers 5.24.0: of several named chat templates, `tool_use` is taken as soon as `tools` is not None. An empty list, which
# is what a server has for a request without tools, writes another prompt than no list does, with no warning.
#
# Expected: the default template for an empty list, as it is false wherever templates themselves ask (`{% if tools %}`).
# A program that hands its list of tools over as it is has to turn an empty one into None.
source "$(dirname "$0")/findings.sh"
python transformers==5.24.0 tokenizers==0.23.3 jinja2==3.1.6 <<'PY'
import json, pathlib, sys, tempfile
import transformers
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer

folder = pathlib.Path(tempfile.mkdtemp(dir="."))
Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]")).save(str(folder / "tokenizer.json"))
(folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "TokenizersBackend", "chat_template": [
    {"name": "default", "template": "{{ messages[0].content }}"},
    {"name": "tool_use", "template": "You have {{ tools | length }} tools. {{ messages[0].content }}"},
]}))
tokenizer = AutoTokenizer.from_pretrained(folder)
tool = {"type": "function", "function": {"name": "clock", "description": "The time.", "parameters": {"type": "object", "properties": {}}}}
written = {}
for name, tools in {"None": None, "[]": [], "[clock]": [tool]}.items():
    written[name] = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tools=tools, tokenize=False)

print(f"transformers {transformers.__version__}")
for name, prompt in written.items():
    print(f"tools={name}: {prompt!r}")
sys.exit(written != {"None": "Hi", "[]": "You have 0 tools. Hi", "[clock]": "You have 1 tools. Hi"})
PY
