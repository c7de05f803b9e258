//! The operations of the contract as data, so that one list of cases can be run on any device, naively, or for its
//! gradients.

use llamaprobe::backend::{Activation, AdamwStep, AttentionDims, LinearDims, LoraSite, PromptSite};
use llamaprobe::pack::{CachedSegment, Pack};

/// Where an array lives, which decides how it is rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A wide buffer.
    Wide,
    /// A compute-dtype buffer or a weight.
    Real,
}

/// Dropout of a LoRA case, with the survivors `[N, input]` that the device under test was found to keep.
#[derive(Clone, Debug)]
pub struct Drop {
    pub p: f64,
    pub seeds: Vec<u64>,
    pub site: u64,
    pub keys: Vec<u32>,
    pub kept: Vec<bool>,
}

/// One operation with everything that is not an array of numbers. Inputs and outputs stand in the comments.
#[derive(Clone, Debug)]
pub enum Op {
    /// x -> out
    Cast { len: usize },
    /// x -> out
    Widen { len: usize },
    /// a, b -> out
    Residual { len: usize },
    /// x -> out
    GatherReal { from: usize, rows: Vec<u32>, width: usize },
    /// x -> out; backward: `scatter_add`
    GatherWide { from: usize, rows: Vec<u32>, width: usize },
    /// table, prompt -> out
    Embed { pack: Pack, vocab: usize, width: usize, site: PromptSite, runs: usize },
    /// x, table -> x
    Position { pack: Pack, first: usize, width: usize },
    /// x, weight and bias -> out, mean, rstd
    LayerNorm { rows: usize, width: usize, eps: f64 },
    /// x, weight -> out, rstd
    RmsNorm { rows: usize, width: usize, eps: f64 },
    /// x -> out
    Rope { pack: Pack, heads: usize, head_dim: usize, cos_sin: Vec<f64> },
    /// q, k, v, kept k, kept v -> z, lse
    Attention { pack: Pack, kept: Vec<CachedSegment>, dims: AttentionDims },
    /// q, k, v, kept k, kept v -> the pattern, with `lse` from a forward
    Pattern {
        pack: Pack,
        kept: Vec<CachedSegment>,
        dims: AttentionDims,
        rows: Vec<usize>,
        longest: usize,
        normalised: bool,
    },
    /// z, weight -> out
    AttentionResult { from: usize, rows: Vec<usize>, heads: usize, head_dim: usize, width: usize },
    /// cache, x -> cache
    Keep { capacity: usize, rows: usize, to: usize, from: std::ops::Range<usize>, width: usize },
    /// x, weight, bias -> out
    Linear { dims: LinearDims, bias: bool },
    /// y, x, params -> y, xa
    Lora { pack: Pack, site: LoraSite, runs: usize, drop: Option<Drop> },
    /// xa, params -> out
    LoraDelta { pack: Pack, site: LoraSite, runs: usize },
    /// gate, up -> act
    SwiGlu { len: usize },
    /// x -> act
    Activation { f: Activation, len: usize },
    /// x, head -> logits
    Logits { dims: LinearDims },
    /// x, head -> loss
    CrossEntropy { dims: LinearDims, targets: Vec<u32> },
    /// d_params -> norm_sq
    GradNorm { runs: usize, stride: usize },
    /// values -> stop, which holds `before`; the last value is `last`
    CheckFinite { len: usize, last: f64, before: f64 },
    /// params, m, v, d_params -> params, m, v; the norms come from `grad_norm`
    Adamw { steps: Vec<AdamwStep>, stride: usize, stopped: bool },
    /// params -> a table of one row, refreshed from them and read by `embed_fwd`
    Refresh { offset: usize, width: usize },
}

