//! The sites of the forward that can be tapped, and the names by which people ask for them.
//!
//! Names are the aliases of TransformerLens 4.3, with its meanings; [`Naming`](super::Naming) knows its canonical names, and which
//! others are read. N is the number of rows asked for.
//!
//! | site | name | formula | shape | buffer |
//! |---|---|---|---|---|
//! | [`Site::Embed`] | `hook_embed` | row of the embedding table, times the scale of the family's embeddings (Gemma), or of the soft prompt | `[N, E]` | Acc |
//! | [`Site::PosEmbed`] | `hook_pos_embed` | row of the table of learned positions | `[N, C]` | Acc |
//! | [`Site::ResidPre`] | `blocks.{i}.hook_resid_pre` | residual stream entering block i | `[N, C]` | Acc |
//! | [`Site::Norm`] of [`NormSite::Ln1`] | `blocks.{i}.ln1.hook_scale` | `sqrt(mean((x - m)^2) + eps)`, x = resid_pre | `[N, 1]` | Acc |
//! | | `blocks.{i}.ln1.hook_normalized` | `(x - m) / scale`, before weight and bias | `[N, C]` | Compute |
//! | | `blocks.{i}.ln1.hook_out` | the norm's output, weight and bias applied | `[N, C]` | Compute |
//! | | `blocks.{i}.ln1.hook_rstd` | `1 / scale` | `[N, 1]` | Acc |
//! | [`Site::Q`], [`Site::K`], [`Site::V`] | `blocks.{i}.attn.hook_q` … | projections with bias and adapter, before the rotation | `[N, H D]`, `[N, K D]` | Compute |
//! | [`Site::RotQ`], [`Site::RotK`] | `blocks.{i}.attn.hook_rot_q` … | after the rotation | as q, k | Compute |
//! | [`Site::AttnScores`] | `blocks.{i}.attn.hook_attn_scores` | `q k^T * scale`, capped where the model has a soft cap, less ALiBi's `slope * distance`, by position of the path, `-inf` after it | `[N, H T]` | Acc |
//! | [`Site::Pattern`] | `blocks.{i}.attn.hook_pattern` | softmax of the scores, 0 after the path | `[N, H T]` | Acc |
//! | [`Site::Z`] | `blocks.{i}.attn.hook_z` | pattern-weighted values, by head | `[N, H D]` | Compute |
//! | [`Site::Result`] | `blocks.{i}.attn.hook_result` | each head's share of the output projection, without bias and adapter | `[N, H C]` | Compute |
//! | [`Site::Norm`] of [`NormSite::Q`], [`NormSite::K`] | `blocks.{i}.attn.q_norm.hook_out` … | as ln1, x = q or k, head by head (OLMo: a row's heads together), before the rotation | as q, k; factors `[N, H]`, `[N, K]`, or `[N, 1]` of OLMo | Compute; Acc |
//! | [`Site::AttnRaw`] | `blocks.{i}.attn.o.hook_out` | output projection of z, with bias and adapter, where it is normed then | `[N, C]` | Compute |
//! | [`Site::Norm`] of [`NormSite::Ln1Post`] | `blocks.{i}.ln1_post.hook_scale` … | as ln1, x = that; its output is attn_out | | |
//! | [`Site::AttnOut`] | `blocks.{i}.hook_attn_out` | what is added to the stream: the output projection of z, normed where the model does so | `[N, C]` | Compute |
//! | [`Site::ResidMid`] | `blocks.{i}.hook_resid_mid` | resid_pre + attn_out | `[N, C]` | Acc |
//! | [`Site::Norm`] of [`NormSite::Ln2`] | `blocks.{i}.ln2.hook_scale` … | as ln1, x = resid_mid | | |
//! | [`Site::MlpPre`] | `blocks.{i}.mlp.hook_pre` | what the activation reads: the gate projection, or the up projection of an MLP without a gate | `[N, F]` | Compute |
//! | [`Site::MlpPreLinear`] | `blocks.{i}.mlp.hook_pre_linear` | up projection beside a gate | `[N, F]` | Compute |
//! | [`Site::MlpPost`] | `blocks.{i}.mlp.hook_post` | f(gate) * up, or f(up) | `[N, F]` | Compute |
//! | [`Site::MlpRaw`], [`NormSite::Ln2Post`] | `blocks.{i}.mlp.out.hook_out`, `blocks.{i}.ln2_post.hook_scale` … | as of attention | | |
//! | [`Site::MlpOut`] | `blocks.{i}.hook_mlp_out` | what is added to the stream: the down projection, with bias and adapter, normed where the model does so | `[N, C]` | Compute |
//! | [`Site::ResidPost`] | `blocks.{i}.hook_resid_post` | resid_mid + mlp_out; in parallel blocks, which have no resid_mid, resid_pre + attn_out + mlp_out | `[N, C]` | Acc |
//! | [`Site::Norm`] of [`NormSite::Final`] | `ln_final.hook_scale` … | as ln1, x = last resid_post | | |
//! | [`Site::Logits`] | `logits` | final norm times the head, capped where the model has a soft cap | `[N, V]` | Acc |
//! | [`Site::LoraA`] | `blocks.{i}.{q_proj…}.hook_lora_a` | A x | `[N, R]` | Acc |
//! | [`Site::LoraDelta`] | `blocks.{i}.{q_proj…}.hook_lora_delta` | scale B A x, and what magnitudes change (DoRA) | `[N, out]` | Acc |
//!
//! A name means the same in every family. m is the mean of x for a layer norm, 0 for an RMS norm. E is the width of the
//! embedding table; the stream that enters block 0 is that row, projected to C or normed where the model does so, plus
//! its learned position. In post-norm models (OPT-350m) ln1 reads resid_pre + attn_out and resid_mid is its output, ln2 reads
//! resid_mid + mlp_out and resid_post is its output: the sites stay what flows between the sublayers. `ln_final.hook_out` of a model without a final norm is its last resid_post. Adapters of a module
//! that a checkpoint fuses appear at the projections that it consists of, by the names above. A site that a family lacks
//! (rotation, gate, learned positions, the scale of an absent norm) is an error by name. `hook_rstd` is a name of ours, as those
//! of adapters are.

