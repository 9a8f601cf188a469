//! Whom does the proxy trust, and how is TLS spoken? Only this folder builds rustls configurations.
//!
//! Architecture invariant: nothing here can make a verifier that accepts what webpki refuses, and
//! the provider is always aws-lc-rs, named explicitly.

mod channel_binding;
mod client_certificate;
mod failure;
mod handshake;
pub mod listener;
pub mod record;
mod revocation;
mod roots;
mod server_certificate;
pub mod stream;
#[cfg(test)]
pub(crate) mod testing;
pub mod unsent;
pub mod upstream;

pub use client_certificate::CertificateNames;
pub use failure::TlsFailure;
pub use roots::{CaFileError, trusted_roots};
pub use server_certificate::ServerCertificate;
