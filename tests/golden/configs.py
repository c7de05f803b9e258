"""Writes configs.json: config.json files of many forms, with what the reference library makes of each.

Usage: python configs.py > configs.json
"""

import copy
import json
import logging
import sys

from transformers import AutoConfig, LlamaConfig, MistralConfig, Qwen2Config, logging as hf_logging
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

hf_logging.set_verbosity(logging.CRITICAL)
CLASSES = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config}
DIMS = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 8, "vocab_size": 100}


def case(model_type, **keys):
    return {"model_type": model_type, **DIMS, **keys}


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 512}
YARN = {"factor": 4.0, "original_max_position_embeddings": 128}
CASES = [
    case("llama"),
    case("llama", num_key_value_heads=2, head_dim=16, rms_norm_eps=1e-5, tie_word_embeddings=True),
    case("llama", num_key_value_heads=None, attention_bias=True, mlp_bias=True),
    case("llama", bos_token_id=None, eos_token_id=[3, 4], pad_token_id=5, torch_dtype="bfloat16"),
    case("llama", dtype="float16", torch_dtype="float32", max_position_embeddings=777),
    case("llama", rope_theta=500000.0),
    case("llama", rope_theta=500000.0, rope_scaling=None),
    case("llama", rope_scaling={"type": "linear", "factor": 4.0}),
    case("llama", rope_scaling={"rope_type": "linear", "factor": 2.5}, rope_theta=1234.5),
    case("llama", rope_parameters={"rope_type": "linear", "factor": 2, "rope_theta": 20000.0}),
    case("llama", rope_parameters={"rope_theta": 20000.0}),
    case("llama", rope_parameters={"rope_type": "default", "rope_theta": 20000.0}, rope_scaling={}),
    case("llama", rope_scaling={"type": "dynamic", "factor": 2.0}, max_position_embeddings=64),
    case("llama", rope_scaling={"rope_type": "llama3", **LLAMA3}, rope_theta=500000.0, max_position_embeddings=4096),
    case("llama", rope_parameters={"rope_type": "llama3", "rope_theta": 1e6, **LLAMA3}),
    case("llama", rope_scaling={"rope_type": "yarn", **YARN}, max_position_embeddings=512),
    case("llama", rope_scaling={"rope_type": "yarn", "factor": 4.0}, max_position_embeddings=512),
    case("llama", rope_scaling={"rope_type": "yarn", **YARN, "mscale": 0.7, "mscale_all_dim": 1.3}),
    case("llama", rope_scaling={"rope_type": "yarn", **YARN, "mscale": 0.7}),
    case("llama", rope_scaling={"rope_type": "yarn", **YARN, "attention_factor": 1.25, "truncate": False}),
    case("llama", rope_scaling={"type": "yarn", **YARN, "beta_fast": 16, "beta_slow": 2}),
    case("llama", rope_scaling={"type": "yarn", **YARN, "beta_fast": 0, "beta_slow": None}),
    case("llama", original_max_position_embeddings=256, rope_scaling={"rope_type": "yarn", **YARN}),
    case("mistral"),
    case("mistral", sliding_window=None),
    case("mistral", sliding_window=16, head_dim=10, num_key_value_heads=4),
    case("mistral", rope_parameters={"rope_theta": 1e6, "rope_type": "default"}, eos_token_id=7),
    case("qwen2", num_key_value_heads=None),
    case("qwen2", num_key_value_heads=2, sliding_window=32, max_window_layers=2),
    case("qwen2", num_key_value_heads=2, sliding_window=32, max_window_layers=2, use_sliding_window=True),
    case("qwen2", num_key_value_heads=2, use_sliding_window=True, bos_token_id=9, eos_token_id=10),
    case("qwen2", num_key_value_heads=2, sliding_window=8, use_sliding_window=True,
         layer_types=["full_attention", "sliding_attention", "full_attention", "sliding_attention"]),
    case("qwen2", num_key_value_heads=2, rope_scaling={"type": "yarn", **YARN}, tie_word_embeddings=True),
]


def expect(given):
    c = CLASSES[given["model_type"]](**{k: v for k, v in copy.deepcopy(given).items() if k != "model_type"})
    rope = c.rope_parameters
    scaling = 1.0
    if rope["rope_type"] != "default":
        _, scaling = ROPE_INIT_FUNCTIONS[rope["rope_type"]](c)
    window = c.sliding_window if given["model_type"] != "llama" else None
    types = getattr(c, "layer_types", None) or ["sliding_attention"] * c.num_hidden_layers
    eos = c.eos_token_id
    return {
        "num_key_value_heads": c.num_key_value_heads,
        "head_dim": getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads,
        "max_position_embeddings": c.max_position_embeddings,
        "rms_norm_eps": c.rms_norm_eps,
        "tie_word_embeddings": c.tie_word_embeddings,
        "windows": [window if t == "sliding_attention" else None for t in types],
        "rope": rope,
        "attention_scaling": scaling,
        "bos": c.bos_token_id,
        "eos": eos if isinstance(eos, list) else [] if eos is None else [eos],
        "pad": c.pad_token_id,
        "dtype": None if c.dtype is None else str(c.dtype).removeprefix("torch."),
    }


json.dump([{"config": c, "expect": expect(c)} for c in CASES], sys.stdout, separators=(",", ":"))
print()
