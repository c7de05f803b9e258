//! The parameters of the base model, and the tensors of each family's checkpoints that hold them.
//!
//! The only file that knows the names of a checkpoint's tensors. Matrices come out as `[output, input]`, and q, k and v
//! one by one, however a file holds them.

use std::collections::HashSet;

use super::location::{Location, Part};
use crate::arch::{Family, ModelConfig, Norm, NormPlacement, Positions, Projection, QkNorm};
use crate::backend::blocks::{BlockLayout, decoded_bytes};
use crate::formats::quantized::{QuantizedView, WeightView};
use crate::formats::safetensors::{Checkpoint, TensorView};
use crate::{Error, Result};

/// A norm of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NormAt {
    /// Of the embeddings.
    Embed,
    /// Of a layer's attention sublayer.
    Attn(usize),
    /// Of the output of a layer's attention.
    AttnOut(usize),
    /// Of a layer's MLP sublayer.
    Mlp(usize),
    /// Of the output of a layer's MLP.
    MlpOut(usize),
    /// Of a layer's queries.
    Q(usize),
    /// Of a layer's keys.
    K(usize),
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
    /// Bias of the head `[V]`.
    HeadBias,
}

impl NormAt {
    /// The norms of a block, in the one order of its weights.
    pub fn of_block(config: &ModelConfig, layer: usize) -> Vec<Self> {
        let placement = config.norm_placement;
        let before = placement.before() || placement == NormPlacement::Post;
        let mut norms = Vec::new();
        norms.extend(before.then_some(Self::Attn(layer)));
        norms.extend(placement.of_output().then_some(Self::AttnOut(layer)));
        norms.extend((before && !config.one_norm).then_some(Self::Mlp(layer)));
        norms.extend(placement.of_output().then_some(Self::MlpOut(layer)));
        if config.qk_norm.is_some() {
            norms.extend([Self::Q(layer), Self::K(layer)]);
        }
        norms
    }

    /// Elements that are normed together.
    pub fn width(self, config: &ModelConfig) -> usize {
        match (self, config.qk_norm) {
            (Self::Q(_) | Self::K(_), Some(QkNorm::Head)) => config.head_dim,
            (Self::Q(_), _) => config.q_width(),
            (Self::K(_), _) => config.kv_width(),
            _ => config.hidden_size,
        }
    }
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
            all.extend(NormAt::of_block(config, layer).into_iter().flat_map(norm));
            for &target in config.targets() {
                all.push(Self::Weight(layer, target));
                all.extend(config.bias(target).then_some(Self::Bias(layer, target)));
            }
        }
        all.extend(config.final_norm.then_some(NormAt::Final).into_iter().flat_map(norm));
        all.extend((config.embed_size != config.hidden_size).then_some(Self::ProjectOut));
        all.extend((config.lm_head && !config.tie_word_embeddings).then_some(Self::Head));
        all.extend((config.lm_head && config.head_bias).then_some(Self::HeadBias));
        all
    }

    /// As [`ParamId::all`], with a head of its own where the model's is tied: every weight that an adapter may save.
    pub(super) fn all_untied(config: &ModelConfig) -> Vec<Self> {
        Self::all(&ModelConfig { tie_word_embeddings: false, ..config.clone() })
    }

    /// The weight of a [name](Self::peft_name) in a model that transformers has loaded; none where no tensor holds one alone.
    pub(super) fn of_peft(config: &ModelConfig, name: &str) -> Option<Self> {
        Self::all_untied(config).into_iter().find(|id| !name.is_empty() && id.peft_name(config) == name)
    }

    /// Dimensions of the weight in the model's own form, whatever the file has.
    pub fn shape(self, config: &ModelConfig) -> Vec<usize> {
        match self {
            Self::Embed | Self::Head => vec![config.vocab_size, config.embed_size],
            Self::ProjectIn => vec![config.hidden_size, config.embed_size],
            Self::ProjectOut => vec![config.embed_size, config.hidden_size],
            Self::Positions => vec![config.first_position() + config.max_position_embeddings, config.hidden_size],
            Self::HeadBias => vec![config.vocab_size],
            Self::Norm(at) | Self::NormBias(at) => vec![at.width(config)],
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
            Self::Head if family == Family::GptNeox => ("embed_out".to_owned(), "weight"),
            Self::Head => ("lm_head".to_owned(), "weight"),
            Self::HeadBias => ("lm_head".to_owned(), "bias"),
        };
        format!("{path}.{kind}")
    }

    /// The name of its tensor in a model that transformers has loaded, where that holds this weight alone and as it is here;
    /// otherwise an empty one.
    pub(super) fn peft_name(self, config: &ModelConfig) -> String {
        match self {
            Self::Head => HEAD.to_owned(),
            _ if self.layout(config).1 != Part::Whole => String::new(),
            _ => self.tensor(config.family),
        }
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
        // The matrix that holds it: its rows, and how many parts stand before this one.
        let module = config.family.fused().iter().find(|fused| fused.parts().contains(&target));
        let parts = module.map_or(&[][..], |module| module.parts());
        let which = parts.iter().position(|&part| part == target);
        let before: usize = parts.iter().take(which.unwrap_or(0)).map(|&part| config.widths(part).1).sum();
        let rows = module.map_or(output, |&module| config.widths(module).1);
        let (shape, columns) = match (config.family, weight) {
            (Family::Gpt2, true) => (vec![input, rows], true),
            (_, true) => (vec![rows, input], false),
            (_, false) => (vec![rows], false),
        };
        let part = match (config.family, which) {
            _ if columns => Part::Columns { from: before },
            (_, None) => Part::Whole,
            (Family::Bloom | Family::GptNeox, Some(which)) => Part::Heads { which },
            _ => Part::Rows { from: before },
        };
        (shape, part)
    }
}

