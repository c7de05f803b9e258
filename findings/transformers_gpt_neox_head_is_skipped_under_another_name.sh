#!/usr/bin/env bash
# transformers 5.24.0 with bitsandbytes 0.50.2: the head of GPT-NeoX (Pythia) is `embed_out` in every checkpoint, and the module that
# transformers 5 makes of it is `lm_head`. A quantised checkpoint that leaves the head as it is, with `llm_int8_skip_modules: ["embed_out"]`, the
# name of its tensor, loads with no warning; the head has become a quantised layer around a plain weight, and the first forward raises.
#
# Expected: a head that is skipped under the name that it has in the file, or an error of loading. With both names listed it runs.
source "$(dirname "$0")/findings.sh"
python transformers==5.24.0 bitsandbytes==0.50.2 torch==2.15.0 accelerate==1.15.0 <<'PY'
import json, os, sys, tempfile, warnings
import bitsandbytes, torch, transformers
from safetensors.torch import load_file, save_file
from transformers import BitsAndBytesConfig, GPTNeoXConfig, GPTNeoXForCausalLM

transformers.logging.set_verbosity_warning()
print(f"transformers {transformers.__version__}, bitsandbytes {bitsandbytes.__version__}, torch {torch.__version__}")
torch.manual_seed(0)
config = GPTNeoXConfig(vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4, tie_word_embeddings=False)
with tempfile.TemporaryDirectory() as folder:
    GPTNeoXForCausalLM(config).save_pretrained(f"{folder}/plain")
    quantization = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0, llm_int8_skip_modules=["lm_head", "embed_out"])
    GPTNeoXForCausalLM.from_pretrained(f"{folder}/plain", quantization_config=quantization, device_map="cpu").save_pretrained(f"{folder}/int8")
    names = [name for name in load_file(f"{folder}/int8/model.safetensors") if not name.startswith("gpt_neox")]
    found = {}
    for skipped in [["embed_out"], ["embed_out", "lm_head"]]:
        with open(f"{folder}/int8/config.json") as file:
            text = json.load(file)
        text["quantization_config"]["llm_int8_skip_modules"] = skipped
        with open(f"{folder}/int8/config.json", "w") as file:
            json.dump(text, file)
        model = GPTNeoXForCausalLM.from_pretrained(f"{folder}/int8", device_map="cpu").eval()
        try:
            with torch.no_grad():
                found[len(skipped)] = tuple(model(input_ids=torch.tensor([[5, 6, 7]])).logits.shape)
        except (AttributeError, AssertionError) as error:
            found[len(skipped)] = type(error).__name__
        print(f"head's tensors {names}, skipped {skipped}: {type(model.lm_head).__name__}, {found[len(skipped)]}")
sys.exit(not (names == ["embed_out.weight"] and found[1] in ("AttributeError", "AssertionError") and found[2] == (1, 3, 64)))
PY
