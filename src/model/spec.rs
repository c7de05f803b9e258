//! What a model is, in the numbers that the passes need; a family is data here, not code.

use std::collections::HashSet;

use super::places::Place;
use crate::backend::AttentionDims;
use crate::formats::adapter::Target;
use crate::formats::config::{Family, Mlp, ModelConfig, Norm, Positions, Rope, RopeKind};
use crate::hooks::Site;
use crate::shape::{Pack, Parent};
use crate::{Error, Result};

/// A model's dimensions and constants, and how its blocks are put together.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// The family, which names the modules of checkpoints and adapters and decides nothing else.
    pub family: Family,
    /// Vocabulary V.
    pub vocab: usize,
    /// Residual width C.
    pub width: usize,
    /// Width of the embedding table, the soft prompt and the head, E; C in most models.
    pub embed_width: usize,
    /// Layers L.
    pub layers: usize,
    /// Query heads H.
    pub heads: usize,
    /// Key-value heads K.
    pub kv_heads: usize,
    /// Head width D.
    pub head_dim: usize,
    /// Feed-forward width F.
    pub ffn: usize,
    /// The norms.
    pub norm: Norm,
    /// Epsilon of the norms.
    pub eps: f64,
    /// Whether a block's norms stand behind the sums of its halves, rather than before its halves.
    pub post_norm: bool,
    /// Whether embeddings are normed.
    pub embed_norm: bool,
    /// Whether the last residual stream is normed.
    pub final_norm: bool,
    /// The MLP.
    pub mlp: Mlp,
    /// Whether the head is the embedding table.
    pub tied: bool,
    /// Whether q, k and v have a bias.
    pub qkv_bias: bool,
    /// Whether o has a bias.
    pub o_bias: bool,
    /// Whether gate, up and down have a bias.
    pub mlp_bias: bool,
    /// Attention window of each layer `[L]`.
    pub windows: Vec<Option<usize>>,
    /// Multiplier of the scores of each layer `[L]`.
    pub scales: Vec<f64>,
    /// Positions.
    pub positions: Positions,
    /// Longest sequence that the model was made for.
    pub max_positions: usize,
}

impl Spec {
    /// The spec of a checkpoint's configuration.
    pub fn from_config(config: &ModelConfig) -> Self {
        let root = if config.scale_scores { 1.0 / (config.head_dim as f64).sqrt() } else { 1.0 };
        let scale = |layer: usize| if config.scale_scores_by_layer { root / (layer + 1) as f64 } else { root };
        Self {
            family: config.family,
            vocab: config.vocab_size,
            width: config.hidden_size,
            embed_width: config.embed_size,
            layers: config.num_hidden_layers,
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            ffn: config.intermediate_size,
            norm: config.norm,
            eps: config.norm_eps,
            post_norm: config.post_norm,
            embed_norm: config.embed_norm,
            final_norm: config.final_norm,
            mlp: config.mlp,
            tied: config.tie_word_embeddings,
            qkv_bias: config.qkv_bias,
            o_bias: config.o_bias,
            mlp_bias: config.mlp_bias,
            windows: config.windows.clone(),
            scales: (0..config.num_hidden_layers).map(scale).collect(),
            positions: config.positions.clone(),
            max_positions: config.max_position_embeddings,
        }
    }

