//! Which hooks an adapter moves: those that the forward computes from what it changes.

use super::Layout;
use crate::arch::{Mlp, ModelConfig, NormPlacement, Projection};
use crate::formats::adapter::Table;
use crate::hooks::{NormSite, Site};

impl ModelConfig {
    /// Whether the states at a hook depend on what a projection puts out, or takes in last, in a layer.
    pub fn reaches(&self, (layer, target): (usize, Projection), (site, of): (Site, usize)) -> bool {
        use Projection::{Down, Gate, GateUp, K, O, Q, Qkv, Up, V};
        if !site.in_block() {
            return matches!(site, Site::Norm(NormSite::Final, _) | Site::Logits);
        }
        if layer != of {
            return layer < of;
        }
        let is = |any: &[Projection]| any.contains(&target);
        let attention = is(&[Q, K, V, Qkv, O]);
        // Sublayers that run side by side do not read each other.
        let before_mlp = attention && !self.parallel;
        let mlp = before_mlp || is(&[Gate, Up, GateUp, Down]);
        let post = self.norm_placement == NormPlacement::Post;
        match site {
            Site::Q | Site::RotQ | Site::Norm(NormSite::Q, _) => is(&[Q, Qkv]),
            Site::K | Site::RotK | Site::Norm(NormSite::K, _) => is(&[K, Qkv]),
            Site::V => is(&[V, Qkv]),
            Site::AttnScores | Site::Pattern => is(&[Q, K, Qkv]),
            Site::Z | Site::Result => is(&[Q, K, V, Qkv]),
            Site::AttnRaw | Site::AttnOut | Site::ResidMid | Site::Norm(NormSite::Ln1Post, _) => attention,
            Site::Norm(NormSite::Ln1, _) => attention && post,
            Site::Norm(NormSite::Ln2, _) => {
                if post {
                    mlp
                } else {
                    before_mlp
                }
            }
            Site::MlpPre => before_mlp || is(&[Gate, GateUp]) || is(&[Up]) && !matches!(self.mlp, Mlp::Gated(_)),
            Site::MlpPreLinear => before_mlp || is(&[Up, GateUp]),
            Site::MlpPost => before_mlp || is(&[Gate, Up, GateUp]),
            Site::MlpRaw | Site::MlpOut | Site::Norm(NormSite::Ln2Post, _) => mlp,
            Site::ResidPost => true,
            Site::LoraA(other) | Site::LoraDelta(other) => other == target,
            _ => false,
        }
    }
}

impl Layout {
    /// Whether the adapter of a run moves the states at a hook.
    pub fn moves(&self, config: &ModelConfig, run: usize, hook: (Site, usize)) -> bool {
        // Rows before a sequence come in where the first attention reads them.
        let before = self.prompt.is_some() || self.prefix.is_some();
        let shape = self.shape(run);
        let modules = shape.modules().map(|module| (module.layer, module.target));
        let vectors = shape.vectors().map(|vector| (vector.layer, vector.target));
        // All that is computed depends on the table of what comes in; on the head the logits alone.
        if self.tokens.is_some()
            || shape.table(Table::Embed).is_some()
            || shape.table(Table::Head).is_some() && hook.0 == Site::Logits
        {
            return true;
        }
        let by_rows = config.reaches((0, Projection::O), hook) || hook == (Site::Z, 0);
        before && by_rows || modules.chain(vectors).any(|module| config.reaches(module, hook))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hooks::NormPart;

    #[test]
    fn projections_reach_what_is_computed_of_them() {
        let config = |parallel: bool| {
            let text = format!(
                r#"{{"model_type": "gpt_neox", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 3,
                    "num_attention_heads": 2, "vocab_size": 11, "use_parallel_residual": {parallel}}}"#
            );
            ModelConfig::parse("config.json", &text).expect("a configuration")
        };
        let (sequential, parallel) = (config(false), config(true));
        let reaches = |target: Projection, hook: (Site, usize)| sequential.reaches((1, target), hook);
        for (target, site, same) in [
            (Projection::Qkv, Site::ResidPre, false),
            (Projection::Q, Site::K, false),
            (Projection::K, Site::Pattern, true),
            (Projection::V, Site::Pattern, false),
            (Projection::O, Site::Z, false),
            (Projection::O, Site::AttnOut, true),
            (Projection::O, Site::MlpPost, true),
            (Projection::Up, Site::AttnOut, false),
            (Projection::Up, Site::MlpPre, true),
            (Projection::Down, Site::MlpPost, false),
            (Projection::Down, Site::MlpOut, true),
            (Projection::Down, Site::ResidPost, true),
        ] {
            assert_eq!(reaches(target, (site, 1)), same, "{target:?} {site:?}");
            assert!(!reaches(target, (site, 0)) && reaches(target, (site, 2)), "{target:?} {site:?}");
            assert!(reaches(target, (Site::FINAL_NORM, 0)) && !reaches(target, (Site::Embed, 0)));
        }
        let mut post = sequential.clone();
        post.norm_placement = NormPlacement::Post;
        let [ln1, ln2] = [NormSite::Ln1, NormSite::Ln2].map(|norm| (Site::Norm(norm, NormPart::Out), 1));
        for (target, of_pre, of_post) in
            [(Projection::V, [false, true], [true, true]), (Projection::Down, [false, false], [false, true])]
        {
            assert_eq!([ln1, ln2].map(|hook| sequential.reaches((1, target), hook)), of_pre, "{target:?}");
            assert_eq!([ln1, ln2].map(|hook| post.reaches((1, target), hook)), of_post, "{target:?}");
        }
        assert!(!parallel.reaches((1, Projection::O), (Site::MlpPost, 1)));
        assert!(parallel.reaches((1, Projection::O), (Site::ResidPost, 1)));
    }
}
