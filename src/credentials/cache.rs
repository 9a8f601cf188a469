//! How do many logins share one call to AWS? Each key has one value, which is loaded once for
//! everyone who waits for it, and loaded again before it expires.
//!
//! A login that finds a usable value takes two short locks and never waits. If there is none, the
//! first login loads it while the others of its key wait. If that fails, they share the failure,
//! and so do the logins of the next moments. A value that has been used is replaced in the
//! background some time before it expires; while that fails, the old value continues to serve. What
//! has to make room for other keys is gone at once, and is replaced no more.

use std::hash::Hash;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use lru::LruCache;
use parking_lot::Mutex;
use tokio_util::task::AbortOnDropHandle;

use super::deadline::Deadline;
use super::error::AwsError;
use crate::metrics::GaugeGuard;
use crate::random;

/// Keys contain names that clients choose, so their number has to be bounded: above this many, the
/// one that has not been asked for longest is forgotten. A key takes about a kilobyte.
const MAX_KEYS: usize = 10_000;
/// How long a denial is believed: no one grants a permission and then wonders why it takes effect
/// three seconds later.
const DENIAL_LIFE: Duration = Duration::from_secs(3);
/// How long the proxy believes that AWS cannot be asked.
const OUTAGE_LIFE: Duration = Duration::from_secs(1);
/// The first pause between attempts to replace a value while the old one serves, and the longest;
/// the pauses double in between.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_mins(1);

/// A value that is valid for a limited time.
pub(super) trait Expires: Send + Sync + 'static {
    /// The moment until which the value may be handed out.
    fn use_until(&self) -> Deadline;
    /// When to replace the value. The moment varies, so that values made together are not replaced
    /// together.
    fn replace_at(&self) -> Deadline;
}

/// How a value is loaded. It is called again for each replacement.
pub(super) trait Loader<V>: Send + Sync + 'static {
    /// Loads a value.
    fn load(&self) -> impl Future<Output = Result<V, AwsError>> + Send;

    /// Counts a value that continues to serve because it cannot be replaced, for as long as the
    /// guard is held.
    fn renewal_failing(&self) -> Option<GaugeGuard> {
        None
    }

    /// What the log calls the value.
    fn label(&self) -> String;
}

pub(super) struct Cache<K: Eq + Hash, V>(Mutex<LruCache<K, Arc<Slot<V>>>>);

struct Slot<V> {
    state: Mutex<SlotState<V>>,
    /// Held by the login or the task that is loading a value.
    loading: tokio::sync::Mutex<()>,
    /// The task that replaces the value, which ends with this.
    renewal: Mutex<Option<AbortOnDropHandle<()>>>,
}

struct SlotState<V> {
    value: Option<Arc<V>>,
    /// Whether the value has been handed out since it was made.
    used: bool,
    /// The last failure, and until when it is the answer to everyone who asks.
    failure: Option<(Instant, AwsError)>,
    /// Whether the log already says that the value cannot be replaced.
    failure_logged: bool,
}

impl<K: Eq + Hash, V> Default for Cache<K, V> {
    fn default() -> Self {
        // Unbounded, because it would be allocated in full otherwise: `slot` keeps the bound.
        Self(Mutex::new(LruCache::unbounded()))
    }
}

impl<V> Default for Slot<V> {
    fn default() -> Self {
        Self {
            state: Mutex::new(SlotState {
                value: None,
                used: false,
                failure: None,
                failure_logged: false,
            }),
            loading: tokio::sync::Mutex::default(),
            renewal: Mutex::default(),
        }
    }
}

impl<K: Eq + Hash, V: Expires> Cache<K, V> {
    /// Returns the value if there is one that can be used.
    pub(super) fn usable(&self, key: &K) -> Option<Arc<V>> {
        let slot = self.0.lock().get(key)?.clone();
        slot.usable()
    }

    /// Returns the value, and whether it was already cached; loads it if it was not.
    ///
    /// If the future that loads the value is dropped, the next login in line loads it.
    ///
    /// # Errors
    /// Returns the error of the loader, from this call or from one a moment ago.
    pub(super) async fn get_or_load(
        &self,
        key: K,
        loader: impl Loader<V>,
    ) -> Result<(Arc<V>, bool), AwsError> {
        let name = loader.label();
        let slot = self.slot(key);
        let _loading = slot.loading.lock().await;
        if let Some(value) = slot.usable() {
            return Ok((value, true));
        }
        if let Some(error) = slot.failure() {
            return Err(error);
        }
        match loader.load().await {
            Ok(value) => {
                let value = slot.store(&name, value);
                slot.state.lock().used = true;
                let renewal = tokio::spawn(keep_fresh(
                    name,
                    Arc::downgrade(&slot),
                    Arc::downgrade(&value),
                    loader,
                ));
                *slot.renewal.lock() = Some(AbortOnDropHandle::new(renewal));
                Ok((value, false))
            }
            Err(error) => {
                let life = if error.is_transient() {
                    OUTAGE_LIFE
                } else {
                    DENIAL_LIFE
                };
                slot.state.lock().failure = Some((Instant::now() + life, error.clone()));
                Err(error)
            }
        }
    }

