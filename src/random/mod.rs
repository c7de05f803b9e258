//! Random numbers of which every bit is decided here: the draws that experiments rest on.
//!
//! The bits are those of ChaCha8 (Bernstein 2008) under a key that is expanded from a 64-bit seed, with a 64-bit stream
//! number. Everything above the bits (integers of a range, shuffles, choices, normal numbers) is spelled out, step for step
//! as `rand` 0.9 and `rand_distr` 0.5 have it, since those algorithms change between versions of the crates, and with
//! them every demonstration, data order and start that a seed stands for.

mod normal;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// A stream of random numbers.
#[derive(Clone, Debug)]
pub struct Rng(ChaCha8Rng);

impl Rng {
    /// Stream 0 of a seed.
    pub fn new(seed: u64) -> Self {
        Self::with_stream(seed, 0)
    }

    /// A stream of a seed. The 32-byte key is eight outputs of PCG32 (O'Neill 2014) that starts at the seed.
    pub fn with_stream(seed: u64, stream: u64) -> Self {
        let (mut state, mut key) = (seed, [0; 32]);
        for bytes in key.chunks_exact_mut(4) {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(11_634_580_027_462_260_723);
            let mixed = (((state >> 18) ^ state) >> 27) as u32;
            bytes.copy_from_slice(&mixed.rotate_right((state >> 59) as u32).to_le_bytes());
        }
        let mut rng = Self::with_key(key);
        rng.0.set_stream(stream);
        rng
    }

    /// Stream 0 of a key.
    pub fn with_key(key: [u8; 32]) -> Self {
        Self(ChaCha8Rng::from_seed(key))
    }

    /// The next 32 bits of the stream.
    pub fn next_u32(&mut self) -> u32 {
        self.0.next_u32()
    }

    /// The next 64 bits of the stream.
    pub fn next_u64(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// True in half of all cases.
    pub fn coin(&mut self) -> bool {
        self.next_u32() >> 31 == 1
    }

    /// True with a probability of `p`, from 0 to 1; 1 takes no random bits.
    pub fn chance(&mut self, p: f64) -> bool {
        p >= 1.0 || self.next_u64() < (p * 2f64.powi(64)) as u64
    }

    /// A multiple of 2^-53 from 0 to below 1.
    pub fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / 2f64.powi(53)
    }

    /// A number from `-bound` to below `bound`, in steps of `2^-22 bound`.
    pub fn symmetric(&mut self, bound: f32) -> f32 {
        // 23 bits behind the point of a number from 1 to below 2.
        let unit = f32::from_bits((self.next_u32() >> 9) | 1f32.to_bits()) - 1.0;
        unit * (bound + bound) - bound
    }

    /// A normal number of mean 0 and variance 1.
    pub fn normal(&mut self) -> f64 {
        normal::sample(self)
    }

    /// An integer below `n > 0`. One multiplication, and a second where the first is within `n` of a wrap (Canon 2020): the
    /// bias is below 2^-32 for `n` below 2^32.
    pub fn below(&mut self, n: usize) -> usize {
        assert!(n > 0, "random: a number below 0");
        if let Ok(n) = u32::try_from(n) {
            let (mut high, low) = halves(self.next_u32(), n);
            if low > n.wrapping_neg() {
                let (more, _) = halves(self.next_u32(), n);
                high += u32::from(low.checked_add(more).is_none());
            }
            return high as usize;
        }
        let n = n as u64;
        let wide = |x: u64| {
            let product = u128::from(x) * u128::from(n);
            ((product >> 64) as u64, product as u64)
        };
        let (mut high, low) = wide(self.next_u64());
        if low > n.wrapping_neg() {
            let (more, _) = wide(self.next_u64());
            high += u64::from(low.checked_add(more).is_none());
        }
        high as usize
    }

    /// An integer from `low` to `high`, both included, fewer than 2^32 of them, without bias (Lemire 2019).
    pub fn inclusive(&mut self, low: u32, high: u32) -> usize {
        assert!(low <= high && high - low < u32::MAX, "random: a number from {low} to {high}");
        let n = high - low + 1;
        loop {
            let (above, below) = halves(self.next_u32(), n);
            if below >= n.wrapping_neg() % n {
                return (low + above) as usize;
            }
        }
    }

