#!/usr/bin/env bash
# transformers 5.24.0: a chat_template.jinja beside tokenizer_config.json hides not only the default of the named templates in the
# latter but all of them. A `tool_use` template that has no file of its own is gone: with tools the default is written, which
# need not show them, and nothing is said.
#
# Expected: the file is the default, and templates of other names stay, as with files in additional_chat_templates.
# A reader has to know which of the two places is asked first, and that it is asked alone.
source "$(dirname "$0")/findings.sh"
python transformers==5.24.0 tokenizers==0.23.3 jinja2==3.1.6 <<'PY'
import json, pathlib, sys, tempfile
import transformers
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer

tool = {"type": "function", "function": {"name": "clock", "description": "The time.", "parameters": {"type": "object", "properties": {}}}}
named = {"default": "{{ messages[0].content }}", "tool_use": "{{ tools[0].function.name }}? {{ messages[0].content }}"}


def prompt(files):
    folder = pathlib.Path(tempfile.mkdtemp(dir="."))
    Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]")).save(str(folder / "tokenizer.json"))
    templates = [{"name": name, "template": template} for name, template in named.items()]
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "TokenizersBackend", "chat_template": templates}))
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tools=[tool], tokenize=False)


default = {"chat_template.jinja": named["default"]}
seen = {
    "tokenizer_config.json alone": prompt({}),
    "and chat_template.jinja": prompt(default),
    "and tool_use.jinja too": prompt({**default, "additional_chat_templates/tool_use.jinja": named["tool_use"]}),
}
print(f"transformers {transformers.__version__}")
for name, text in seen.items():
    print(f"{name}: {text!r}")
sys.exit(list(seen.values()) != ["clock? Hi", "Hi", "clock? Hi"])
PY
