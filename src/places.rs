//! How many sessions there may be at a time: in all, on a listener, to a target, of a user.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config::Config;
use crate::error::{ErrorKind, Refusal};

/// What a limit is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Place {
    /// All sessions.
    Proxy,
    /// Those of the listener at this address.
    Listener(String),
    /// Those to this target.
    Target(String),
    /// Those of this user.
    User(String),
}

/// The limits that are set.
pub struct Places(HashMap<Place, Limit>);

struct Limit {
    key: String,
    sessions: usize,
    free: Arc<Semaphore>,
}

/// A place in each of several; they are free again when it is dropped.
#[derive(Default)]
pub struct Taken(Vec<(Place, OwnedSemaphorePermit)>);

impl Taken {
    /// Adds places taken elsewhere.
    pub fn add(&mut self, mut other: Self) {
        self.0.append(&mut other.0);
    }

    /// Gives up all but those of this kind.
    #[must_use]
    pub fn only(mut self, kind: &Place) -> Self {
        self.0.retain(|(place, _)| place == kind);
        self
    }
}

impl Places {
    /// Every limit of the configuration.
    pub fn new(config: &Config) -> Self {
        let mut places = Self(HashMap::new());
        places.limit(
            Place::Proxy,
            "limits.max_sessions".to_string(),
            Some(config.limits.max_sessions),
        );
        for listener in &config.listeners {
            let address = listener.address.to_string();
            places.limit(
                Place::Listener(address.clone()),
                format!("max_sessions of listener {address}"),
                listener.max_sessions,
            );
            for target in &listener.targets {
                let key = format!("target.{}.max_sessions", target.name);
                places.limit(Place::Target(target.name.clone()), key, target.max_sessions);
            }
        }
        for (name, user) in &config.users {
            places.limit(
                Place::User(name.clone()),
                format!("user.{name}.max_sessions"),
                user.max_sessions,
            );
        }
        places
    }

    /// Takes one place of this kind, besides those taken before.
    ///
    /// # Errors
    /// 53300 with the limit in DETAIL.
    pub fn take(&self, place: &Place, taken: &mut Taken) -> Result<(), Refusal> {
        let Some(limit) = self.0.get(place) else {
            return Ok(());
        };
        let permit = limit.free.clone().try_acquire_owned().map_err(|_| {
            Refusal::new(
                ErrorKind::TooManySessions,
                "sorry, too many clients already",
            )
            .detail(format!("{} = {}", limit.key, limit.sessions))
        })?;
        taken.0.push((place.clone(), permit));
        Ok(())
    }

    fn limit(&mut self, place: Place, key: String, sessions: Option<usize>) {
        if let Some(sessions) = sessions {
            self.0.entry(place).or_insert_with(|| Limit {
                key,
                sessions,
                free: Arc::new(Semaphore::new(sessions)),
            });
        }
    }
}
