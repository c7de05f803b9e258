#![doc = include_str!("names.md")]

use super::{NormPart, NormSite, Selection, Site};
use crate::arch::{Family, Mlp, ModelConfig, NormPlacement};
use crate::{Error, Result};

/// Which names are written, and what a name means that has had several meanings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Names {
    /// TransformerLens's aliases, with the meanings of version 4.3: `blocks.3.hook_resid_post`, and `logits`.
    #[default]
    Tl,
    /// TransformerLens 4's canonical names: `blocks.3.hook_out`, `unembed.hook_out`.
    Tl4,
    /// Names and meanings of llamaprobe 0.1: as `Tl`, but `hook_scale` is the factor that multiplies, and `hook_normalized` the
    /// norm's output.
    Llamaprobe1,
}

impl Names {
    /// All, in the order of their documentation.
    pub const ALL: [Self; 3] = [Self::Tl, Self::Tl4, Self::Llamaprobe1];

    /// The name of the choice.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tl => "tl",
            Self::Tl4 => "tl4",
            Self::Llamaprobe1 => "llamaprobe1",
        }
    }

    /// What the names of norms mean, in words for a file.
    pub fn conventions(self) -> &'static str {
        match self {
            Self::Tl | Self::Tl4 => {
                "TransformerLens 4.3: of a norm of x, hook_scale is sqrt(mean((x - m)^2) + eps), hook_normalized (x - m) / scale \
                 before weight and bias, hook_out the output; m is the mean of a layer norm, 0 of an RMS norm"
            }
            Self::Llamaprobe1 => {
                "llamaprobe 0.1: of a norm of x, hook_scale is 1 / sqrt(mean((x - m)^2) + eps), hook_normalized the output after \
                 weight and bias; m is the mean of a layer norm, 0 of an RMS norm"
            }
        }
    }
}

/// Names as they are read and written for a model.
#[derive(Clone, Copy, Debug)]
pub struct Naming<'a> {
    /// Which of the conventions is written, and read where two differ.
    pub names: Names,
    /// The model, whose family decides which tensor a module's name is of.
    pub config: &'a ModelConfig,
}

/// What a name stands for.
pub(super) struct Found {
    pub site: Site,
    /// The layer, if the name holds one.
    pub layer: Option<usize>,
    /// Whether it names what one module reads, of a tensor that others read too.
    pub input: bool,
}

impl<'a> Naming<'a> {
    /// TransformerLens's aliases, for a model.
    pub fn tl(config: &'a ModelConfig) -> Self {
        Self { names: Names::Tl, config }
    }

    /// The name that is written, without a block; none where these names have none for the site.
    pub fn local(&self, site: Site) -> Option<String> {
        match (self.names, site) {
            (Names::Tl, _) => Some(site.local()),
            (Names::Tl4, _) => Some(self.canonical(site).map_or_else(|| site.local(), str::to_owned)),
            (Names::Llamaprobe1, Site::Norm(at, NormPart::Rstd)) => Some(format!("{}.hook_scale", at.name())),
            (Names::Llamaprobe1, Site::Norm(at, NormPart::Out)) => Some(format!("{}.hook_normalized", at.name())),
            (Names::Llamaprobe1, Site::Norm(..)) => None,
            (Names::Llamaprobe1, _) => Some(site.local()),
        }
    }

    /// The full name that is written; `layer` counts only for the sites of a block.
    ///
    /// # Errors
    /// `sites`: one that these names have no name for.
    pub fn name(&self, site: Site, layer: usize) -> Result<String> {
        let local = self.local(site).ok_or_else(|| {
            let expected = format!("a site that has a name in --names {}", self.names.name());
            Error::argument("sites", expected, site.name(layer))
        })?;
        Ok(site.in_layer(layer, local))
    }

