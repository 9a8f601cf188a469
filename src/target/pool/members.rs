//! Which pooled sessions does a target need, and how are they made, watched and ended?

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::thread::{self, ThreadId};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::shares::{Claim, allot};
use super::{LogIn, LoginFailure, MAX_REUSED, PoolKey, Session};
use crate::address::UpstreamAddr;
use crate::config::TargetSettings;
use crate::limits::{Limit, Permit};
use crate::status::PoolStatus;
use crate::wire::frontend::TERMINATE;

/// How long a login counts as a reason to keep sessions of its key. An Aurora cluster that pauses
/// when no one is connected does so after the same time.
const RECENT: Duration = Duration::from_mins(5);
/// The pause before a session is made. Meanwhile, this thread answers the first query of the client
/// that took the last one.
pub(super) const FILL_DELAY: Duration = Duration::from_millis(2);
/// How often the pool checks whether its sessions are at an address that the server still has.
/// Aurora's DNS names may be cached for as long.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// The first and the longest pause after a failure; they double in between.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_mins(1);
/// The difference between the wall clock and the monotonic clock from which on the machine must
/// have slept. Its connections may then be dead without any sign of it.
const SLEEP_THRESHOLD: Duration = Duration::from_secs(5);
/// How long a client waits for a session that is being reset. A reset takes a millisecond or two,
/// and a login to RDS with a token takes longer than this.
pub(super) const RESET_WAIT: Duration = Duration::from_millis(50);
/// How long it may take to tell a server that a session ends.
const TERMINATE_TIMEOUT: Duration = Duration::from_secs(2);

/// The pooled sessions of one target.
pub struct Pool<L: LogIn> {
    settings: Arc<TargetSettings>,
    limit: Arc<Limit>,
    /// How many sessions may be made at a time.
    max_starting: usize,
    state: Mutex<PoolState<L>>,
    changed: Notify,
    closing: CancellationToken,
    tasks: TaskTracker,
}

struct PoolState<L: LogIn> {
    /// Oldest first.
    logins: VecDeque<Arc<RecentLogin<L>>>,
    /// Oldest first.
    sessions: Vec<PooledSession<L::Session>>,
    /// Clients that wait for a session to be reset, those who came first in front. There are never
    /// more of a key than sessions of it that are being reset.
    waiting: VecDeque<WaitingClient<L::Session>>,
    next_id: u64,
    /// The last pause, and when it ends; `None` while logins succeed.
    pause: Option<(Duration, Instant)>,
}

/// A login that a client has done, and that the pool can repeat.
struct RecentLogin<L> {
    at: Instant,
    key: Arc<PoolKey>,
    login: L,
    /// The runtime of its thread, where the next login of this key may well arrive, too.
    runtime: Handle,
}

/// A pooled session, or one that is being made. The session itself belongs to the task that watches
/// it, which ends it when this is dropped.
struct PooledSession<S> {
    id: u64,
    key: Arc<PoolKey>,
    permit: Permit,
    hand_over: oneshot::Sender<oneshot::Sender<S>>,
    /// `None` while the session is being made or reset.
    ready: Option<Readiness>,
    is_being_reset: bool,
}

struct WaitingClient<S> {
    key: Arc<PoolKey>,
    reply: oneshot::Sender<HandedOver<S>>,
}

/// A session, its permit at the target, and the thread that has watched it.
struct HandedOver<S> {
    session: S,
    permit: Permit,
    thread: ThreadId,
}

/// Where a ready session is, and since when it has waited for a client.
struct Readiness {
    /// The thread that watches the session.
    thread: ThreadId,
    address: UpstreamAddr,
    since: (Instant, SystemTime),
}

/// Moves a session to this thread, unless it is the one that has watched the session.
fn adopt<S: Session>(session: S, watched_by: ThreadId) -> Option<S> {
    if watched_by == thread::current().id() {
        Some(session)
    } else {
        session.adopt().ok()
    }
}

/// Whether the machine has slept since that moment.
pub(super) fn machine_slept((instant, time): (Instant, SystemTime)) -> bool {
    time.elapsed()
        .unwrap_or_default()
        .saturating_sub(instant.elapsed())
        > SLEEP_THRESHOLD
}

