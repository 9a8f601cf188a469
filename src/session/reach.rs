//! How a client comes to a session at the server: with a spare that waits for such a client, or by
//! a login of its own.

use super::Login;
use super::attempt::{Attempt, Ready, is_refusal};
use super::established::Heirs;
use super::facts::Progress;
use crate::error::LoginError;
use crate::places::Place;

impl Login<'_> {
    /// Takes the client's place at the target too, and says who may have the session after it.
    ///
    /// # Errors
    /// 53300, or what the login of its own came to.
    pub(super) async fn reach(
        &mut self,
        attempt: &Attempt,
    ) -> Result<(Ready, Option<Heirs>), LoginError> {
        let shared = self.shared;
        let target = &attempt.route.target;
        let place = Place::Target(target.name.clone());
        let Some(pool) = shared.warm.of(target) else {
            shared.places.take(&place, &mut self.places)?;
            return Ok((self.log_in(attempt).await?, None));
        };
        let kind = attempt.kind();
        let ready = if let Some((ready, place)) = pool.take(&kind).await {
            self.places.add(place);
            let (db_user, upstream) = (
                ready.db_user.clone(),
                Some(ready.session.connection.address),
            );
            self.facts.progress = Progress {
                db_user,
                upstream,
                warm: true,
                ..Progress::default()
            };
            ready
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
        let kind = pool.seen(kind, attempt.clone());
        Ok((ready, Heirs::of(pool, kind)))
    }

    async fn log_in(&mut self, attempt: &Attempt) -> Result<Ready, LoginError> {
        attempt
            .log_in(&mut self.facts.progress, Some(&self.facts.id))
            .await
    }
}