use crate::arch::Projection;
use crate::{Error, Result};

/// A norm of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NormSite {
    /// Of a block's attention.
    Ln1,
    /// Of a block's MLP.
    Ln2,
    /// Of the attention's output, where there is one.
    Ln1Post,
    /// Of the MLP's output, where there is one.
    Ln2Post,
    /// Of queries, where there is one.
    Q,
    /// Of keys, where there is one.
    K,
    /// Before the output layer, outside the blocks.
    Final,
}

impl NormSite {
    /// TransformerLens's name of the module, without a block.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ln1 => "ln1",
            Self::Ln2 => "ln2",
            Self::Ln1Post => "ln1_post",
            Self::Ln2Post => "ln2_post",
            Self::Q => "attn.q_norm",
            Self::K => "attn.k_norm",
            Self::Final => "ln_final",
        }
    }
}

/// What a norm of x makes; m is the mean of x for a layer norm, 0 for an RMS norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NormPart {
    /// `1 / scale`.
    Rstd,
    /// `sqrt(mean((x - m)^2) + eps)`.
    Scale,
    /// `(x - m) / scale`.
    Normalized,
    /// That after weight and bias.
    Out,
}

impl NormPart {
    /// All, in the order of the forward.
    pub const ALL: [Self; 4] = [Self::Rstd, Self::Scale, Self::Normalized, Self::Out];

    /// The name of the hook, by TransformerLens 4.3's meanings.
    pub fn hook(self) -> &'static str {
        match self {
            Self::Rstd => "hook_rstd",
            Self::Scale => "hook_scale",
            Self::Normalized => "hook_normalized",
            Self::Out => "hook_out",
        }
    }
}

/// A site of the forward; the module's documentation gives each one's formula.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // one table, above
pub enum Site {
    Embed,
    PosEmbed,
    ResidPre,
    Norm(NormSite, NormPart),
    Q,
    K,
    V,
    RotQ,
    RotK,
    AttnScores,
    Pattern,
    Z,
    Result,
    AttnRaw,
    AttnOut,
    ResidMid,
    MlpPre,
    MlpPreLinear,
    MlpPost,
    MlpRaw,
    MlpOut,
    ResidPost,
    Logits,
    LoraA(Projection),
    LoraDelta(Projection),
}

impl Site {
    /// Output of the norm of a block's attention.
    pub const LN1_OUT: Self = Self::Norm(NormSite::Ln1, NormPart::Out);
    /// Output of the norm of a block's MLP.
    pub const LN2_OUT: Self = Self::Norm(NormSite::Ln2, NormPart::Out);
    /// Output of the final norm, or the last residual stream of a model without one.
    pub const FINAL_NORM: Self = Self::Norm(NormSite::Final, NormPart::Out);

