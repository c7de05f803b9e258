//! The words of architecture: what a model is made of, in the names of `config.json`.
//!
//! Below the readers of files and the engine, which both speak of nothing else. Letters in the comments are the
//! dimensions of every other file: V vocabulary, C residual width, E embedding width, L layers, H query heads, K
//! key-value heads, D head width, F feed-forward width.

mod family;
mod projection;

pub use family::Family;
pub use projection::Projection;

use crate::{Error, Result};

/// The float format of a model's weights, or of what its matrix products read and write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE double precision (binary64): of the oracle.
    F64,
    /// IEEE single precision (binary32).
    F32,
    /// bfloat16.
    BF16,
    /// IEEE half precision (binary16).
    F16,
}

impl Dtype {
    /// As the header of a safetensors file has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F64 => "F64",
            Self::F32 => "F32",
            Self::BF16 => "BF16",
            Self::F16 => "F16",
        }
    }

    /// As `--dtype` has it.
    pub const fn flag(self) -> &'static str {
        match self {
            Self::F64 => "f64",
            Self::F32 => "f32",
            Self::BF16 => "bf16",
            Self::F16 => "f16",
        }
    }

    /// As PyTorch and `config.json` have it.
    pub const fn full_name(self) -> &'static str {
        match self {
            Self::F64 => "float64",
            Self::F32 => "float32",
            Self::BF16 => "bfloat16",
            Self::F16 => "float16",
        }
    }

    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Self::F64 => 8,
            Self::F32 => 4,
            Self::BF16 | Self::F16 => 2,
        }
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Rotary position embedding: base and scaling.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the wavelengths.
    pub theta: f64,
    /// Scaling of the frequencies.
    pub kind: RopeKind,
    /// Leading elements of each head that are rotated; the others pass through.
    pub dim: usize,
    /// Which of them are rotated together.
    pub pairs: RopePairs,
}

/// Which two of the R leading elements of a head are rotated together, by the angle `i < R/2`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RopePairs {
    /// `i` and `i + R/2`, as in the LLaMA checkpoints.
    Halves,
    /// `2 i` and `2 i + 1`, as in the paper and in GPT-J.
    Neighbours,
}

/// How the frequencies `theta^(-2k/D)` are scaled for longer contexts.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeKind {
    /// Not at all.
    Default,
    /// Every frequency divided by `factor` (position interpolation, arXiv 2306.15595).
    Linear {
        /// What every frequency is divided by.
        factor: f64,
    },
    /// The base grows with the sequence once it is longer than `original` (dynamic NTK).
    Dynamic {
        /// Growth of the base.
        factor: f64,
        /// Length up to which nothing changes: `max_position_embeddings`.
        original: usize,
    },
    /// Long wavelengths divided, short ones unchanged, a ramp between (LLaMA 3.1).
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are unchanged.
        high_freq_factor: f64,
        /// Context length of the pretraining.
        original: usize,
    },
    /// YaRN (arXiv 2309.00071): a ramp over dimensions, and scaled cosines and sines.
    Yarn {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Context length of the pretraining.
        original: usize,
        /// Rotations within `original` above which a dimension is unchanged.
        beta_fast: f64,
        /// Rotations within `original` below which a dimension is divided.
        beta_slow: f64,
        /// Factor of cos and sin: the file's, or the one that follows from `factor`, `mscale`, `mscale_all_dim`.
        attention_factor: f64,
        /// Whether the ramp's ends are rounded outwards to whole dimensions.
        truncate: bool,
    },
    /// LongRoPE (arXiv 2402.13753): a divisor for every frequency, one list up to `original` tokens and another for all
    /// rows of a longer sequence; scaled cosines and sines.
    LongRope {
        /// Divisors of the frequencies `[dim / 2]` of sequences up to `original`.
        short: Vec<f64>,
        /// Divisors of longer ones.
        long: Vec<f64>,
        /// Context length of the pretraining.
        original: usize,
        /// Factor of cos and sin, in both.
        attention_factor: f64,
    },
}

impl Rope {
    /// The number of positions above which a sequence's own length decides how all its rows are rotated.
    pub fn scales_beyond(&self) -> Option<usize> {
        match self.kind {
            RopeKind::Dynamic { original, .. } | RopeKind::LongRope { original, .. } => Some(original),
            _ => None,
        }
    }

    /// What of a sequence of `len` positions decides how all its rows are rotated: under dynamic scaling its length, under
    /// longrope whether it is long; 0 where nothing does.
    pub fn scaled_len(&self, len: usize) -> usize {
        match self.kind {
            RopeKind::Dynamic { original, .. } if len > original => len,
            RopeKind::LongRope { original, .. } if len > original => original + 1,
            _ => 0,
        }
    }
}

/// How a row is brought to a standard size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Norm {
    /// RMS norm, with a weight.
    Rms(RmsWeight),
    /// Layer norm, with a weight and a bias.
    Layer,
}

