//! The spares of one target: who speaks for them, how they are made, watched and ended.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use std::thread::{self, ThreadId};
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::allot::{Claim, allot};
use super::{Failure, Kind, LogIn, REUSED, Session};
use crate::config::Target;
use crate::places::{Place, Places, Taken};
use crate::wire::frontend::TERMINATE;

/// For how long a login speaks for spares of its kind. An Aurora cluster that pauses when nobody is
/// connected does so after as long.
const RECENT: Duration = Duration::from_mins(5);
/// Pause before a spare is made: the client that took the last one has its first query answered by
/// this thread meanwhile.
pub(super) const CLIENTS_FIRST: Duration = Duration::from_millis(2);
/// How often it is looked whether a server is still where its spares are: as long as Aurora's names
/// may be remembered.
const LOOK: Duration = Duration::from_secs(5);
/// Pauses after failures.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_mins(1);
/// By how much wall clock and monotonic clock may come apart before the machine must have slept:
/// its connections may be dead without a word.
const SLEPT: Duration = Duration::from_secs(5);
/// How long the end of a spare may take.
const GOODBYE: Duration = Duration::from_secs(2);

/// The spares of one target.
pub struct Pool<L: LogIn> {
    target: Arc<Target>,
    places: Arc<Places>,
    state: Mutex<State<L>>,
    changed: Notify,
    closing: CancellationToken,
    tasks: TaskTracker,
}

struct State<L: LogIn> {
    /// Oldest first.
    logins: VecDeque<Arc<Login<L>>>,
    /// Oldest first.
    spares: Vec<Spare<L::Session>>,
    next_id: u64,
    /// The last pause, and when it ends; `None` while all is well.
    pause: Option<(Duration, Instant)>,
}

/// A login that a client has done.
struct Login<L> {
    at: Instant,
    kind: Arc<Kind>,
    again: L,
    /// Of its thread, where the next one of its kind may come as well.
    runtime: Handle,
}

/// A spare or the making of one. The session itself is with the task that watches it, which ends it
/// when this is dropped.
struct Spare<S> {
    id: u64,
    kind: Arc<Kind>,
    place: Taken,
    hand_over: oneshot::Sender<oneshot::Sender<S>>,
    /// `None` while it is being made or reset.
    ready: Option<Ready>,
}

struct Ready {
    /// That watches it.
    thread: ThreadId,
    address: SocketAddr,
    since: (Instant, SystemTime),
}

/// Whether the machine has slept since.
pub(super) fn machine_slept((instant, time): (Instant, SystemTime)) -> bool {
    time.elapsed()
        .unwrap_or_default()
        .saturating_sub(instant.elapsed())
        > SLEPT
}