    /// Forgets this value, unless another has replaced it.
    pub(super) fn forget(&self, key: &K, value: &Arc<V>) {
        if let Some(slot) = self.0.lock().peek(key) {
            slot.state
                .lock()
                .value
                .take_if(|held| Arc::ptr_eq(held, value));
        }
    }

    /// Forgets the key's value, whichever it is.
    pub(super) fn forget_any(&self, key: &K) {
        if let Some(slot) = self.0.lock().peek(key) {
            slot.state.lock().value = None;
        }
    }

    fn slot(&self, key: K) -> Arc<Slot<V>> {
        let mut slots = self.0.lock();
        let slot = slots.get_or_insert(key, Arc::default).clone();
        let forgotten = (slots.len() > MAX_KEYS).then(|| slots.pop_lru());
        drop(slots);
        drop(forgotten);
        slot
    }
}

impl<V: Expires> Slot<V> {
    fn usable(&self) -> Option<Arc<V>> {
        let mut state = self.state.lock();
        let value = state
            .value
            .clone()
            .filter(|value| !value.use_until().has_passed())?;
        state.used = true;
        Some(value)
    }

    fn failure(&self) -> Option<AwsError> {
        self.state
            .lock()
            .failure
            .as_ref()
            .filter(|(until, _)| Instant::now() < *until)
            .map(|(_, error)| error.clone())
    }

    fn store(&self, name: &str, value: V) -> Arc<V> {
        let value = Arc::new(value);
        let state = SlotState {
            value: Some(value.clone()),
            used: false,
            failure: None,
            failure_logged: false,
        };
        if std::mem::replace(&mut *self.state.lock(), state).failure_logged {
            tracing::info!(credential = name, "AWS answers again");
        }
        value
    }

    /// Logs the failure once, until the value can be replaced again.
    fn log_failure_once(&self, name: &str, error: &AwsError) {
        if !std::mem::replace(&mut self.state.lock().failure_logged, true) {
            let cause = error.cause();
            tracing::warn!(
                credential = name,
                refusal = error.to_string(),
                cause,
                "cannot be renewed; what is at hand serves on"
            );
        }
    }

    /// Loads a replacement for this value. Returns `None` if the value was not used, or if it is no
    /// longer the current one.
    async fn replace(
        &self,
        name: &str,
        value: &Arc<V>,
        loader: &impl Loader<V>,
    ) -> Option<Result<Arc<V>, AwsError>> {
        // Only one value is loaded at a time, and someone else may have replaced this one
        // meanwhile.
        let _loading = self.loading.lock().await;
        {
            let state = self.state.lock();
            if !state.used
                || state
                    .value
                    .as_ref()
                    .is_none_or(|held| !Arc::ptr_eq(held, value))
            {
                return None;
            }
        }
        Some(loader.load().await.map(|made| self.store(name, made)))
    }
}

