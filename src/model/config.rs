//! What the passes derive from a configuration.

use std::collections::HashSet;

use super::param_id::ParamId;
use crate::Result;
use crate::arch::{Mlp, ModelConfig, Positions};
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
}
