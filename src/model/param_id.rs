//! The parameters of the base model, and the tensors of each family's checkpoints that hold them.
//!
//! The only file that knows the names of a checkpoint's tensors. Matrices come out as `[output, input]`, and q, k and v
//! one by one, however a file holds them.

use rayon::prelude::*;

use crate::arch::ModelConfig;
use crate::arch::Projection;
use crate::arch::{Family, Norm, Positions};
use crate::formats::safetensors::{Bytes, Checkpoint, TensorView};
use crate::{Error, Result};

/// A norm of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NormAt {
    /// Of the embeddings.
    Embed,
    /// Of a layer's attention sublayer.
    Attn(usize),
    /// Of a layer's MLP sublayer.
    Mlp(usize),
    /// Of the last residual stream.
    Final,
}

/// One weight of the base model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ParamId {
    /// Embedding table `[V, E]`.
    Embed,
    /// From the embedding table's width to the residual stream's `[C, E]`.
    ProjectIn,
    /// Learned positions `[_, C]`.
    Positions,
    /// Weight of a norm `[C]`.
    Norm(NormAt),
    /// Bias of a norm `[C]`.
    NormBias(NormAt),
    /// A projection of a layer.
    Weight(usize, Projection),
    /// Its bias.
    Bias(usize, Projection),
    /// From the residual stream's width to the head's `[E, C]`.
    ProjectOut,
    /// Head `[V, E]`, where it is not tied.
    Head,
}

impl ParamId {
    /// Every weight that a model has, in the one order of loading and of the flat parameters of full tuning.
    pub fn all(config: &ModelConfig) -> Vec<Self> {
        let norm = |at: NormAt| {
            let bias = (config.norm == Norm::Layer).then_some(Self::NormBias(at));
            std::iter::once(Self::Norm(at)).chain(bias)
        };
        let mut all = vec![Self::Embed];
        all.extend((config.embed_size != config.hidden_size).then_some(Self::ProjectIn));
        all.extend(matches!(config.positions, Positions::Learned { .. }).then_some(Self::Positions));
        all.extend(config.embed_norm.then_some(NormAt::Embed).into_iter().flat_map(norm));
        for layer in 0..config.num_hidden_layers {
            all.extend(norm(NormAt::Attn(layer)).chain(norm(NormAt::Mlp(layer))));
            for &target in config.targets() {
                all.push(Self::Weight(layer, target));
                all.extend(config.bias(target).then_some(Self::Bias(layer, target)));
            }
        }
        all.extend(config.final_norm.then_some(NormAt::Final).into_iter().flat_map(norm));
        all.extend((config.embed_size != config.hidden_size).then_some(Self::ProjectOut));
        all.extend((!config.tie_word_embeddings).then_some(Self::Head));
        all
    }

    /// Its shape.
    pub fn shape(self, config: &ModelConfig) -> Vec<usize> {
        match self {
            Self::Embed | Self::Head => vec![config.vocab_size, config.embed_size],
            Self::ProjectIn => vec![config.hidden_size, config.embed_size],
            Self::ProjectOut => vec![config.embed_size, config.hidden_size],
            Self::Positions => vec![config.first_position() + config.max_position_embeddings, config.hidden_size],
            Self::Norm(_) | Self::NormBias(_) => vec![config.hidden_size],
            Self::Weight(_, target) => {
                let (input, output) = config.widths(target);
                vec![output, input]
            }
            Self::Bias(_, target) => vec![config.widths(target).1],
        }
    }

    /// Number of elements.
    pub fn len(self, config: &ModelConfig) -> usize {
        self.shape(config).iter().product()
    }

