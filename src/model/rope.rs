//! Rotary position embedding's table of cosines and sines: its values, and its buffer on a device, which grows.

use std::ops::Range;

use crate::Result;
use crate::arch::{ModelConfig, Rope, RopeKind};
use crate::backend::{AccElement, Backend};

/// Positions that a table is extended by at least, so that tokens that come one by one do not each bring an upload.
const CHUNK: usize = 64;

impl ModelConfig {
    /// The table that rotates positions `0..positions`, `[positions, D]`: for each, `[D/2]` cosines, then `[D/2]` sines.
    ///
    /// Frequencies and angles are rounded to `f32`, as transformers computes them; a difference in the angle of a
    /// far position would otherwise be the largest difference of all. With dynamic scaling the table depends on
    /// `positions` once that is above the model's own length, as it does in transformers.
    ///
    /// Empty for a model without a rotation.
    pub fn rope_table(&self, positions: usize) -> Vec<f64> {
        self.rope().map_or_else(Vec::new, |rope| Frequencies::new(rope, self.head_dim, positions).rows(0..positions))
    }
}

/// The rotation's angles, for sequences of one length.
#[derive(Clone, Debug, PartialEq)]
struct Frequencies {
    /// Angle per position of each pair of a head `[D/2]`.
    angles: Vec<f32>,
    /// Factor on cosines and sines.
    factor: f64,
}

impl Frequencies {
    /// For sequences of `rope_len` positions, on which dynamic scaling depends.
    fn new(rope: &Rope, head_dim: usize, rope_len: usize) -> Self {
        let (angles, factor) = frequencies(rope, head_dim, rope_len);
        Self { angles, factor }
    }

    /// Rows of the table, `[positions, D]`.
    fn rows(&self, positions: Range<usize>) -> Vec<f64> {
        let mut table = Vec::with_capacity(positions.len() * 2 * self.angles.len());
        for position in positions {
            let angles = self.angles.iter().map(|&f| f64::from(position as f32 * f));
            table.extend(angles.clone().map(|angle| angle.cos() * self.factor));
            table.extend(angles.map(|angle| angle.sin() * self.factor));
        }
        table
    }
}

/// The table on a device. Rows are computed once, for as long as the frequencies stay.
pub(super) struct RopeTable<B: Backend> {
    /// `[capacity, D]`, valid at the positions that were asked for last.
    pub cos_sin: B::Acc,
    /// Positions that there is room for.
    capacity: usize,
    /// Positions whose rows are valid.
    valid: Range<usize>,
    /// The length that the frequencies are for: under dynamic scaling that of the sequences, if it is above the model's
    /// own; otherwise 0.
    rope_len: usize,
    frequencies: Frequencies,
    head_dim: usize,
}

impl<B: Backend> RopeTable<B> {
    /// The table of the positions `0..positions`, unscaled. None for a model without a rotation.
    pub fn new(backend: &mut B, config: &ModelConfig, positions: usize) -> Result<Option<Self>> {
        let Some(rope) = config.rope() else { return Ok(None) };
        let mut table = Self {
            cos_sin: backend.acc(positions * config.head_dim)?,
            capacity: positions,
            valid: 0..0,
            rope_len: 0,
            frequencies: Frequencies::new(rope, config.head_dim, 0),
            head_dim: config.head_dim,
        };
        table.fill(backend, 0..config.scales_beyond().map_or(positions, |own| own.min(positions)))?;
        Ok(Some(table))
    }

    /// Makes room for `positions` positions.
    pub fn reserve(&mut self, backend: &mut B, positions: usize) -> Result<()> {
        if positions > self.capacity {
            self.cos_sin = backend.acc(positions * self.head_dim)?;
            (self.capacity, self.valid) = (positions, 0..0);
        }
        Ok(())
    }

    /// Sees to it that the rows of `positions` are valid for a pass whose longest sequence ends at `positions.end`.
    pub fn cover(&mut self, backend: &mut B, config: &ModelConfig, positions: Range<usize>) -> Result<()> {
        // Under dynamic scaling the table is that of this very length.
        let rope_len = match config.scales_beyond() {
            Some(own) if positions.end > own => positions.end,
            _ => 0,
        };
        // Said once of a sequence that grows.
        if rope_len == 0 && (positions.start..positions.end).contains(&config.max_position_embeddings) {
            log::warn!(
                "sequences of more than max_position_embeddings, {} tokens, go on as far as they are rotated, as in \
                 transformers",
                config.max_position_embeddings
            );
        }
        if let Some(rope) = config.rope().filter(|_| rope_len != self.rope_len) {
            self.frequencies = Frequencies::new(rope, self.head_dim, rope_len);
            (self.rope_len, self.valid) = (rope_len, 0..0);
        }
        if positions.end > self.capacity {
            self.reserve(backend, positions.end.max(2 * self.capacity))?;
        }
        if positions.start < self.valid.start || positions.start > self.valid.end {
            self.valid = positions.start..positions.start;
        }
        if positions.end <= self.valid.end {
            return Ok(());
        }
        // Frequencies of one length only are of no use to later tokens.
        let end = if rope_len > 0 { positions.end } else { positions.end.max(self.valid.end + CHUNK) };
        self.fill(backend, self.valid.end..end.min(self.capacity))
    }

    /// Computes and uploads the rows of `positions`, which begin where the valid ones end.
    fn fill(&mut self, backend: &mut B, positions: Range<usize>) -> Result<()> {
        let rows: Vec<B::Element> =
            self.frequencies.rows(positions.clone()).into_iter().map(B::Element::from_f64).collect();
        backend.upload(&mut self.cos_sin, positions.start * self.head_dim, &rows)?;
        self.valid.end = positions.end;
        Ok(())
    }
}

/// Angle per position of each pair of a head `[D/2]`, and the factor on cosines and sines, for sequences of `rope_len`
/// positions.
fn frequencies(rope: &Rope, head_dim: usize, rope_len: usize) -> (Vec<f32>, f64) {
    let dim = head_dim as f32;
    let plain =
        |theta: f32| -> Vec<f32> { (0..head_dim / 2).map(|i| 1.0 / theta.powf((2 * i) as f32 / dim)).collect() };
    let theta = rope.theta as f32;
    let base = plain(theta);
    match rope.kind {
        RopeKind::Default => (base, 1.0),
        RopeKind::Linear { factor } => (base.iter().map(|f| f / factor as f32).collect(), 1.0),
        RopeKind::Dynamic { factor, original } => {
            if rope_len <= original {
                return (base, 1.0);
            }
            let growth = factor * rope_len as f64 / original as f64 - (factor - 1.0);
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
