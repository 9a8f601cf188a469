//! One value a key, made once for all who wait for it.
//!
//! A login with a usable value takes one short lock and never waits. Without one, the first login makes it while
//! the others of its key wait; when it fails, those that waited share its failure instead of asking again.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::Refusal;

/// Keys hold names that clients choose. Above this many, those without a usable value are dropped.
const SWEEP_ABOVE: usize = 1_000;

/// A value that is good for a time.
pub trait Expires {
    /// Whether it can be handed out now, by the wall clock: a machine that slept must not use what died meanwhile.
    fn is_usable(&self) -> bool;
}

pub struct Cache<K, V>(Mutex<HashMap<K, Arc<Slot<V>>>>);

struct Slot<V> {
    value: Mutex<Option<Arc<V>>>,
    /// Held by the login that makes the value. Inside: the last failure, and which attempt it was.
    making: tokio::sync::Mutex<Option<(u64, Refusal)>>,
    attempts: AtomicU64,
}

impl<K, V> Default for Cache<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<V> Default for Slot<V> {
    fn default() -> Self {
        Self { value: Mutex::default(), making: tokio::sync::Mutex::default(), attempts: AtomicU64::new(0) }
    }
}

impl<K: Eq + Hash, V: Expires> Cache<K, V> {
    /// The value, and whether it was there already.
    ///
    /// When the future that makes it is dropped, the next login in line makes it.
    pub async fn get<F: Future<Output = Result<V, Refusal>>>(&self, key: K, make: impl FnOnce() -> F) -> Result<(Arc<V>, bool), Refusal> {
        let slot = self.slot(key);
        if let Some(value) = slot.usable() {
            return Ok((value, true));
        }
        let seen = slot.attempts.load(Relaxed);
        let mut last_failure = slot.making.lock().await;
        if let Some(value) = slot.usable() {
            return Ok((value, true));
        }
        if let Some((attempt, refusal)) = last_failure.as_ref()
            && *attempt > seen
        {
            return Err(refusal.clone());
        }
        let result = make().await;
        let attempt = slot.attempts.fetch_add(1, Relaxed) + 1;
        match result {
            Ok(value) => {
                let value = Arc::new(value);
                *lock(&slot.value) = Some(value.clone());
                Ok((value, false))
            }
            Err(refusal) => {
                *last_failure = Some((attempt, refusal.clone()));
                Err(refusal)
            }
        }
    }

    /// Forgets this value, unless another has taken its place.
    pub fn forget(&self, key: &K, value: &Arc<V>) {
        if let Some(slot) = lock(&self.0).get(key) {
            lock(&slot.value).take_if(|held| Arc::ptr_eq(held, value));
        }
    }

    /// Forgets whatever is there.
    pub fn forget_any(&self, key: &K) {
        if let Some(slot) = lock(&self.0).get(key) {
            *lock(&slot.value) = None;
        }
    }

    fn slot(&self, key: K) -> Arc<Slot<V>> {
        let mut slots = lock(&self.0);
        if slots.len() >= SWEEP_ABOVE && !slots.contains_key(&key) {
            slots.retain(|_, slot| Arc::strong_count(slot) > 1 || slot.usable().is_some());
        }
        slots.entry(key).or_default().clone()
    }
}

impl<V: Expires> Slot<V> {
    fn usable(&self) -> Option<Arc<V>> {
        lock(&self.value).as_ref().filter(|value| value.is_usable()).cloned()
    }
}

/// A panic cannot leave these half changed: no code of others runs under the locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
