//! `config.json` of GPT-2, OPT, BLOOM, GPT-NeoX, Phi 1 and 2, GPT-J, StarCoder 2 and StableLM. Options that change what is computed
//! and are not among these fields are errors.

use super::rope::RopeReader;
use super::{MAX_LAYERS, MAX_WIDTH, activation, dtype, end_tokens, keys, kv_heads, no_effect, pad, token, unsupported};
use crate::Result;
use crate::arch::{Activation, Family, Mlp, ModelConfig, Norm, NormPlacement, Positions, Rope, RopeKind, RopePairs};
use crate::formats::json::Fields;

/// The one value of a key that has several names; two that differ are an error.
fn alias(f: &Fields, names: &[&str], limit: usize) -> Result<Option<usize>> {
    let mut found: Option<(&str, usize)> = None;
    for name in names {
        if let Some(value) = f.usize_in(name, 1..=limit)? {
            match found {
                Some((first, other)) if other != value => {
                    return Err(f.error(name, format!("the same as {first}, {other}")));
                }
                _ => found = Some((name, value)),
            }
        }
    }
    Ok(found.map(|(_, value)| value))
}

fn width(f: &Fields, names: &[&str]) -> Result<usize> {
    f.require(names[0], alias(f, names, MAX_WIDTH)?, "a positive integer")
}

fn layers(f: &Fields, names: &[&str]) -> Result<usize> {
    f.require(names[0], alias(f, names, MAX_LAYERS)?, "a positive integer")
}

/// Width of a head, where the heads share the residual width.
fn head_dim(f: &Fields, key: &str, hidden: usize, heads: usize) -> Result<usize> {
    if hidden.is_multiple_of(heads) {
        return Ok(hidden / heads);
    }
    Err(f.error(key, format!("a divisor of the width {hidden}")))
}

fn eps(f: &Fields, key: &str) -> Result<f64> {
    match f.f64(key)?.unwrap_or(1e-5) {
        eps if (0.0..1.0).contains(&eps) => Ok(eps),
        _ => Err(f.error(key, "a number from 0 to 1")),
    }
}

/// An option that must have the one value that is computed here.
fn fixed(f: &Fields, key: &str, value: bool) -> Result<()> {
    match f.bool(key)? {
        Some(found) if found != value => Err(f.error(key, format!("{value} (nothing else is computed)"))),
        _ => Ok(()),
    }
}

/// What these families have in common; each sets what is its own.
fn base(f: &Fields, family: Family, [hidden, heads, layers, ffn]: [usize; 4], heads_key: &str) -> Result<ModelConfig> {
    let positions = if family == Family::Bloom { "alibi" } else { "absolute" };
    if let Some(other) = f.str("position_embedding_type")?
        && other != positions
    {
        return Err(unsupported(f.path(), "position_embedding_type", other, positions));
    }
    let head_dim = head_dim(f, heads_key, hidden, heads)?;
    let vocab_size = width(f, &["vocab_size"])?;
    let (begin, end) = family.special_tokens();
    Ok(ModelConfig {
        family,
        hidden_size: hidden,
        embed_size: hidden,
        intermediate_size: ffn,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        num_key_value_heads: heads,
        head_dim,
        vocab_size,
        max_position_embeddings: 0,
        norm: Norm::Layer,
        norm_eps: 1e-5,
        norm_placement: NormPlacement::Pre,
        qk_norm: None,
        parallel: false,
        one_norm: false,
        embed_scale: 1.0,
        embed_norm: false,
        final_norm: true,
        mlp: Mlp::Plain(Activation::GeluTanh),
        qkv_bias: true,
        o_bias: true,
        mlp_bias: true,
        lm_head: true,
        head_bias: false,
        tie_word_embeddings: f.bool("tie_word_embeddings")?.unwrap_or(true),
        is_causal: f.bool("is_causal")?.unwrap_or(true),
        windows: vec![None; layers],
        score_scales: vec![1.0 / (head_dim as f64).sqrt(); layers],
        score_softcap: None,
        logit_softcap: None,
        positions: Positions::Alibi,
        no_rope_layers: Vec::new(),
        bos_token_id: token(f, "bos_token_id", begin, vocab_size)?,
        eos_token_id: end_tokens(f, end, vocab_size)?,
        pad_token_id: pad(f),
        dropout: keys::dropout(f, family)?,
        dtype: dtype(f)?,
    })
}