/// What begins the names of the text part's tensors in a model of texts and images.
const INNER: &str = "model.language_model.";

/// What begins the names of the body's tensors in a file that has the head too.
fn outer(family: Family) -> &'static str {
    match family {
        Family::Gpt2 | Family::Bloom | Family::GptJ => "transformer.",
        Family::GptNeox => "gpt_neox.",
        Family::Gemma3Images => INNER,
        _ => "model.",
    }
}

fn embed(family: Family) -> &'static str {
    match family {
        Family::Gpt2 | Family::GptJ => "transformer.wte",
        Family::Opt => "model.decoder.embed_tokens",
        Family::Bloom => "transformer.word_embeddings",
        Family::GptNeox => "gpt_neox.embed_in",
        Family::Gemma3Images => "model.language_model.embed_tokens",
        _ => "model.embed_tokens",
    }
}

fn norm(family: Family, at: NormAt) -> String {
    let [layers, attn, mlp, last] = match family {
        Family::Gpt2 | Family::GptJ => ["transformer.h", "ln_1", "ln_2", "transformer.ln_f"],
        Family::Opt => {
            ["model.decoder.layers", "self_attn_layer_norm", "final_layer_norm", "model.decoder.final_layer_norm"]
        }
        Family::Bloom => ["transformer.h", "input_layernorm", "post_attention_layernorm", "transformer.ln_f"],
        Family::GptNeox => {
            ["gpt_neox.layers", "input_layernorm", "post_attention_layernorm", "gpt_neox.final_layer_norm"]
        }
        Family::Phi => ["model.layers", "input_layernorm", "", "model.final_layernorm"],
        Family::Gemma2 | Family::Gemma3 => {
            ["model.layers", "input_layernorm", "pre_feedforward_layernorm", "model.norm"]
        }
        Family::Gemma3Images => {
            ["model.language_model.layers", "input_layernorm", "pre_feedforward_layernorm", "model.language_model.norm"]
        }
        _ => ["model.layers", "input_layernorm", "post_attention_layernorm", "model.norm"],
    };
    match at {
        NormAt::Embed => format!("{}_layernorm", embed(family)),
        NormAt::Attn(layer) => format!("{layers}.{layer}.{attn}"),
        NormAt::AttnOut(layer) => format!("{layers}.{layer}.post_attention_layernorm"),
        NormAt::Mlp(layer) => format!("{layers}.{layer}.{mlp}"),
        NormAt::MlpOut(layer) => format!("{layers}.{layer}.post_feedforward_layernorm"),
        NormAt::Q(layer) => format!("{layers}.{layer}.self_attn.q_norm"),
        NormAt::K(layer) => format!("{layers}.{layer}.self_attn.k_norm"),
        NormAt::Final => last.to_owned(),
    }
}

