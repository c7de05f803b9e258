//! The sites of the forward that can be tapped, and the names by which people ask for them.
//!
//! Names are TransformerLens's. Each means one formula here, whatever its history elsewhere; N is the number of rows
//! asked for.
//!
//! | site | name | formula | shape | buffer |
//! |---|---|---|---|---|
//! | [`Site::Embed`] | `hook_embed` | row of the embedding table, or of the soft prompt, as it is | `[N, E]` | Acc |
//! | [`Site::PosEmbed`] | `hook_pos_embed` | row of the table of learned positions | `[N, C]` | Acc |
//! | [`Site::ResidPre`] | `blocks.{i}.hook_resid_pre` | residual stream entering block i | `[N, C]` | Acc |
//! | [`Site::Ln1Scale`] | `blocks.{i}.ln1.hook_scale` | `1 / sqrt(mean((x - m)^2) + eps)`, x = resid_pre | `[N, 1]` | Acc |
//! | [`Site::Ln1Normalized`] | `blocks.{i}.ln1.hook_normalized` | norm's output, weight and bias applied | `[N, C]` | Compute |
//! | [`Site::Q`], [`Site::K`], [`Site::V`] | `blocks.{i}.attn.hook_q` … | projections with bias and adapter, before the rotation | `[N, H D]`, `[N, K D]` | Compute |
//! | [`Site::RotQ`], [`Site::RotK`] | `blocks.{i}.attn.hook_rot_q` … | after the rotation | as q, k | Compute |
//! | [`Site::AttnScores`] | `blocks.{i}.attn.hook_attn_scores` | `q k^T * scale` less ALiBi's `slope * distance`, by position of the path, `-inf` after it | `[N, H T]` | Acc |
//! | [`Site::Pattern`] | `blocks.{i}.attn.hook_pattern` | softmax of the scores, 0 after the path | `[N, H T]` | Acc |
//! | [`Site::Z`] | `blocks.{i}.attn.hook_z` | pattern-weighted values, by head | `[N, H D]` | Compute |
//! | [`Site::Result`] | `blocks.{i}.attn.hook_result` | each head's share of the output projection, without bias and adapter | `[N, H C]` | Compute |
//! | [`Site::AttnOut`] | `blocks.{i}.hook_attn_out` | output projection of z, with bias and adapter | `[N, C]` | Compute |
//! | [`Site::ResidMid`] | `blocks.{i}.hook_resid_mid` | resid_pre + attn_out | `[N, C]` | Acc |
//! | [`Site::Ln2Scale`], [`Site::Ln2Normalized`] | `blocks.{i}.ln2.hook_scale` … | as ln1, x = resid_mid | | |
//! | [`Site::MlpPre`] | `blocks.{i}.mlp.hook_pre` | what the activation reads: the gate projection, or the up projection of an MLP without a gate | `[N, F]` | Compute |
//! | [`Site::MlpPreLinear`] | `blocks.{i}.mlp.hook_pre_linear` | up projection beside a gate | `[N, F]` | Compute |
//! | [`Site::MlpPost`] | `blocks.{i}.mlp.hook_post` | silu(gate) * up, or f(up) | `[N, F]` | Compute |
//! | [`Site::MlpOut`] | `blocks.{i}.hook_mlp_out` | down projection, with bias and adapter | `[N, C]` | Compute |
//! | [`Site::ResidPost`] | `blocks.{i}.hook_resid_post` | resid_mid + mlp_out | `[N, C]` | Acc |
//! | [`Site::FinalScale`], [`Site::FinalNorm`] | `ln_final.hook_scale`, `ln_final.hook_normalized` | as ln1, x = last resid_post | | |
//! | [`Site::Logits`] | `logits` | final norm times the head | `[N, V]` | Acc |
//! | [`Site::LoraA`] | `blocks.{i}.{q_proj…}.hook_lora_a` | A x | `[N, R]` | Acc |
//! | [`Site::LoraDelta`] | `blocks.{i}.{q_proj…}.hook_lora_delta` | scale B A x | `[N, out]` | Acc |
//!
//! A name means the same in every family. m is the mean of x for a layer norm, 0 for an RMS norm. E is the width of the
//! embedding table; the stream that enters block 0 is that row, projected to C or normed where the model does so, plus
//! its learned position. In post-norm models (OPT-350m) ln1 reads resid_pre + attn_out and resid_mid is its output, ln2 reads
//! resid_mid + mlp_out and resid_post is its output: the sites stay what flows between the sublayers. `ln_final.hook_normalized` of a model without a final norm is its last resid_post. Adapters of a module
//! that a checkpoint fuses appear at the projections that it consists of, by the names above. A site that a family lacks
//! (rotation, gate, learned positions, the scale of an absent norm) is an error by name.
//!
//! Note the `hook_scale` sites: TransformerLens gives the denominator, here it is the factor that multiplies.