pub(super) fn gpt2(f: &Fields) -> Result<ModelConfig> {
    let hidden = width(f, &["n_embd", "hidden_size"])?;
    let heads = width(f, &["n_head", "num_attention_heads"])?;
    let depth = layers(f, &["n_layer", "num_hidden_layers"])?;
    let ffn = f.usize_in("n_inner", 1..=MAX_WIDTH)?.unwrap_or(4 * hidden);
    fixed(f, "add_cross_attention", false)?;
    let positions = alias(f, &["n_positions", "max_position_embeddings"], usize::MAX)?.unwrap_or(1024);
    let base = base(f, Family::Gpt2, [hidden, heads, depth, ffn], "n_head")?;
    let scaled = f.bool("scale_attn_weights")?.unwrap_or(true);
    let root = if scaled { 1.0 / (base.head_dim as f64).sqrt() } else { 1.0 };
    let by_layer = f.bool("scale_attn_by_inverse_layer_idx")?.unwrap_or(false);
    let scale = |layer: usize| if by_layer { root / (layer + 1) as f64 } else { root };
    // `reorder_and_upcast_attn` only says where transformers rounds less.
    Ok(ModelConfig {
        max_position_embeddings: positions,
        norm_eps: eps(f, "layer_norm_epsilon")?,
        mlp: Mlp::Plain(activation(f, "activation_function", Activation::GeluTanh)?),
        positions: Positions::Learned { first: 0 },
        score_scales: (0..depth).map(scale).collect(),
        ..base
    })
}

pub(super) fn opt(f: &Fields) -> Result<ModelConfig> {
    let hidden = width(f, &["hidden_size"])?;
    let heads = width(f, &["num_attention_heads"])?;
    let depth = layers(f, &["num_hidden_layers"])?;
    fixed(f, "layer_norm_elementwise_affine", true)?;
    let before = f.bool("do_layer_norm_before")?.unwrap_or(true);
    let bias = f.bool("enable_bias")?.unwrap_or(true);
    Ok(ModelConfig {
        embed_size: f.usize_in("word_embed_proj_dim", 1..=MAX_WIDTH)?.unwrap_or(hidden),
        max_position_embeddings: f.usize_in("max_position_embeddings", 1..=usize::MAX)?.unwrap_or(2048),
        norm_placement: if before { NormPlacement::Pre } else { NormPlacement::Post },
        final_norm: before && !f.bool("_remove_final_layer_norm")?.unwrap_or(false),
        mlp: Mlp::Plain(activation(f, "activation_function", Activation::Relu)?),
        // The table has two more rows than there are positions.
        positions: Positions::Learned { first: 2 },
        qkv_bias: bias,
        o_bias: bias,
        mlp_bias: bias,
        ..base(f, Family::Opt, [hidden, heads, depth, width(f, &["ffn_dim"])?], "num_attention_heads")?
    })
}

pub(super) fn bloom(f: &Fields) -> Result<ModelConfig> {
    let hidden = width(f, &["hidden_size", "n_embed", "n_embd"])?;
    let heads = width(f, &["n_head", "num_attention_heads"])?;
    let depth = layers(f, &["n_layer", "num_hidden_layers"])?;
    fixed(f, "apply_residual_connection_post_layernorm", false)?;
    if f.usize("pretraining_tp")?.unwrap_or(1) > 1 {
        // Then two projections of transformers lose their biases.
        fixed(f, "slow_but_exact", false)?;
    }
    Ok(ModelConfig {
        // ALiBi has no last position; this is the length of the training, where the file says it.
        max_position_embeddings: f.usize_in("seq_length", 1..=usize::MAX)?.unwrap_or(2048),
        norm_eps: eps(f, "layer_norm_epsilon")?,
        embed_norm: true,
        ..base(f, Family::Bloom, [hidden, heads, depth, 4 * hidden], "n_head")?
    })
}