    /// Puts a slice of fewer than 2^32 elements into random order: element `i`, for ascending `i`, is swapped with one from
    /// 0 to `i` (Fisher and Yates). One draw yields the indices of as many elements as fit 32 bits.
    pub fn shuffle<T>(&mut self, slice: &mut [T]) {
        assert!(u32::try_from(slice.len()).is_ok(), "random: a shuffle of {}", slice.len());
        if slice.len() < 2 {
            return;
        }
        // The mixed-radix number `chunk` has digits of the radices of this element and of `left` elements after it.
        let (mut chunk, mut left) = (0u32, 1u32);
        for i in 0..slice.len() {
            let radix = i as u32 + 1;
            if left == 0 {
                let (mut product, mut next) = (radix, radix + 1);
                while let Some(larger) = product.checked_mul(next) {
                    (product, next) = (larger, next + 1);
                }
                chunk = self.below(product as usize) as u32;
                left = next - radix;
            }
            left -= 1;
            let index = if left == 0 { chunk } else { chunk % radix };
            chunk /= radix;
            slice.swap(i, index as usize);
        }
    }

    /// One of a slice that is not empty.
    pub fn choose<'a, T>(&mut self, slice: &'a [T]) -> &'a T {
        &slice[self.below(slice.len())]
    }

    /// One of a sequence of unknown length, if there is one: element number `i` (from 1) replaces what was chosen with a
    /// probability of `1 / i`.
    pub fn choose_unsized<T>(&mut self, items: impl Iterator<Item = T>) -> Option<T> {
        let (mut chosen, mut coins) = (None, Coins::default());
        for (i, item) in items.enumerate() {
            if coins.one_in(self, i + 1) {
                chosen = Some(item);
            }
        }
        chosen
    }

    /// `count` of a sequence, or all of a shorter one: the first `count`, of which element number `i` of those after them
    /// replaces one with a probability of `count / i` (reservoir sampling).
    pub fn choose_many<T>(&mut self, mut items: impl Iterator<Item = T>, count: usize) -> Vec<T> {
        let mut chosen: Vec<T> = items.by_ref().take(count).collect();
        for (i, item) in items.enumerate() {
            let slot = self.below(i + 1 + count);
            if let Some(slot) = chosen.get_mut(slot) {
                *slot = item;
            }
        }
        chosen
    }
}

/// The upper and the lower 32 bits of a product.
fn halves(x: u32, y: u32) -> (u32, u32) {
    let product = u64::from(x) * u64::from(y);
    ((product >> 32) as u32, product as u32)
}

/// Flips of fair coins, 32 of them from one draw.
#[derive(Default)]
struct Coins {
    chunk: u32,
    left: u32,
}

impl Coins {
    /// True with a probability of `1 / n`.
    fn one_in(&mut self, rng: &mut Rng, n: usize) -> bool {
        // 2^-exponent is at least 1 / n; what is too much of it is taken off by `ratio`.
        let exponent = n.ilog2().min(32);
        self.heads(rng, exponent) && self.ratio(rng, 1 << exponent, n)
    }

    /// True with a probability of `over / under`, digit by digit.
    fn ratio(&mut self, rng: &mut Rng, mut over: usize, under: usize) -> bool {
        while over < under {
            let count = over.leading_zeros().saturating_sub(under.leading_zeros() + 1).clamp(1, 32);
            if self.heads(rng, count) {
                over = over.saturating_mul(1 << count);
                continue;
            }
            if count > 1 {
                return false;
            }
            let rest = over.wrapping_add(over).wrapping_sub(under);
            if rest == 0 || rest > over {
                return false;
            }
            over = rest;
        }
        true
    }

    /// Whether `count` coins in a row show heads (a 0); none is flipped after the first that does not.
    fn heads(&mut self, rng: &mut Rng, mut count: u32) -> bool {
        loop {
            let zeros = self.chunk.leading_zeros();
            if zeros < count {
                self.chunk = self.chunk.wrapping_shl(zeros + 1);
                self.left = self.left.saturating_sub(zeros + 1);
                return false;
            }
            if let Some(left) = self.left.checked_sub(count) {
                self.left = left;
                self.chunk = self.chunk.checked_shl(count).unwrap_or(0);
                return true;
            }
            count -= self.left;
            self.chunk = rng.next_u32();
            self.left = 32;
        }
    }
}

#[cfg(test)]
mod tests;
