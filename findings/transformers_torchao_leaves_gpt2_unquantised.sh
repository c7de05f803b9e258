#!/usr/bin/env bash
# transformers 5.24.0 with torchao 0.18.0: `TorchAoConfig(Int8WeightOnlyConfig())` quantises no weight of GPT-2, whose matrices are
# `Conv1D` and no `nn.Linear`, and says nothing; the checkpoint that is saved names the quantisation in its config.json and is as
# large as before. `include_input_output_embeddings` quantises the head alone, not the embedding table that it names.
# `save_pretrained(safe_serialization=False)` writes safetensors all the same.
#
# Expected: weights of 8 bits, or a warning. bitsandbytes' configuration does quantise the same model's matrices.
source "$(dirname "$0")/findings.sh"
python torchao==0.18.0 transformers==5.24.0 torch==2.15.0 numpy==2.4.6 <<'PY'
import os
import sys
import tempfile
import torch
import torchao
import transformers as T
from torchao.quantization import Int8Tensor, Int8WeightOnlyConfig

T.utils.logging.disable_progress_bar()


def quantised(kind, config, **how):
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as base, tempfile.TemporaryDirectory() as out:
        kind(config).save_pretrained(base)
        model = kind.from_pretrained(base, quantization_config=T.TorchAoConfig(Int8WeightOnlyConfig(), **how), dtype=torch.float32)
        model.save_pretrained(out, safe_serialization=False)
        said = T.AutoConfig.from_pretrained(out).quantization_config["quant_method"]
        return [name for name, weight in model.named_parameters() if isinstance(weight, Int8Tensor)], said, sorted(os.listdir(out))


gpt2 = quantised(T.GPT2LMHeadModel, T.GPT2Config(vocab_size=32, n_embd=32, n_layer=1, n_head=2, n_positions=16, bos_token_id=0, eos_token_id=0))
small = dict(vocab_size=32, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
llama = quantised(T.LlamaForCausalLM, T.LlamaConfig(**small), include_input_output_embeddings=True)
print(f"transformers {T.__version__}, torchao {torchao.__version__}")
for name, (weights, said, files) in (("GPT-2", gpt2), ("LLaMA", llama)):
    print(f"{name}: {len(weights)} weights quantised, config.json says {said}, files {files}")
table, head = ("model.embed_tokens.weight" in llama[0], "lm_head.weight" in llama[0])
print(f"with include_input_output_embeddings: the table {'is' if table else 'is not'}, the head {'is' if head else 'is not'}")
sys.exit(not (gpt2[0] == [] and gpt2[1] == "torchao" and not table and head and "model.safetensors" in gpt2[2]))
PY