pub(super) fn gpt_neox(f: &Fields) -> Result<ModelConfig> {
    let widths = [width(f, &["hidden_size"])?, width(f, &["num_attention_heads"])?, layers(f, &["num_hidden_layers"])?];
    let [hidden, heads, depth] = widths;
    let ffn = width(f, &["intermediate_size"])?;
    if f.get("partial_rotary_factor").is_some() {
        no_effect(f, "partial_rotary_factor", Family::GptNeox);
    }
    let bias = f.bool("attention_bias")?.unwrap_or(true);
    let base = base(f, Family::GptNeox, [hidden, heads, depth, ffn], "num_attention_heads")?;
    let max_positions = f.usize_in("max_position_embeddings", 1..=usize::MAX)?.unwrap_or(2048);
    let reader = RopeReader { f, family: Family::GptNeox, head_dim: base.head_dim, max_positions };
    Ok(ModelConfig {
        max_position_embeddings: max_positions,
        norm_eps: eps(f, "layer_norm_eps")?,
        mlp: Mlp::Plain(activation(f, "hidden_act", Activation::Gelu)?),
        parallel: f.bool("use_parallel_residual")?.unwrap_or(true),
        positions: Positions::Rope(vec![reader.all_layers()?; depth]),
        qkv_bias: bias,
        o_bias: bias,
        tie_word_embeddings: f.bool("tie_word_embeddings")?.unwrap_or(false),
        ..base
    })
}

pub(super) fn phi(f: &Fields) -> Result<ModelConfig> {
    let widths = [width(f, &["hidden_size"])?, width(f, &["num_attention_heads"])?, layers(f, &["num_hidden_layers"])?];
    let [hidden, heads, depth] = widths;
    let base = base(f, Family::Phi, [hidden, heads, depth, width(f, &["intermediate_size"])?], "num_attention_heads")?;
    fixed(f, "qk_layernorm", false)?;
    let head_dim = super::head_dim(f, Family::Phi, hidden, heads)?;
    let max_positions = f.usize_in("max_position_embeddings", 1..=usize::MAX)?.unwrap_or(2048);
    let reader = RopeReader { f, family: Family::Phi, head_dim, max_positions };
    Ok(ModelConfig {
        head_dim,
        score_scales: vec![1.0 / (head_dim as f64).sqrt(); depth],
        num_key_value_heads: kv_heads(f, Family::Phi, heads)?,
        max_position_embeddings: max_positions,
        norm_eps: eps(f, "layer_norm_eps")?,
        mlp: Mlp::Plain(activation(f, "hidden_act", Activation::GeluTanh)?),
        parallel: true,
        one_norm: true,
        positions: Positions::Rope(vec![reader.all_layers()?; depth]),
        head_bias: true,
        tie_word_embeddings: f.bool("tie_word_embeddings")?.unwrap_or(false),
        ..base
    })
}