    /// The name of the tensor that holds it, alone or with others.
    pub fn tensor(self, family: Family) -> String {
        let (path, kind) = match self {
            Self::Embed => (embed(family).to_owned(), "weight"),
            Self::ProjectIn => ("model.decoder.project_in".to_owned(), "weight"),
            Self::ProjectOut => ("model.decoder.project_out".to_owned(), "weight"),
            Self::Positions if family == Family::Opt => ("model.decoder.embed_positions".to_owned(), "weight"),
            Self::Positions => ("transformer.wpe".to_owned(), "weight"),
            Self::Norm(at) => (norm(family, at), "weight"),
            Self::NormBias(at) => (norm(family, at), "bias"),
            Self::Weight(layer, target) => (family.path(layer, target), "weight"),
            Self::Bias(layer, target) => (family.path(layer, target), "bias"),
            Self::Head => ("lm_head".to_owned(), "weight"),
        };
        format!("{path}.{kind}")
    }

    /// The shape of the tensor that holds it, as a file has it.
    pub fn stored_shape(self, config: &ModelConfig) -> Vec<usize> {
        self.layout(config).0
    }

    /// How the file's tensor becomes this weight: the file's shape, and what is to be done.
    fn layout(self, config: &ModelConfig) -> (Vec<usize>, Part) {
        let (target, weight) = match self {
            Self::Weight(_, target) => (target, true),
            Self::Bias(_, target) => (target, false),
            _ => return (self.shape(config), Part::Whole),
        };
        let (input, output) = config.widths(target);
        let fused =
            config.family.fuses_qkv().then(|| Projection::Qkv.parts().iter().position(|&t| t == target)).flatten();
        let rows = if fused.is_some() { 3 * output } else { output };
        match (config.family, weight) {
            (Family::Gpt2, true) => (vec![input, rows], Part::Columns { from: fused.unwrap_or(0) * output }),
            (_, true) => (vec![rows, input], fused.map_or(Part::Whole, |which| Part::Heads { which })),
            (Family::Gpt2, false) => {
                (vec![rows], fused.map_or(Part::Whole, |which| Part::Rows { from: which * output }))
            }
            (_, false) => (vec![rows], fused.map_or(Part::Whole, |which| Part::Heads { which })),
        }
    }
}

fn embed(family: Family) -> &'static str {
    match family {
        Family::Llama | Family::Mistral | Family::Qwen2 => "model.embed_tokens",
        Family::Gpt2 => "transformer.wte",
        Family::Opt => "model.decoder.embed_tokens",
        Family::Bloom => "transformer.word_embeddings",
    }
}

fn norm(family: Family, at: NormAt) -> String {
    let [layers, attn, mlp, last] = match family {
        Family::Llama | Family::Mistral | Family::Qwen2 => {
            ["model.layers", "input_layernorm", "post_attention_layernorm", "model.norm"]
        }
        Family::Gpt2 => ["transformer.h", "ln_1", "ln_2", "transformer.ln_f"],
        Family::Opt => {
            ["model.decoder.layers", "self_attn_layer_norm", "final_layer_norm", "model.decoder.final_layer_norm"]
        }
        Family::Bloom => ["transformer.h", "input_layernorm", "post_attention_layernorm", "transformer.ln_f"],
    };
    match at {
        NormAt::Embed => format!("{}_layernorm", embed(family)),
        NormAt::Attn(layer) => format!("{layers}.{layer}.{attn}"),
        NormAt::Mlp(layer) => format!("{layers}.{layer}.{mlp}"),
        NormAt::Final => last.to_owned(),
    }
}

/// What of a tensor is a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// All of it.
    Whole,
    /// `output` columns of a matrix stored as `[input, columns]`, transposed.
    Columns { from: usize },
    /// `output` rows one after another.
    Rows { from: usize },
    /// Rows of head after head, each with those of its query, key and value: `which` of the three.
    Heads { which: usize },
}

/// The tensors of a checkpoint as the model's weights.
pub struct Source<'a> {
    config: &'a ModelConfig,
    checkpoint: &'a Checkpoint,
    /// What begins the names here and is missing in this file, which was written without the head around the model.
    missing: &'static str,
}

