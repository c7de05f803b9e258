//! What the passes derive from a configuration.

use std::collections::HashSet;

use super::param_id::ParamId;
use crate::arch::{Family, Mlp, ModelConfig, NormPlacement, Positions, Projection, QkNorm};
use crate::backend::Buffers;
use crate::backend::ops::AttentionDims;
use crate::hooks::{NormPart, NormSite, Site};
use crate::pack::{Forest, Pack, Parent, Sequence, bidirectional, forest};
use crate::{Error, Result};

impl ModelConfig {
    /// Whether a forward of this model comes by a site.
    pub fn has(&self, site: Site) -> bool {
        match site {
            Site::PosEmbed => matches!(self.positions, Positions::Learned { .. }),
            Site::RotQ | Site::RotK => !self.ropes().is_empty(),
            Site::ResidMid => !self.parallel,
            Site::MlpPreLinear => matches!(self.mlp, Mlp::Gated(_)),
            Site::Norm(NormSite::Ln2, _) if self.one_norm => false,
            Site::Norm(NormSite::Ln1 | NormSite::Ln2, _) => self.norm_placement != NormPlacement::Output,
            Site::AttnRaw | Site::MlpRaw => self.norm_placement.of_output(),
            // The output of such a norm is the sublayer's, `AttnOut` or `MlpOut`.
            Site::Norm(NormSite::Ln1Post | NormSite::Ln2Post, part) => {
                self.norm_placement.of_output() && part != NormPart::Out
            }
            Site::Norm(NormSite::Q | NormSite::K, _) => self.qk_norm.is_some(),
            Site::Norm(NormSite::Final, part) => self.final_norm || part == NormPart::Out,
            Site::LoraA(target) | Site::LoraDelta(target) => self.targets().contains(&target),
            _ => true,
        }
    }

    /// The number of positions of a model that learned them, and has no others; nor has GPT-J, whose rotation is a table in
    /// transformers 5.24.
    pub fn learned_positions(&self) -> Option<usize> {
        let bounded = matches!(self.positions, Positions::Learned { .. }) || self.family == Family::GptJ;
        bounded.then_some(self.max_position_embeddings)
    }

    /// Refuses a pack with a sequence beyond the last position of a model that has no others.
    ///
    /// # Errors
    /// `a sequence`: its length.
    pub(super) fn check_positions(&self, pack: &Pack) -> Result<()> {
        match self.learned_positions() {
            Some(learned) if pack.longest() > learned => {
                let expected = format!("at most {learned} positions, which is all that the model has");
                Err(Error::argument("a sequence", expected, pack.longest()))
            }
            _ => Ok(()),
        }
    }

    /// Elements of a row that a norm reads.
    pub(super) fn norm_width(&self, at: NormSite) -> usize {
        match at {
            NormSite::Q => self.q_width(),
            NormSite::K => self.kv_width(),
            _ => self.hidden_size,
        }
    }

    /// Elements of a row of a site, where the model alone decides them.
    pub fn stored_width(&self, site: Site) -> usize {
        match site {
            Site::Norm(at, NormPart::Rstd | NormPart::Scale) => match (at, self.qk_norm) {
                (NormSite::Q, Some(QkNorm::Head)) => self.num_attention_heads,
                (NormSite::K, Some(QkNorm::Head)) => self.num_key_value_heads,
                _ => 1,
            },
            Site::Norm(at, _) => self.norm_width(at),
            Site::Q | Site::RotQ | Site::Z => self.q_width(),
            Site::K | Site::V | Site::RotK => self.kv_width(),
            Site::MlpPre | Site::MlpPreLinear | Site::MlpPost => self.intermediate_size,
            Site::Embed => self.embed_size,
            _ => self.hidden_size,
        }
    }

    /// Number of projections before `target`, and from it on, that read one input with it, one after another, are of one width and have
    /// no biases.
    fn alike(&self, target: Projection) -> (usize, usize) {
        let of_one_input = [&[Projection::Q, Projection::K, Projection::V][..], &[Projection::Gate, Projection::Up]];
        let like = |other: &&Projection| {
            let has = self.targets().contains(other) && !self.bias(**other);
            has && self.widths(**other) == self.widths(target)
        };
        let group = of_one_input.into_iter().find(|group| group.contains(&target)).unwrap_or_default();
        let at = group.iter().position(|other| *other == target).unwrap_or(0);
        let (before, from) = group.split_at(at);
        (before.iter().rev().take_while(like).count(), from.iter().take_while(like).count().max(1))
    }

    /// Number of projections whose operands are laid beside each other, this one and those behind it.
    pub(super) fn beside_from(&self, target: Projection) -> usize {
        self.alike(target).1
    }

    /// Sees to it that the operands of products of one input, from that of `target` on, may be multiplied at once: those of
    /// projections without biases, of one width. What is made next are up to `most` of their weights, outputs or gradients, in order.
    pub(super) fn lay_beside<B: Buffers>(&self, backend: &mut B, target: Projection, most: usize) {
        let (before, count) = self.alike(target);
        let count = count.min(most);
        if before == 0 && count > 1 {
            backend.beside(count);
        }
    }

    /// Most terms that the gradient of an input is the sum of, if all products of one input can be made at once; 0 if none can.
    pub fn gradient_terms(&self) -> usize {
        let all = [(Projection::Q, 3), (Projection::Gate, 2)];
        all.into_iter()
            .filter(|&(first, count)| self.alike(first) == (0, count))
            .map(|(_, count)| count)
            .max()
            .unwrap_or(0)
    }

    /// Number of parameters of the base model.
    pub fn parameters(&self) -> usize {
        ParamId::all(self).into_iter().map(|id| id.len(self)).sum()
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
            softcap: self.score_softcap,
        }
    }

    /// Packs sequences as the model allows: with common beginnings of at least `min_shared` tokens shared
    /// ([`forest`]), or whole ones where every token sees all others ([`bidirectional`]).
    pub fn pack(&self, sequences: &[Sequence], min_shared: usize) -> Forest {
        if self.is_causal { forest(sequences, min_shared) } else { bidirectional(sequences) }
    }

    /// Refuses a pack that was made for another kind of attention.
    ///
    /// # Errors
    /// `pack`: rows see more or less in it than the model lets them.
    pub(super) fn check_attention(&self, pack: &Pack) -> Result<()> {
        let named = |bidirectional: bool| if bidirectional { "bidirectional" } else { "causal" };
        if pack.is_bidirectional() == self.is_causal {
            let found = named(pack.is_bidirectional());
            return Err(Error::argument(
                "pack",
                format!("{} attention, as the model's", named(!self.is_causal)),
                found,
            ));
        }
        match pack.segments().iter().position(|segment| matches!(segment.parent, Parent::Pack(_))) {
            Some(g) if !self.is_causal => {
                let expected = "whole sequences, whose tokens all see one another";
                Err(Error::argument("pack", expected, format!("segment {g}, a part of one")))
            }
            _ => Ok(()),
        }
    }

    /// Refuses a pass with such a sequence and one that is rotated otherwise.
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
        let scaled_len = self.scaled_len(longest);
        match ends.map(|(_, last)| last.position + last.rows.len()).all(|end| self.scaled_len(end) == scaled_len) {
            true => Ok(()),
            false => self.check_unscaled(longest),
        }
    }
}