    /// Every site, in the order of the forward.
    pub fn all() -> Vec<Self> {
        let norm = |at| NormPart::ALL.map(|part| Self::Norm(at, part));
        let mut all = vec![Self::Embed, Self::PosEmbed, Self::ResidPre];
        all.extend(norm(NormSite::Ln1));
        // The output of a sublayer's output norm is the sublayer's.
        let of_output =
            |at| NormPart::ALL.into_iter().filter(|part| *part != NormPart::Out).map(move |p| Self::Norm(at, p));
        all.extend([Self::Q, Self::K, Self::V]);
        all.extend(norm(NormSite::Q).into_iter().chain(norm(NormSite::K)));
        all.extend([Self::RotQ, Self::RotK, Self::AttnScores, Self::Pattern, Self::Z, Self::Result, Self::AttnRaw]);
        all.extend(of_output(NormSite::Ln1Post));
        all.extend([Self::AttnOut, Self::ResidMid]);
        all.extend(norm(NormSite::Ln2));
        all.extend([Self::MlpPre, Self::MlpPreLinear, Self::MlpPost, Self::MlpRaw]);
        all.extend(of_output(NormSite::Ln2Post));
        all.extend([Self::MlpOut, Self::ResidPost]);
        all.extend(Projection::ALL.into_iter().flat_map(|target| [Self::LoraA(target), Self::LoraDelta(target)]));
        all.extend(norm(NormSite::Final));
        all.push(Self::Logits);
        all
    }

    /// Whether there is one in each block, rather than one in the model.
    pub fn in_block(self) -> bool {
        !matches!(self, Site::Embed | Site::PosEmbed | Site::Norm(NormSite::Final, _) | Site::Logits)
    }

    /// Whether the tensor is not part of a forward and is computed, for the rows asked for, only when tapped.
    pub fn on_demand(self) -> bool {
        let of_norm = matches!(self, Site::Norm(_, NormPart::Scale | NormPart::Normalized));
        of_norm || matches!(self, Site::AttnScores | Site::Pattern | Site::Result | Site::Logits | Site::LoraDelta(_))
    }

    /// Whether the tensor is of the accumulation dtype, rather than of the compute dtype.
    pub fn is_accumulated(self) -> bool {
        let of_norm = matches!(self, Site::Norm(_, NormPart::Rstd | NormPart::Scale));
        let stream = matches!(self, Site::Embed | Site::PosEmbed | Site::ResidPre | Site::ResidMid | Site::ResidPost);
        let of_lora = matches!(self, Site::LoraA(_) | Site::LoraDelta(_));
        of_norm || stream || of_lora || matches!(self, Site::AttnScores | Site::Pattern | Site::Result | Site::Logits)
    }

    /// The name without a block: `hook_resid_post`, `attn.hook_q`.
    pub fn local(self) -> String {
        match self {
            Site::Embed => "hook_embed",
            Site::PosEmbed => "hook_pos_embed",
            Site::ResidPre => "hook_resid_pre",
            Site::Q => "attn.hook_q",
            Site::K => "attn.hook_k",
            Site::V => "attn.hook_v",
            Site::RotQ => "attn.hook_rot_q",
            Site::RotK => "attn.hook_rot_k",
            Site::AttnScores => "attn.hook_attn_scores",
            Site::Pattern => "attn.hook_pattern",
            Site::Z => "attn.hook_z",
            Site::Result => "attn.hook_result",
            Site::AttnRaw => "attn.o.hook_out",
            Site::AttnOut => "hook_attn_out",
            Site::ResidMid => "hook_resid_mid",
            Site::MlpPre => "mlp.hook_pre",
            Site::MlpPreLinear => "mlp.hook_pre_linear",
            Site::MlpPost => "mlp.hook_post",
            Site::MlpRaw => "mlp.out.hook_out",
            Site::MlpOut => "hook_mlp_out",
            Site::ResidPost => "hook_resid_post",
            Site::Logits => "logits",
            Site::Norm(at, part) => return format!("{}.{}", at.name(), part.hook()),
            Site::LoraA(target) => return format!("{}.hook_lora_a", target.name()),
            Site::LoraDelta(target) => return format!("{}.hook_lora_delta", target.name()),
        }
        .to_owned()
    }