/// A name that begins with the first of two texts, with the second in its place.
fn renamed(name: &str, (from, to): (&str, &str)) -> Option<String> {
    name.strip_prefix(from).map(|rest| format!("{to}{rest}"))
}

/// The tensors of a checkpoint as the model's weights.
pub struct Source<'a> {
    /// The architecture as the checkpoint completes it.
    pub config: ModelConfig,
    checkpoint: &'a Checkpoint,
    /// What begins the names here, and what instead in this file: it was written without the head around the model, or is of
    /// a model of texts and images, of which this is the text part.
    renamed: (&'static str, &'static str),
}

impl<'a> Source<'a> {
    /// The weights of a model in a checkpoint. What `config.json` cannot know, the checkpoint decides, as in transformers
    /// 5.24: a head that is not tied and not there is none, and one that should be tied but has other values than the
    /// table is its own.
    ///
    /// # Errors
    /// A tensor of the body that belongs to no weight.
    pub fn new(config: &ModelConfig, checkpoint: &'a Checkpoint) -> Result<Self> {
        let mut source = Self { config: config.clone(), checkpoint, renamed: ("", "") };
        let there = |name: &str| checkpoint.contains(name);
        let known = [ParamId::Embed, ParamId::Weight(0, Projection::O)].map(|id| id.tensor(config.family));
        let text_part: &[(&str, &str)] = match config.family {
            // As it is saved, the body alone as older files have it, and the text model alone.
            Family::Gemma3Images => &[(INNER, "language_model.model."), (INNER, "language_model."), (INNER, "model.")],
            _ => &[("", "language_model."), ("model.", "model.language_model.")],
        };
        let ways = std::iter::once((outer(config.family), "")).chain(text_part.iter().copied());
        let fits = |way: &(&'static str, &'static str)| {
            known.iter().any(|name| !there(name) && renamed(name, *way).is_some_and(|name| there(&name)))
        };
        if let Some(way) = ways.into_iter().find(fits) {
            source.renamed = way;
        }
        source.deny_unexpected()?;
        if !config.tie_word_embeddings {
            source.config.lm_head = there(&source.head_name());
        } else if there(&source.head_name()) && there(&source.stored(ParamId::Embed)) && !source.equal_head()? {
            log::warn!(
                "{}: {}: has other values than the embedding table, although tie_word_embeddings is true: both are \
                 used, as in transformers",
                checkpoint.path().display(),
                source.head_name()
            );
            source.config.tie_word_embeddings = false;
        }
        Ok(source)
    }

    /// Checks that every weight is there in its shape, without reading any.
    ///
    /// # Errors
    /// A tensor that is missing or of another shape.
    pub fn check(&self) -> Result<()> {
        let there = |id: ParamId| self.checkpoint.weight(&self.name(id), &self.placed(id).0).map(drop);
        ParamId::all(&self.config).into_iter().try_for_each(there)
    }

    /// Whether the head that is stored beside the table has its values.
    fn equal_head(&self) -> Result<bool> {
        let (table, head) = match (self.weight(ParamId::Embed)?, self.weight(ParamId::Head)?) {
            (WeightView::Plain(table), WeightView::Plain(head)) => (table, head),
            (WeightView::Quantized(table), WeightView::Quantized(head)) => return Ok(table.has_values_of(&head)),
            // Of a quantised one the other has not exactly the values.
            _ => return Ok(false),
        };
        if table.dtype == head.dtype {
            return Ok(table.data[..] == head.data[..]);
        }
        let floats = |view: &TensorView| view.to_f32().map_err(Error::file(self.checkpoint.path()));
        Ok(floats(&table)? == floats(&head)?)
    }

    /// Tensors beside the body (the head of a reward model, say, or layers beyond the configuration's) are left alone with a
    /// warning; in the body there must be none that nothing reads.
    fn deny_unexpected(&self) -> Result<()> {
        let known: HashSet<String> = ParamId::all_untied(&self.config)
            .into_iter()
            .map(|id| if id == ParamId::Head { self.head_name() } else { self.stored(id) })
            .collect();
        let root = |name: &str| name.split_inclusive('.').next().unwrap_or_default().to_owned();
        let roots: HashSet<String> = known.iter().map(|name| root(name)).collect();
        let stray = |name: &str| !known.contains(name) && !self.is_ignored(name);
        let of_the_body = |name: &str| roots.contains(&root(name)) && !self.is_beyond(name);
        self.checkpoint.deny_unexpected(|name| !stray(name) || !of_the_body(name))?;
        let beside: Vec<&str> = self.checkpoint.names().filter(|name| stray(name)).collect();
        if let Some(first) = beside.first() {
            let path = self.checkpoint.path().display();
            log::warn!("{path}: {} tensors beside the model are not used, such as {first}", beside.len());
        }
        Ok(())
    }

