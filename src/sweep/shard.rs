//! A part of a sweep that needs no launcher: shard I of N.

use std::str::FromStr;

/// One of several parts of equal size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Which, from 1.
    pub index: usize,
    /// Of how many.
    pub count: usize,
}

/// Most parts: there are no more cells.
const MOST: usize = super::grid::MOST_CELLS;

impl Shard {
    /// All of it.
    pub const WHOLE: Self = Self { index: 1, count: 1 };

    /// Whether the `i`th group, from 0, is in it.
    pub const fn has(self, i: usize) -> bool {
        i % self.count == self.index - 1
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('/').and_then(|(index, count)| Some((index.parse().ok()?, count.parse().ok()?)));
        match parts {
            Some((index, count)) if 1 <= index && index <= count && count <= MOST => Ok(Self { index, count }),
            _ => Err(format!("expected I/N with I from 1 to N and N at most {MOST}, such as 2/8")),
        }
    }
}

impl std::fmt::Display for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.index, self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_part_the_groups() {
        for count in 1..5 {
            for group in 0..17 {
                let of = (1..=count).filter(|&index| Shard { index, count }.has(group)).count();
                assert_eq!(of, 1, "{group} in {of} of {count}");
            }
        }
        assert_eq!("2/8".parse(), Ok(Shard { index: 2, count: 8 }));
        for wrong in ["0/2", "3/2", "1", "1/0", "a/b", "-1/2", "1/100001", "1/18446744073709551615"] {
            assert!(wrong.parse::<Shard>().is_err(), "{wrong}");
        }
    }
}