    /// The full name; `layer` counts only for the sites of a block.
    pub fn name(self, layer: usize) -> String {
        self.in_layer(layer, self.local())
    }

    /// The full name of which `local` is the part without a block.
    pub(super) fn in_layer(self, layer: usize, local: String) -> String {
        if self.in_block() { format!("blocks.{layer}.{local}") } else { local }
    }

    /// The axes into which a row of the site is to be split, in TransformerLens's words.
    pub fn axes(self) -> &'static str {
        match self {
            Site::Q | Site::RotQ | Site::Z => "head d_head",
            Site::K | Site::V | Site::RotK => "kv_head d_head",
            Site::AttnScores | Site::Pattern => "head position",
            Site::Result => "head d_model",
            Site::Embed => "d_embed",
            Site::Norm(NormSite::Q, NormPart::Rstd | NormPart::Scale) => "head",
            Site::Norm(NormSite::K, NormPart::Rstd | NormPart::Scale) => "kv_head",
            Site::Norm(_, NormPart::Rstd | NormPart::Scale) => "1",
            Site::Norm(NormSite::Q, _) => "head d_head",
            Site::Norm(NormSite::K, _) => "kv_head d_head",
            Site::MlpPre | Site::MlpPreLinear | Site::MlpPost => "d_mlp",
            Site::Logits => "d_vocab",
            Site::LoraA(_) => "rank",
            Site::LoraDelta(_) => "d_out",
            _ => "d_model",
        }
    }
}

/// The hooks that are wanted: sites of layers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Site and layer (0 outside the blocks), in the order of the forward by layer, each once.
    pub hooks: Vec<(Site, usize)>,
}

impl Selection {
    /// The chosen sites in each of `layers`.
    pub fn new(sites: &[Site], layers: &[usize]) -> Self {
        let mut hooks = Vec::new();
        for &site in sites {
            match site.in_block() {
                true => hooks.extend(layers.iter().map(|&layer| (site, layer))),
                false => hooks.push((site, 0)),
            }
        }
        Self { hooks }.sorted()
    }

    /// Whether a hook is chosen.
    pub fn contains(&self, site: Site, layer: usize) -> bool {
        self.hooks.contains(&(site, layer))
    }

    /// The number of a hook in [`Selection::hooks`].
    pub fn index(&self, site: Site, layer: usize) -> Option<usize> {
        self.hooks.iter().position(|&hook| hook == (site, layer))
    }

    /// The first layer that nobody reads: the forward may stop there. None if the end of the model is read.
    pub fn stop_at_layer(&self) -> Option<usize> {
        let starts = [Site::Embed, Site::PosEmbed];
        let ends = self.hooks.iter().any(|(site, _)| !site.in_block() && !starts.contains(site));
        if ends {
            return None;
        }
        let needed = |&(site, layer): &(Site, usize)| match site {
            Site::ResidPre => layer,
            site if site.in_block() => layer + 1,
            _ => 0,
        };
        Some(self.hooks.iter().map(needed).max().unwrap_or(0))
    }

    pub(super) fn sorted(mut self) -> Self {
        let order = Site::all();
        let rank = |site: Site| order.iter().position(|&s| s == site).unwrap_or(order.len());
        let region = |site: Site| match site {
            Site::Embed | Site::PosEmbed => 0,
            site if site.in_block() => 1,
            _ => 2,
        };
        self.hooks.sort_by_key(|&(site, layer)| (region(site), layer, rank(site)));
        self.hooks.dedup();
        self
    }
}

/// The layers that a text names, sorted, each once: all, numbers, ranges (both ends included).
///
/// # Errors
/// `layers`: anything else, or a layer that a model of `depth` layers has not.
pub fn layers(text: &str, depth: usize) -> Result<Vec<usize>> {
    if text == "all" {
        return Ok((0..depth).collect());
    }
    let invalid = |part: &str| Error::argument("layers", "all, or layers such as 0,3 or 0-3", format!("`{part}`"));
    let mut layers = Vec::new();
    for part in text.split(',').map(str::trim) {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let number = |s: &str| s.trim().parse::<usize>().map_err(|_| invalid(part));
        let (from, to) = (number(from)?, number(to)?);
        if from > to {
            return Err(invalid(part));
        }
        if to >= depth {
            return Err(Error::argument("layers", format!("layers below {depth}"), to));
        }
        layers.extend(from..=to);
    }
    layers.sort_unstable();
    layers.dedup();
    Ok(layers)
}