    /// TransformerLens 4's name, where that is not the alias.
    fn canonical(&self, site: Site) -> Option<&'static str> {
        let gated = self.gated();
        Some(match site {
            Site::Embed => "embed.hook_out",
            Site::PosEmbed => "pos_embed.hook_out",
            Site::ResidPre => "hook_in",
            Site::Q => "attn.q.hook_out",
            Site::K => "attn.k.hook_out",
            Site::V => "attn.v.hook_out",
            Site::Z => "attn.o.hook_in",
            Site::AttnOut if self.outputs_normed() => "ln1_post.hook_out",
            Site::AttnOut => "attn.o.hook_out",
            Site::ResidMid if self.placement() == NormPlacement::Output => "mlp.hook_in",
            Site::ResidMid if self.placement() != NormPlacement::Post => "ln2.hook_in",
            Site::MlpPre if gated => "mlp.gate.hook_out",
            Site::MlpPre | Site::MlpPreLinear => "mlp.in.hook_out",
            Site::MlpPost => "mlp.out.hook_in",
            Site::MlpOut if self.outputs_normed() => "ln2_post.hook_out",
            Site::MlpOut => "mlp.out.hook_out",
            Site::ResidPost => "hook_out",
            // Of a model with a soft cap, that is what it is of.
            Site::Logits if self.config.logit_softcap.is_none() => "unembed.hook_out",
            _ => return None,
        })
    }

    fn gated(&self) -> bool {
        matches!(self.config.mlp, Mlp::Gated(_))
    }

    fn placement(&self) -> NormPlacement {
        self.config.norm_placement
    }

    fn outputs_normed(&self) -> bool {
        self.placement().of_output()
    }

    /// Every local name that is read as the site: the one of [`Site::local`], the canonical one, that of a module that hands
    /// the tensor on as it is, TransformerLens's short forms and our own.
    pub fn spellings(&self, site: Site) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        if let Site::Norm(at, part) = site {
            names = self.norm_spellings(at, part);
        } else {
            names.push(site.local());
            names.extend(self.canonical(site).map(str::to_owned));
        }
        // BLOOM adds the residual stream inside these modules.
        let adds = self.config.family == Family::Bloom;
        let others: &[&str] = match site {
            Site::Embed => &["embed"],
            Site::PosEmbed => &["pos_embed"],
            Site::ResidPre => &["resid_pre"],
            Site::Q => &["q", "query"],
            Site::K => &["k", "key"],
            Site::V => &["v", "value"],
            Site::RotQ => &["rot_q"],
            Site::RotK => &["rot_k"],
            Site::AttnScores => &["attn_scores", "attn_logits"],
            Site::Pattern => &["pattern", "attn"],
            Site::Z => &["z"],
            Site::Result => &["result"],
            Site::AttnOut if adds || self.outputs_normed() => &["attn_out"],
            Site::AttnRaw => &["attn.hook_out"],
            Site::AttnOut => &["attn.hook_out", "attn_out"],
            Site::ResidMid if adds => &["attn.hook_out", "resid_mid"],
            Site::ResidMid => &["resid_mid"],
            Site::MlpPre => &["mlp_pre", "pre"],
            Site::MlpPreLinear => &["mlp_pre_linear", "pre_linear"],
            Site::MlpPost => &["mlp_post", "post"],
            Site::MlpOut if adds || self.outputs_normed() => &["mlp_out"],
            Site::MlpRaw => &["mlp.hook_out"],
            Site::MlpOut => &["mlp.hook_out", "mlp_out"],
            Site::ResidPost if adds => &["mlp.hook_out", "resid_post"],
            Site::ResidPost => &["resid_post"],
            Site::Logits if self.config.logit_softcap.is_none() => &["hook_unembed"],
            Site::Logits => &[],
            Site::Norm(..) | Site::LoraA(_) | Site::LoraDelta(_) => &[],
        };
        names.extend(others.iter().map(|&name| name.to_owned()));
        names
    }

    fn norm_spellings(&self, at: NormSite, part: NormPart) -> Vec<String> {
        let old = self.names == Names::Llamaprobe1;
        let (norm, is_final) = (at.name(), at == NormSite::Final);
        let mut names = Vec::new();
        // The part that hook_scale and hook_normalized mean.
        let (scale, normalized) =
            if old { (NormPart::Rstd, NormPart::Out) } else { (NormPart::Scale, NormPart::Normalized) };
        if part == NormPart::Rstd || part == NormPart::Out {
            names.push(format!("{norm}.{}", part.hook()));
        }
        for (of, word) in [(scale, "scale"), (normalized, "normalized")] {
            if part != of {
                continue;
            }
            names.push(format!("{norm}.hook_{word}"));
            match at {
                NormSite::Final => names.extend([word.to_owned()]),
                NormSite::Ln1 if old => names.push(format!("{word}1")),
                NormSite::Ln2 if old => names.push(format!("{word}2")),
                _ => {}
            }
            names.extend((is_final && word == "scale").then(|| "final_scale".to_owned()));
        }
        names.extend((is_final && part == NormPart::Out).then(|| "final_norm".to_owned()));
        if part == NormPart::Out {
            let normed = [(NormSite::Q, "attn.hook_q_normed"), (NormSite::K, "attn.hook_k_normed")];
            names.extend(normed.into_iter().filter(|(norm, _)| *norm == at).map(|(_, name)| name.to_owned()));
        }
        names
    }

    /// Local names of what one module reads, each with the tensor that it is.
    pub fn inputs(&self) -> Vec<(&'static str, Site)> {
        let (attn, mlp) =
            if !self.placement().before() { (Site::ResidPre, Site::ResidMid) } else { (Site::LN1_OUT, Site::LN2_OUT) };
        let mlp = if self.config.one_norm { attn } else { mlp };
        let mut inputs: Vec<_> =
            ["attn.hook_in", "attn.q.hook_in", "attn.k.hook_in", "attn.v.hook_in"].map(|name| (name, attn)).to_vec();
        inputs.extend(["mlp.hook_in", "mlp.in.hook_in"].map(|name| (name, mlp)));
        inputs.extend(self.gated().then_some(("mlp.gate.hook_in", mlp)));
        if self.placement().before() {
            let of_mlp = if self.config.parallel { Site::ResidPre } else { Site::ResidMid };
            inputs.extend([("ln1.hook_in", Site::ResidPre), ("ln2.hook_in", of_mlp), ("hook_mlp_in", of_mlp)]);
        }
        if self.outputs_normed() {
            inputs.extend([("ln1_post.hook_in", Site::AttnRaw), ("ln2_post.hook_in", Site::MlpRaw)]);
        }
        if self.config.qk_norm.is_some() {
            inputs.extend([("attn.q_norm.hook_in", Site::Q), ("attn.k_norm.hook_in", Site::K)]);
        }
        if self.config.embed_size == self.config.hidden_size {
            inputs.push(("unembed.hook_in", Site::FINAL_NORM));
        }
        inputs
    }

    /// What a name stands for.
    ///
    /// # Errors
    /// `sites`: no name, or a layer where there are none. The nearest name is shown only where it is a slip of the pen away
    /// and ends alike: `mlp.hook_out` is no misspelt `mlp.hook_post`.
    pub(super) fn find(&self, name: &str) -> Result<Found> {
        let depth = self.config.num_hidden_layers;
        let whole = |site, layer| Ok(Found { site, layer, input: false });
        if let Some(i) = name.strip_prefix("hidden_states[").and_then(|rest| rest.strip_suffix(']')) {
            return match i.parse::<usize>() {
                Ok(0) => whole(Site::ResidPre, Some(0)),
                Ok(i) if i < depth => whole(Site::ResidPost, Some(i - 1)),
                Ok(i) if i == depth => whole(Site::FINAL_NORM, None),
                _ => Err(Error::argument("sites", format!("hidden_states[0] to hidden_states[{depth}]"), name)),
            };
        }
        match name {
            "ln_final.hook_in" if self.config.final_norm => {
                return Ok(Found { site: Site::ResidPost, layer: Some(depth - 1), input: true });
            }
            "embed_ln.hook_in" if self.config.embed_norm => return whole(Site::Embed, None),
            "embed_ln.hook_out" if self.config.embed_norm => return whole(Site::ResidPre, Some(0)),
            _ => {}
        }
        let (local, layer) = match name.strip_prefix("blocks.").and_then(|rest| rest.split_once('.')) {
            Some((layer, local)) => match layer.parse() {
                Ok(layer) => (local, Some(layer)),
                Err(_) => return Err(Error::argument("sites", "a layer number after `blocks.`", name)),
            },
            None => (name, None),
        };
        let found = self.named(local).map(|(site, input)| Found { site, layer, input });
        let found = found.or_else(|| if layer.is_none() { self.short(local) } else { None });
        match found {
            Some(Found { site, layer: Some(_), .. }) if !site.in_block() => {
                Err(Error::argument("sites", "a site of a block where there is a layer", format!("`{name}`")))
            }
            Some(found) => Ok(found),
            None => Err(Error::argument("sites", self.known(local), format!("`{name}`"))),
        }
    }

    /// The site of a local name, and whether the name is of what one module reads.
    fn named(&self, local: &str) -> Option<(Site, bool)> {
        // What the model has goes before what it has not: a name may be another tensor's in other families.
        let spelled = |site: &Site| self.spellings(*site).iter().any(|name| name == local);
        let (there, missing): (Vec<Site>, Vec<Site>) = Site::all().into_iter().partition(|&site| self.config.has(site));
        let site = there.into_iter().chain(missing).find(spelled);
        let input = || self.inputs().into_iter().find(|(name, _)| *name == local).map(|(_, site)| (site, true));
        // The tensor's own name may be that of an input.
        match input().or_else(|| site.map(|site| (site, false)))? {
            // The same tensor as the MLP reads it.
            (Site::Norm(NormSite::Ln2, part), _) if self.config.one_norm => {
                Some((Site::Norm(NormSite::Ln1, part), true))
            }
            found => Some(found),
        }
    }

    /// A short form with its layer: `resid_post3`, `q3`, and TransformerLens's `scale3ln1` and `pre3m`.
    fn short(&self, local: &str) -> Option<Found> {
        let stem = local.trim_end_matches(|c: char| c.is_ascii_digit());
        if let (Some((site, input)), Ok(layer)) = (self.named(stem), local[stem.len()..].parse()) {
            return Some(Found { site, layer: Some(layer), input });
        }
        let digits = local.find(|c: char| c.is_ascii_digit())?;
        let (word, rest) = local.split_at(digits);
        let kind = rest.trim_start_matches(|c: char| c.is_ascii_digit());
        let layer = rest[..rest.len() - kind.len()].parse().ok()?;
        let of_sublayer = ["a", "attn", "attention", "m", "mlp", "b", "block", "blocks"].contains(&kind);
        let found = self.named(word).filter(|(site, _)| of_sublayer && site.in_block());
        let (site, input) = found.or_else(|| self.named(&format!("{kind}.hook_{word}")))?;
        Some(Found { site, layer: Some(layer), input })
    }

    /// What an unknown local name might have been, in words.
    fn known(&self, local: &str) -> String {
        let ending = |name: &str| name.rfind('.').map(|dot| name[dot..].to_owned());
        // A word of four letters is too near to others.
        let close =
            |name: &String| ending(name) == ending(local) && name.len() > 4 && strsim::osa_distance(name, local) <= 1;
        let sites = Site::all();
        let near: Vec<String> = sites.iter().filter_map(|&site| self.spellings(site).into_iter().find(close)).collect();
        match near.as_slice() {
            [name] => format!("a hook site (nearest: `{name}`)"),
            _ => {
                let there = sites.iter().filter(|&&site| self.config.has(site));
                format!("one of {}", there.filter_map(|&site| self.local(site)).collect::<Vec<_>>().join(", "))
            }
        }
    }
}