use crate::arch::Projection;
use crate::error::nearest;
use crate::{Error, Result};

/// A site of the forward; the module's documentation gives each one's formula.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // one table, above
pub enum Site {
    Embed,
    PosEmbed,
    ResidPre,
    Ln1Scale,
    Ln1Normalized,
    Q,
    K,
    V,
    RotQ,
    RotK,
    AttnScores,
    Pattern,
    Z,
    Result,
    AttnOut,
    ResidMid,
    Ln2Scale,
    Ln2Normalized,
    MlpPre,
    MlpPreLinear,
    MlpPost,
    MlpOut,
    ResidPost,
    FinalScale,
    FinalNorm,
    Logits,
    LoraA(Projection),
    LoraDelta(Projection),
}

/// The sites of a block without an adapter's, in the order of the forward.
const BLOCK: [Site; 20] = [
    Site::ResidPre,
    Site::Ln1Scale,
    Site::Ln1Normalized,
    Site::Q,
    Site::K,
    Site::V,
    Site::RotQ,
    Site::RotK,
    Site::AttnScores,
    Site::Pattern,
    Site::Z,
    Site::Result,
    Site::AttnOut,
    Site::ResidMid,
    Site::Ln2Scale,
    Site::Ln2Normalized,
    Site::MlpPre,
    Site::MlpPreLinear,
    Site::MlpPost,
    Site::MlpOut,
];

impl Site {
    /// Every site, in the order of the forward.
    pub fn all() -> Vec<Site> {
        let mut all = vec![Site::Embed, Site::PosEmbed];
        all.extend(BLOCK);
        all.push(Site::ResidPost);
        for target in Projection::ALL {
            all.extend([Site::LoraA(target), Site::LoraDelta(target)]);
        }
        all.extend([Site::FinalScale, Site::FinalNorm, Site::Logits]);
        all
    }

    /// Whether there is one in each block, rather than one in the model.
    pub fn in_block(self) -> bool {
        !matches!(self, Site::Embed | Site::PosEmbed | Site::FinalScale | Site::FinalNorm | Site::Logits)
    }

    /// Whether the tensor is not part of a forward and is computed, for the rows asked for, only when tapped.
    pub fn on_demand(self) -> bool {
        matches!(self, Site::AttnScores | Site::Pattern | Site::Result | Site::Logits | Site::LoraDelta(_))
    }

    /// The name without a block: `hook_resid_post`, `attn.hook_q`.
    pub fn local(self) -> String {
        match self {
            Site::Embed => "hook_embed",
            Site::PosEmbed => "hook_pos_embed",
            Site::ResidPre => "hook_resid_pre",
            Site::Ln1Scale => "ln1.hook_scale",
            Site::Ln1Normalized => "ln1.hook_normalized",
            Site::Q => "attn.hook_q",
            Site::K => "attn.hook_k",
            Site::V => "attn.hook_v",
            Site::RotQ => "attn.hook_rot_q",
            Site::RotK => "attn.hook_rot_k",
            Site::AttnScores => "attn.hook_attn_scores",
            Site::Pattern => "attn.hook_pattern",
            Site::Z => "attn.hook_z",
            Site::Result => "attn.hook_result",
            Site::AttnOut => "hook_attn_out",
            Site::ResidMid => "hook_resid_mid",
            Site::Ln2Scale => "ln2.hook_scale",
            Site::Ln2Normalized => "ln2.hook_normalized",
            Site::MlpPre => "mlp.hook_pre",
            Site::MlpPreLinear => "mlp.hook_pre_linear",
            Site::MlpPost => "mlp.hook_post",
            Site::MlpOut => "hook_mlp_out",
            Site::ResidPost => "hook_resid_post",
            Site::FinalScale => "ln_final.hook_scale",
            Site::FinalNorm => "ln_final.hook_normalized",
            Site::Logits => "logits",
            Site::LoraA(target) => return format!("{}.hook_lora_a", target.name()),
            Site::LoraDelta(target) => return format!("{}.hook_lora_delta", target.name()),
        }
        .to_owned()
    }

    /// The full name; `layer` counts only for the sites of a block.
    pub fn name(self, layer: usize) -> String {
        if self.in_block() { format!("blocks.{layer}.{}", self.local()) } else { self.local() }
    }