impl<L: LogIn> Pool<L> {
    pub(super) fn start(target: Arc<Target>, places: Arc<Places>) -> Arc<Self> {
        let state = State {
            logins: VecDeque::new(),
            spares: Vec::new(),
            next_id: 0,
            pause: None,
        };
        let pool = Arc::new(Self {
            target,
            places,
            state: Mutex::new(state),
            changed: Notify::new(),
            closing: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        let (filling, looking) = (pool.clone(), pool.clone());
        pool.tasks
            .spawn(async move { filling.closing.run_until_cancelled(filling.fill()).await });
        pool.tasks
            .spawn(async move { looking.closing.run_until_cancelled(looking.look()).await });
        pool
    }

    /// A spare of this kind, and the place that it has at the target. It is the caller's alone from
    /// now on.
    ///
    /// Dropping the future ends the spare.
    pub async fn take(&self, kind: &Kind) -> Option<(L::Session, Taken)> {
        loop {
            let here = thread::current().id();
            let (
                Spare {
                    place, hand_over, ..
                },
                ready,
            ) = self.state.lock().take(kind, here)?;
            if machine_slept(ready.since) {
                continue;
            }
            let (reply, session) = oneshot::channel();
            // No answer: it ended just now.
            if hand_over.send(reply).is_ok()
                && let Ok(session) = session.await
                && let Ok(session) = if ready.thread == here {
                    Ok(session)
                } else {
                    session.adopt()
                }
            {
                return Some((session, place));
            }
        }
    }

    /// A client has logged in, with a spare or without: spares of this kind shall be there for the
    /// next one.
    pub fn seen(&self, kind: Kind, again: L) -> Arc<Kind> {
        let mut state = self.state.lock();
        let kind = state.known(&kind).unwrap_or_else(|| kind.into());
        state.logins.push_back(
            Login {
                at: Instant::now(),
                kind: kind.clone(),
                again,
                runtime: Handle::current(),
            }
            .into(),
        );
        if state.logins.len() > (4 * self.most()).max(8) {
            state.logins.pop_front();
        }
        self.changed.notify_one();
        kind
    }

    /// Whether clients may leave their sessions here.
    pub fn reuses(&self) -> bool {
        self.target.reuse_sessions
    }

    /// Takes a session that a client has left idle, with its place at the target: it is a spare
    /// after a reset, where one of its kind is wanted, or ended.
    pub fn offer(self: &Arc<Self>, kind: &Arc<Kind>, mut session: L::Session, place: Taken) {
        let entry = {
            let mut state = self.state.lock();
            if session.since().elapsed() >= self.target.spare_max_age {
                Err("too old")
            } else if self.closing.is_cancelled() {
                Err("not needed")
            } else {
                self.changed.notify_one();
                // Since it was told apart from others, its kind may have been forgotten and met
                // again.
                let kind = state.known(kind).unwrap_or_else(|| kind.clone());
                Ok(state.push(kind, place))
            }
        };
        let pool = self.clone();
        self.tasks.spawn(async move {
            let (id, mut asked) = match entry {
                Ok(entry) => entry,
                Err(reason) => return pool.end(session, reason).await,
            };
            let reset = tokio::select! {
                _ = &mut asked => Err("not needed".to_string()),
                reset = session.reset() => reset,
            };
            match reset {
                Ok(()) => {
                    pool.enter(id, session.address(), "reset");
                    pool.watch(id, session, asked).await;
                }
                Err(reason) => {
                    pool.state.lock().spares.retain(|spare| spare.id != id);
                    pool.end(session, &reason).await;
                }
            }
        });
    }

    /// How many spares there may be.
    fn most(&self) -> usize {
        self.target
            .warm_sessions
            .max(if self.target.reuse_sessions {
                REUSED
            } else {
                0
            })
    }

    /// A login of this kind was refused: there are no spares of it until one succeeds.
    pub fn refused(&self, kind: &Kind) {
        self.state
            .lock()
            .logins
            .retain(|login| *login.kind != *kind);
        self.changed.notify_one();
    }

    /// Ends a spare, if there is one, so that its place at the target is free for a client.
    pub fn make_room(&self) -> bool {
        let mut state = self.state.lock();
        let least = state
            .spares
            .iter()
            .position(|spare| spare.ready.is_none())
            .or((!state.spares.is_empty()).then_some(0));
        least.map(|index| state.spares.remove(index)).is_some()
    }

    /// Ends all spares; there will be no more.
    pub(super) fn close(&self) {
        self.closing.cancel();
        let mut state = self.state.lock();
        state.logins.clear();
        state.spares.clear();
        self.tasks.close();
    }

    /// Completes when their servers have been told.
    pub(super) async fn ended(&self) {
        self.tasks.wait().await;
    }

    async fn fill(self: &Arc<Self>) {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // What nobody tells of: a pause that is over, a login that is long ago, a place at the
            // target that is free again.
            tokio::select! {
                () = self.changed.notified() => {}
                _ = look.tick() => {}
            }
            self.settle();
        }
    }

    /// Ends spares that nobody speaks for, and begins to make those that are wanting.
    fn settle(self: &Arc<Self>) {
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
        let mut kinds = state.kinds();
        let claims: Vec<_> = kinds.iter().map(|(_, claim)| *claim).collect();
        let mut left = allot(&claims, self.most());
        // The newest stay.
        for index in (0..state.spares.len()).rev() {
            let kind = kinds
                .iter()
                .position(|(login, _)| Arc::ptr_eq(&login.kind, &state.spares[index].kind))
                .filter(|&kind| left[kind] > 0);
            match kind {
                Some(kind) => left[kind] -= 1,
                None => drop(state.spares.remove(index)),
            }
        }
        let mut making = state
            .spares
            .iter()
            .filter(|spare| spare.ready.is_none())
            .count();
        let most = match state.pause {
            Some((_, until)) if Instant::now() < until => 0,
            Some(_) => 1,
            // Clients stand in the same line.
            None => (self.target.max_concurrent_logins / 4).max(1),
        };
        let shares = allot(&claims, self.target.warm_sessions);
        for ((login, _), share) in kinds.drain(..).zip(shares) {
            for _ in state.held(&login.kind)..share {
                let mut place = Taken::default();
                if making >= most
                    || self
                        .places
                        .take(&Place::Target(self.target.name.clone()), &mut place)
                        .is_err()
                {
                    return;
                }
                making += 1;
                self.begin(&mut state, login.clone(), place);
            }
        }
    }

    fn begin(self: &Arc<Self>, state: &mut State<L>, login: Arc<Login<L>>, place: Taken) {
        let (id, mut asked) = state.push(login.kind.clone(), place);
        let runtime = login.runtime.clone();
        let pool = self.clone();
        let task = async move {
            let attempt = async {
                sleep(CLIENTS_FIRST).await;
                login.again.log_in().await
            };
            let made = tokio::select! {
                // Nobody asks for what is not ready: it is not wanted any more.
                _ = &mut asked => return,
                made = attempt => made,
            };
            match made {
                Ok(session) => {
                    pool.enter(id, session.address(), "made");
                    pool.recovered();
                    pool.watch(id, session, asked).await;
                }
                Err(failure) => pool.failed(id, &login.kind, &failure),
            }
        };
        self.tasks.spawn_on(task, &runtime);
    }

    /// Holds a spare until it is asked for or ends.
    async fn watch(
        &self,
        id: u64,
        mut session: L::Session,
        asked: oneshot::Receiver<oneshot::Sender<L::Session>>,
    ) {
        let old = session.since() + self.target.spare_max_age;
        let mut byte = [0];
        let reason = tokio::select! {
            biased;
            _ = session.stream().read(&mut byte) => {
                self.lose(|spare| spare.id == id);
                "the server closed it, or said something"
            }
            asked = asked => match asked {
                Ok(reply) => match reply.send(session) {
                    Ok(()) => return,
                    Err(back) => {
                        session = back;
                        "its client left"
                    }
                },
                Err(_) => "not needed",
            },
            () = sleep_until(old) => {
                self.state.lock().spares.retain(|spare| spare.id != id);
                self.changed.notify_one();
                "too old"
            }
        };
        self.end(session, reason).await;
    }

    /// Ends a session that no client has.
    pub async fn end(&self, mut session: L::Session, reason: &str) {
        let upstream = session.address();
        tracing::debug!(target = self.target.name, %upstream, reason, "spare session ended");
        let stream = session.stream();
        let goodbye = async {
            stream.write_all(&TERMINATE).await?;
            stream.shutdown().await
        };
        // A server that does not hear it notices the close.
        let _ = timeout(GOODBYE, goodbye).await;
    }

    /// A spare may be asked for from now on, unless it is not wanted any more.
    fn enter(&self, id: u64, address: SocketAddr, how: &str) {
        if let Some(spare) = self
            .state
            .lock()
            .spares
            .iter_mut()
            .find(|spare| spare.id == id)
        {
            spare.ready = Some(Ready {
                thread: thread::current().id(),
                address,
                since: (Instant::now(), SystemTime::now()),
            });
        }
        tracing::debug!(target = self.target.name, upstream = %address, how, "spare session ready");
    }

    fn recovered(&self) {
        if self.state.lock().pause.take().is_some() {
            tracing::info!(
                target = self.target.name,
                "spare sessions can be made again"
            );
            self.changed.notify_one();
        }
    }

    fn failed(&self, id: u64, kind: &Arc<Kind>, failure: &Failure) {
        let mut state = self.state.lock();
        state.spares.retain(|spare| spare.id != id);
        if failure.refused {
            state.logins.retain(|login| !Arc::ptr_eq(&login.kind, kind));
        }
        let now = Instant::now();
        let pause = match state.pause {
            // Several fail together.
            Some((_, until)) if now < until => return,
            Some((pause, _)) => (pause * 2).min(LONGEST_PAUSE),
            None => {
                tracing::warn!(
                    target = self.target.name,
                    error = failure.text,
                    "spare sessions cannot be made; logins go on without"
                );
                FIRST_PAUSE
            }
        };
        state.pause = Some((pause, now + pause));
        self.changed.notify_one();
    }

    /// Ends spares where their server is not any more.
    async fn look(&self) {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            look.tick().await;
            let Some(login) = self.state.lock().one_that_has_spares() else {
                continue;
            };
            if let Some(addresses) = login.again.addresses().await {
                self.lose(|spare| {
                    spare
                        .ready
                        .as_ref()
                        .is_some_and(|ready| !addresses.contains(&ready.address))
                });
            }
        }
    }

