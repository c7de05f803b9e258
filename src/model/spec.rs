//! What a model is, in the numbers that the passes need; a family is data here, not code.

use crate::backend::AttentionDims;
use crate::formats::adapter::Target;
use crate::formats::config::{ModelConfig, Rope, RopeKind};

/// A model's dimensions and constants.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// Vocabulary V.
    pub vocab: usize,
    /// Residual width C.
    pub width: usize,
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
    /// Epsilon of the norms.
    pub eps: f64,
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
    /// Rotary position embedding.
    pub rope: Rope,
    /// Longest sequence that the model was made for.
    pub max_positions: usize,
}

impl Spec {
    /// The spec of a checkpoint's configuration.
    pub fn from_config(config: &ModelConfig) -> Self {
        Self {
            vocab: config.vocab_size,
            width: config.hidden_size,
            layers: config.num_hidden_layers,
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            ffn: config.intermediate_size,
            eps: config.rms_norm_eps,
            tied: config.tie_word_embeddings,
            qkv_bias: config.qkv_bias,
            o_bias: config.o_bias,
            mlp_bias: config.mlp_bias,
            windows: config.windows.clone(),
            rope: config.rope.clone(),
            max_positions: config.max_position_embeddings,
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

    /// `(input, output)` widths of a projection.
    pub fn widths(&self, target: Target) -> (usize, usize) {
        target.widths([self.width, self.q_width(), self.kv_width(), self.ffn])
    }

    /// Whether a projection has a bias.
    pub fn bias(&self, target: Target) -> bool {
        match target {
            Target::Q | Target::K | Target::V => self.qkv_bias,
            Target::O => self.o_bias,
            Target::Gate | Target::Up | Target::Down => self.mlp_bias,
        }
    }

    /// Number of parameters of the base model.
    pub fn parameters(&self) -> usize {
        let projection = |target| {
            let (input, output) = self.widths(target);
            input * output + if self.bias(target) { output } else { 0 }
        };
        let layer = 2 * self.width + Target::ALL.iter().map(|&target| projection(target)).sum::<usize>();
        let tables = self.vocab * self.width * if self.tied { 1 } else { 2 };
        tables + self.layers * layer + self.width
    }

    /// The heads of layer `layer`.
    pub fn attention(&self, layer: usize) -> AttentionDims {
        AttentionDims {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            scale: 1.0 / (self.head_dim as f64).sqrt(),
            window: self.windows[layer],
        }
    }

    /// Whether the rotation's table depends on the number of positions asked for.
    pub fn rope_depends_on_length(&self) -> bool {
        matches!(self.rope.kind, RopeKind::Dynamic { .. })
    }

    /// The table that rotates positions `0..positions`: for each, `[D/2]` cosines, then `[D/2]` sines.
    ///
    /// Frequencies and angles are rounded to `f32`, as the reference computes them; a difference in the angle of a
    /// far position would otherwise be the largest difference of all. With dynamic scaling the table depends on
    /// `positions` once that is above the model's own length, as it does in the reference.
    pub fn rope_table(&self, positions: usize) -> Vec<f64> {
        let (frequencies, factor) = frequencies(&self.rope, self.head_dim, positions);
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
