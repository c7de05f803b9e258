//! Every hash of the program: of data that a file names, of splits of synthetic data, of random streams, of caches.
//!
//! All but [`digest`] decide values that stand in files and results (checkpoints, plans, held-out sets, dropout
//! masks), so none of them may ever change. None but [`digest`] withstands a forger.

use sha2::{Digest, Sha256};

/// The odd number nearest to 2^64 divided by the golden ratio: the increment of SplitMix64.
pub const GOLDEN_GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// FNV-1a of bytes (Fowler, Noll and Vo), 64 bits: to notice a changed file.
pub fn fnv1a(bytes: impl IntoIterator<Item = u8>) -> u64 {
    bytes.into_iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// [`fnv1a`] with its bits mixed once more, so that all of them count in a remainder.
pub fn fnv1a_mixed(bytes: impl IntoIterator<Item = u8>) -> u64 {
    let mut hash = fnv1a(bytes);
    hash ^= hash >> 32;
    hash = hash.wrapping_mul(GOLDEN_GAMMA);
    hash ^ (hash >> 29)
}

/// The output of SplitMix64 in state `x` (Steele, Lea and Flood 2014): `x` advanced by [`GOLDEN_GAMMA`], then
/// [`finalize`]d.
#[inline]
pub fn splitmix64(x: u64) -> u64 {
    finalize(x.wrapping_add(GOLDEN_GAMMA))
}

/// The finaliser of SplitMix64, a bijection of 64 bits in which every bit of `x` reaches every bit of the result.
#[inline]
pub fn finalize(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The 32 bits of a column of a row whose hash is `row`: what dropout and noise draw by. One output of SplitMix64 is two columns'.
#[inline]
pub fn column_draw(row: u64, column: usize) -> u32 {
    let draw = splitmix64(row.wrapping_add((column as u64 / 2).wrapping_mul(GOLDEN_GAMMA)));
    (draw >> (32 * (column % 2))) as u32
}

/// SHA-256 (FIPS 180-4) of the concatenated parts: for what must not be mistaken, such as a compiled kernel that goes
/// to a driver. Parts are not told apart: hash their lengths too where that matters.
pub fn digest<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> [u8; 32] {
    parts.into_iter().fold(Sha256::new(), |hasher, part| hasher.chain_update(part)).finalize().into()
}

/// The same of what comes in pieces.
#[derive(Default)]
pub struct Hasher(Sha256);

impl Hasher {
    /// Takes the next piece.
    pub fn update(&mut self, piece: &[u8]) {
        self.0.update(piece);
    }

    /// The digest of all pieces as one, in hexadecimal digits.
    pub fn hex(self) -> String {
        hex(&self.0.finalize())
    }
}

/// Bytes in hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// [`digest`] in hexadecimal digits.
pub fn sha256_hex<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    hex(&digest(parts))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The functions' own published values: changing one changes what stands in files.
    #[test]
    fn hashes_are_the_published_ones() {
        assert_eq!(fnv1a([]), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(*b"foobar"), 0x8594_4171_f739_67e8);
        let stream = [0, 1, 2].map(|i: u64| splitmix64(i.wrapping_mul(GOLDEN_GAMMA)));
        assert_eq!(stream, [0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4, 0x06c4_5d18_8009_454f]);
        assert_eq!(sha256_hex([&b"a"[..], b"bc"]), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn fnv1a_mixed_is_frozen() {
        assert_eq!(fnv1a_mixed(*b"foobar"), 0x66c9_939d_606c_da7f);
    }
}
