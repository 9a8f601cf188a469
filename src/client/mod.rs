//! The client's leg, where we speak as the server.
//!
//! Architecture invariant: nothing here knows the upstream leg, and only [`reject`] writes an
//! `ErrorResponse` of ours.

pub mod authenticate;
pub mod certificate_user;
pub mod identity;
pub mod negotiate;
pub mod penalty;
pub mod reject;
pub mod stream;
pub mod version;
pub mod welcome;