/// Replaces a value before it expires, then its replacement, and so on for as long as each is used.
/// It ends with the first that is not.
async fn keep_fresh<V: Expires>(
    name: String,
    slot: Weak<Slot<V>>,
    mut value: Weak<V>,
    loader: impl Loader<V>,
) {
    let mut pause = FIRST_PAUSE;
    let mut wait = value
        .upgrade()
        .map_or(Duration::ZERO, |value| value.replace_at().remaining());
    let mut failing = None;
    loop {
        tokio::time::sleep(wait).await;
        let (Some(slot), Some(held)) = (slot.upgrade(), value.upgrade()) else {
            return;
        };
        // Boxed, because the SDK's futures would make up most of what a cached value takes.
        match Box::pin(slot.replace(&name, &held, &loader)).await {
            None => return,
            Some(Ok(made)) => {
                pause = FIRST_PAUSE;
                failing = None;
                wait = made.replace_at().remaining();
                value = Arc::downgrade(&made);
            }
            Some(Err(error)) => {
                slot.log_failure_once(&name, &error);
                let left = held.use_until().remaining();
                if left.is_zero() {
                    return;
                }
                failing = failing.or_else(|| loader.renewal_failing());
                wait = pause.mul_f64(jitter()).min(left);
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}

/// Returns a random factor from 0.75 to 1, so that what was made together is not renewed together.
pub(super) fn jitter() -> f64 {
    let [byte] = random::bytes();
    1.0 - f64::from(byte) / 1024.0
}

#[cfg(test)]
mod tests {
    use super::super::error::AwsErrorReason::{self, Rejected, Unavailable};
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    /// A number that is valid for a limited time.
    struct Number {
        number: usize,
        use_until: Deadline,
        replace_at: Deadline,
    }

    impl Expires for Number {
        fn use_until(&self) -> Deadline {
            self.use_until
        }

        fn replace_at(&self) -> Deadline {
            self.replace_at
        }
    }

    /// Counts the values that it loads, and fails while the test tells it to.
    #[derive(Clone)]
    struct Counter {
        calls: Arc<AtomicUsize>,
        /// How it fails, and from which call on.
        failure: Arc<Mutex<Option<(AwsErrorReason, usize)>>>,
        life: Duration,
        replaced_after: Duration,
    }

    impl Counter {
        fn with_life(life: Duration) -> Self {
            Self {
                calls: Arc::default(),
                failure: Arc::default(),
                life,
                replaced_after: life / 2,
            }
        }

        fn calls(&self) -> usize {
            self.calls.load(SeqCst)
        }

        fn fail(&self, kind: impl Into<Option<AwsErrorReason>>) {
            *self.failure.lock() = kind.into().map(|kind| (kind, 1));
        }

        fn fail_after_first(&self, kind: AwsErrorReason) {
            *self.failure.lock() = Some((kind, 2));
        }
    }

    impl Loader<Number> for Counter {
        fn label(&self) -> String {
            "number".to_string()
        }

        async fn load(&self) -> Result<Number, AwsError> {
            let number = self.calls.fetch_add(1, SeqCst) + 1;
            // Other logins of the key arrive while this call is under way.
            tokio::task::yield_now().await;
            match self.failure.lock().clone() {
                Some((kind, from)) if number >= from => Err(AwsError::new(kind, "no")),
                _ => Ok(Number {
                    number,
                    use_until: Deadline::after(self.life),
                    replace_at: Deadline::after(self.replaced_after),
                }),
            }
        }
    }

    async fn number(
        cache: &Cache<String, Number>,
        counter: &Counter,
    ) -> Result<usize, AwsErrorReason> {
        cache
            .get_or_load("key".to_string(), counter.clone())
            .await
            .map(|(value, _)| value.number)
            .map_err(|error| error.reason)
    }

    async fn wait_until(mut condition: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !condition() {
            assert!(Instant::now() < deadline, "waited in vain");
            tokio::task::yield_now().await;
        }
    }

    fn spawn_a_thousand_logins(
        cache: &Arc<Cache<String, Number>>,
        counter: &Counter,
    ) -> Vec<tokio::task::JoinHandle<Result<usize, AwsErrorReason>>> {
        let login = |_| {
            let (cache, counter) = (cache.clone(), counter.clone());
            tokio::spawn(async move { number(&cache, &counter).await })
        };
        (0..1_000).map(login).collect()
    }

    #[tokio::test]
    async fn a_thousand_first_logins_share_one_call() {
        let (cache, counter) = (
            Arc::new(Cache::default()),
            Counter::with_life(Duration::from_mins(15)),
        );
        for login in spawn_a_thousand_logins(&cache, &counter) {
            assert_eq!(login.await.unwrap(), Ok(1));
        }
        assert_eq!(counter.calls(), 1);
    }

    #[tokio::test]
    async fn a_thousand_failing_logins_share_one_call_and_later_ones_reuse_its_failure() {
        let (cache, counter) = (
            Arc::new(Cache::default()),
            Counter::with_life(Duration::from_mins(15)),
        );
        counter.fail(Rejected);
        for login in spawn_a_thousand_logins(&cache, &counter) {
            assert_eq!(login.await.unwrap(), Err(Rejected));
        }
        assert_eq!(number(&cache, &counter).await, Err(Rejected));
        assert_eq!(counter.calls(), 1);
    }

    #[tokio::test]
    async fn a_value_in_use_is_replaced_before_it_expires_and_an_unused_one_is_not() {
        let life = Duration::from_millis(400);
        let (cache, counter) = (Cache::default(), Counter::with_life(life));
        assert_eq!(number(&cache, &counter).await, Ok(1));
        // Logins continue: each finds a value, and none has to load one.
        let deadline = Instant::now() + life * 5;
        while Instant::now() < deadline {
            assert!(cache.usable(&"key".to_string()).is_some());
            tokio::task::yield_now().await;
        }
        assert!(counter.calls() >= 4, "{} values", counter.calls());
        // Logins stop, so the current value is replaced once more at most. Looking
        // at the slot does not count as using it.
        let at_the_stop = counter.calls();
        let slot = cache.slot("key".to_string());
        wait_until(|| {
            let state = slot.state.lock();
            let value = state.value.as_ref();
            value.is_none_or(|value| value.use_until().has_passed())
        })
        .await;
        assert!(
            counter.calls() <= at_the_stop + 1,
            "{} after {at_the_stop}",
            counter.calls()
        );
    }

    #[tokio::test]
    async fn a_value_serves_while_aws_fails_and_attempts_to_replace_it_back_off() {
        let (cache, counter) = (
            Cache::default(),
            Counter {
                replaced_after: Duration::ZERO,
                ..Counter::with_life(Duration::from_secs(20))
            },
        );
        counter.fail_after_first(Unavailable);
        let started = Instant::now();
        assert_eq!(number(&cache, &counter).await, Ok(1));
        // Attempts come at once, one second later, and two seconds after that. Each pause may be a
        // quarter shorter.
        wait_until(|| {
            assert_eq!(
                cache.usable(&"key".to_string()).map(|value| value.number),
                Some(1),
                "the old one serves on"
            );
            counter.calls() >= 4
        })
        .await;
        assert!(
            started.elapsed() >= (FIRST_PAUSE * 3).mul_f64(0.75),
            "{:?}",
            started.elapsed()
        );
        counter.fail(None);
        wait_until(|| {
            cache
                .usable(&"key".to_string())
                .is_some_and(|value| value.number == 5)
        })
        .await;
    }

    #[tokio::test]
    async fn above_the_bound_the_key_that_was_not_asked_for_longest_is_forgotten_with_all_it_has() {
        let (cache, counter) = (
            Cache::default(),
            Counter::with_life(Duration::from_mins(15)),
        );
        let load = async |key: &str| {
            let loaded = cache.get_or_load(key.to_string(), counter.clone()).await;
            let (value, cached) = loaded.map_err(|error| error.reason).unwrap();
            (Arc::downgrade(&value), cached)
        };
        let (first, _) = load("first").await;
        let (second, _) = load("second").await;
        for number in 2..MAX_KEYS {
            load(&number.to_string()).await;
        }
        assert_eq!(cache.0.lock().len(), MAX_KEYS);
        assert!(cache.usable(&"first".to_string()).is_some());
        load("one more").await;
        assert_eq!(cache.0.lock().len(), MAX_KEYS);
        assert!(first.upgrade().is_some(), "it has just been asked for");
        assert!(second.upgrade().is_none());
        assert!(load("first").await.1);
        assert!(!load("second").await.1);
        for number in 0..100 {
            load(&format!("other {number}")).await;
        }
        // Each task that renews a value holds the counter.
        wait_until(|| Arc::strong_count(&counter.calls) <= MAX_KEYS + 1).await;
    }

    #[tokio::test]
    async fn what_waits_to_be_renewed_is_small() {
        /// As large as a call of the SDK.
        struct Large;
        impl Loader<Number> for Large {
            fn label(&self) -> String {
                String::new()
            }

            async fn load(&self) -> Result<Number, AwsError> {
                let state = [0_u8; 16_384];
                tokio::task::yield_now().await;
                Err(AwsError::new(Rejected, format!("{}", state.len())))
            }
        }
        let renewal = keep_fresh(String::new(), Weak::new(), Weak::new(), Large);
        assert!(size_of_val(&renewal) < 1_024, "{}", size_of_val(&renewal));
    }

    #[tokio::test]
    async fn forgetting_a_refused_value_keeps_a_newer_one() {
        let (cache, counter) = (
            Cache::default(),
            Counter::with_life(Duration::from_mins(15)),
        );
        let (first, _) = cache
            .get_or_load("key".to_string(), counter.clone())
            .await
            .unwrap();
        cache.forget(&"key".to_string(), &first);
        assert_eq!(number(&cache, &counter).await, Ok(2));
        cache.forget(&"key".to_string(), &first);
        assert_eq!(number(&cache, &counter).await, Ok(2));
    }
}
