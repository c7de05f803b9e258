//! The rotary embedding's parameters, in both dialects.

use serde_json::Value;

use crate::arch::{Family, Rope, RopeKind, RopePairs};
use crate::formats::json::Fields;
use crate::{Error, Result};

/// What a rotation is read from.
#[derive(Clone, Copy)]
pub(super) struct RopeReader<'a> {
    /// The fields of `config.json` that tell of the model of texts.
    pub f: &'a Fields<'a>,
    /// Its family, which has defaults of its own.
    pub family: Family,
    /// Elements of a head.
    pub head_dim: usize,
    /// The model's `max_position_embeddings`, its default resolved.
    pub max_positions: usize,
}

impl RopeReader<'_> {
    /// The rotation of all layers: `rope_theta` with `rope_scaling`, or `rope_parameters`.
    pub fn all_layers(&self) -> Result<Rope> {
        let f = self.f;
        let base = if self.family == Family::GptNeox { "rotary_emb_base" } else { "rope_theta" };
        let old = f.object("rope_scaling")?.filter(|o| o.keys().next().is_some());
        let new = f.object("rope_parameters")?.filter(|o| o.keys().next().is_some());
        for dict in [&old, &new].into_iter().flatten() {
            if let Some(key) = dict.keys().find(|key| key.ends_with("_attention")) {
                return Err(dict.error(key, "one rotation for all layers, which this family has"));
            }
        }
        let default = if self.family == Family::SmolLm3 { 2_000_000.0 } else { 10_000.0 };
        let read = |dict: &Option<Fields>| self.one(dict.as_ref(), Some(base), default);
        let rope = read(if old.is_some() { &old } else { &new })?;
        if old.is_some() && new.is_some() && rope != read(&new)? {
            return Err(f.error("rope_scaling", "the same as rope_parameters"));
        }
        Ok(rope)
    }

    /// The rotations of layers with a window and of those without. In the old dialect `rope_theta` and `rope_scaling` are of
    /// the latter; the former's base is `rope_local_base_freq` (Gemma 3), or 500,000 whatever `rope_theta` is (OLMo 3), as
    /// in transformers 5.24.
    pub fn by_layer_type(&self) -> Result<[Rope; 2]> {
        let f = self.f;
        let (global, local) = match self.family {
            Family::Gemma3 => (1_000_000.0, 10_000.0),
            _ => (500_000.0, 500_000.0),
        };
        let nested = f.object("rope_parameters")?.filter(|o| o.keys().next().is_some());
        let of_type = |key: &str| nested.as_ref().map(|o| o.object(key)).transpose().map(Option::flatten);
        let (sliding, mut full) = (of_type("sliding_attention")?, of_type("full_attention")?);
        if let Some(key) = nested.iter().flat_map(Fields::keys).find(|key| !key.ends_with("_attention")) {
            let expected = "sliding_attention and full_attention, each with its own rotation";
            return Err(Error::field(f.path(), "rope_parameters", expected, key));
        }
        if let Some(old) = f.object("rope_scaling")?.filter(|o| o.keys().next().is_some()) {
            if nested.is_some() {
                return Err(f.error("rope_scaling", "none beside rope_parameters"));
            }
            // Transformers puts it over a dictionary whose rope_type is default, and then does not read the older name.
            if old.get("rope_type").is_none() && old.str("type")?.is_some_and(|kind| kind != "default") {
                return Err(old.error("type", "rope_type, the name that is read here"));
            }
            full = Some(old);
        }
        let of_sliding = (self.family == Family::Gemma3).then_some("rope_local_base_freq");
        Ok([self.one(sliding.as_ref(), of_sliding, local)?, self.one(full.as_ref(), Some("rope_theta"), global)?])
    }

    /// A rotation: of a dictionary, with the base at the top level under the key `base`, else `default`.
    fn one(&self, dict: Option<&Fields>, base: Option<&str>, default: f64) -> Result<Rope> {
        let (f, family) = (self.f, self.family);
        let theta = theta(f, dict, base, default)?;
        let dim = self.rotary_dim(dict)?;
        let whole = !matches!(family, Family::GptNeox | Family::Phi3 | Family::Phi | Family::StableLm);
        let Some(d) = dict else {
            if whole {
                unread(f, &["partial_rotary_factor"]);
            }
            return Ok(Rope { theta, kind: RopeKind::Default, dim, pairs: RopePairs::Halves });
        };
        let (new_name, old_name) = (d.str("rope_type")?, d.str("type")?);
        if let (Some(a), Some(b)) = (new_name, old_name)
            && a != b
        {
            return Err(d.error("type", format!("the same as rope_type {a:?}")));
        }
        let kind = match (new_name.or(old_name).unwrap_or("default"), family) {
            ("default", _) => RopeKind::Default,
            ("longrope", _) | ("su" | "yarn", Family::Phi3) => self.longrope(d, dim)?,
            (other, Family::Phi3) => {
                return Err(Error::unsupported(self.rope_type(), other, "default, longrope, and su or yarn for it"));
            }
            ("linear", _) => RopeKind::Linear { factor: factor(d)? },
            ("dynamic", _) => dynamic(d, dim, self.max_positions)?,
            ("llama3", _) => llama3(d, self.original(d)?)?,
            ("yarn", _) => yarn(d, self.original(d)?, self.truncate(d)?)?,
            (other, _) => {
                let known = "default, linear, dynamic, llama3, yarn, longrope";
                return Err(Error::unsupported(self.rope_type(), other, known));
            }
        };
        if kind == RopeKind::Default {
            unread(d, &["factor"]);
        }
        match whole {
            false => {}
            true if kind == RopeKind::Default => {
                unread(f, &["partial_rotary_factor"]);
                unread(d, &["partial_rotary_factor"]);
            }
            true => {
                partial(f)?;
                partial(d)?;
            }
        }
        Ok(Rope { theta, kind, dim, pairs: RopePairs::Halves })
    }

    fn rope_type(&self) -> String {
        format!("{}: rope_type", self.f.path().display())
    }

    /// The pretraining context: beside the dictionary (it then wins, but has no effect on two rotations), in it, or
    /// `max_position_embeddings`.
    fn original(&self, d: &Fields) -> Result<usize> {
        let key = "original_max_position_embeddings";
        let mut outer = self.f.usize_in(key, 1..=usize::MAX)?;
        let inner = d.usize_in(key, 1..=usize::MAX)?;
        if outer.is_some() && self.has_two() {
            no_effect_on_two(self.f, key);
            outer = None;
        }
        Ok(outer.or(inner).unwrap_or(self.max_positions))
    }

    /// Whether yarn's ramp ends at whole dimensions. Transformers looks for it beside two rotations, where it never is.
    fn truncate(&self, d: &Fields) -> Result<bool> {
        let truncate = d.bool("truncate")?.unwrap_or(true);
        if !truncate && self.has_two() {
            no_effect_on_two(d, "truncate");
        }
        Ok(truncate || self.has_two())
    }

    /// Whether the family rotates layers with a window otherwise than those without.
    pub fn has_two(&self) -> bool {
        matches!(self.family, Family::Gemma3 | Family::Olmo3)
    }

    /// Elements of a head that are rotated.
    fn rotary_dim(&self, dict: Option<&Fields>) -> Result<usize> {
        let (f, key) = (self.f, "partial_rotary_factor");
        let inner = dict.map(|d| d.f64(key)).transpose()?.flatten();
        let (name, factor) = match self.family {
            Family::GptNeox => ("rotary_pct", inner.or(f.f64("rotary_pct")?).unwrap_or(0.25)),
            Family::Phi3 => (key, inner.or(f.f64(key)?).unwrap_or(1.0)),
            Family::Phi => (key, inner.or(f.f64(key)?).unwrap_or(0.5)),
            Family::StableLm => (key, inner.or(f.f64(key)?).unwrap_or(0.25)),
            _ => return Ok(self.head_dim),
        };
        let dim = (self.head_dim as f64 * factor) as usize;
        if !(factor > 0.0 && factor <= 1.0) || dim == 0 || !dim.is_multiple_of(2) {
            let expected = format!("a share that leaves an even number of {} elements, not {dim}", self.head_dim);
            return Err(Error::field(f.path(), if inner.is_some() { key } else { name }, expected, factor.to_string()));
        }
        Ok(dim)
    }

    fn longrope(&self, d: &Fields, dim: usize) -> Result<RopeKind> {
        let list = |key: &str| {
            let expected = format!("{} positive numbers, one for each frequency", dim / 2);
            let values = d.require(key, d.list(key)?, &expected)?;
            let number = |v: &Value| v.as_f64().filter(|x| x.is_finite() && *x > 0.0);
            let values: Option<Vec<f64>> = values.iter().map(number).collect();
            values.filter(|values| values.len() == dim / 2).ok_or_else(|| d.error(key, &*expected))
        };
        let (short, long) = (list("short_factor")?, list("long_factor")?);
        let original = match self.family {
            // Of Phi-3 the value beside the dictionary counts, the default too.
            Family::Phi3 => self.f.usize_in("original_max_position_embeddings", 1..=usize::MAX)?.unwrap_or(4096),
            _ => self.original(d)?,
        };
        let growth = positive(d, "factor")?.unwrap_or(self.max_positions as f64 / original as f64);
        let attention_factor = match positive(d, "attention_factor")? {
            Some(given) => given,
            None if growth <= 1.0 => 1.0,
            None => (1.0 + growth.ln() / (original as f64).ln()).sqrt(),
        };
        if !attention_factor.is_finite() {
            return Err(d.error("factor", "a finite attention factor"));
        }
        Ok(RopeKind::LongRope { short, long, original, attention_factor })
    }
}

