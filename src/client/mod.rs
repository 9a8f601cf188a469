//! How does the proxy speak to clients? On the client leg it is the server.
//!
//! Architecture invariant: nothing here knows the upstream leg, and only [`reject`] writes error
//! responses that are the proxy's own.

pub mod authenticate;
pub mod certificate_user;
pub mod identity;
pub mod negotiate;
pub mod penalty;
pub mod reject;
pub mod stream;
pub mod turns;
pub mod version;
pub mod welcome;