    /// Whether a tensor is of a layer that the configuration leaves out.
    fn is_beyond(&self, name: &str) -> bool {
        let first = self.stored(ParamId::Weight(0, Projection::O));
        let layer = first.split_once(".0.").and_then(|(layers, _)| name.strip_prefix(layers)?.strip_prefix('.'));
        let number = layer.and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
        number.is_some_and(|layer| layer >= self.config.num_hidden_layers)
    }

    /// Old exports hold tables of the rotation or of the causal mask, or a version, and a model of texts and images the part
    /// of images: they are ignored.
    fn is_ignored(&self, name: &str) -> bool {
        let masks = matches!(self.config.family, Family::Gpt2 | Family::GptJ)
            && (name.ends_with(".attn.bias") || name.ends_with(".masked_bias"));
        let version = self.config.family == Family::Opt && name.ends_with("decoder.version");
        let neox = self.config.family == Family::GptNeox
            && [".attention.bias", ".attention.masked_bias"].iter().any(|end| name.ends_with(end));
        let images = matches!(self.config.family, Family::Gemma3 | Family::Gemma3Images)
            && ["vision_tower.", "multi_modal_projector."]
                .iter()
                .any(|part| name.strip_prefix("model.").unwrap_or(name).starts_with(part));
        name.ends_with(".rotary_emb.inv_freq") || masks || version || neox || images
    }

    /// The name of a weight's tensor in a file without the head around the model, where this is one.
    fn stored(&self, id: ParamId) -> String {
        let full = id.tensor(self.config.family);
        renamed(&full, self.renamed).unwrap_or(full)
    }

    /// The name of the head's tensor here: GPT-NeoX's has two, and so has that of a model of texts and images.
    fn head_name(&self) -> String {
        let name = self.stored(ParamId::Head);
        let there = |name: &str| self.checkpoint.contains(name);
        [HEAD, TEXT_HEAD].into_iter().find(|other| !there(&name) && there(other)).map_or(name, str::to_owned)
    }

    /// The name of the tensor that a weight is read from: tied, the table may be stored as the head alone.
    fn name(&self, id: ParamId) -> String {
        let name = self.stored(id);
        let as_head = id == ParamId::Embed
            && self.config.tie_word_embeddings
            && !self.checkpoint.contains(&name)
            && self.checkpoint.contains(&self.head_name());
        match (as_head, id) {
            (true, _) | (_, ParamId::Head) => self.head_name(),
            _ => name,
        }
    }

    /// The name of a table's own tensor, of a head that is tied too.
    pub(super) fn own_name(&self, id: ParamId) -> String {
        if id == ParamId::Head { self.head_name() } else { self.stored(id) }
    }

    /// The tensor that holds a module whole, be it fused, as the file has it; and whether the file has it as `[input, output]`.
    ///
    /// # Errors
    /// A tensor that is missing or of another shape.
    pub(super) fn module(&self, layer: usize, module: Projection) -> Result<(TensorView, bool)> {
        let id = ParamId::Weight(layer, module);
        let (shape, part) = self.placed(id);
        Ok((self.checkpoint.expect(&self.name(id), &shape)?, matches!(part, Part::Columns { .. })))
    }

    /// The tensor that holds the bias of a module whole, as the file has it; none of a module without.
    ///
    /// # Errors
    /// A tensor that is missing or of another shape.
    pub(super) fn bias(&self, layer: usize, module: Projection) -> Result<Option<TensorView>> {
        if !module.parts().iter().all(|&part| self.config.bias(part)) {
            return Ok(None);
        }
        let id = ParamId::Bias(layer, module);
        self.checkpoint.expect(&self.name(id), &self.placed(id).0).map(Some)
    }

