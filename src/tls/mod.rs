//! The only place that builds rustls configurations, and what is read from certificates.
//!
//! Architecture invariant: nothing here can make a verifier that accepts what webpki refuses, and the
//! provider is always aws-lc-rs, named explicitly.

pub mod channel_binding;
mod failure;
mod roots;
pub mod upstream;

pub use failure::TlsFailure;
pub use roots::{CaFileError, trusted_roots};
