//! Random bytes that nobody can guess: nonces, salts, keys, session ids.

use aws_lc_rs::rand;

/// Bytes of the provider's generator.
///
/// # Panics
/// Where the system has no randomness to give, which it says at the start of a process or never.
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).expect("the system's random generator works");
    bytes
}