/// How an RMS norm's weight w multiplies `n = x / rms(x)`, and where it is rounded to the compute dtype, `c`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RmsWeight {
    /// `c(c(n) * w)`: LLaMA, Mistral, Qwen, Phi.
    Rounded,
    /// `c(n * w)`: OLMo.
    Exact,
    /// `c(n * (1 + w))`: Gemma.
    OnePlus,
}

/// Where the norms of a block stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormPlacement {
    /// Before each sublayer.
    Pre,
    /// After each residual sum (OPT-350m).
    Post,
    /// On each sublayer's output, before it is added (OLMo 2).
    Output,
    /// Before each sublayer and on its output (Gemma 2 and 3).
    PreAndOutput,
}

impl NormPlacement {
    /// Whether a norm stands between the residual stream and what a sublayer reads.
    pub const fn before(self) -> bool {
        matches!(self, Self::Pre | Self::PreAndOutput)
    }

    /// Whether a norm stands between a sublayer's output and the residual stream.
    pub const fn of_output(self) -> bool {
        matches!(self, Self::Output | Self::PreAndOutput)
    }
}

/// Over what the queries and the keys are normed, before the rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkNorm {
    /// Each head alone, by one weight `[D]` for all: Qwen 3, Gemma 3.
    Head,
    /// All heads of a row together, by weights `[H D]` and `[K D]`: OLMo 2.
    Row,
}

/// How a row knows its position.
#[derive(Clone, Debug, PartialEq)]
pub enum Positions {
    /// Queries and keys are rotated, in each layer `[L]` by its own rotation.
    Rope(Vec<Rope>),
    /// A learned vector is added to the embedding.
    Learned {
        /// Row of the table that is position 0's.
        first: usize,
    },
    /// Scores fall with the distance (Press et al. 2022).
    Alibi,
}

/// What stands between the two outer projections of an MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mlp {
    /// `f(gate) * up`: SwiGLU where f is SiLU (Shazeer 2020).
    Gated(Activation),
    /// A function of the up-projection; there is no gate.
    Plain(Activation),
}

/// A function of one number between two layers of an MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `max(x, 0)`.
    Relu,
    /// `x * (1 + erf(x / sqrt(2))) / 2` (Hendrycks and Gimpel 2016).
    Gelu,
    /// Its approximation `x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) / 2`.
    GeluTanh,
    /// `tanh(x)`; of no model here, but of the MLP that makes a prefix.
    Tanh,
    /// `x / (1 + exp(-x))`, also called swish (Elfwing et al. 2018).
    Silu,
}

/// What a model is, in the words of its `config.json`, with all defaults resolved; a family is data here, not code.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// The family, which names modules and sets defaults.
    pub family: Family,
    /// Width of the residual stream, C.
    pub hidden_size: usize,
    /// Width of the embedding table, E; where it is not C, projections stand between the table and the blocks.
    pub embed_size: usize,
    /// Width of the feed-forward layer, F.
    pub intermediate_size: usize,
    /// Number of layers, L.
    pub num_hidden_layers: usize,
    /// Query heads, H.
    pub num_attention_heads: usize,
    /// Key and value heads, K; H is a multiple.
    pub num_key_value_heads: usize,
    /// Width of a head, D; not always C / H.
    pub head_dim: usize,
    /// Rows of the embedding table, V.
    pub vocab_size: usize,
    /// Longest sequence the model was made for.
    pub max_position_embeddings: usize,
    /// Which norm stands everywhere in the model.
    pub norm: Norm,
    /// Epsilon of the norms.
    pub norm_eps: f64,
    /// Where the norms of a block stand.
    pub norm_placement: NormPlacement,
    /// Whether and how queries and keys are normed.
    pub qk_norm: Option<QkNorm>,
    /// Whether attention and MLP of a block read the same residual stream, and their outputs are added together.
    pub parallel: bool,
    /// Whether those of a parallel block read one norm's output, that of the attention.
    pub one_norm: bool,
    /// What rows of the embedding table are multiplied by, rounded to the compute dtype; a soft prompt's are not.
    pub embed_scale: f64,
    /// Whether embeddings are normed.
    pub embed_norm: bool,
    /// Whether the last residual stream is normed.
    pub final_norm: bool,
    /// What stands between the outer projections of each MLP.
    pub mlp: Mlp,
    /// Whether q, k and v have a bias.
    pub qkv_bias: bool,
    /// Whether o has a bias.
    pub o_bias: bool,
    /// Whether gate, up and down have a bias.
    pub mlp_bias: bool,
    /// Whether there is a head; a checkpoint of the body alone has none, and gives states but no logits.
    pub lm_head: bool,
    /// Whether the head has a bias.
    pub head_bias: bool,
    /// Whether the head is the embedding table.
    pub tie_word_embeddings: bool,
    /// Whether a token sees no later one; if not, attention is bidirectional.
    pub is_causal: bool,
    /// Attention window of each layer, `[L]`; `None` is all that a token sees otherwise
    /// ([`Pack::visible`](crate::pack::Pack::visible)).
    pub windows: Vec<Option<usize>>,
    /// Multiplier of the scores of each layer `[L]`, usually `1 / sqrt(D)`.
    pub score_scales: Vec<f64>,
    /// Soft cap of the scores: `cap * tanh(score / cap)`.
    pub score_softcap: Option<f64>,
    /// Soft cap of the logits.
    pub logit_softcap: Option<f64>,
    /// How a row knows its position.
    pub positions: Positions,
    /// The layers that rotate nothing although others do (NoPE).
    pub no_rope_layers: Vec<usize>,
    /// Token that begins a sequence.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a sequence.
    pub eos_token_id: Vec<u32>,
    /// Padding token; this library never pads.
    pub pad_token_id: Option<u32>,
    /// The largest probability of the dropouts with which transformers would train the model; this library applies none.
    pub dropout: f64,
    /// Type of the weights as the file says; `None` where it does not.
    pub dtype: Option<Dtype>,
}