pub(super) fn gptj(f: &Fields) -> Result<ModelConfig> {
    let hidden = width(f, &["n_embd", "hidden_size"])?;
    let heads = width(f, &["n_head", "num_attention_heads"])?;
    let depth = layers(f, &["n_layer", "num_hidden_layers"])?;
    let ffn = f.usize_in("n_inner", 1..=MAX_WIDTH)?.unwrap_or(4 * hidden);
    let base = base(f, Family::GptJ, [hidden, heads, depth, ffn], "n_head")?;
    let (key, most) = ("rotary_dim", base.head_dim);
    let dim = f.usize_in(key, 1..=MAX_WIDTH)?.unwrap_or(64);
    if dim > most || !dim.is_multiple_of(2) || f.has(key) && f.get(key).is_none() {
        return Err(f.error(key, format!("an even number of a head's {most} elements (default 64)")));
    }
    let rope = Rope { theta: 10_000.0, kind: RopeKind::Default, dim, pairs: RopePairs::Neighbours };
    Ok(ModelConfig {
        max_position_embeddings: alias(f, &["n_positions", "max_position_embeddings"], usize::MAX)?.unwrap_or(2048),
        norm_eps: eps(f, "layer_norm_epsilon")?,
        mlp: Mlp::Plain(activation(f, "activation_function", Activation::GeluTanh)?),
        parallel: true,
        one_norm: true,
        positions: Positions::Rope(vec![rope; depth]),
        qkv_bias: false,
        o_bias: false,
        head_bias: true,
        tie_word_embeddings: f.bool("tie_word_embeddings")?.unwrap_or(false),
        ..base
    })
}

pub(super) fn starcoder2(f: &Fields) -> Result<ModelConfig> {
    let family = Family::Starcoder2;
    let widths = [width(f, &["hidden_size"])?, width(f, &["num_attention_heads"])?, layers(f, &["num_hidden_layers"])?];
    let [hidden, heads, depth] = widths;
    let base = base(f, family, [hidden, heads, depth, width(f, &["intermediate_size"])?], "num_attention_heads")?;
    let head_dim = super::head_dim(f, family, hidden, heads)?;
    let max_positions = f.usize_in("max_position_embeddings", 1..=usize::MAX)?.unwrap_or(4096);
    let reader = RopeReader { f, family, head_dim, max_positions };
    let bias = f.bool("use_bias")?.unwrap_or(true);
    Ok(ModelConfig {
        head_dim,
        score_scales: vec![1.0 / (head_dim as f64).sqrt(); depth],
        num_key_value_heads: kv_heads(f, family, heads)?,
        max_position_embeddings: max_positions,
        norm_eps: eps(f, "norm_epsilon")?,
        mlp: Mlp::Plain(activation(f, "hidden_act", Activation::GeluTanh)?),
        positions: Positions::Rope(vec![reader.all_layers()?; depth]),
        windows: vec![f.usize_in("sliding_window", 1..=usize::MAX)?; depth],
        qkv_bias: bias,
        o_bias: bias,
        mlp_bias: bias,
        ..base
    })
}

pub(super) fn stablelm(f: &Fields) -> Result<ModelConfig> {
    let family = Family::StableLm;
    let widths = [width(f, &["hidden_size"])?, width(f, &["num_attention_heads"])?, layers(f, &["num_hidden_layers"])?];
    let [hidden, heads, depth] = widths;
    let base = base(f, family, [hidden, heads, depth, width(f, &["intermediate_size"])?], "num_attention_heads")?;
    fixed(f, "qk_layernorm", false)?;
    let max_positions = f.usize_in("max_position_embeddings", 1..=usize::MAX)?.unwrap_or(4096);
    let reader = RopeReader { f, family, head_dim: base.head_dim, max_positions };
    let parallel = f.bool("use_parallel_residual")?.unwrap_or(false);
    Ok(ModelConfig {
        num_key_value_heads: kv_heads(f, family, heads)?,
        max_position_embeddings: max_positions,
        norm_eps: eps(f, "layer_norm_eps")?,
        mlp: Mlp::Gated(activation(f, "hidden_act", Activation::Silu)?),
        parallel,
        one_norm: parallel,
        positions: Positions::Rope(vec![reader.all_layers()?; depth]),
        qkv_bias: f.bool("use_qkv_bias")?.unwrap_or(false),
        o_bias: false,
        mlp_bias: false,
        tie_word_embeddings: f.bool("tie_word_embeddings")?.unwrap_or(false),
        ..base
    })
}