    /// The projections of a block; an MLP without a gate has no gate projection.
    pub fn targets(&self) -> &'static [Target] {
        match self.mlp {
            Mlp::SwiGlu => &Target::ALL,
            Mlp::Plain(_) => &[Target::Q, Target::K, Target::V, Target::O, Target::Up, Target::Down],
        }
    }

    /// The rotation, if there is one.
    pub fn rope(&self) -> Option<&Rope> {
        match &self.positions {
            Positions::Rope(rope) => Some(rope),
            _ => None,
        }
    }

    /// The row of the table of positions that is position 0's.
    pub fn first_position(&self) -> usize {
        match self.positions {
            Positions::Learned { first } => first,
            _ => 0,
        }
    }

    /// Width of all query heads, H D.
    pub fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all key (or value) heads, K D.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Whether a forward of this model comes by a site.
    pub fn has(&self, site: Site) -> bool {
        match site {
            Site::PosEmbed => matches!(self.positions, Positions::Learned { .. }),
            Site::RotQ | Site::RotK => self.rope().is_some(),
            Site::MlpPreLinear => self.mlp == Mlp::SwiGlu,
            Site::FinalScale => self.final_norm,
            Site::LoraA(target) | Site::LoraDelta(target) => self.targets().contains(&target),
            _ => true,
        }
    }

    /// `(input, output)` widths of a projection.
    pub fn widths(&self, target: Target) -> (usize, usize) {
        target.widths([self.width, self.q_width(), self.kv_width(), self.ffn])
    }

    /// Whether a projection has a bias.
    pub fn bias(&self, target: Target) -> bool {
        match target {
            Target::Q | Target::K | Target::V | Target::Qkv => self.qkv_bias,
            Target::O => self.o_bias,
            Target::Gate | Target::Up | Target::Down => self.mlp_bias,
        }
    }

    /// Number of parameters of the base model.
    pub fn parameters(&self) -> usize {
        Place::all(self).into_iter().map(|place| place.len(self)).sum()
    }

    /// The heads of layer `layer`.
    pub fn attention(&self, layer: usize) -> AttentionDims {
        AttentionDims {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            scale: self.scales[layer],
            window: self.windows[layer],
            alibi: self.positions == Positions::Alibi,
        }
    }

    /// The number of positions above which a sequence's own length decides how all its rows are turned (dynamic
    /// scaling).
    pub fn scales_beyond(&self) -> Option<usize> {
        match self.rope()?.kind {
            RopeKind::Dynamic { original, .. } => Some(original),
            _ => None,
        }
    }

    /// Refuses such a sequence where rows are shared or left out: they would be turned as those of another length.
    ///
    /// # Errors
    /// `longest` positions are more than [`Spec::scales_beyond`].
    pub fn check_unscaled(&self, longest: usize) -> Result<()> {
        match self.scales_beyond() {
            Some(most) if longest > most => {
                let expected =
                    format!("at most {most} tokens, above which rope_type dynamic has other angles for every length");
                Err(Error::argument("a sequence", expected, longest))
            }
            _ => Ok(()),
        }
    }

    /// Refuses a pass with such a sequence and one of another length.
    ///
    /// # Errors
    /// See [`Spec::check_unscaled`].
    pub(super) fn check_one_length(&self, pack: &Pack) -> Result<()> {
        let longest = pack.longest();
        if self.scales_beyond().is_none_or(|most| longest <= most) {
            return Ok(());
        }
        let parents: HashSet<Parent> = pack.segments().iter().map(|segment| segment.parent).collect();
        let ends = pack.segments().iter().enumerate().filter(|(g, _)| !parents.contains(&Parent::Pack(*g)));
        match ends.map(|(_, last)| last.position + last.rows.len()).all(|end| end == longest) {
            true => Ok(()),
            false => self.check_unscaled(longest),
        }
    }

    /// The table that rotates positions `0..positions`: for each, `[D/2]` cosines, then `[D/2]` sines.
    ///
    /// Frequencies and angles are rounded to `f32`, as the reference computes them; a difference in the angle of a
    /// far position would otherwise be the largest difference of all. With dynamic scaling the table depends on
    /// `positions` once that is above the model's own length, as it does in the reference.
    ///
    /// Empty for a model that turns nothing.
    pub fn rope_table(&self, positions: usize) -> Vec<f64> {
        let Some(rope) = self.rope() else { return Vec::new() };
        let (frequencies, factor) = frequencies(rope, self.head_dim, positions);
        let mut table = Vec::with_capacity(positions * self.head_dim);
        for position in 0..positions {
            let angles = frequencies.iter().map(|&f| f64::from(position as f32 * f));
            table.extend(angles.clone().map(|angle| angle.cos() * factor));
            table.extend(angles.map(|angle| angle.sin() * factor));
        }
        table
    }
}

/// Angle per position of each pair of a head `[D/2]`, and the factor on cosines and sines.
fn frequencies(rope: &Rope, head_dim: usize, positions: usize) -> (Vec<f32>, f64) {
    let dim = head_dim as f32;
    let plain =
        |theta: f32| -> Vec<f32> { (0..head_dim / 2).map(|i| 1.0 / theta.powf((2 * i) as f32 / dim)).collect() };
    let theta = rope.theta as f32;
    let base = plain(theta);
    match rope.kind {
        RopeKind::Default => (base, 1.0),
        RopeKind::Linear { factor } => (base.iter().map(|f| f / factor as f32).collect(), 1.0),
        RopeKind::Dynamic { factor, original } => {
            if positions <= original {
                return (base, 1.0);
            }
            let growth = factor * positions as f64 / original as f64 - (factor - 1.0);
            let d = head_dim as f64;
            (plain((rope.theta * growth.powf(d / (d - 2.0))) as f32), 1.0)
        }
        RopeKind::Llama3 { factor, low_freq_factor, high_freq_factor, original } => {
            let (low, high) = (original as f64 / low_freq_factor, original as f64 / high_freq_factor);
            let scaled = base.iter().map(|&f| {
                let wavelength = std::f64::consts::TAU / f64::from(f);
                if wavelength > low {
                    return f / factor as f32;
                }
                if wavelength < high {
                    return f;
                }
                let smooth = (original as f64 / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                ((1.0 - smooth) * f64::from(f) / factor + smooth * f64::from(f)) as f32
            });
            (scaled.collect(), 1.0)
        }
        RopeKind::Yarn { factor, original, beta_fast, beta_slow, attention_factor, truncate } => {
            let d = head_dim as f64;
            let dimension = |rotations: f64| {
                d * (original as f64 / (rotations * std::f64::consts::TAU)).ln() / (2.0 * rope.theta.ln())
            };
            let (mut low, mut high) = (dimension(beta_fast), dimension(beta_slow));
            if truncate {
                (low, high) = (low.floor(), high.ceil());
            }
            (low, high) = (low.max(0.0), high.min(d - 1.0));
            if low == high {
                high += 0.001;
            }
            let scaled = base.iter().enumerate().map(|(i, &f)| {
                let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                (f64::from(f) / factor * ramp + f64::from(f) * (1.0 - ramp)) as f32
            });
            (scaled.collect(), attention_factor)
        }
    }
}
