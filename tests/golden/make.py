#!/usr/bin/env python3
"""Makes all golden files again, and keeps manifest.json.

    make.py check SHARED     # runs every script in a temporary folder; fails if a result is not what stands here
    make.py write            # writes manifest.json from the files that stand here

Needs the packages of requirements.txt. Files are compared byte for byte, except for what depends on the machine's own
rounding or on the order of a set: numbers of safetensors and case files may differ by 1e-4 of the largest, and
lists of texts in adapter_config.json by their order.
"""

import hashlib
import importlib.metadata
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
PACKAGES = [line.split("==")[0] for line in (HERE / "requirements.txt").read_text().split()]
FAMILIES = ["bloom", "gemma2", "gemma2-uncapped", "gemma3", "gemma3-images", "gemma3-two-sided", "gpt2", "gptj", "gptj-tied", "neox", "neox-sequential", "olmo2", "olmo3", "opt", "opt-behind", "phi", "phi-tied", "phi3", "phi3-long", "qwen3", "qwen3-window", "smollm3", "stablelm", "starcoder2"]
# Script, its arguments ({shared} is the folder of real models), the file that takes its output, and what it makes.
STEPS = [
    ("model.py", [], None, ["model-biases-linear", "model-dynamic", "model-gqa-llama3", "model-mistral-window", "model-qwen2", "model-yarn"]),
    ("families.py", [], None, [f"model-{name}" for name in FAMILIES]),
    ("edits.py", ["edits"], None, ["edits"]),
    ("configs.py", [], "configs.json", ["configs.json"]),
    ("family_configs.py", [], "family_configs.json", ["family_configs.json"]),
    ("adapters.py", ["."], None, ["adapters.json", "peft_adapter"]),
    ("cards.py", [], None, ["cards.json"]),
    ("torch_files.py", ["torch"], None, ["torch"]),
    ("small_tokenizers.py", ["."], None, ["tokenizers"]),
    ("measures.py", [], None, ["measures.safetensors"]),
    ("quantized.py", [], None, ["quantized.safetensors"]),
    ("gguf_models.py", ["gguf"], None, ["gguf"]),
    ("gguf_written.py", ["gguf_written"], None, ["gguf_written"]),
    ("bnb_models.py", ["bnb"], None, ["bnb"]),
    ("torchao_models.py", ["torchao"], None, ["torchao"]),
    ("text_metrics.py", [], None, ["text_metrics.json"]),
    ("overlap_metrics.py", [], None, ["overlap_metrics.json"]),
    ("chat_templates.py", [], None, ["chat_templates.json"]),
    ("family_chats.py", [], "family_chats.json", ["family_chats.json"]),
    ("tokenizer_ids.py", ["{shared}"], "tokenizer_ids.json", ["tokenizer_ids.json"]),
    ("generate.py", ["{shared}"], "generate.json", ["generate.json"]),
    ("peft_train.py", ["{shared}/models/stories260K", "peft"], None, ["peft"]),
    ("peft_start.py", ["peft_start"], None, ["peft_start"]),
    ("peft_variants.py", ["peft_variants"], None, ["peft_variants"]),
    ("peft_prompt.py", ["peft_prompt"], None, ["peft_prompt"]),
    ("choices.py", ["choices"], None, ["choices"]),
    ("objectives.py", [], "objectives.json", ["objectives.json"]),
]


def files(folder, names):
    """Every file of the named files and folders, by its path from `folder`."""
    found = []
    for name in names:
        path = folder / name
        found += sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return [path.relative_to(folder).as_posix() for path in found]


def write():
    steps = []
    for script, arguments, output, made in STEPS:
        digests = {name: hashlib.sha256((HERE / name).read_bytes()).hexdigest() for name in files(HERE, made)}
        steps.append({"script": script, "arguments": arguments, "stdout": output, "files": digests})
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    text = json.dumps({"python": sys.version.split()[0], "packages": packages, "steps": steps}, indent=1)
    (HERE / "manifest.json").write_text(text + "\n", encoding="utf-8")


def near(found, expected, limit=1e-4):
    import numpy

    found, expected = (numpy.asarray(x, dtype=numpy.float64) for x in (found, expected))
    if found.shape != expected.shape:
        return False
    return found.size == 0 or abs(found - expected).max() <= limit * max(abs(expected).max(), 1e-30)


def same_json(found, expected):
    if isinstance(expected, dict):
        return isinstance(found, dict) and list(found) == list(expected) and all(same_json(found[k], expected[k]) for k in expected)
    if isinstance(expected, list) and expected and all(isinstance(x, float) for x in expected):
        return near(found, expected)
    if isinstance(expected, list) and all(isinstance(x, str) for x in expected):
        return sorted(found) == sorted(expected)
    return found == expected


def same(found, expected):
    if found.read_bytes() == expected.read_bytes():
        return True
    if found.suffix == ".safetensors":
        from safetensors.numpy import load_file

        found, expected = load_file(found), load_file(expected)
        return set(found) == set(expected) and all(near(found[name], expected[name]) for name in expected)
    if found.name in ("case.json", "adapter_config.json"):
        return same_json(json.loads(found.read_text()), json.loads(expected.read_text()))
    return False


def check(shared):
    wrong = []
    with tempfile.TemporaryDirectory() as temp:
        golden = pathlib.Path(temp) / "golden"
        shutil.copytree(HERE, golden)
        environment = {**os.environ, "PYTHONHASHSEED": "0", "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        for script, arguments, output, made in STEPS:
            arguments = [argument.replace("{shared}", str(pathlib.Path(shared).resolve())) for argument in arguments]
            ran = subprocess.run([sys.executable, script, *arguments], cwd=golden, env=environment, stdout=subprocess.PIPE, check=True)
            if output:
                (golden / output).write_bytes(ran.stdout)
            if files(golden, made) != files(HERE, made):
                wrong.append(f"{script}: other files")
                continue
            wrong += [f"{script}: {name}" for name in files(HERE, made) if not same(golden / name, HERE / name)]
            print(script, "done")
    print("\n".join(wrong) or "every golden file is what its script makes")
    return bool(wrong)


if __name__ == "__main__":
    if sys.argv[1:] == ["write"]:
        write()
    elif len(sys.argv) == 3 and sys.argv[1] == "check":
        sys.exit(check(sys.argv[2]))
    else:
        sys.exit(__doc__)
