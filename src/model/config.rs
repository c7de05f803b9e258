//! What the passes derive from a configuration.

use std::collections::HashSet;

use super::param_id::ParamId;
use crate::Result;
use crate::arch::{Mlp, ModelConfig, Positions, Rope, RopeKind};
use crate::backend::ops::AttentionDims;
use crate::hooks::Site;
use crate::pack::{Pack, Parent};

impl ModelConfig {
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

    /// Number of parameters of the base model.
    pub fn parameters(&self) -> usize {
        ParamId::all(self).into_iter().map(|place| place.len(self)).sum()
    }

    /// The heads of layer `layer`.
    pub fn attention(&self, layer: usize) -> AttentionDims {
        AttentionDims {
            heads: self.num_attention_heads,
            kv_heads: self.num_key_value_heads,
            head_dim: self.head_dim,
            scale: self.score_scales[layer],
            window: self.windows[layer],
            alibi: self.positions == Positions::Alibi,
        }
    }

    /// Refuses a pass with such a sequence and one of another length.
    ///
    /// # Errors
    /// See [`ModelConfig::check_unscaled`].
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
