"""Writes family_configs.json: config.json files of the families from Qwen 3 on, with what transformers builds of each.

Usage: python family_configs.py > family_configs.json

Every fact is read off the model, not off the configuration. `rotation` is the place in `rotations` of the
cosines and then the sines of position 3, of a sequence within the pretraining length, and `long_rotation` that of a longer
one, where they may differ. A configuration that transformers refuses has no facts.
"""

import json
import logging
import pathlib
import sys
import tempfile

import torch
from transformers import AutoConfig, AutoModelForCausalLM, logging as hf_logging

hf_logging.set_verbosity(logging.CRITICAL)
DIMS = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 100}
WINDOWS = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
YARN = {"factor": 4.0, "original_max_position_embeddings": 128}
VISION = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 8, "patch_size": 4}
DEFAULT = {"rope_type": "default"}
EIGHT, SIX = [1.0 + i / 8 for i in range(8)], [1.0 + i / 4 for i in range(6)]
LONG = {"short_factor": EIGHT, "long_factor": [2 * x + 1 for x in EIGHT]}


def case(model_type, **keys):
    # Phi-3's and SmolLM3's own padding tokens are outside of so small a vocabulary, which torch refuses.
    return {"model_type": model_type, **DIMS, **({"pad_token_id": None} if model_type in ("phi3", "smollm3") else {}), **keys}


def images(outer=(), **keys):
    return {"model_type": "gemma3", "text_config": case("gemma3_text", num_key_value_heads=2, head_dim=16, **keys), "vision_config": VISION, "mm_tokens_per_image": 4, **dict(outer)}


