"""Model cards of adapters as PEFT makes them, and what it makes of a card that is there: for each case the kind of adapter, the
base model's name, the card before (none where there is none) and after; of a new card the metadata alone."""

import json
import pathlib
import tempfile

import peft
from transformers import LlamaConfig, LlamaForCausalLM

CONFIG = LlamaConfig(
    hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, vocab_size=8
)
KINDS = {
    "LORA": lambda: peft.LoraConfig(r=1, target_modules=["q_proj"], task_type="CAUSAL_LM"),
    "IA3": lambda: peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[], task_type="CAUSAL_LM"),
    "PROMPT_TUNING": lambda: peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"),
    "P_TUNING": lambda: peft.PromptEncoderConfig(num_virtual_tokens=2, encoder_hidden_size=4, task_type="CAUSAL_LM"),
    "PREFIX_TUNING": lambda: peft.PrefixTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"),
}
NAMES = ["org/name", "a/b c", "a: b", "123", "true", "x #1", "-x", "it's", 'a"b', "café/模型", "~", "[a", "a\\b", "@a", " a", "0x1f", "null", "a:"]
CARDS = [
    "# Mine\n\nWords of mine.\n",
    "---\nlicense: mit\n---\n# Mine\n\nWords.\n",
    "---\nlicense: mit\nlanguage:\n- en\n- cs\n---\n\n# Mine\n\nlast line without an end",
    "---\ntags:\n- my-tag\n- lora\nlicense: mit\npipeline_tag: text-classification\nbase_model: other/model\n---\n# Mine\n",
    "---\nlibrary_name: transformers\nmetrics:\n- accuracy\ndatasets:\n- org/data\nmine:\n  deep:\n  - 1\n---\ntext\n",
    "---\nlicense: mit\n---\n# Mine\n\n### Framework versions\n\n- Transformers 5.0.0\n- PEFT 0.17.0\n",
    "---\nlicense: mit\n---\n# Mine\n\n### Framework versions\n\n- PEFT 0.21.2\n\nmore\n",
    "---\nlicense: mit\n---\n# Mine\n### Framework versions",
    "---\nlicense: mit\n---\n# Mine\n### Framework versions\n- other",
    "---\nlicense: mit\n---",
    "",
    "\n---\nlicense: mit\n---\n# After an empty line\n",
    "---\nlicense: mit\n---  \nblanks behind\n",
    "no metadata\n---\nlicense: mit\n---\n",
    "\ufeff---\nlicense: mit\n---\n# With a mark of order\n",
]


def saved(kind, name, before):
    model = LlamaForCausalLM(CONFIG)
    model.config._name_or_path = name
    model.name_or_path = name
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "README.md"
        if before is not None:
            path.write_bytes(before.encode())
        model = peft.get_peft_model(model, KINDS[kind]())
        model.create_or_update_model_card(folder)
        after = path.read_bytes().decode()
    if before is None:
        after = after[: after.index("\n---\n") + 5]
    return {"kind": kind, "base": name, "before": before, "after": after}


cases = [saved(kind, "org/name", None) for kind in KINDS]
cases += [saved("LORA", name, None) for name in NAMES]
cases += [saved("LORA", "org/name", card) for card in CARDS]
cases += [saved("IA3", "org/name", CARDS[3])]
pathlib.Path("cards.json").write_text(json.dumps(cases, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
