//! What becomes of the keys of a configuration file: read, without effect, refused, or unknown.
//!
//! Nothing that changes a result is passed over in silence. A key on which transformers or PEFT act and this library
//! does not must have its neutral value; a key that neither of them knows is a warning.

use serde_json::Value;

use super::json::{self, Fields};
use crate::Result;

/// The keys of a kind of file.
#[derive(Clone, Copy, Debug)]
pub struct Keys {
    /// Those that are read. One that begins with `*` stands for all that end like it.
    pub used: &'static [&'static str],
    /// Those that change nothing here, by reason.
    pub harmless: &'static [Harmless],
    /// Those on which another library acts and nothing here does, each with its neutral values as JSON; `null` always is
    /// one.
    pub refused: &'static [(&'static str, &'static [&'static str])],
}

/// Keys that change nothing, and why.
pub type Harmless = (&'static str, &'static [&'static str]);

/// What Python takes for false.
pub const FALSE: &[&str] = &["false", "0", "\"\"", "[]", "{}"];

impl Keys {
    /// Refuses keys that are not neutral, and warns of those that nobody knows.
    ///
    /// # Errors
    /// The first refused key that has another value than its neutral ones.
    pub fn check(&self, f: &Fields) -> Result<()> {
        self.refuse(f)?;
        let unknown: Vec<&str> = f.keys().filter(|key| !self.knows(key)).collect();
        if !unknown.is_empty() {
            log::warn!("{}: keys that nothing is known to read: {}", f.path().display(), unknown.join(", "));
        }
        Ok(())
    }

    /// Refuses keys that are not neutral.
    ///
    /// # Errors
    /// As [`Keys::check`].
    pub fn refuse(&self, f: &Fields) -> Result<()> {
        for (key, neutral) in self.refused {
            let Some(value) = f.get(key) else { continue };
            if !neutral.iter().any(|neutral| is(value, neutral)) {
                let neutral = if neutral.is_empty() { "null or no such key".to_owned() } else { neutral.join(" or ") };
                return Err(f.error(key, format!("{neutral} (nothing else is computed here)")));
            }
        }
        Ok(())
    }

    /// Whether a key is in one of the lists.
    pub fn knows(&self, key: &str) -> bool {
        let used = |name: &&str| *name == key || name.strip_prefix('*').is_some_and(|end| key.ends_with(end));
        let harmless = || self.harmless.iter().any(|(_, keys)| keys.contains(&key));
        self.used.iter().any(used) || harmless() || self.refused.iter().any(|(name, _)| *name == key)
    }
}

/// Whether a value is that of a JSON text; numbers are compared as numbers.
fn is(value: &Value, text: &str) -> bool {
    let neutral = json::parse("a neutral value", text).expect("tables hold JSON");
    *value == neutral || value.as_f64().is_some_and(|x| neutral.as_f64() == Some(x))
}