/// An array of a case: its name, length, kind and what multiplies the normal numbers that fill it.
pub type Array = (&'static str, usize, Kind, f64);

impl Op {
    /// The inputs.
    pub fn inputs(&self) -> Vec<Array> {
        use Kind::{Real, Wide};
        match self {
            Self::Cast { len } => vec![("x", *len, Wide, 1.0)],
            Self::Widen { len } => vec![("x", *len, Real, 1.0)],
            Self::Residual { len } => vec![("a", *len, Wide, 1.0), ("b", *len, Real, 1.0)],
            Self::GatherReal { from, width, .. } => vec![("x", from * width, Real, 1.0)],
            Self::GatherWide { from, width, .. } => vec![("x", from * width, Wide, 1.0)],
            Self::Embed { vocab, width, site, runs, .. } => {
                vec![("table", vocab * width, Real, 1.0), ("prompt", runs * site.stride, Wide, 1.0)]
            }
            Self::Position { pack, first, width } => {
                let places = first + pack.longest();
                vec![("x", pack.len() * width, Wide, 1.0), ("table", places * width, Real, 1.0)]
            }
            Self::LayerNorm { rows, width, .. } => {
                vec![("x", rows * width, Wide, 1.0), ("affine", 2 * width, Real, 1.0)]
            }
            Self::RmsNorm { rows, width, .. } => vec![("x", rows * width, Wide, 1.0), ("weight", *width, Real, 1.0)],
            Self::Rope { pack, heads, head_dim, .. } => vec![("x", pack.len() * heads * head_dim, Real, 1.0)],
            Self::Attention { pack, kept, dims } | Self::Pattern { pack, kept, dims, .. } => {
                let keys = dims.kv_heads * dims.head_dim;
                let cached = kept.iter().map(|s| s.rows.end).max().unwrap_or(0) * keys;
                vec![
                    ("q", pack.len() * dims.heads * dims.head_dim, Real, 1.5),
                    ("k", pack.len() * keys, Real, 1.0),
                    ("v", pack.len() * keys, Real, 1.0),
                    ("kept k", cached, Real, 1.0),
                    ("kept v", cached, Real, 1.0),
                ]
            }
            Self::AttentionResult { from, heads, head_dim, width, .. } => {
                vec![("z", from * heads * head_dim, Real, 1.0), ("weight", width * heads * head_dim, Real, 0.5)]
            }
            Self::Keep { capacity, rows, width, .. } => {
                vec![("cache", capacity * width, Real, 1.0), ("x", rows * width, Real, 1.0)]
            }
            Self::Linear { dims, bias } => vec![
                ("x", dims.rows * dims.input, Real, 1.0),
                ("weight", dims.output * dims.input, Real, 0.5),
                ("bias", if *bias { dims.output } else { 0 }, Real, 0.5),
            ],
            Self::Lora { pack, site, runs, .. } => vec![
                ("y", pack.len() * site.output, Real, 1.0),
                ("x", pack.len() * site.input, Real, 1.0),
                ("params", runs * site.stride, Wide, 0.5),
            ],
            Self::LoraDelta { pack, site, runs } => {
                vec![("xa", pack.len() * site.rank, Wide, 1.0), ("params", runs * site.stride, Wide, 0.5)]
            }
            Self::SwiGlu { len } => vec![("gate", *len, Real, 2.0), ("up", *len, Real, 1.0)],
            Self::Activation { len, .. } => vec![("x", *len, Real, 2.0)],
            Self::Logits { dims } | Self::CrossEntropy { dims, .. } => {
                vec![("x", dims.rows * dims.input, Real, 1.0), ("head", dims.output * dims.input, Real, 0.5)]
            }
            Self::GradNorm { runs, stride } => vec![("d_params", runs * stride, Wide, 1.0)],
            Self::CheckFinite { len, .. } => vec![("values", *len, Wide, 1.0)],
            Self::Adamw { steps, stride, .. } => ["params", "m", "v", "d_params"]
                .map(|name| (name, steps.len() * stride, Wide, if name == "params" { 1.0 } else { 0.1 }))
                .to_vec(),
            Self::Refresh { offset, width } => vec![("params", offset + width, Wide, 1.0)],
        }
    }

    /// The outputs, with nothing for the scale.
    pub fn outputs(&self) -> Vec<Array> {
        use Kind::{Real, Wide};
        let out = |name, len, kind| (name, len, kind, 0.0);
        match self {
            Self::Cast { len } => vec![out("out", *len, Real)],
            Self::Widen { len } | Self::Residual { len } => vec![out("out", *len, Wide)],
            Self::GatherReal { rows, width, .. } => vec![out("out", rows.len() * width, Real)],
            Self::GatherWide { rows, width, .. } => vec![out("out", rows.len() * width, Wide)],
            Self::Embed { pack, width, .. } => vec![out("out", pack.len() * width, Wide)],
            Self::Position { pack, width, .. } => vec![out("x", pack.len() * width, Wide)],
            Self::LayerNorm { rows, width, .. } => {
                vec![out("out", rows * width, Real), out("mean", *rows, Wide), out("rstd", *rows, Wide)]
            }
            Self::RmsNorm { rows, width, .. } => vec![out("out", rows * width, Real), out("rstd", *rows, Wide)],
            Self::Rope { pack, heads, head_dim, .. } => vec![out("out", pack.len() * heads * head_dim, Real)],
            Self::Attention { pack, dims, .. } => {
                vec![out("z", pack.len() * dims.heads * dims.head_dim, Real), out("lse", pack.len() * dims.heads, Wide)]
            }
            Self::Pattern { dims, rows, longest, .. } => vec![out("out", rows.len() * dims.heads * longest, Wide)],
            Self::AttentionResult { rows, heads, width, .. } => vec![out("out", rows.len() * heads * width, Wide)],
            Self::Keep { capacity, width, .. } => vec![out("cache", capacity * width, Real)],
            Self::Linear { dims, .. } => vec![out("out", dims.rows * dims.output, Real)],
            Self::Lora { pack, site, .. } => {
                vec![out("y", pack.len() * site.output, Real), out("xa", pack.len() * site.rank, Wide)]
            }
            Self::LoraDelta { pack, site, .. } => vec![out("out", pack.len() * site.output, Wide)],
            Self::SwiGlu { len } | Self::Activation { len, .. } => vec![out("act", *len, Real)],
            Self::Logits { dims } => vec![out("logits", dims.rows * dims.output, Wide)],
            Self::CrossEntropy { dims, .. } => vec![out("loss", dims.rows, Wide)],
            Self::GradNorm { runs, .. } => vec![out("norm_sq", *runs, Wide)],
            Self::CheckFinite { .. } => vec![out("stop", 1, Wide)],
            Self::Adamw { steps, stride, .. } => {
                ["params", "m", "v"].map(|name| out(name, steps.len() * stride, Wide)).to_vec()
            }
            Self::Refresh { width, .. } => vec![out("out", *width, Wide)],
        }
    }

    /// Per input, whether the contract has its gradient, and whether that is added to what is there (`+=`).
    pub fn gradients(&self) -> Vec<Option<bool>> {
        match self {
            Self::GatherWide { .. } => vec![Some(true)],
            Self::Embed { .. } | Self::LayerNorm { .. } | Self::RmsNorm { .. } => vec![Some(true); 2],
            // The gradient of x passes as it is.
            Self::Position { .. } => vec![None, Some(true)],
            Self::Rope { .. } | Self::Activation { .. } => vec![Some(false)],
            Self::Attention { kept, .. } if kept.is_empty() => vec![Some(false), Some(false), Some(false), None, None],
            Self::Linear { bias, .. } => vec![Some(false), Some(true), bias.then_some(true)],
            Self::Lora { .. } => vec![None, Some(true), Some(true)],
            Self::SwiGlu { .. } => vec![Some(false); 2],
            Self::CrossEntropy { .. } => vec![Some(false), Some(true)],
            _ => vec![None; self.inputs().len()],
        }
    }

    /// Whether the contract has a backward of it.
    pub fn has_backward(&self) -> bool {
        self.gradients().iter().any(Option::is_some)
    }

    /// The kind of the buffer that holds input `i`'s gradient.
    pub fn gradient_kind(&self, i: usize) -> Kind {
        match (self, i) {
            (Self::Rope { .. } | Self::Attention { .. } | Self::SwiGlu { .. } | Self::Activation { .. }, _) => {
                Kind::Real
            }
            _ => Kind::Wide,
        }
    }

    /// Per output, whether a gradient comes in through it, and the kind of the buffer that holds it.
    pub fn output_gradients(&self) -> Vec<Option<Kind>> {
        match self {
            Self::GatherWide { .. } | Self::Embed { .. } | Self::Position { .. } => vec![Some(Kind::Wide)],
            Self::SwiGlu { .. } | Self::Activation { .. } | Self::CrossEntropy { .. } => vec![Some(Kind::Wide)],
            Self::LayerNorm { .. } => vec![Some(Kind::Wide), None, None],
            Self::RmsNorm { .. } | Self::Attention { .. } => vec![Some(Kind::Wide), None],
            Self::Rope { .. } | Self::Linear { .. } => vec![Some(Kind::Real)],
            Self::Lora { .. } => vec![Some(Kind::Real), None],
            _ => vec![None; self.outputs().len()],
        }
    }
}
