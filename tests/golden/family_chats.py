"""Writes family_chats.json: conversations through chat templates with the constructs that published models' have (turns
named otherwise, a system's text folded into the first turn, thoughts that are cut out of the past, calls of tools), as
transformers renders them.

Usage: python family_chats.py > family_chats.json
"""

import json
import sys

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

TEMPLATES = {
    # Gemma: no system turn, roles must alternate, contents may be lists of parts.
    "gemma": """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set lead = messages[0]['content'] + '\\n\\n' -%}
    {%- else -%}
        {%- set lead = messages[0]['content'][0]['text'] + '\\n\\n' -%}
    {%- endif -%}
    {%- set turns = messages[1:] -%}
{%- else -%}
    {%- set lead = "" -%}
    {%- set turns = messages -%}
{%- endif -%}
{%- for turn in turns -%}
    {%- if (turn['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Roles must alternate") }}
    {%- endif -%}
    {%- if turn['role'] == 'assistant' -%}{%- set who = "model" -%}{%- else -%}{%- set who = turn['role'] -%}{%- endif -%}
    {{ '<start_of_turn>' + who + '\\n' + (lead if loop.first else "") }}
    {%- if turn['content'] is string -%}
        {{ turn['content'] | trim }}
    {%- elif turn['content'] is iterable -%}
        {%- for part in turn['content'] -%}
            {%- if part['type'] == 'image' -%}{{ '<start_of_image>' }}{%- elif part['type'] == 'text' -%}{{ part['text'] | trim }}{%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}
""",
    # Qwen 3: tools before the first turn; thoughts of turns before the last question are cut.
    "qwen3": """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- "Functions in <tools></tools>:\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(searching=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.searching and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.searching = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}{%- set content = message.content %}{%- else %}{%- set content = '' %}{%- endif %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set thought = '' %}
        {%- if message.reasoning_content is string %}
            {%- set thought = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or (not loop.last and thought)) %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {%- if message.tool_calls %}
            {%- for call in message.tool_calls %}
                {%- if (loop.first and content) or (not loop.first) %}{{- '\\n' }}{%- endif %}
                {%- if call.function %}{%- set call = call.function %}{%- endif %}
                {{- '<tool_call>\\n{"name": "' }}
                {{- call.name }}
                {{- '", "arguments": ' }}
                {%- if call.arguments is string %}{{- call.arguments }}{%- else %}{{- call.arguments | tojson }}{%- endif %}
                {{- '}\\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' }}
        {{- content }}
        {{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}""",
    # Phi 3: one line, the end of the text only where nobody goes on.
    "phi3": "{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}{{'<|system|>\\n' + message['content'] + '<|end|>\\n'}}"
            "{% elif message['role'] == 'user' %}{{'<|user|>\\n' + message['content'] + '<|end|>\\n'}}{% elif message['role'] == 'assistant' %}"
            "{{'<|assistant|>\\n' + message['content'] + '<|end|>\\n'}}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}",
    # Phi 4 mini: tools stand in a message.
    "phi4": "{% for message in messages %}{% if message['role'] == 'system' and 'tools' in message and message['tools'] is not none %}"
            "{{ '<|' + message['role'] + '|>' + message['content'] + '<|tool|>' + message['tools'] + '<|/tool|>' + '<|end|>' }}{% else %}"
            "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}",
    # OLMo 2: a text ends with the last word of the assistant, not with a line.
    "olmo2": "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}{{ '<|system|>\\n' + message['content'] + '\\n' }}{% elif message['role'] == 'user' %}"
             "{{ '<|user|>\\n' + message['content'] + '\\n' }}{% elif message['role'] == 'assistant' %}{% if not loop.last %}{{ '<|assistant|>\\n'  + message['content'] + eos_token + '\\n' }}{% else %}"
             "{{ '<|assistant|>\\n'  + message['content'] + eos_token }}{% endif %}{% endif %}{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}{% endfor %}",
    # OLMo 3: a system's turn is put where there is none; fields that a message may lack.
    "olmo3": """{%- set has_system = messages|selectattr('role', 'equalto', 'system')|list|length > 0 -%}
{%- if not has_system -%}{{- '<|im_start|>system\\nYou help.' -}}
{%- if tools is none or (tools | length) == 0 -%}{{- ' No functions.<|im_end|>\\n' -}}{%- else -%}{{- ' <functions>' + (tools | tojson) + '</functions><|im_end|>\\n' -}}{%- endif -%}{%- endif -%}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}
{{- '<|im_start|>system\\n' + message['content'] -}}
{%- if message.get('functions', none) is not none -%}{{- ' <functions>' + message['functions'] + '</functions><|im_end|>\\n' -}}{%- else -%}{{- '<|im_end|>\\n' -}}{%- endif -%}
{%- elif message['role'] == 'assistant' -%}
{{- '<|im_start|>assistant\\n' -}}{%- if message.get('content', none) is not none -%}{{- message['content'] -}}{%- endif -%}
{%- if not loop.last -%}{{- '<|im_end|>\\n' -}}{%- else -%}{{- eos_token -}}{%- endif -%}
{%- else -%}{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}{%- endif -%}
{%- if loop.last and add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
{%- endfor -%}""",
}
TOOL = {"type": "function", "function": {"name": "sum", "description": "Adds \"numbers\" <all>.", "parameters": {"type": "object", "properties": {"a": {"type": "number"}}, "required": ["a"]}}}
USER, OTHER = {"role": "user", "content": " What is 1+1? "}, {"role": "user", "content": "And é?"}
SYSTEM = {"role": "system", "content": "Be brief."}
THOUGHT = {"role": "assistant", "content": "<think>\nOne and one.\n</think>\n\nTwo."}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "sum", "arguments": {"a": 1, "b": "ü"}}}, {"name": "sum", "arguments": "{}"}]}
ANSWERS = [{"role": "tool", "content": "2"}, {"role": "tool", "content": "3"}]
CONVERSATIONS = [
    [USER],
    [SYSTEM, USER],
    [USER, THOUGHT],
    [USER, THOUGHT, OTHER],
    [SYSTEM, USER, {"role": "assistant", "content": "Two."}, OTHER, {"role": "assistant", "content": "Letter.", "reasoning_content": "\nHm.\n"}],
    [USER, CALL, *ANSWERS],
    [USER, CALL, *ANSWERS, {"role": "assistant", "content": "<think>x</think>Five"}],
    [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " Look. "}]}],
    [USER, OTHER],
    [{"role": "assistant", "content": "First."}, USER],
    [{**SYSTEM, "tools": "[1]", "functions": "[2]"}, USER],
    [USER, {"role": "assistant", "content": None}, OTHER],
]
INPUTS = [{}, {"add_generation_prompt": True}, {"add_generation_prompt": True, "enable_thinking": False}, {"tools": [TOOL]}]


tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1}, "</s>")), bos_token="<s>", eos_token="</s>")


def rendered(template, messages, inputs):
    try:
        return tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, **inputs)
    except Exception:
        return None


rows = [[name, c, i, rendered(template, messages, inputs)]
        for name, template in TEMPLATES.items() for c, messages in enumerate(CONVERSATIONS) for i, inputs in enumerate(INPUTS)]
json.dump({"templates": TEMPLATES, "conversations": CONVERSATIONS, "inputs": INPUTS, "rows": rows}, sys.stdout, ensure_ascii=False, separators=(",", ":"))
print()