impl Selection {
    /// Reads a comma-separated list of names of tensors to look at.
    ///
    /// A name is a full one (`blocks.3.hook_resid_post`), a local or short one that stands for each of `layers`
    /// (`resid_post`), a short one with its layer (`resid_post3`), or `hidden_states[i]` of the `transformers` library:
    /// the residual stream that enters layer 0 for 0, that after layer i - 1 for i < depth, and the final norm's output for
    /// i = depth.
    ///
    /// # Errors
    /// A name that is none of these, or a layer that does not exist.
    pub fn parse(names: &str, layers: &[usize], naming: &Naming<'_>) -> Result<Self> {
        Self::read(names, layers, naming, true)
    }

    /// The same of tensors to write to: without names of what one module alone reads.
    ///
    /// # Errors
    /// As [`Selection::parse`], or such a name.
    pub fn parse_outputs(names: &str, layers: &[usize], naming: &Naming<'_>) -> Result<Self> {
        Self::read(names, layers, naming, false)
    }

    fn read(names: &str, layers: &[usize], naming: &Naming<'_>, inputs: bool) -> Result<Self> {
        let depth = naming.config.num_hidden_layers;
        if let Some(layer) = layers.iter().find(|&&layer| layer >= depth) {
            return Err(Error::argument("layers", format!("layers below {depth}"), layer));
        }
        let mut hooks = Vec::new();
        for name in names.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            let Found { site, layer, input } = naming.find(name)?;
            if input && !inputs {
                let expected = format!("a tensor, such as `{}`, not what one module reads of it", site.local());
                return Err(Error::argument("sites", expected, format!("`{name}`")));
            }
            match (site.in_block(), layer) {
                (false, _) => hooks.push((site, 0)),
                (true, Some(layer)) if layer < depth => hooks.push((site, layer)),
                (true, Some(layer)) => {
                    return Err(Error::argument("sites", format!("a layer below {depth} in `{name}`"), layer));
                }
                (true, None) => hooks.extend(layers.iter().map(|&layer| (site, layer))),
            }
        }
        if hooks.is_empty() {
            return Err(Error::argument("sites", "at least one site", format!("`{names}`")));
        }
        Ok(Self { hooks }.sorted())
    }
}
