//! How a client comes to a session at the server: with a spare that waits for such a client, or by a login of its own.

use super::Login;
use super::attempt::{Attempt, Ready, is_refusal};
use super::facts::Progress;
use crate::error::Ending;
use crate::places::Place;
use crate::upstream::log_in::LoggedIn;

impl Login<'_> {
    /// Takes the client's place at the target too.
    ///
    /// # Errors
    /// 53300, or what the login of its own came to.
    pub(super) async fn reach(&mut self, attempt: &Attempt) -> Result<LoggedIn, Ending> {
        let shared = self.shared;
        let target = &attempt.route.target;
        let place = Place::Target(target.name.clone());
        let Some(pool) = shared.warm.of(target) else {
            shared.places.take(&place, &mut self.places)?;
            return self.log_in(attempt).await;
        };
        let kind = attempt.kind();
        let session = if let Some((Ready { session, db_user }, place)) = pool.take(&kind).await {
            self.places.add(place);
            let upstream = Some(session.connection.address);
            self.facts.progress = Progress { db_user, upstream, warm: true, ..Progress::default() };
            session
        } else {
            // Spares have places at the target too, and make room.
            while let Err(refusal) = shared.places.take(&place, &mut self.places) {
                if !pool.make_room() {
                    return Err(refusal.into());
                }
            }
            self.log_in(attempt).await.inspect_err(|ending| {
                if is_refusal(ending) {
                    pool.refused(&kind);
                }
            })?
        };
        pool.seen(kind, attempt.clone());
        Ok(session)
    }

    async fn log_in(&mut self, attempt: &Attempt) -> Result<LoggedIn, Ending> {
        attempt.log_in(&mut self.facts.progress, Some(&self.facts.id)).await
    }
}