impl<'a> Source<'a> {
    /// The weights of a model in a checkpoint.
    ///
    /// # Errors
    /// A tensor that belongs to no weight.
    pub fn new(config: &'a ModelConfig, checkpoint: &'a Checkpoint) -> Result<Self> {
        let outer = match config.family {
            Family::Llama | Family::Mistral | Family::Qwen2 => "",
            Family::Gpt2 | Family::Bloom => "transformer.",
            Family::Opt => "model.",
        };
        let first = ParamId::Embed.tensor(config.family);
        let bare = checkpoint.get(&first).is_none() && checkpoint.get(&first[outer.len()..]).is_some();
        let source = Self { config, checkpoint, missing: if bare { outer } else { "" } };
        let known: std::collections::HashSet<String> =
            ParamId::all(config).into_iter().map(|id| source.name(id)).collect();
        checkpoint.deny_unexpected(|name| known.contains(name) || source.is_ignored(name))?;
        source.check_tied()?;
        Ok(source)
    }

    /// A file may hold a tied head once more. One that is another contradicts the configuration, and releases of
    /// transformers disagree on which of the two they follow.
    fn check_tied(&self) -> Result<()> {
        let Some(head) = self.checkpoint.get(HEAD).filter(|_| self.config.tie_word_embeddings) else { return Ok(()) };
        let table = self.view(ParamId::Embed)?;
        if (head.dtype, &head.shape) == (table.dtype, &table.shape) && head.data[..] == table.data[..] {
            return Ok(());
        }
        let expected = format!("the values of {}, as tie_word_embeddings is true", table.name);
        Err(Error::field(self.checkpoint.path(), HEAD, expected, "others"))
    }

    /// Old exports hold tables of the rotation or of the causal mask, and some hold the tied head once more: all are ignored.
    fn is_ignored(&self, name: &str) -> bool {
        let masks =
            self.config.family == Family::Gpt2 && (name.ends_with(".attn.bias") || name.ends_with(".masked_bias"));
        name.ends_with(".rotary_emb.inv_freq") || masks || (self.config.tie_word_embeddings && name == HEAD)
    }

    fn name(&self, id: ParamId) -> String {
        let full = id.tensor(self.config.family);
        full.strip_prefix(self.missing).map_or(full.clone(), str::to_owned)
    }

    /// A weight in the model's own form; left in the file where that is the file's.
    ///
    /// # Errors
    /// A tensor that is missing or of another shape.
    pub fn view(&self, id: ParamId) -> Result<TensorView> {
        let (shape, part) = id.layout(self.config);
        let view = self.checkpoint.expect(&self.name(id), &shape)?;
        let own = id.shape(self.config);
        let row = own[1..].iter().product::<usize>() * view.element_size();
        let data = match part {
            Part::Whole => return Ok(view),
            Part::Rows { from } => view.data.slice(from * row..(from + own[0]) * row),
            Part::Columns { from } => Bytes::from(columns(&view, from, own[0])),
            Part::Heads { which } => {
                let head = self.config.head_dim * row;
                let heads = view.data.chunks_exact(3 * head).map(|three| &three[which * head..(which + 1) * head]);
                Bytes::from(heads.collect::<Vec<_>>().concat())
            }
        };
        Ok(TensorView { shape: own, data, ..view })
    }
}

/// The head's tensor, in every family.
const HEAD: &str = "lm_head.weight";

/// Rows and columns that are transposed together, so that both sides stay in the cache.
const BLOCK: usize = 64;

/// Columns `from..from + count` of a matrix, as rows.
fn columns(view: &TensorView, from: usize, count: usize) -> Vec<u8> {
    let (rows, pitch, size) = (view.shape[0], view.shape[1], view.element_size());
    let mut out = vec![0; count * rows * size];
    out.par_chunks_mut(BLOCK * rows * size).enumerate().for_each(|(block, out)| {
        let first = from + block * BLOCK;
        for start in (0..rows).step_by(BLOCK) {
            for (i, out) in out.chunks_exact_mut(rows * size).enumerate() {
                for row in start..rows.min(start + BLOCK) {
                    let at = (row * pitch + first + i) * size;
                    out[row * size..(row + 1) * size].copy_from_slice(&view.data[at..at + size]);
                }
            }
        }
    });
    out
}
