//! What is wrong when a step of a login fails, and what is to be done about it?
//!
//! `aws` explains why AWS gives nothing, `connect` why there is no verified connection, `log_in`
//! why the server does not let the user in, and `password_refused` the part of that which differs
//! between engines.

mod aws;
mod connect;
mod log_in;
mod password_refused;

pub use aws::{aws_call, identity};
pub use connect::connect;
pub use log_in::{log_in, query};

use crate::check::report::{Advice, Failure};
use crate::error::Refusal;

/// The login cannot use these names.
pub fn route(refusal: &Refusal) -> Failure {
    Failure {
        error: refusal.message.to_string(),
        advice: Advice::new(
            "the login is refused before AWS or a server is asked",
            "correct the target, or give other names with --user and --database",
        ),
    }
}