CASES = [
    case("qwen3", num_key_value_heads=None),
    case("qwen3", num_key_value_heads=2, head_dim=24, attention_bias=True, tie_word_embeddings=True, rms_norm_eps=1e-5, rope_theta=1000000, max_position_embeddings=40960, eos_token_id=[5, 6]),
    case("qwen3", num_key_value_heads=1, use_sliding_window=True, sliding_window=9, max_window_layers=2),
    case("qwen3", num_key_value_heads=1, use_sliding_window=False, sliding_window=9, max_window_layers=2, mlp_bias=True),
    case("qwen3", num_key_value_heads=1, use_sliding_window=True, sliding_window=9, layer_types=WINDOWS),
    case("qwen3", num_key_value_heads=4, head_dim=16, rope_scaling={"rope_type": "yarn", **YARN}),
    case("qwen3", num_key_value_heads=4, head_dim=16, rope_parameters={"rope_type": "yarn", "rope_theta": 1e6, **YARN}),
    case("gemma2"),
    case("gemma2", num_key_value_heads=2, head_dim=16, query_pre_attn_scalar=224, sliding_window=12, rope_theta=5000.0, tie_word_embeddings=False, torch_dtype="bfloat16"),
    case("gemma2", head_dim=16, attn_logit_softcapping=None, final_logit_softcapping=None, hidden_act="gelu_pytorch_tanh", hidden_activation="gelu_pytorch_tanh", attention_bias=True),
    case("gemma2", head_dim=16, attn_logit_softcapping=20.0, final_logit_softcapping=7.5, use_bidirectional_attention=False, hidden_act="gelu"),
    case("gemma2", head_dim=16, hidden_activation="gelu", layer_types=WINDOWS, sliding_window=7, pad_token_id=None, bos_token_id=7, eos_token_id=[1, 8]),
    case("gemma2", head_dim=16, hidden_activation="silu", use_bidirectional_attention=None, rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 300.0}),
    case("gemma2", head_dim=16, hidden_activation="relu", rope_scaling={"rope_type": "yarn", **YARN, "truncate": False}),
    case("gemma2", head_dim=16, hidden_activation="gelu_pytorch_tanh", query_pre_attn_scalar=16, cache_implementation="hybrid", num_attention_heads=8, num_key_value_heads=8),
    case("gemma3_text"),
    case("gemma3_text", num_key_value_heads=1, head_dim=16, sliding_window=8, sliding_window_pattern=2),
    case("gemma3_text", head_dim=16, rope_theta=500000, rope_local_base_freq=2000, rope_scaling={"factor": 8.0, "rope_type": "linear"}, sliding_window=5, sliding_window_pattern=3),
    case("gemma3_text", head_dim=16, rope_parameters={"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 700.0}, "sliding_attention": {"rope_type": "default", "rope_theta": 300.0}}, layer_types=WINDOWS, sliding_window=5),
    case("gemma3_text", head_dim=16, rope_parameters={"full_attention": {"rope_type": "yarn", **YARN}, "sliding_attention": None}, layer_types=WINDOWS),
    case("gemma3_text", head_dim=16, rope_parameters={"full_attention": DEFAULT}, rope_theta=80000, rope_local_base_freq=900, layer_types=WINDOWS, _sliding_window_pattern=6),
    case("gemma3_text", head_dim=16, attn_logit_softcapping=50.0, final_logit_softcapping=30.0, query_pre_attn_scalar=168, hidden_activation="gelu_pytorch_tanh", tie_word_embeddings=False, attention_bias=True),
    case("gemma3_text", head_dim=16, rope_scaling=None, attn_logit_softcapping=None, use_bidirectional_attention=False, max_position_embeddings=32768, dtype="float16"),
    case("gemma3_text", head_dim=16, rope_scaling={"rope_type": "yarn", **YARN, "truncate": False}, hidden_activation="gelu_python_tanh", is_causal=True),
    case("gemma3_text", head_dim=16, sliding_window=9, use_bidirectional_attention=True, hidden_activation="relu"),
    images(),
    images(outer={"torch_dtype": "bfloat16", "boi_token_index": 5, "eoi_token_index": 6, "image_token_index": 7, "eos_token_id": [1, 4], "initializer_range": 0.02}.items(), sliding_window=6, sliding_window_pattern=2),
    images(outer={"tie_word_embeddings": False}.items(), rope_scaling={"factor": 8.0, "rope_type": "linear"}),
    case("olmo2"),
    case("olmo2", num_key_value_heads=2, tie_word_embeddings=True, attention_bias=True, rms_norm_eps=1e-6, rope_theta=500000, max_position_embeddings=4096, eos_token_id=57, pad_token_id=77),
    case("olmo2", rope_scaling={"type": "linear", "factor": 3.0}, bos_token_id=3, sliding_window=3),
    case("olmo2", rope_parameters={"rope_type": "yarn", "rope_theta": 600.0, **YARN}, head_dim=24),
    case("olmo3"),
    case("olmo3", num_key_value_heads=1, sliding_window=11, rope_theta=700000, max_position_embeddings=65536,
         rope_scaling={"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 8192, "attention_factor": 1.2079441541679836, "beta_fast": 32.0, "beta_slow": 1.0}),
    case("olmo3", sliding_window=11, layer_types=WINDOWS, rope_parameters={"full_attention": {"rope_type": "yarn", "rope_theta": 400.0, **YARN}, "sliding_attention": {"rope_type": "default", "rope_theta": 200.0}}),
    case("olmo3", layer_types=WINDOWS, rope_parameters={"full_attention": {"rope_type": "linear", "factor": 2.0}}, rope_theta=900.0, attention_bias=True, tie_word_embeddings=True),
    case("olmo3", sliding_window=11, rope_theta=500000, rope_scaling=None),
    case("olmo3", hidden_act="gelu_accurate", rope_parameters={"full_attention": {"rope_type": "yarn", **YARN, "truncate": False}, "sliding_attention": {"rope_type": "yarn", **YARN, "truncate": False}}),
    case("gpt_neox"),
    case("gpt_neox", rotary_pct=0.5, rotary_emb_base=5000, use_parallel_residual=False, layer_norm_eps=1e-6, hidden_act="gelu_new", tie_word_embeddings=True, attention_bias=False),
    case("gpt_neox", rotary_pct=1.0, rope_scaling={"type": "linear", "factor": 2.0}, max_position_embeddings=4096, bos_token_id=1, eos_token_id=None, hidden_act="gelu_fast"),
    case("gpt_neox", rope_parameters={"rope_type": "default", "rope_theta": 20000.0, "partial_rotary_factor": 0.375}),
    case("gpt_neox", rope_parameters={"rope_type": "yarn", "rope_theta": 20000.0, **YARN}, hidden_act="relu", hidden_dropout=0.1, classifier_dropout=0.1, attention_dropout=0.2),
    case("gpt_neox", rope_theta=1234.0, partial_rotary_factor=0.5),
    case("phi3"),
    case("phi3", num_key_value_heads=2, sliding_window=10, original_max_position_embeddings=2048, rope_theta=20000.0, attention_bias=True, resid_pdrop=0.1, embd_pdrop=0.2),
    case("phi3", max_position_embeddings=8192, rope_scaling={"type": "longrope", **LONG}),
    case("phi3", max_position_embeddings=8192, original_max_position_embeddings=512, rope_scaling={"type": "su", **LONG}, sliding_window=4096, tie_word_embeddings=True),
    case("phi3", max_position_embeddings=8192, original_max_position_embeddings=512, rope_scaling={"type": "yarn", **LONG, "attention_factor": 1.5}),
    case("phi3", max_position_embeddings=8192, original_max_position_embeddings=512, rope_scaling={"type": "longrope", **LONG, "factor": 3.0}),
    case("phi3", max_position_embeddings=8192, original_max_position_embeddings=512, rope_scaling={"type": "longrope", "short_factor": SIX, "long_factor": SIX[::-1]}, partial_rotary_factor=0.75,
         tie_word_embeddings=True, num_key_value_heads=1),
    case("phi3", max_position_embeddings=8192, original_max_position_embeddings=512,
         rope_parameters={"rope_type": "longrope", "short_factor": SIX, "long_factor": SIX[::-1], "partial_rotary_factor": 0.75, "rope_theta": 9000.0, "original_max_position_embeddings": 256}),
    case("phi3", partial_rotary_factor=0.5, rope_parameters={"rope_type": "default", "rope_theta": 9000.0}),
    case("phi3", rope_scaling=None, eos_token_id=[32, 33], pad_token_id=32, hidden_act="silu"),
    case("phi3", hidden_act="gelu_new"),
    case("qwen3", num_key_value_heads=2, hidden_act="relu"),
    case("gpt_neox", hidden_act="silu"),
    case("phi"),
    case("phi", num_key_value_heads=2, partial_rotary_factor=0.25, layer_norm_eps=1e-6, hidden_act="gelu", tie_word_embeddings=True, rope_theta=20000.0, resid_pdrop=0.1, qk_layernorm=False),
    case("phi", rope_scaling={"type": "linear", "factor": 2.0}, num_key_value_heads=None, max_position_embeddings=4096, bos_token_id=7, eos_token_id=None),
    case("smollm3"),
    case("smollm3", no_rope_layers=[1, 0, 0, 1], num_key_value_heads=None, head_dim=24, rope_theta=5000.0, attention_bias=True, tie_word_embeddings=False, bos_token_id=3, eos_token_id=[5, 6], pad_token_id=9),
    case("smollm3", no_rope_layer_interval=2, use_sliding_window=True, sliding_window=9, rope_scaling={"rope_type": "linear", "factor": 2.0}, pad_token_id=9),
    case("starcoder2"),
    case("starcoder2", num_key_value_heads=4, sliding_window=9, use_bias=False, norm_epsilon=1e-6, tie_word_embeddings=False, rope_theta=500.0, hidden_act="gelu", head_dim=24, bos_token_id=3, eos_token_id=[5, 6]),
    case("stablelm", num_key_value_heads=4),
    case("stablelm", num_key_value_heads=2, use_qkv_bias=True, use_parallel_residual=True, layer_norm_eps=1e-6, partial_rotary_factor=0.5, tie_word_embeddings=True, hidden_act="gelu"),
    case("gptj", rotary_dim=8, layer_norm_epsilon=1e-6, activation_function="gelu", tie_word_embeddings=True, bos_token_id=7, eos_token_id=[5, 6]),
    {"model_type": "gptj", "n_embd": 64, "n_head": 4, "n_layer": 2, "vocab_size": 100, "n_positions": 512, "rotary_dim": 16, "n_inner": 32, "resid_pdrop": 0.1, "rotary": True, "scale_attn_weights": True, "torch_dtype": "float16"},
    case("phi", rope_parameters={"rope_type": "yarn", "rope_theta": 20000.0, "partial_rotary_factor": 1.0, **YARN}, head_dim=24, hidden_act="relu"),
]


def body(model):
    inner = getattr(model, model.base_model_prefix)
    return getattr(inner, "language_model", inner)


def act(mlp):
    """The function between two layers of an MLP, by its value at 0.7."""
    return getattr(mlp, "act_fn", None) or getattr(mlp, "activation_fn", None) or mlp.act


def facts(given):
    with tempfile.TemporaryDirectory() as folder:
        pathlib.Path(folder, "config.json").write_text(json.dumps(given))
        try:
            config = AutoConfig.from_pretrained(folder)
            dtype = config.dtype
            model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32)
        except Exception:
            return None
    text = body(model)
    c = text.config
    types = getattr(c, "layer_types", None)
    layers, rotations = [], []

    def rotation(n, kind):
        """The place in the list of the cosines and sines of position 3, in a sequence of n."""
        halves = text.rotary_emb(torch.zeros(1), torch.arange(n)[None], *kind)
        halves = halves[::-1] if c.model_type == "gptj" else [half[..., : half.shape[-1] // 2] for half in halves]
        values = [float(f"{x:.9g}") for half in halves for x in half[0, 3].tolist()]
        if values not in rotations:
            rotations.append(values)
        return rotations.index(values)

    blocks = text.h if c.model_type == "gptj" else text.layers
    attention = lambda block: next(getattr(block, name) for name in ("self_attn", "attention", "attn") if hasattr(block, name))
    for i, block in enumerate(blocks):
        attn = attention(block)
        window = c.sliding_window if c.model_type in ("phi3", "starcoder2") else getattr(attn, "sliding_window", None)
        # Of a window to both sides that of the mask is exclusive.
        window = window - 1 if window and not attn.is_causal else window
        kind = [types[i]] if c.model_type in ("gemma3_text", "olmo3") else []
        cap = attn.attn_logit_softcapping if c.model_type == "gemma2" else None
        layer = {"window": window, "scaling": attn.scaling, "softcap": cap, "rotates": bool(getattr(attn, "use_rope", True)), "rotation": rotation(4, kind)}
        if c.model_type == "phi3" and c.rope_parameters["rope_type"] == "longrope":
            layer["long_rotation"] = rotation(c.rope_parameters["original_max_position_embeddings"] + 1, kind)
        layers.append(layer)
    block = blocks[0]
    attn = attention(block)
    projections = {name.split(".")[-1]: (list(module.weight.shape), module.bias is not None) for name, module in block.named_modules() if isinstance(module, torch.nn.Linear)}
    norm = next(getattr(text, name) for name in ("norm", "final_layer_norm", "final_layernorm", "ln_f") if hasattr(text, name))
    head = model.get_output_embeddings()
    x = torch.tensor(0.7)
    generation = config if given["model_type"] != "gemma3" else c
    eos = generation.eos_token_id
    return {
        "projections": projections,
        "head_dim": getattr(attn, "head_dim", None) or attn.head_size,
        "norms": sorted(name for name, module in block.named_modules() if "norm" in name or "ln_" in name),
        "qk_norm": getattr(attn, "q_norm").weight.shape[0] if hasattr(attn, "q_norm") else None,
        "eps": getattr(norm, "eps", None) or getattr(norm, "variance_epsilon"),
        "act": act(block.mlp)(x).item(),
        "embed_scale": float(getattr(text.embed_tokens, "scalar_embed_scale", c.hidden_size**0.5 if c.model_type == "gemma2" else 1.0)) if hasattr(text, "embed_tokens") else 1.0,
        "logit_softcap": c.final_logit_softcapping if given["model_type"] in ("gemma2", "gemma3_text") else None,
        "is_causal": attn.is_causal,
        "parallel": getattr(block, "use_parallel_residual", c.model_type in ("phi", "gptj")),
        "neighbours": c.model_type == "gptj",
        "head_bias": head.bias is not None,
        "tied": head.weight is text.get_input_embeddings().weight,
        "max_position_embeddings": c.max_position_embeddings,
        "vocab_size": head.weight.shape[0],
        "bos": generation.bos_token_id,
        "eos": eos if isinstance(eos, list) else [] if eos is None else [eos],
        "pad": generation.pad_token_id,
        "dtype": None if dtype is None else str(dtype).removeprefix("torch."),
        "layers": layers,
        "rotations": rotations,
    }


if __name__ == "__main__":
    rows = [{"config": given, "facts": facts(given)} for given in CASES]
    sys.stdout.write("[\n" + ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows) + "\n]\n")
