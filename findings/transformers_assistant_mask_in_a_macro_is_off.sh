#!/usr/bin/env bash
# transformers 5.24.0: `apply_chat_template(return_assistant_tokens_mask=True)` takes the start of a {% generation %} block from
# what the template has written so far, and a macro, a {% set %} block or a {% filter %} block writes nothing before it ends. A
# block inside one of them gets the mask of the place where that outer thing begins: other tokens are marked, with no warning.
#
# The input is one template of turns, once plain and once with the same turns in a macro, a set block and a filter block. All
# four write the same text.
# Expected: the same mask, or an error. Training on these masks learns the user's words.
source "$(dirname "$0")/findings.sh"
python transformers==5.24.0 tokenizers==0.23.3 jinja2==3.1.6 <<'PY'
import sys
import jinja2, transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import TokenizersBackend

backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[]))
backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer = TokenizersBackend(tokenizer_object=backend)
chat = [{"role": "user", "content": "ask"}, {"role": "assistant", "content": "reply"},
        {"role": "user", "content": "more"}, {"role": "assistant", "content": "second"}]
turn = "{% if m.role == 'user' %}U:{{ m.content }};{% else %}A:{% generation %}{{ m.content }}{% endgeneration %};{% endif %}"
turns = "{% for m in messages %}" + turn + "{% endfor %}"
templates = {
    "plain": turns,
    "macro": "{% macro turn(m) %}" + turn + "{% endmacro %}{% for m in messages %}{{ turn(m) }}{% endfor %}",
    "filter": "{% for m in messages %}{% filter trim %}" + turn + "{% endfilter %}{% endfor %}",
    "set": "{% set all %}" + turns + "{% endset %}{{ all }}",
}

print(f"transformers {transformers.__version__}, jinja2 {jinja2.__version__}")
texts, marked = set(), {}
for name, template in templates.items():
    text = tokenizer.apply_chat_template(chat, chat_template=template, tokenize=False)
    mask = tokenizer.apply_chat_template(chat, chat_template=template, return_assistant_tokens_mask=True, return_dict=True)["assistant_masks"]
    texts.add(text)
    marked[name] = "".join(character if on else "." for character, on in zip(text, mask))
    print(f"{name:7}{text}\n       {marked[name]}")
shifted = "......A:rep..........A:seco..."
sys.exit(not (len(texts) == 1 and marked["plain"] == "........reply..........second." and marked["macro"] == marked["filter"] == shifted
              and marked["set"] == "U:ask;........................"))
PY