    /// Ends spares that have turned out to be of no use, and leaves their kinds no more logins than
    /// spares.
    fn lose(&self, lost: impl Fn(&Spare<L::Session>) -> bool) {
        let mut state = self.state.lock();
        let lost: Vec<_> = state.spares.extract_if(.., |spare| lost(spare)).collect();
        for Spare { kind, .. } in lost {
            let held = state.held(&kind);
            let mut surplus = state
                .logins
                .iter()
                .filter(|login| Arc::ptr_eq(&login.kind, &kind))
                .count()
                .saturating_sub(held);
            state.logins.retain(|login| {
                let goes = surplus > 0 && Arc::ptr_eq(&login.kind, &kind);
                surplus -= usize::from(goes);
                !goes
            });
        }
    }
}

impl<L: LogIn> State<L> {
    /// One that this thread watches, if there is one.
    fn take(&mut self, kind: &Kind, here: ThreadId) -> Option<(Spare<L::Session>, Ready)> {
        let fit = self
            .spares
            .iter()
            .enumerate()
            .filter(|(_, spare)| *spare.kind == *kind);
        let ready = fit.filter_map(|(index, spare)| Some((index, spare.ready.as_ref()?)));
        let (index, _) = ready.min_by_key(|(_, ready)| ready.thread != here)?;
        let mut spare = self.spares.remove(index);
        let ready = spare.ready.take()?;
        Some((spare, ready))
    }

