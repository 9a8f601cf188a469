//! Why does the server not let the user in?

use super::password_refused::{password_refused, quoted};
use crate::check::login::CheckedLogin;
use crate::check::report::{Advice, Failure};
use crate::error::chain;
use crate::upstream::log_in::UpstreamLoginError;
use crate::upstream::query::QueryError;
use crate::wire::sqlstate::SqlState;

/// `insufficient_privilege`, of <https://www.postgresql.org/docs/current/errcodes-appendix.html>.
const INSUFFICIENT_PRIVILEGE: &str = "42501";

/// The login failed.
pub fn log_in(error: &UpstreamLoginError, login: CheckedLogin<'_>) -> Failure {
    let (error, advice) = match error {
        UpstreamLoginError::PasswordRefused(response) => (
            response.message(),
            password_refused(login, response.sqlstate()),
        ),
        UpstreamLoginError::Refused(response) => {
            (response.message(), refused(login, response.sqlstate()))
        }
        UpstreamLoginError::Unsupported(_) => (
            chain(error),
            Advice::new(
                "IAM users are asked for a cleartext password, MD5 or Redshift's digest",
                "see whether engine, host and port are right, and the user is one that logs in \
                 with IAM",
            ),
        ),
        UpstreamLoginError::Violation(_)
        | UpstreamLoginError::Closed(_)
        | UpstreamLoginError::TimedOut => (
            chain(error),
            Advice::new(
                "the server began a login and did not end it",
                "try again, since a paused cluster takes a while to wake up; then see the \
                 server's own log",
            ),
        ),
    };
    Failure { error, advice }
}

/// The server refuses the login for another reason than the password.
fn refused(login: CheckedLogin<'_>, sqlstate: SqlState) -> Advice {
    let database = &login.route.database;
    match sqlstate {
        SqlState::InvalidCatalogName => Advice::new(
            format!("the server has no database \"{database}\""),
            "correct database, or --database",
        ),
        SqlState::TooManyConnections => Advice::new(
            "the server has no connection left",
            "try again when others have ended",
        ),
        other if other.code() == INSUFFICIENT_PRIVILEGE => {
            let user = login
                .db_user()
                .map_or_else(|| "the user of the AWS identity".to_string(), quoted);
            Advice::new(
                format!("the user may not use database \"{database}\""),
                format!("GRANT CONNECT ON DATABASE {} TO {user};", quoted(database)),
            )
        }
        other => Advice::new(
            format!(
                "these are the server's own words, SQLSTATE {}",
                other.code()
            ),
            "correct what the server names",
        ),
    }
}

/// The login worked, but the query did not.
pub fn query(error: &QueryError) -> Failure {
    Failure {
        error: chain(error),
        advice: Advice::new(
            "the login was good, but the server does not answer SELECT 1",
            "see the server's own log, and its workload management where queries wait in queues",
        ),
    }
}
