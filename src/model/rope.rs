//! Rotary position embedding's table of cosines and sines: its values, and its buffer on a device, which grows.

use std::ops::Range;

use crate::Result;
use crate::arch::{ModelConfig, Rope, RopeKind};
use crate::backend::{AccElement, Backend};

/// Positions that a table is extended by at least, so that tokens that come one by one do not each bring an upload.
const CHUNK: usize = 64;

impl ModelConfig {
    /// The table that rotates positions `0..positions` of a layer, `[positions, R]`: for each, `[R/2]` cosines, then `[R/2]`
    /// sines.
    ///
    /// Frequencies and angles are rounded to `f32`, as transformers computes them; a difference in the angle of a
    /// far position would otherwise be the largest difference of all. With dynamic scaling the table depends on
    /// `positions` once that is above the model's own length, as it does in transformers.
    ///
    /// Empty for a model without a rotation.
    pub fn rope_table(&self, layer: usize, positions: usize) -> Vec<f64> {
        let rope = self.ropes().get(layer);
        rope.map_or_else(Vec::new, |rope| Frequencies::new(rope, positions).rows(0..positions))
    }
}

/// The rotation's angles, for sequences of one length.
#[derive(Clone, Debug, PartialEq)]
struct Frequencies {
    /// Angle per position of each pair of a head `[R/2]`.
    angles: Vec<f32>,
    /// Factor on cosines and sines.
    factor: f64,
}

impl Frequencies {
    /// For sequences of `rope_len` positions, on which dynamic scaling depends.
    fn new(rope: &Rope, rope_len: usize) -> Self {
        let (angles, factor) = frequencies(rope, rope_len);
        Self { angles, factor }
    }

    /// Rows of the table, `[positions, R]`.
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

/// The table of a rotation on a device. Rows are computed once, for as long as the frequencies stay.
pub(super) struct RopeTable<B: Backend> {
    rope: Rope,
    /// `[capacity, R]`, valid at the positions that were asked for last.
    pub cos_sin: B::Acc,
    /// Positions that there is room for.
    capacity: usize,
    /// Positions whose rows are valid.
    valid: Range<usize>,
    /// The length that the frequencies are for ([`Rope::scaled_len`]).
    rope_len: usize,
    frequencies: Frequencies,
}

impl<B: Backend> RopeTable<B> {
    /// The table of the positions `0..positions`, unscaled.
    pub fn new(backend: &mut B, rope: &Rope, positions: usize) -> Result<Self> {
        let mut table = Self {
            rope: rope.clone(),
            cos_sin: backend.acc(positions * rope.dim)?,
            capacity: positions,
            valid: 0..0,
            rope_len: 0,
            frequencies: Frequencies::new(rope, 0),
        };
        table.fill(backend, 0..rope.scales_beyond().map_or(positions, |own| own.min(positions)))?;
        Ok(table)
    }

    /// Makes room for `positions` positions.
    pub fn reserve(&mut self, backend: &mut B, positions: usize) -> Result<()> {
        if positions > self.capacity {
            self.cos_sin = backend.acc(positions * self.rope.dim)?;
            (self.capacity, self.valid) = (positions, 0..0);
        }
        Ok(())
    }

    /// Sees to it that the rows of `positions` are valid for a pass whose longest sequence ends at `positions.end`.
    pub fn cover(&mut self, backend: &mut B, positions: Range<usize>) -> Result<()> {
        let rope_len = self.rope.scaled_len(positions.end);
        if rope_len != self.rope_len {
            self.frequencies = Frequencies::new(&self.rope, rope_len);
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
        backend.upload(&mut self.cos_sin, positions.start * self.rope.dim, &rows)?;
        self.valid.end = positions.end;
        Ok(())
    }
}

/// A number over one of a tensor, as torch divides: in two roundings.
fn over(number: f64, by: f32) -> f32 {
    number as f32 * (1.0 / by)
}

/// Angle per position of each pair of a head `[R/2]`, and the factor on cosines and sines, for sequences of `rope_len`
/// positions: in the roundings of transformers, which far positions magnify.
fn frequencies(rope: &Rope, rope_len: usize) -> (Vec<f32>, f64) {
    let dim = rope.dim as f32;
    let wavelength = |theta: f32, i: usize| theta.powf((2 * i) as f32 / dim);
    let plain = |theta: f32| -> Vec<f32> { (0..rope.dim / 2).map(|i| 1.0 / wavelength(theta, i)).collect() };
    let theta = rope.theta as f32;
    let base = plain(theta);
    match rope.kind {
        RopeKind::LongRope { ref short, ref long, original, attention_factor } => {
            let divisors = if rope_len > original { long } else { short };
            let scaled = divisors.iter().enumerate().map(|(i, &by)| 1.0 / (by as f32 * wavelength(theta, i)));
            (scaled.collect(), attention_factor)
        }
        RopeKind::Default => (base, 1.0),
        RopeKind::Linear { factor } => (base.iter().map(|f| f / factor as f32).collect(), 1.0),
        RopeKind::Dynamic { factor, original } => {
            if rope_len <= original {
                return (base, 1.0);
            }
            let growth = factor as f32 * rope_len as f32 / original as f32 - (factor - 1.0) as f32;
            let d = rope.dim as f64;
            (plain(theta * f64::from(growth).powf(d / (d - 2.0)) as f32), 1.0)
        }
        RopeKind::Llama3 { factor, low_freq_factor, high_freq_factor, original } => {
            let [low, high] = [low_freq_factor, high_freq_factor].map(|by| (original as f64 / by) as f32);
            let (span, by) = ((high_freq_factor - low_freq_factor) as f32, factor as f32);
            let scaled = base.iter().map(|&f| {
                let wavelength = over(std::f64::consts::TAU, f);
                if wavelength > low {
                    return f / by;
                }
                if wavelength < high {
                    return f;
                }
                let smooth = (over(original as f64, wavelength) - low_freq_factor as f32) / span;
                (1.0 - smooth) * f / by + smooth * f
            });
            (scaled.collect(), 1.0)
        }
        RopeKind::Yarn { factor, original, beta_fast, beta_slow, attention_factor, truncate } => {
            let d = rope.dim as f64;
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
                let ramp = ((i as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
                let unscaled = 1.0 - ramp;
                over(1.0, factor as f32 * wavelength(theta, i)) * (1.0 - unscaled) + f * unscaled
            });
            (scaled.collect(), attention_factor)
        }
    }
}
