"""Writes configs.json: config.json files of many forms, with what transformers makes of each, and the fields of
each family's configuration there.

Usage: python configs.py > configs.json
"""

import copy
import dataclasses
import json
import logging
import sys

import torch
import transformers as T
from transformers import LlamaConfig, MistralConfig, Qwen2Config, logging as hf_logging
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

hf_logging.set_verbosity(logging.CRITICAL)
CLASSES = {
    "llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config, "qwen3": T.Qwen3Config, "gemma2": T.Gemma2Config,
    "gemma3_text": T.Gemma3TextConfig, "gemma3": T.Gemma3Config, "olmo2": T.Olmo2Config, "olmo3": T.Olmo3Config,
    "gpt_neox": T.GPTNeoXConfig, "phi3": T.Phi3Config, "phi": T.PhiConfig, "gptj": T.GPTJConfig, "smollm3": T.SmolLM3Config, "starcoder2": T.Starcoder2Config, "stablelm": T.StableLmConfig, "gpt2": T.GPT2Config, "opt": T.OPTConfig, "bloom": T.BloomConfig,
}
# Families that turn layers with a window otherwise than those without.
BY_LAYER = ("gemma3_text", "olmo3")
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
    case("qwen3", num_key_value_heads=2),
    case("qwen3", num_key_value_heads=None, head_dim=16, attention_bias=True, rope_theta=1e6, tie_word_embeddings=True, torch_dtype="bfloat16"),
    case("qwen3", num_key_value_heads=2, sliding_window=32, max_window_layers=2),
    case("qwen3", num_key_value_heads=2, sliding_window=32, max_window_layers=2, use_sliding_window=True, eos_token_id=[5, 6]),
    case("qwen3", num_key_value_heads=2, use_sliding_window=True, layer_types=["sliding_attention", "full_attention"] * 2),
    case("qwen3", num_key_value_heads=2, rope_scaling={"rope_type": "yarn", **YARN}, rope_theta=1e6),
    case("gemma2"),
    case("gemma2", num_key_value_heads=2, head_dim=10, query_pre_attn_scalar=224, attn_logit_softcapping=7.5, final_logit_softcapping=12.5),
    case("gemma2", attn_logit_softcapping=None, final_logit_softcapping=None, tie_word_embeddings=False, attention_bias=True),
    case("gemma2", sliding_window=77, hidden_act="gelu", rope_theta=20000.0, eos_token_id=[1, 7]),
    case("gemma2", sliding_window=9, layer_types=["full_attention", "full_attention", "sliding_attention", "full_attention"]),
    case("gemma2", rope_scaling={"type": "linear", "factor": 2.0}, hidden_activation="gelu"),
    case("gemma3_text"),
    case("gemma3_text", rope_theta=5000.0, rope_local_base_freq=77.0, sliding_window=11, sliding_window_pattern=2),
    case("gemma3_text", rope_scaling={"rope_type": "linear", "factor": 8.0}, sliding_window=1024, head_dim=12, num_key_value_heads=1),
    case("gemma3_text", rope_parameters={"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 3e6}, "sliding_attention": {"rope_type": "default", "rope_theta": 500.0}},
         layer_types=["sliding_attention", "full_attention"] * 2, final_logit_softcapping=3.0, query_pre_attn_scalar=168),
    case("gemma3_text", rope_parameters={"full_attention": {"rope_type": "yarn", "rope_theta": 3e6, **YARN}}, rope_local_base_freq=31.0, attn_logit_softcapping=5.0),
    {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", **DIMS}},
    {"model_type": "gemma3", "text_config": {**DIMS, "torch_dtype": "float32", "final_logit_softcapping": 5.0, "tie_word_embeddings": False}, "torch_dtype": "bfloat16", "eos_token_id": [1, 106]},
    {"model_type": "gemma3", "text_config": {**DIMS, "tie_word_embeddings": True, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}, "tie_word_embeddings": False, "dtype": "float16",
     "image_token_index": 99, "mm_tokens_per_image": 4},
    case("olmo2"),
    case("olmo2", num_key_value_heads=2, attention_bias=True, tie_word_embeddings=True, rope_theta=500000, rms_norm_eps=1e-6),
    case("olmo2", head_dim=16, rope_scaling={"rope_type": "llama3", **LLAMA3}, eos_token_id=3),
    case("olmo3"),
    case("olmo3", sliding_window=16, rope_theta=7000.0, num_key_value_heads=4),
    case("olmo3", sliding_window=16, rope_scaling={"rope_type": "yarn", **YARN}, rope_theta=500000, max_position_embeddings=512),
    case("olmo3", rope_scaling={"rope_type": "yarn", "factor": 4.0}, original_max_position_embeddings=64, max_position_embeddings=512),
    case("olmo3", layer_types=["full_attention", "sliding_attention"] * 2, rope_parameters={"sliding_attention": {"rope_type": "default", "rope_theta": 50.0}, "full_attention": {"rope_type": "yarn", "rope_theta": 50.0, **YARN}}),
    case("gpt_neox", hidden_size=128),
    case("gpt_neox", hidden_size=128, rotary_pct=0.5, rotary_emb_base=777, use_parallel_residual=False, tie_word_embeddings=True, layer_norm_eps=1e-6, attention_bias=False),
    case("gpt_neox", rotary_pct=1.0, hidden_act="gelu_new", rope_scaling={"type": "linear", "factor": 2.0}, max_position_embeddings=99),
    case("gpt_neox", rope_parameters={"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.25}, bos_token_id=7, eos_token_id=8),
    case("phi3"),
    case("phi3", num_key_value_heads=2, sliding_window=13, rope_theta=20000.0, tie_word_embeddings=True, eos_token_id=[5, 6], pad_token_id=9),
    case("phi3", partial_rotary_factor=0.5, head_dim=8),
    case("phi3", rope_scaling={"type": "longrope", "short_factor": [1.0, 1.5, 2.0, 3.0], "long_factor": [2.0, 3.0, 4.0, 9.0]}, max_position_embeddings=256, original_max_position_embeddings=64),
    case("phi3", rope_scaling={"type": "yarn", "short_factor": [1.0, 1.5, 2.0], "long_factor": [2.0, 3.0, 4]}, partial_rotary_factor=0.75, max_position_embeddings=8192),
    case("phi3", rope_parameters={"rope_type": "longrope", "rope_theta": 500.0, "partial_rotary_factor": 1.0, "factor": 3.0, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}, original_max_position_embeddings=32),
    case("phi3", rope_parameters={"rope_type": "longrope", "attention_factor": 1.25, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}),
    case("smollm3", bos_token_id=3),
    case("smollm3", bos_token_id=None, no_rope_layers=[1, 0, 0, 1], num_key_value_heads=None, head_dim=16, rope_theta=5000.0, attention_bias=True, mlp_bias=True, tie_word_embeddings=False, pretraining_tp=2, max_window_layers=28),
    case("smollm3", bos_token_id=4, no_rope_layer_interval=2, use_sliding_window=True, sliding_window=9, rope_scaling={"rope_type": "yarn", **YARN}, eos_token_id=5, pad_token_id=9),
    case("smollm3", bos_token_id=4, no_rope_layer_interval=3, use_sliding_window=False, sliding_window=9, layer_types=["full_attention"] * 4),
    case("starcoder2", bos_token_id=3),
    case("starcoder2", bos_token_id=None, num_key_value_heads=8, sliding_window=9, use_bias=False, norm_epsilon=1e-6, tie_word_embeddings=False, rope_theta=500.0, hidden_act="gelu", residual_dropout=0.1),
    case("stablelm", num_key_value_heads=8),
    case("stablelm", num_key_value_heads=2, use_qkv_bias=True, use_parallel_residual=True, layer_norm_eps=1e-6, partial_rotary_factor=0.5, rope_theta=500.0, tie_word_embeddings=True, qk_layernorm=False),
    case("phi"),
    case("phi", num_key_value_heads=2, partial_rotary_factor=0.25, rope_theta=20000.0, tie_word_embeddings=True, layer_norm_eps=1e-6, hidden_act="gelu", eos_token_id=[5, 6], pad_token_id=9),
    case("phi", rope_scaling={"type": "linear", "factor": 2.0}, rope_theta=500.0, num_key_value_heads=None, max_position_embeddings=99, qk_layernorm=False, embd_pdrop=0.1),
    case("phi", rope_parameters={"rope_type": "yarn", "rope_theta": 500.0, "partial_rotary_factor": 1.0, **YARN}, torch_dtype="float16"),
]


def rotation(c, layer_type):
    """The parameters of a layer's rotation with its elements of a head, the factor of its cosines and sines, and, where it is scaled, the
    angles per position of a sequence of two tokens and of one beyond the length that decides."""
    rope = c.rope_parameters if layer_type is None else c.rope_parameters[layer_type]
    dim = int(head_dim(c) * rope.get("partial_rotary_factor", 1.0))
    named = lambda: {**{key: value for key, value in rope.items() if key != "partial_rotary_factor"}, "dim": dim}
    if rope["rope_type"] == "default":
        return named(), 1.0, {}
    of = ROPE_INIT_FUNCTIONS[rope["rope_type"]]
    angles, scaling = of(c, layer_type=layer_type)
    listed = lambda angles: [float(f"{x:.9g}") for x in angles.tolist()]
    angles = {"2": listed(angles)}
    if rope["rope_type"] in ("dynamic", "longrope"):
        length = 3 * (c.max_position_embeddings if rope["rope_type"] == "dynamic" else rope["original_max_position_embeddings"]) + 1
        # The forward's length is a tensor of integers.
        angles[str(length)] = listed(of(c, seq_len=torch.tensor(length), layer_type=layer_type)[0])
    # The call has put the file's other keys into the dictionary.
    return named(), scaling, angles


def head_dim(c):
    return getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads


def expect(given):
    family = given["model_type"]
    whole = CLASSES[family](**{k: v for k, v in copy.deepcopy(given).items() if k != "model_type"})
    c = whole.get_text_config()
    types = getattr(c, "layer_types", None) or ["sliding_attention"] * c.num_hidden_layers
    ropes = {layer_type: rotation(c, layer_type if c.model_type in BY_LAYER else None) for layer_type in sorted(set(types))}
    # What the models themselves read: the others have no windows, and caps are Gemma's alone. Gemma 3's attention is given
    # no cap, and the model of texts and images does not cap its logits.
    windowed = c.model_type not in ("llama", "olmo2", "gpt_neox", "phi", "stablelm")
    eos = c.eos_token_id
    if family == "qwen2":
        bias = [True, False]
    elif family == "starcoder2":
        bias = [c.use_bias, c.use_bias]
    elif family == "stablelm":
        bias = [c.use_qkv_bias, False]
    elif family == "phi":
        bias = [True, True]
    elif family in ("mistral", "phi3"):
        bias = [False, False]
    else:
        bias = [c.attention_bias, c.attention_bias]
    return {
        "num_key_value_heads": getattr(c, "num_key_value_heads", c.num_attention_heads),
        "head_dim": head_dim(c),
        "max_position_embeddings": c.max_position_embeddings,
        "eps": c.norm_epsilon if family == "starcoder2" else c.layer_norm_eps if family in ("gpt_neox", "phi", "stablelm") else c.rms_norm_eps,
        "tie_word_embeddings": whole.tie_word_embeddings,
        "windows": [c.sliding_window if windowed and t == "sliding_attention" else None for t in types],
        # By layer, or one for all.
        "ropes": [ropes[t] for t in types] if len(ropes) > 1 else [*ropes.values()],
        "bias": bias,
        "no_rope_layers": [i for i, rotates in enumerate(getattr(c, "no_rope_layers", [])) if not rotates],
        "activation": getattr(c, "hidden_activation", None) or c.hidden_act,
        "score_scale": getattr(c, "query_pre_attn_scalar", head_dim(c)) ** -0.5,
        "score_softcap": c.attn_logit_softcapping if family == "gemma2" else None,
        "logit_softcap": c.final_logit_softcapping if family in ("gemma2", "gemma3_text") else None,
        "parallel": getattr(c, "use_parallel_residual", family == "phi"),
        "bos": c.bos_token_id,
        "eos": eos if isinstance(eos, list) else [] if eos is None else [eos],
        "pad": c.pad_token_id,
        "dtype": None if whole.dtype is None else str(whole.dtype).removeprefix("torch."),
    }


cases = [{"config": c, "expect": expect(c)} for c in CASES]
fields = {family: sorted(field.name for field in dataclasses.fields(kind)) for family, kind in CLASSES.items()}
json.dump({"cases": cases, "fields": fields}, sys.stdout, separators=(",", ":"))
print()