/// The base: of the dictionary, else of the top level under `key`, else the family's.
fn theta(f: &Fields, dict: Option<&Fields>, key: Option<&str>, default: f64) -> Result<f64> {
    let inner = dict.map(|d| d.f64("rope_theta")).transpose()?.flatten();
    let top = key.map(|key| f.f64(key)).transpose()?.flatten();
    if let (Some(d), Some(inner), Some(top), Some(key)) = (dict, inner, top, key)
        && inner != top
    {
        return Err(d.error("rope_theta", format!("the same as {key} at the top, {top}")));
    }
    let theta = inner.or(top).unwrap_or(default);
    if theta <= 1.0 {
        let expected = "a number above 1";
        return Err(match (dict, key) {
            (Some(d), _) if inner.is_some() => d.error("rope_theta", expected),
            (_, key) => f.error(key.unwrap_or("rope_theta"), expected),
        });
    }
    Ok(theta)
}

/// Warns of keys that the default rotation does not read, in transformers 5.24 either.
fn unread(f: &Fields, keys: &[&str]) {
    for key in keys.iter().filter(|key| f.get(key).is_some_and(|value| value.as_f64() != Some(1.0))) {
        log::warn!("{}: {key}: has no effect on rope_type default, as in transformers", f.path().display());
    }
}