impl<L: LogIn> Pool<L> {
    /// Creates an empty pool, and starts the tasks that fill it, which make up to `max_starting`
    /// sessions at a time. It must be called on a tokio runtime.
    pub fn start(
        settings: Arc<TargetSettings>,
        limit: Arc<Limit>,
        max_starting: usize,
    ) -> Arc<Self> {
        let state = PoolState {
            logins: VecDeque::new(),
            sessions: Vec::new(),
            waiting: VecDeque::new(),
            next_id: 0,
            pause: None,
        };
        let pool = Arc::new(Self {
            settings,
            limit,
            max_starting,
            state: Mutex::new(state),
            changed: Notify::new(),
            closing: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        let (filling, checking) = (pool.clone(), pool.clone());
        pool.tasks
            .spawn(async move { filling.closing.run_until_cancelled(filling.fill()).await });
        pool.tasks.spawn(async move {
            checking
                .closing
                .run_until_cancelled(checking.check_addresses())
                .await
        });
        pool
    }

    /// Takes a session of this key, and its permit at the target. From now on both belong to the
    /// caller alone. If none is ready while one is being reset that nobody else waits for, this
    /// waits for it, since clients that come back at once would otherwise each log in afresh.
    ///
    /// Dropping the future ends the session, or gives up the wait.
    pub async fn take(&self, key: &PoolKey) -> Option<(L::Session, Permit)> {
        if let Some(taken) = self.take_ready(key).await {
            return Some(taken);
        }
        let reset = self.state.lock().wait_for_reset(key)?;
        let HandedOver {
            session,
            permit,
            thread,
        } = timeout(RESET_WAIT, reset).await.ok()?.ok()?;
        let session = adopt(session, thread)?;
        Some((session, permit))
    }

    async fn take_ready(&self, key: &PoolKey) -> Option<(L::Session, Permit)> {
        loop {
            let here = thread::current().id();
            let (
                PooledSession {
                    permit, hand_over, ..
                },
                ready,
            ) = self.state.lock().take(key, here)?;
            if machine_slept(ready.since) {
                continue;
            }
            let (reply, session) = oneshot::channel();
            // If there is no answer, the session has just ended.
            if hand_over.send(reply).is_ok()
                && let Ok(session) = session.await
                && let Some(session) = adopt(session, ready.thread)
            {
                return Some((session, permit));
            }
        }
    }

    /// Notes that a client has logged in, with a pooled session or without one, so that sessions of
    /// this key will be ready for the next client.
    pub fn note_login(&self, key: PoolKey, login: L) -> Arc<PoolKey> {
        let mut state = self.state.lock();
        let key = state.known(&key).unwrap_or_else(|| key.into());
        state.logins.push_back(
            RecentLogin {
                at: Instant::now(),
                key: key.clone(),
                login,
                runtime: Handle::current(),
            }
            .into(),
        );
        if state.logins.len() > (4 * self.capacity()).max(8) {
            state.logins.pop_front();
        }
        self.changed.notify_one();
        key
    }

    /// Whether sessions come back to this pool when their clients leave.
    pub fn reuses(&self) -> bool {
        self.settings.reuse_sessions
    }

    /// Takes back a session that its client has left idle, with its permit at the target. If a
    /// session of its key is wanted, it is reset and waits for the next client; otherwise it is
    /// ended.
    pub fn give_back(
        self: &Arc<Self>,
        key: &Arc<PoolKey>,
        mut session: L::Session,
        permit: Permit,
    ) {
        let entry = {
            let mut state = self.state.lock();
            if session.logged_in_at().elapsed() >= self.settings.spare_max_age {
                Err("too old")
            } else if self.closing.is_cancelled() {
                Err("not needed")
            } else {
                self.changed.notify_one();
                // Since the session was taken, its key may have been forgotten and added again.
                let key = state.known(key).unwrap_or_else(|| key.clone());
                Ok(state.push(key, permit, true))
            }
        };
        let pool = self.clone();
        self.tasks.spawn(async move {
            let (id, mut take_request) = match entry {
                Ok(entry) => entry,
                Err(reason) => return pool.end(session, reason).await,
            };
            let reset = tokio::select! {
                _ = &mut take_request => Err("not needed".to_string()),
                reset = session.reset() => reset,
            };
            match reset {
                Ok(()) => pool.make_ready(id, session, take_request, "reset").await,
                Err(reason) => {
                    pool.remove(id);
                    pool.end(session, &reason).await;
                }
            }
        });
    }

    /// How many sessions the pool may hold.
    fn capacity(&self) -> usize {
        self.settings
            .warm_sessions
            .max(if self.settings.reuse_sessions {
                MAX_REUSED
            } else {
                0
            })
    }

    /// Notes that a login of this key was refused: the pool holds no sessions of it until a client
    /// has logged in that way again.
    pub fn note_refusal(&self, key: &PoolKey) {
        self.state.lock().logins.retain(|login| *login.key != *key);
        self.changed.notify_one();
    }

    /// Ends one pooled session, if there is one, so that its permit at the target is free for a
    /// client. Returns whether there was one.
    pub fn make_room(&self) -> bool {
        let mut state = self.state.lock();
        let awaited = state.awaited();
        let mut spare = (0..state.sessions.len()).filter(|index| !awaited.contains(index));
        let least = spare
            .clone()
            .find(|&index| state.sessions[index].ready.is_none())
            .or_else(|| spare.next());
        least.map(|index| state.sessions.remove(index)).is_some()
    }

    /// Ends all pooled sessions and makes no more. It completes when their servers have been told.
    pub async fn close(&self) {
        self.closing.cancel();
        {
            let mut state = self.state.lock();
            state.logins.clear();
            state.sessions.clear();
            state.waiting.clear();
        }
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Counts the pooled sessions.
    pub fn status(&self) -> PoolStatus {
        let state = self.state.lock();
        let ready = state
            .sessions
            .iter()
            .filter(|pooled| pooled.ready.is_some())
            .count();
        PoolStatus {
            ready,
            starting: state.sessions.len() - ready,
        }
    }

    async fn fill(self: &Arc<Self>) {
        let mut ticks = interval(CHECK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // The interval is for events that are not announced: the end of a pause, a login that
            // is no longer recent, a permit at the target that is free again.
            tokio::select! {
                () = self.changed.notified() => {}
                _ = ticks.tick() => {}
            }
            self.rebalance();
        }
    }

    /// Ends sessions that no recent login calls for, and starts to make those that are missing.
    fn rebalance(self: &Arc<Self>) {
        let mut state = self.state.lock();
        if self.closing.is_cancelled() {
            return;
        }
        while state
            .logins
            .front()
            .is_some_and(|login| login.at.elapsed() >= RECENT)
        {
            state.logins.pop_front();
        }
        let mut keys = state.keys();
        let claims: Vec<_> = keys.iter().map(|(_, claim)| *claim).collect();
        let mut left = allot(&claims, self.capacity());
        // The newest sessions stay, and those that a client waits for.
        let awaited = state.awaited();
        for index in (0..state.sessions.len()).rev() {
            if awaited.contains(&index) {
                continue;
            }
            let key = keys
                .iter()
                .position(|(login, _)| Arc::ptr_eq(&login.key, &state.sessions[index].key))
                .filter(|&key| left[key] > 0);
            match key {
                Some(key) => left[key] -= 1,
                None => drop(state.sessions.remove(index)),
            }
        }
        let mut starting = state
            .sessions
            .iter()
            .filter(|pooled| pooled.ready.is_none())
            .count();
        let max_starting = match state.pause {
            Some((_, until)) if Instant::now() < until => 0,
            Some(_) => 1,
            None => self.max_starting,
        };
        let shares = allot(&claims, self.settings.warm_sessions);
        for ((login, _), share) in keys.drain(..).zip(shares) {
            for _ in state.count(&login.key)..share {
                if starting >= max_starting {
                    return;
                }
                let Ok(permit) = self.limit.acquire() else {
                    return;
                };
                starting += 1;
                self.start_login(&mut state, login.clone(), permit);
            }
        }
    }

    fn start_login(
        self: &Arc<Self>,
        state: &mut PoolState<L>,
        recent: Arc<RecentLogin<L>>,
        permit: Permit,
    ) {
        let (id, mut take_request) = state.push(recent.key.clone(), permit, false);
        let runtime = recent.runtime.clone();
        let pool = self.clone();
        let task = async move {
            let login_after_delay = async {
                sleep(FILL_DELAY).await;
                recent.login.log_in().await
            };
            let made = tokio::select! {
                // No client asks for a session that is not ready, so it was dropped and is no
                // longer wanted.
                _ = &mut take_request => return,
                made = login_after_delay => made,
            };
            match made {
                Ok(session) => {
                    pool.recovered();
                    pool.make_ready(id, session, take_request, "made").await;
                }
                Err(failure) => pool.failed(id, &recent.key, &failure),
            }
        };
        self.tasks.spawn_on(task, &runtime);
    }

    /// Holds a session until a client takes it or it ends.
    async fn hold(
        &self,
        id: u64,
        mut session: L::Session,
        take_request: oneshot::Receiver<oneshot::Sender<L::Session>>,
    ) {
        let expires_at = session.logged_in_at() + self.settings.spare_max_age;
        let mut byte = [0];
        let reason = tokio::select! {
            biased;
            _ = session.stream().read(&mut byte) => {
                self.discard(|pooled| pooled.id == id);
                "the server closed it, or said something"
            }
            request = take_request => match request {
                Ok(reply) => match reply.send(session) {
                    Ok(()) => return,
                    Err(back) => {
                        session = back;
                        "its client left"
                    }
                },
                Err(_) => "not needed",
            },
            () = sleep_until(expires_at) => {
                self.remove(id);
                self.changed.notify_one();
                "too old"
            }
        };
        self.end(session, reason).await;
    }

    /// Ends a session that has no client.
    pub async fn end(&self, mut session: L::Session, reason: &str) {
        let upstream = session.address();
        tracing::debug!(target = self.settings.name, %upstream, reason, "spare session ended");
        let stream = session.stream();
        let terminate = async {
            stream.write_all(&TERMINATE).await?;
            stream.shutdown().await
        };
        // A server that does not receive the `Terminate` message notices the close.
        let _ = timeout(TERMINATE_TIMEOUT, terminate).await;
    }

    /// Gives the session to the client that has waited longest for one of its key. Without one, it
    /// is held until a client takes it, unless it is no longer wanted.
    async fn make_ready(
        &self,
        id: u64,
        session: L::Session,
        take_request: oneshot::Receiver<oneshot::Sender<L::Session>>,
        how: &str,
    ) {
        let upstream = session.address();
        tracing::debug!(target = self.settings.name, %upstream, how, "spare session ready");
        let thread = thread::current().id();
        let client = {
            let mut state = self.state.lock();
            let index = state.sessions.iter().position(|pooled| pooled.id == id);
            index.and_then(|index| {
                if let Some(client) = state.first_waiting(index) {
                    return Some((client, state.sessions.remove(index).permit));
                }
                let pooled = &mut state.sessions[index];
                if !std::mem::take(&mut pooled.is_being_reset) {
                    // Only so many are made at a time, and another may be next.
                    self.changed.notify_one();
                }
                pooled.ready = Some(Readiness {
                    thread,
                    address: upstream,
                    since: (Instant::now(), SystemTime::now()),
                });
                None
            })
        };
        let Some((client, permit)) = client else {
            return self.hold(id, session, take_request).await;
        };
        let handed_over = HandedOver {
            session,
            permit,
            thread,
        };
        if let Err(back) = client.reply.send(handed_over) {
            self.end(back.session, "its client left").await;
        }
    }

    fn remove(&self, id: u64) {
        self.state.lock().remove(id);
    }

    fn recovered(&self) {
        if self.state.lock().pause.take().is_some() {
            tracing::info!(
                target = self.settings.name,
                "spare sessions can be made again"
            );
            self.changed.notify_one();
        }
    }

    fn failed(&self, id: u64, key: &Arc<PoolKey>, failure: &LoginFailure) {
        let mut state = self.state.lock();
        state.remove(id);
        if failure.is_permanent {
            state.logins.retain(|login| !Arc::ptr_eq(&login.key, key));
        }
        let now = Instant::now();
        let pause = match state.pause {
            // Several logins may fail together, and count as one failure.
            Some((_, until)) if now < until => return,
            Some((pause, _)) => (pause * 2).min(LONGEST_PAUSE),
            None => {
                tracing::warn!(
                    target = self.settings.name,
                    error = failure.text,
                    "spare sessions cannot be made; logins go on without"
                );
                FIRST_PAUSE
            }
        };
        state.pause = Some((pause, now + pause));
        self.changed.notify_one();
    }

    /// Ends sessions at addresses that the server no longer has.
    async fn check_addresses(&self) {
        let mut ticks = interval(CHECK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let Some(recent) = self.state.lock().latest_login_unless_empty() else {
                continue;
            };
            if let Some(addresses) = recent.login.addresses().await {
                self.discard(|pooled| {
                    pooled
                        .ready
                        .as_ref()
                        .is_some_and(|ready| !addresses.contains(&ready.address))
                });
            }
        }
    }

    /// Ends sessions that have turned out to be of no use, and leaves their keys no more recent
    /// logins than sessions, so that none is made in their place.
    fn discard(&self, lost: impl Fn(&PooledSession<L::Session>) -> bool) {
        let mut state = self.state.lock();
        let lost: Vec<_> = state
            .sessions
            .extract_if(.., |pooled| lost(pooled))
            .collect();
        for PooledSession { key, .. } in lost {
            let held = state.count(&key);
            let mut surplus = state
                .logins
                .iter()
                .filter(|login| Arc::ptr_eq(&login.key, &key))
                .count()
                .saturating_sub(held);
            state.logins.retain(|login| {
                let goes = surplus > 0 && Arc::ptr_eq(&login.key, &key);
                surplus -= usize::from(goes);
                !goes
            });
        }
    }
}

impl<L: LogIn> PoolState<L> {
    /// Takes a session of this key, preferably one that this thread watches.
    fn take(
        &mut self,
        key: &PoolKey,
        here: ThreadId,
    ) -> Option<(PooledSession<L::Session>, Readiness)> {
        let fit = self
            .sessions
            .iter()
            .enumerate()
            .filter(|(_, pooled)| *pooled.key == *key);
        let ready = fit.filter_map(|(index, pooled)| Some((index, pooled.ready.as_ref()?)));
        let (index, _) = ready.min_by_key(|(_, ready)| ready.thread != here)?;
        let mut pooled = self.sessions.remove(index);
        let ready = pooled.ready.take()?;
        Some((pooled, ready))
    }

    /// Waits in line for a session of this key that is being reset, unless as many clients as there
    /// are of these wait already.
    fn wait_for_reset(
        &mut self,
        key: &PoolKey,
    ) -> Option<oneshot::Receiver<HandedOver<L::Session>>> {
        let awaited = self.awaited();
        let key = self
            .sessions
            .iter()
            .enumerate()
            .find_map(|(index, pooled)| {
                let is_free = pooled.is_being_reset && !awaited.contains(&index);
                (is_free && *pooled.key == *key).then(|| pooled.key.clone())
            })?;
        let (reply, reset) = oneshot::channel();
        self.waiting.push_back(WaitingClient { key, reply });
        Some(reset)
    }

    /// The indices of the sessions that are being reset for a client that waits. Forgets clients
    /// that have given up, and sends those away, the last first, for whom there is no session.
    fn awaited(&mut self) -> HashSet<usize> {
        let mut awaited = HashSet::new();
        self.waiting.retain(|client| {
            let session = self
                .sessions
                .iter()
                .enumerate()
                .position(|(index, pooled)| {
                    pooled.is_being_reset && pooled.key == client.key && !awaited.contains(&index)
                });
            !client.reply.is_closed() && session.is_some_and(|index| awaited.insert(index))
        });
        awaited
    }

    /// The client that has waited longest for a session of the same key as this one.
    fn first_waiting(&mut self, index: usize) -> Option<WaitingClient<L::Session>> {
        let key = &self.sessions[index].key;
        let is_first = |client: &WaitingClient<_>| client.key == *key && !client.reply.is_closed();
        let first = self.waiting.iter().position(is_first)?;
        self.waiting.remove(first)
    }

    /// Forgets a session that has ended, or never was.
    fn remove(&mut self, id: u64) {
        self.sessions.retain(|pooled| pooled.id != id);
        self.awaited();
    }

    /// Equal keys share one allocation, so that they can be compared by their pointers.
    fn known(&self, key: &PoolKey) -> Option<Arc<PoolKey>> {
        let mut known = self
            .logins
            .iter()
            .rev()
            .map(|login| &login.key)
            .chain(self.sessions.iter().map(|pooled| &pooled.key));
        known.find(|known| ***known == *key).cloned()
    }

    /// Adds a session that is not ready yet.
    fn push(
        &mut self,
        key: Arc<PoolKey>,
        permit: Permit,
        is_being_reset: bool,
    ) -> (u64, oneshot::Receiver<oneshot::Sender<L::Session>>) {
        let (hand_over, take_request) = oneshot::channel();
        let id = self.next_id;
        self.next_id += 1;
        self.sessions.push(PooledSession {
            id,
            key,
            permit,
            hand_over,
            ready: None,
            is_being_reset,
        });
        (id, take_request)
    }

    /// The keys that have a claim, starting with the one that logged in last.
    fn keys(&self) -> Vec<(Arc<RecentLogin<L>>, Claim)> {
        let mut keys: Vec<(Arc<RecentLogin<L>>, Claim)> = Vec::new();
        let mut positions = HashMap::new();
        for login in self.logins.iter().rev() {
            let position = *positions.entry(Arc::as_ptr(&login.key)).or_insert_with(|| {
                keys.push((
                    login.clone(),
                    Claim {
                        logins: 0,
                        held: self.count(&login.key),
                    },
                ));
                keys.len() - 1
            });
            keys[position].1.logins += 1;
        }
        keys
    }

    fn count(&self, key: &Arc<PoolKey>) -> usize {
        self.sessions
            .iter()
            .filter(|pooled| Arc::ptr_eq(&pooled.key, key))
            .count()
    }

    fn latest_login_unless_empty(&self) -> Option<Arc<RecentLogin<L>>> {
        self.logins
            .back()
            .filter(|_| !self.sessions.is_empty())
            .cloned()
    }
}
