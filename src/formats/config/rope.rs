//! The rotary embedding's parameters, in both dialects.

use crate::arch::{Rope, RopeKind};
use crate::formats::json::Fields;
use crate::{Error, Result};

impl Rope {
    /// Reads `rope_theta` with `rope_scaling`, or `rope_parameters`.
    pub(super) fn read(f: &Fields, head_dim: usize, max_positions: usize) -> Result<Self> {
        let theta = f.f64("rope_theta")?;
        let old = f.object("rope_scaling")?.filter(|o| o.keys().next().is_some());
        let new = f.object("rope_parameters")?.filter(|o| o.keys().next().is_some());
        let read = |dict: &Option<Fields>| Self::from_dict(f, dict.as_ref(), theta, head_dim, max_positions);
        let rope = read(if old.is_some() { &old } else { &new })?;
        if old.is_some() && new.is_some() && rope != read(&new)? {
            return Err(f.error("rope_scaling", "the same as rope_parameters"));
        }
        Ok(rope)
    }

    fn from_dict(
        f: &Fields,
        dict: Option<&Fields>,
        top: Option<f64>,
        head_dim: usize,
        max_positions: usize,
    ) -> Result<Self> {
        let theta = theta(f, dict, top)?;
        let Some(d) = dict else {
            unread(f, &["partial_rotary_factor"]);
            return Ok(Self { theta, kind: RopeKind::Default, dim: head_dim });
        };
        let (new_name, old_name) = (d.str("rope_type")?, d.str("type")?);
        if let (Some(a), Some(b)) = (new_name, old_name)
            && a != b
        {
            return Err(d.error("type", format!("the same as rope_type {a:?}")));
        }
        let kind = match new_name.or(old_name).unwrap_or("default") {
            "default" => RopeKind::Default,
            "linear" => RopeKind::Linear { factor: factor(d)? },
            "dynamic" => dynamic(d, head_dim, max_positions)?,
            "llama3" => llama3(f, d, max_positions)?,
            "yarn" => yarn(f, d, max_positions)?,
            other => {
                let what = format!("{}: rope_type", f.path().display());
                return Err(Error::unsupported(what, other, "default, linear, dynamic, llama3, yarn"));
            }
        };
        if kind == RopeKind::Default {
            unread(f, &["partial_rotary_factor"]);
            unread(d, &["partial_rotary_factor", "factor"]);
        } else {
            partial(f)?;
            partial(d)?;
        }
        Ok(Self { theta, kind, dim: head_dim })
    }
}

/// The base: of the dictionary, else of the top level, else 10000.
fn theta(f: &Fields, dict: Option<&Fields>, top: Option<f64>) -> Result<f64> {
    let inner = dict.map(|d| d.f64("rope_theta")).transpose()?.flatten();
    if let (Some(d), Some(inner), Some(top)) = (dict, inner, top)
        && inner != top
    {
        return Err(d.error("rope_theta", format!("the same as rope_theta at the top, {top}")));
    }
    let theta = inner.or(top).unwrap_or(10_000.0);
    if theta <= 1.0 {
        return Err(dict.filter(|_| inner.is_some()).unwrap_or(f).error("rope_theta", "a number above 1"));
    }
    Ok(theta)
}

/// Warns of keys that the default rotation does not read, in transformers 5.24 either.
fn unread(f: &Fields, keys: &[&str]) {
    for key in keys.iter().filter(|key| f.get(key).is_some_and(|value| value.as_f64() != Some(1.0))) {
        log::warn!("{}: {key}: has no effect on rope_type default, as in transformers", f.path().display());
    }
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

/// The pretraining context: beside the dictionary (it then wins), in it, or `max_position_embeddings`.
fn original(f: &Fields, d: &Fields, max_positions: usize) -> Result<usize> {
    let key = "original_max_position_embeddings";
    let outer = f.usize_in(key, 1..=usize::MAX)?;
    let inner = d.usize_in(key, 1..=usize::MAX)?;
    Ok(outer.or(inner).unwrap_or(max_positions))
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

fn llama3(f: &Fields, d: &Fields, max_positions: usize) -> Result<RopeKind> {
    let number = |key: &str| d.require(key, positive(d, key)?, "a positive number");
    let (low_freq_factor, high_freq_factor) = (number("low_freq_factor")?, number("high_freq_factor")?);
    if high_freq_factor <= low_freq_factor {
        return Err(d.error("high_freq_factor", format!("more than low_freq_factor {low_freq_factor}")));
    }
    let original = original(f, d, max_positions)?;
    Ok(RopeKind::Llama3 { factor: factor(d)?, low_freq_factor, high_freq_factor, original })
}

fn yarn(f: &Fields, d: &Fields, max_positions: usize) -> Result<RopeKind> {
    let (factor, original) = (factor(d)?, original(f, d, max_positions)?);
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
    let truncate = d.bool("truncate")?.unwrap_or(true);
    Ok(RopeKind::Yarn { factor, original, beta_fast, beta_slow, attention_factor, truncate })
}