    /// Kinds that are equal are one.
    fn known(&self, kind: &Kind) -> Option<Arc<Kind>> {
        let mut known = self
            .logins
            .iter()
            .rev()
            .map(|login| &login.kind)
            .chain(self.spares.iter().map(|spare| &spare.kind));
        known.find(|known| ***known == *kind).cloned()
    }

    /// Adds a spare that is not ready.
    fn push(
        &mut self,
        kind: Arc<Kind>,
        place: Taken,
    ) -> (u64, oneshot::Receiver<oneshot::Sender<L::Session>>) {
        let (hand_over, asked) = oneshot::channel();
        let id = self.next_id;
        self.next_id += 1;
        self.spares.push(Spare {
            id,
            kind,
            place,
            hand_over,
            ready: None,
        });
        (id, asked)
    }

    /// Kinds that have a claim, the one that logged in last first.
    fn kinds(&self) -> Vec<(Arc<Login<L>>, Claim)> {
        let mut kinds: Vec<(Arc<Login<L>>, Claim)> = Vec::new();
        let mut places = HashMap::new();
        for login in self.logins.iter().rev() {
            let place = *places.entry(Arc::as_ptr(&login.kind)).or_insert_with(|| {
                kinds.push((
                    login.clone(),
                    Claim {
                        logins: 0,
                        held: self.held(&login.kind),
                    },
                ));
                kinds.len() - 1
            });
            kinds[place].1.logins += 1;
        }
        kinds
    }

    fn held(&self, kind: &Arc<Kind>) -> usize {
        self.spares
            .iter()
            .filter(|spare| Arc::ptr_eq(&spare.kind, kind))
            .count()
    }

    fn one_that_has_spares(&self) -> Option<Arc<Login<L>>> {
        self.logins
            .back()
            .filter(|_| !self.spares.is_empty())
            .cloned()
    }
}
