#!/usr/bin/env bash
# peft 0.21.2 with transformers 5.24.0: `prompt_tuning_init="TEXT"` takes the output of the embedding module. Gemma's multiplies the
# table's rows by the square root of the width, so that a soft prompt that starts from words starts from rows scaled so, and
# adapter_model.safetensors holds them; the model reads them as they are, beside scaled rows of the text.
#
# Expected: a soft prompt that starts from words is the table's rows of these words, as in other families.
# Who makes such a prompt from the table alone has to multiply, and who compares it with the table to divide.
source "$(dirname "$0")/findings.sh"
python peft==0.21.2 transformers==5.24.0 torch==2.15.0 tokenizers==0.23.3 <<'PY'
import pathlib, sys, tempfile
import peft, torch, transformers
from peft import PromptTuningConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

folder = tempfile.mkdtemp(dir=".")
words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(64)}, unk_token="w0"))
words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0").save_pretrained(folder)
SIZES = dict(vocab_size=64, hidden_size=36, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, pad_token_id=None)


def ratio(model):
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, prompt_tuning_init="TEXT", prompt_tuning_init_text="w5 w9 w13", tokenizer_name_or_path=folder)
    table = model.get_input_embeddings().weight.detach().clone()
    rows = get_peft_model(model, config).prompt_encoder["default"].embedding.weight.detach()
    return (rows / table[[5, 9, 13]]).mean().item(), torch.allclose(rows / rows.norm(), table[[5, 9, 13]] / table[[5, 9, 13]].norm(), atol=1e-5)


torch.manual_seed(0)
gemma, llama = ratio(Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=8))), ratio(LlamaForCausalLM(LlamaConfig(**SIZES)))
print(f"peft {peft.__version__}, transformers {transformers.__version__}, torch {torch.__version__}")
print(f"rows of the prompt, of the table's: {gemma[0]:.4f} times in Gemma 2 of width 36, {llama[0]:.4f} times in LLaMA")
sys.exit(not (abs(gemma[0] - 6.0) < 1e-4 and gemma[1] and abs(llama[0] - 1.0) < 1e-6))
PY
