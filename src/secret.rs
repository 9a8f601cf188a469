//! What holds a secret, and how are two secrets compared?
//!
//! Passwords, authentication tokens and cancel keys are printed as `…` by `Debug`, have no
//! `Display` and are wiped from memory when they are dropped.

use std::fmt;

use aws_lc_rs::constant_time;
use zeroize::Zeroizing;

/// Bytes that must not reach a log line, an error text or another client.
#[derive(Clone)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Takes ownership of the bytes; the caller should not keep another copy.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(Zeroizing::new(bytes.into()))
    }

    /// The bytes themselves. The method has this name so that a review sees every use of it.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

/// The comparison takes the same time wherever the two differ, so nobody can guess a secret byte by
/// byte.
impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        are_equal(self.expose(), other.expose())
    }
}

impl Eq for Secret {}

/// Whether two byte strings are equal, in a time that depends on their lengths only.
pub fn are_equal(a: &[u8], b: &[u8]) -> bool {
    constant_time::verify_slices_are_equal(a, b).is_ok()
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_output_never_shows_the_bytes() {
        let secret = Secret::new("hunter2");
        assert_eq!(format!("{secret:?}"), "…");
        assert_eq!(format!("{:?}", Some(&secret)), "Some(…)");
    }
}
