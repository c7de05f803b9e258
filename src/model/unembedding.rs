//! The unembedding as numbers of the host: rows of the head, and the final norm's weight.

use super::param_id::{NormAt, ParamId, Source};
use crate::arch::{ModelConfig, Norm, NormPlacement, RmsWeight};
use crate::formats::quantized::WeightView;
use crate::formats::safetensors::{Checkpoint, TensorView};
use crate::{Error, Result};

/// What the logit lens and direct logit attribution need of a model's end.
#[derive(Clone, Debug, PartialEq)]
pub struct Unembedding {
    /// The rows `[C]` of the head, of the tokens that were asked for.
    pub rows: Vec<Vec<f32>>,
    /// The elements of the head's bias, of the same tokens, where it has one.
    pub bias: Option<Vec<f32>>,
    /// Weight `[C]` of the final norm.
    pub norm_weight: Vec<f32>,
    /// Its bias `[C]`, where it is a layer norm.
    pub norm_bias: Option<Vec<f32>>,
}

impl Unembedding {
    /// The rows of some tokens, read from the checkpoint; none for a model whose last residual stream is not a sum that the
    /// final norm and the head read: one that is post-norm, without a final norm, or with a projection before the head.
    ///
    /// # Errors
    /// A tensor that is missing or of another shape, or a token that the model does not have.
    pub fn read(config: &ModelConfig, checkpoint: &Checkpoint, tokens: &[u32]) -> Result<Option<Self>> {
        if config.norm_placement == NormPlacement::Post || !config.final_norm || config.embed_size != config.hidden_size
        {
            return Ok(None);
        }
        let source = Source::new(config, checkpoint)?;
        let head = source.weight(if source.config.tie_word_embeddings { ParamId::Embed } else { ParamId::Head })?;
        let width = config.hidden_size;
        let row = |&token: &u32| {
            let at = token as usize;
            if at >= config.vocab_size {
                return Err(Error::argument("token", format!("ids below {}", config.vocab_size), token));
            }
            match &head {
                WeightView::Plain(head) => {
                    let bytes = width * head.element_size();
                    let data = head.data.slice(at * bytes..(at + 1) * bytes);
                    floats(&TensorView { shape: vec![width], data, ..head.clone() })
                }
                WeightView::Quantized(head) => Ok(head.rows(at, 1).to_f32()),
            }
        };
        let rows = tokens.iter().map(row).collect::<Result<_>>()?;
        let bias = match config.head_bias {
            true => Some(source.values(ParamId::HeadBias)?),
            false => None,
        };
        let bias = bias.map(|bias| tokens.iter().map(|&token| bias[token as usize]).collect());
        let mut norm_weight = floats(&source.view(ParamId::Norm(NormAt::Final))?)?;
        if config.rms_weight() == Some(RmsWeight::OnePlus) {
            norm_weight.iter_mut().for_each(|w| *w += 1.0);
        }
        let norm_bias = match config.norm {
            Norm::Rms(_) => None,
            Norm::Layer => Some(floats(&source.view(ParamId::NormBias(NormAt::Final))?)?),
        };
        Ok(Some(Self { rows, bias, norm_weight, norm_bias }))
    }
}

/// `1 / sqrt(mean(x^2) + eps)` of RMS norm, `1 / sqrt(var(x) + eps)` of layer norm: what the final norm multiplies by.
pub fn inverse_scale(config: &ModelConfig, x: &[f32]) -> f64 {
    let n = x.len() as f64;
    let mean = match config.norm {
        Norm::Rms(_) => 0.0,
        Norm::Layer => x.iter().map(|&x| f64::from(x)).sum::<f64>() / n,
    };
    let squares = x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>();
    1.0 / (squares / n + config.norm_eps).sqrt()
}

fn floats(view: &TensorView) -> Result<Vec<f32>> {
    view.to_f32().map_err(Error::file(&view.name))
}