    /// The checkpoint whose tensors they are.
    pub(super) const fn checkpoint(&self) -> &'a Checkpoint {
        self.checkpoint
    }

    /// How this file's tensor becomes a weight: as the family's checkpoints have it, but for matrices that are
    /// `[output, input]` here.
    fn placed(&self, id: ParamId) -> (Vec<usize>, Part) {
        match id.layout(&self.config) {
            (shape, Part::Columns { from }) if self.checkpoint.is_output_major(&self.name(id)) => {
                (vec![shape[1], shape[0]], Part::Rows { from })
            }
            other => other,
        }
    }

    /// Where a weight is.
    pub(super) fn location(&self, id: ParamId) -> Location {
        let (stored, part) = self.placed(id);
        let (shape, head_dim) = (id.shape(&self.config), self.config.head_dim);
        Location { name: self.name(id), stored, part, shape, head_dim }
    }

    /// A weight of either kind in the model's own form; left in the file where that is the file's, and where it is
    /// quantised.
    ///
    /// # Errors
    /// A tensor that is missing or of another shape.
    pub fn weight(&self, id: ParamId) -> Result<WeightView> {
        self.location(id).weight(self.checkpoint)
    }

    /// All weights, in the order of [`ParamId::all`], each as [`Source::weight`] gives it.
    pub(super) fn weights(&self) -> impl Iterator<Item = Result<WeightView>> {
        ParamId::all(&self.config).into_iter().map(|id| self.weight(id))
    }

    /// Whether a weight is quantised.
    pub fn is_quantized(&self, id: ParamId) -> bool {
        let name = self.name(id);
        self.checkpoint.quantized().any(|view| view.name == name)
    }

    /// A weight if it is quantised.
    ///
    /// # Errors
    /// As [`Source::weight`].
    pub(super) fn quantized(&self, id: ParamId) -> Result<Option<QuantizedView>> {
        Ok(match self.is_quantized(id).then(|| self.weight(id)).transpose()? {
            Some(WeightView::Quantized(view)) => Some(view),
            _ => None,
        })
    }

    /// How a GPU has a weight that is quantised.
    ///
    /// # Errors
    /// As [`Source::weight`].
    pub fn blocks(&self, id: ParamId) -> Result<Option<BlockLayout>> {
        Ok(self.quantized(id)?.map(|view| BlockLayout::new(&view.matrix())))
    }

    /// Bytes that the quantised weights take on a GPU, and the most that they take decoded side by side, in elements of so many bytes: of
    /// the blocks, and of the head where it is computed of many rows.
    ///
    /// # Errors
    /// As [`Source::weight`].
    pub fn quantized_bytes(&self, element: usize, with_head: bool) -> Result<(usize, usize)> {
        let head = if self.config.tie_word_embeddings { ParamId::Embed } else { ParamId::Head };
        let (mut all, mut most) = (0, 0);
        for id in ParamId::all(&self.config) {
            let Some(layout) = self.blocks(id)? else { continue };
            all += layout.bytes();
            let beside = match id {
                ParamId::Weight(_, target) => self.config.beside_from(target),
                // Rows of a table are decoded where they are read.
                ParamId::Embed | ParamId::Head => usize::from(with_head && id == head),
                _ => 1,
            };
            most = most.max(beside * decoded_bytes([layout.rows, layout.columns], element));
        }
        Ok((all, most))
    }

    /// The values of a weight in f32, decoded where it is quantised.
    ///
    /// # Errors
    /// As [`Source::weight`]; elements that are no floats.
    pub fn values(&self, id: ParamId) -> Result<Vec<f32>> {
        match self.weight(id)? {
            WeightView::Plain(view) => view.to_f32().map_err(Error::file(self.checkpoint.path())),
            WeightView::Quantized(view) => Ok(view.to_f32()),
        }
    }

    /// A weight in the model's own form; left in the file where that is the file's.
    ///
    /// # Errors
    /// A tensor that is missing, of another shape or quantised.
    pub fn view(&self, id: ParamId) -> Result<TensorView> {
        self.location(id).view(self.checkpoint)
    }
}

/// The head's tensor, in every family; in files of GPT-NeoX it may have another name.
const HEAD: &str = "lm_head.weight";
/// The head's tensor where the text part has a name of its own.
const TEXT_HEAD: &str = "language_model.lm_head.weight";