fn no_effect_on_two(f: &Fields, key: &str) {
    log::warn!("{}: {key}: has no effect on two rotations, as in transformers", f.path().display());
}

fn partial(f: &Fields) -> Result<()> {
    match f.f64("partial_rotary_factor")? {
        Some(p) if p != 1.0 => Err(f.error("partial_rotary_factor", "1 (the whole head is rotated)")),
        _ => Ok(()),
    }
}

fn positive(d: &Fields, key: &str) -> Result<Option<f64>> {
    match d.f64(key)? {
        Some(x) if x <= 0.0 => Err(d.error(key, "a positive number")),
        other => Ok(other),
    }
}

fn factor(d: &Fields) -> Result<f64> {
    let factor = d.require("factor", d.f64("factor")?, "a number of at least 1")?;
    if factor < 1.0 {
        return Err(d.error("factor", "a number of at least 1"));
    }
    Ok(factor)
}

fn dynamic(d: &Fields, head_dim: usize, max_positions: usize) -> Result<RopeKind> {
    if head_dim < 4 {
        return Err(d.error("rope_type", format!("a head width of at least 4 for dynamic, not {head_dim}")));
    }
    let key = "original_max_position_embeddings";
    if d.usize(key)?.is_some_and(|n| n != max_positions) {
        return Err(d.error(key, format!("max_position_embeddings {max_positions}, the length dynamic scales from")));
    }
    Ok(RopeKind::Dynamic { factor: factor(d)?, original: max_positions })
}

fn llama3(d: &Fields, original: usize) -> Result<RopeKind> {
    let number = |key: &str| d.require(key, positive(d, key)?, "a positive number");
    let (low_freq_factor, high_freq_factor) = (number("low_freq_factor")?, number("high_freq_factor")?);
    if high_freq_factor <= low_freq_factor {
        return Err(d.error("high_freq_factor", format!("more than low_freq_factor {low_freq_factor}")));
    }
    Ok(RopeKind::Llama3 { factor: factor(d)?, low_freq_factor, high_freq_factor, original })
}

fn yarn(d: &Fields, original: usize, truncate: bool) -> Result<RopeKind> {
    let factor = factor(d)?;
    let (mscale, mscale_all_dim) = (d.f64("mscale")?, d.f64("mscale_all_dim")?);
    let scale = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
    let attention_factor = match (positive(d, "attention_factor")?, mscale, mscale_all_dim) {
        (Some(given), _, _) => given,
        (None, Some(m), Some(all)) if m != 0.0 && all != 0.0 => scale(m) / scale(all),
        _ => scale(1.0),
    };
    if !(attention_factor.is_finite() && attention_factor > 0.0) {
        return Err(d.error("mscale_all_dim", format!("a positive attention factor, not {attention_factor}")));
    }
    // Zero means the default, as in transformers.
    let or = |key: &str, default: f64| Ok::<_, Error>(d.f64(key)?.filter(|&x| x != 0.0).unwrap_or(default));
    let (beta_fast, beta_slow) = (or("beta_fast", 32.0)?, or("beta_slow", 1.0)?);
    if beta_slow <= 0.0 || beta_fast < beta_slow {
        return Err(d.error("beta_fast", format!("at least beta_slow, both positive (beta_slow {beta_slow})")));
    }
    Ok(RopeKind::Yarn { factor, original, beta_fast, beta_slow, attention_factor, truncate })
}
