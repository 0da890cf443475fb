//! How much a stress test does: little in `cargo xtask test`, much in `cargo xtask soak`; and what it chooses at random.
//!
//! `cargo xtask soak` sets two variables. Their names stand in `xtask/src/suite.rs`, too.

use std::env;

/// The variable that is set in a soak.
const SOAK: &str = "MINIVM_TEST_SOAK";

/// The variable with the seed of a soak's round.
const SEED: &str = "MINIVM_TEST_SEED";

/// Returns `many` in a soak, and `few` otherwise: how often something is done, or at which moments.
pub fn count<T>(few: T, many: T) -> T {
    match env::var_os(SOAK) {
        Some(_) => many,
        None => few,
    }
}

/// Returns the seed for what a test chooses at random: that of the soak's round, or always the same one.
///
/// # Panics
///
/// If the variable isn't a number.
pub fn seed() -> u64 {
    env::var(SEED).map_or(1, |seed| {
        seed.parse()
            .unwrap_or_else(|error| panic!("{SEED}={seed}: {error}"))
    })
}

/// A sequence of numbers that look random, by SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number
/// generators", 2014).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A sequence that is the same for each seed.
    pub fn new(seed: u64) -> Self {
        Random(seed)
    }

    /// The next number of the sequence.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// A number below `end`.
    ///
    /// # Panics
    ///
    /// If `end` is 0.
    pub fn below(&mut self, end: usize) -> usize {
        let number = self.number() % end as u64;
        usize::try_from(number).expect("it is below a usize")
    }

    /// So many bytes.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.number().to_le_bytes()[0]).collect()
    }
}

impl Default for Random {
    /// A sequence from [`seed`].
    fn default() -> Self {
        Random::new(seed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_splitmix64() {
        // Of the reference implementation, for the seed 1234567.
        let mut random = Random::new(1_234_567);
        let numbers = [(); 3].map(|()| random.number());
        let expected = [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
        ];
        assert_eq!(numbers, expected);
    }

    #[test]
    fn choices_are_below_their_end() {
        let mut random = Random::default();
        assert!((1..100).all(|end| random.below(end) < end));
        assert_eq!(random.bytes(5).len(), 5);
    }
}
