//! How fast is a database server given logins? A storm of reconnects waits here in line, instead of
//! being throttled there.
//!
//! AWS advises fewer than 200 new IAM connections a second to one RDS instance; above that it
//! throttles them, which looks like a wrong password.
//! <https://docs.aws.amazon.com/AmazonRDS/latest/UserGuide/UsingWithRDS.IAMDBAuth.html>

use std::num::NonZeroU32;

use super::line::{Line, Turn};
use crate::error::{ErrorKind, Refusal};

/// Limits how many logins to one server may be in flight, and how fast they may begin.
pub(super) struct Pacing {
    line: Line,
    /// The limits, for the client that is refused.
    limits: String,
}

impl Pacing {
    /// Creates the pacing of a server that takes this many logins a second, and this many at a
    /// time.
    pub fn new(max_logins_per_second: NonZeroU32, max_concurrent_logins: usize) -> Self {
        Self {
            line: Line::new(max_logins_per_second, max_concurrent_logins, usize::MAX),
            limits: format!(
                "max_logins_per_second = {max_logins_per_second}, \
                 max_concurrent_logins = {max_concurrent_logins}"
            ),
        }
    }

    /// Waits until a login to this server may begin; it counts as one in flight until what is
    /// returned is dropped.
    ///
    /// # Errors
    /// SQLSTATE 57P03: at once if it could not begin within 10 s, or after 10 s if those in flight
    /// take too long.
    pub async fn acquire(&self) -> Result<Turn<'_>, Refusal> {
        self.line.turn().await.map_err(|_| {
            Refusal::new(
                ErrorKind::TooManyLogins,
                "too many logins to the database server at the moment",
            )
            .detail(self.limits.clone())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_client_that_is_refused_is_told_the_limits() {
        let pacing = Pacing::new(NonZeroU32::new(100).unwrap(), 1);
        let _in_flight = pacing.acquire().await.unwrap();
        let refusal = pacing.acquire().await.unwrap_err();
        assert_eq!(refusal.kind, ErrorKind::TooManyLogins);
        assert_eq!(
            refusal.detail.as_deref(),
            Some("max_logins_per_second = 100, max_concurrent_logins = 1")
        );
    }
}