    /// The names by which [`Selection::parse`] knows the site: its own, TransformerLens's short form, and others'.
    fn spellings(self) -> Vec<String> {
        let local = self.local();
        let mut names = vec![local.clone()];
        let short = match self {
            Site::Q | Site::K | Site::V | Site::RotQ | Site::RotK | Site::Z | Site::Pattern | Site::Result => {
                local.strip_prefix("attn.hook_")
            }
            Site::AttnScores => Some("attn_scores"),
            Site::Ln1Scale => Some("scale1"),
            Site::Ln1Normalized => Some("normalized1"),
            Site::Ln2Scale => Some("scale2"),
            Site::Ln2Normalized => Some("normalized2"),
            Site::MlpPre => Some("mlp_pre"),
            Site::MlpPreLinear => Some("mlp_pre_linear"),
            Site::MlpPost => Some("mlp_post"),
            Site::FinalScale => Some("final_scale"),
            Site::FinalNorm => Some("final_norm"),
            Site::Logits => Some("unembed.hook_out"),
            Site::LoraA(_) | Site::LoraDelta(_) => None,
            _ => local.strip_prefix("hook_"),
        };
        names.extend(short.map(str::to_owned));
        if self == Site::ResidPost {
            names.push("hook_out".to_owned()); // TransformerLens 3
        }
        names
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

    /// Reads a comma-separated list of names for a model of `depth` layers.
    ///
    /// A name is a full one (`blocks.3.hook_resid_post`), a local or short one that stands for each of `layers`
    /// (`resid_post`), a short one with its layer (`resid_post3`), or `hidden_states[i]` of the `transformers` library:
    /// the residual stream that enters layer 0 for 0, that after layer i - 1 for i < depth, and the final norm's output for
    /// i = depth.
    ///
    /// # Errors
    /// A name that is none of these (the nearest is shown), or a layer that does not exist.
    pub fn parse(names: &str, layers: &[usize], depth: usize) -> Result<Self> {
        if let Some(layer) = layers.iter().find(|&&layer| layer >= depth) {
            return Err(Error::argument("layers", format!("layers below {depth}"), layer));
        }
        let mut hooks = Vec::new();
        for name in names.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            let (site, layer) = find(name, depth)?;
            match (site.in_block(), layer) {
                (false, _) => hooks.push((site, 0)),
                (true, Some(layer)) if layer < depth => hooks.push((site, layer)),
                (true, Some(layer)) => {
                    return Err(Error::argument("sites", format!("a layer below {depth} in `{name}`"), layer));
                }
                (true, None) => hooks.extend(layers.iter().map(|&layer| (site, layer))),
            }
        }
        if hooks.is_empty() {
            return Err(Error::argument("sites", "at least one site", format!("`{names}`")));
        }
        Ok(Self { hooks }.sorted())
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

    fn sorted(mut self) -> Self {
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

/// The site of a name, with the layer if the name holds one.
fn find(name: &str, depth: usize) -> Result<(Site, Option<usize>)> {
    if let Some(i) = name.strip_prefix("hidden_states[").and_then(|rest| rest.strip_suffix(']')) {
        return match i.parse::<usize>() {
            Ok(0) => Ok((Site::ResidPre, Some(0))),
            Ok(i) if i < depth => Ok((Site::ResidPost, Some(i - 1))),
            Ok(i) if i == depth => Ok((Site::FinalNorm, None)),
            _ => Err(Error::argument("sites", format!("hidden_states[0] to hidden_states[{depth}]"), name)),
        };
    }
    let (local, layer) = match name.strip_prefix("blocks.").and_then(|rest| rest.split_once('.')) {
        Some((layer, local)) => match layer.parse() {
            Ok(layer) => (local, Some(layer)),
            Err(_) => return Err(Error::argument("sites", "a layer number after `blocks.`", name)),
        },
        None => (name, None),
    };
    let sites = Site::all();
    let named = |wanted: &str| sites.iter().copied().find(|site| site.spellings().iter().any(|s| s == wanted));
    if let Some(site) = named(local) {
        return Ok((site, layer));
    }
    let stem = local.trim_end_matches(|c: char| c.is_ascii_digit());
    if let (None, Ok(layer), Some(site)) = (layer, local[stem.len()..].parse(), named(stem)) {
        return Ok((site, Some(layer)));
    }
    let nearest = nearest(stem, sites.iter().flat_map(|site| site.spellings())).unwrap_or_default();
    Err(Error::argument("sites", format!("a hook site (nearest: `{nearest}`)"), format!("`{name}`")))
}
