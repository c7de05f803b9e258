#!/usr/bin/env bash
# transformers 5.24.0: `from_pretrained(gguf_file=...)` takes no notice of `rope_freqs.weight`, the divisors of the frequencies in which
# llama.cpp's converter writes LLaMA 3's scaling: the model is built with rope_type default, with no warning, and its logits are others.
#
# Expected: the scaling that the file says, or a refusal. llama.cpp and llamaprobe read it.
source "$(dirname "$0")/findings.sh"
python transformers==5.24.0 torch==2.15.0 gguf==0.19.0 numpy==2.4.6 <<'PY'
import sys
import gguf
import torch
import transformers as T

T.utils.logging.disable_progress_bar()
rope = {"rope_type": "llama3", "rope_theta": 50.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 2.0, "original_max_position_embeddings": 16}
config = T.LlamaConfig(vocab_size=32, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64, rope_parameters=rope)
torch.manual_seed(0)
model = T.LlamaForCausalLM(config).eval()
for weight in model.parameters():
    weight.data.normal_(0.0, 0.3)


def written():
    writer = gguf.GGUFWriter("tiny.gguf", "llama")
    writer.add_vocab_size(32)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(50.0)
    writer.add_rope_dimension_count(16)
    scaled = T.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")[0]
    writer.add_tensor("rope_freqs.weight", (1.0 / 50.0 ** (torch.arange(0, 16, 2).float() / 16) / scaled).numpy())
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 1)
    for key, tensor in model.state_dict().items():
        values = tensor.numpy()
        if "q_proj" in key or "k_proj" in key:
            values = values.reshape(2, 2, 8, 32).swapaxes(1, 2).reshape(32, 32).copy()
        writer.add_tensor(table.get_name(key, try_suffixes=(".weight",)), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return T.AutoModelForCausalLM.from_pretrained(".", gguf_file="tiny.gguf", dtype=torch.float32).eval()


ids = torch.arange(3, 23)[None]
read = written()
with torch.no_grad():
    own, other = model(ids).logits, read(ids).logits
far = ((own - other).abs().max() / own.abs().max()).item()
print(f"transformers {T.__version__}: rope_type {read.config.rope_parameters['rope_type']}, logits off by {far:.0%} of the largest")
sys.exit(not (read.config.rope_parameters["rope_type"] == "default" and far > 1e-2))
PY