impl ModelConfig {
    /// Widths of a block: residual stream C, queries H D, keys K D, feed-forward layer F.
    pub const fn block_widths(&self) -> [usize; 4] {
        let heads = [self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim];
        [self.hidden_size, heads[0], heads[1], self.intermediate_size]
    }

    /// The projections of a block; an MLP without a gate has no gate projection.
    pub fn targets(&self) -> &'static [Projection] {
        match self.mlp {
            Mlp::Gated(_) => &Projection::ALL,
            Mlp::Plain(_) => {
                &[Projection::Q, Projection::K, Projection::V, Projection::O, Projection::Up, Projection::Down]
            }
        }
    }

    /// The rotation of a layer; none where nothing is rotated.
    pub fn rope(&self, layer: usize) -> Option<&Rope> {
        self.ropes().get(layer).filter(|_| !self.no_rope_layers.contains(&layer))
    }

    /// The rotations of the layers `[L]`, of those too that do not rotate; none where no layer does.
    pub fn ropes(&self) -> &[Rope] {
        match &self.positions {
            Positions::Rope(ropes) => ropes,
            _ => &[],
        }
    }

    /// Whether the norms are RMS norms, and how they apply their weights.
    pub fn rms_weight(&self) -> Option<RmsWeight> {
        match self.norm {
            Norm::Rms(weight) => Some(weight),
            Norm::Layer => None,
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
        self.num_attention_heads * self.head_dim
    }

    /// Width of all key (or value) heads, K D.
    pub fn kv_width(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }

    /// `(input, output)` widths of a projection.
    pub fn widths(&self, target: Projection) -> (usize, usize) {
        target.widths([self.hidden_size, self.q_width(), self.kv_width(), self.intermediate_size])
    }

    /// Whether a projection has a bias.
    pub fn bias(&self, target: Projection) -> bool {
        match target {
            Projection::Q | Projection::K | Projection::V | Projection::Qkv => self.qkv_bias,
            Projection::O => self.o_bias,
            Projection::Gate | Projection::Up | Projection::Down | Projection::GateUp => self.mlp_bias,
        }
    }

    /// Refuses what needs logits, of a model without a head.
    ///
    /// # Errors
    /// `model`: a checkpoint of the body alone.
    pub fn require_head(&self) -> Result<()> {
        match self.lm_head {
            true => Ok(()),
            false => {
                let expected = "a checkpoint with lm_head.weight, which logits, losses and generation need";
                Err(Error::argument("model", expected, "one of the body alone"))
            }
        }
    }

    /// Refuses what shares rows that later tokens may not change, of a bidirectional model.
    ///
    /// # Errors
    /// `model`: its `is_causal` is false.
    pub fn require_causal(&self) -> Result<()> {
        match self.is_causal {
            true => Ok(()),
            false => Err(Error::argument("model", "causal attention, for prompts that share rows", "is_causal: false")),
        }
    }

    /// The number of positions above which a sequence's own length decides how all its rows are rotated (dynamic
    /// scaling, longrope): the smallest of all layers.
    pub fn scales_beyond(&self) -> Option<usize> {
        self.ropes().iter().filter_map(Rope::scales_beyond).min()
    }

    /// [`Rope::scaled_len`] over all layers: sequences of which it is the same may be in one pass.
    pub fn scaled_len(&self, len: usize) -> usize {
        self.ropes().iter().map(|rope| rope.scaled_len(len)).max().unwrap_or(0)
    }

    /// Refuses such a sequence where rows are shared or left out: they would be rotated as those of another length.
    ///
    /// # Errors
    /// `longest` positions are more than [`ModelConfig::scales_beyond`].
    pub fn check_unscaled(&self, longest: usize) -> Result<()> {
        match self.scales_beyond() {
            Some(most) if longest > most => {
                let expected = format!(
                    "at most {most} tokens, above which rope_type dynamic and longrope have other angles for all of a sequence"
                );
                Err(Error::argument("a sequence", expected, longest))
            }
            _ => Ok(()),
        }
    }
}
