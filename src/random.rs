//! Where do nonces, salts, keys and session ids come from? They are random bytes that nobody can
//! guess.

use aws_lc_rs::rand;

/// Returns `N` bytes of the crypto provider's random generator.
///
/// # Panics
/// When the system has no randomness to give. That shows when a process starts, or never.
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).expect("the system's random generator works");
    bytes
}
