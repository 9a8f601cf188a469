//! When is a client told whether its login is right, so that guessing passwords is slow?
//!
//! Once logins from a network have failed repeatedly, those of one user name from there take turns:
//! after a wrong verdict there is none in the delay that follows, neither right nor wrong. So a
//! client that does not wait for its answer learns nothing, and other users behind the same address
//! go on. A right verdict holds nobody up: whoever is told it has nothing left to guess, and a tool
//! may be logging in twenty times at once. Who waits holds no place of a session. A bounded number
//! may wait, and the rest is refused at once, as if the password were wrong.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};

use super::penalty::Penalties;
use crate::address::network;

/// How many logins of one user name from one network may wait.
const MAX_WAITING_IN_LINE: usize = 4;
/// How many logins may wait.
const MAX_WAITING: usize = 1_000;
/// How many lines are remembered, which take about a megabyte.
const MAX_LINES: usize = 10_000;
/// The lines that are kept without looking for those that are no longer needed.
const FEW_LINES: usize = 64;
/// How soon a client comes again that tries with the other kind of encryption what has failed, as
/// libpq does with `sslmode=prefer` and `allow`.
const OTHER_ENCRYPTION: Duration = Duration::from_secs(1);

/// The lines in which logins wait for their verdicts.
#[derive(Default)]
pub struct Turns {
    penalties: Penalties,
    /// Names are kept as hashes, since they may be long.
    hasher: RandomState,
    lines: Mutex<Lines>,
}

/// A login attempt, before its client has been told whether it is right.
pub struct Attempt<'a> {
    turns: &'a Turns,
    /// `None` for a client on this machine, for which there are no penalties.
    source: Option<(IpAddr, LineKey)>,
    is_encrypted: bool,
    began: Instant,
    is_judged: AtomicBool,
}

/// Too many logins wait already.
#[derive(Debug, PartialEq, Eq)]
pub struct TooManyWait;

/// A network, and the hash of a user name.
type LineKey = (IpAddr, u64);

#[derive(Default)]
struct Lines {
    table: HashMap<LineKey, Line>,
    waiting: usize,
    /// How many lines there are when the next look for old ones is due.
    next_sweep: usize,
    last_sweep: Option<Instant>,
}

struct Line {
    /// When the next verdict is due.
    next: Instant,
    waiting: usize,
    /// Held by the first in the line.
    first: Arc<tokio::sync::Mutex<()>>,
    /// When the last attempt failed that was counted, and whether it was encrypted.
    failed: Option<(Instant, bool)>,
}

/// Counts as waiting until it is dropped.
struct Waiting<'a> {
    lines: &'a Mutex<Lines>,
    key: LineKey,
    first: Arc<tokio::sync::Mutex<()>>,
}

impl Turns {
    /// Begins the attempt of a client at this address to log in as this user.
    pub fn attempt(&self, address: Option<IpAddr>, user: &str, is_encrypted: bool) -> Attempt<'_> {
        let key = |address| (network(address), self.hasher.hash_one(user));
        Attempt {
            turns: self,
            source: address.map(|address| (address, key(address))),
            is_encrypted,
            began: Instant::now(),
            is_judged: AtomicBool::new(false),
        }
    }
}

impl Attempt<'_> {
    /// Whether the attempt has been judged, and has been told or waits for its turn.
    pub fn is_judged(&self) -> bool {
        self.is_judged.load(Ordering::Relaxed)
    }

    /// Whether so many wait that this attempt is not worth judging. Then it counts as judged.
    pub fn is_hopeless(&self) -> bool {
        let is_hopeless = self.source.is_some_and(|(address, key)| {
            let delay = self
                .turns
                .penalties
                .delay(address, Instant::now().into_std());
            !delay.is_zero() && self.turns.lines.lock().is_full(&key)
        });
        self.is_judged.fetch_or(is_hopeless, Ordering::Relaxed);
        is_hopeless
    }

    /// Completes when the client may be told the verdict, and counts a wrong one. An attempt that
    /// is given up while it waits leaves nothing behind.
    ///
    /// # Errors
    /// When too many wait already. Then the client must not learn what the verdict is.
    pub async fn judged(&self, is_right: bool) -> Result<(), TooManyWait> {
        self.is_judged.store(true, Ordering::Relaxed);
        let Some((address, key)) = self.source else {
            return Ok(());
        };
        let waiting = {
            let mut lines = self.turns.lines.lock();
            if self
                .take_turn(&mut lines, address, key, is_right, 0)
                .is_ok()
            {
                return Ok(());
            }
            let first = lines.join(key)?;
            Waiting {
                lines: &self.turns.lines,
                key,
                first,
            }
        };
        let _first = waiting.first.lock().await;
        loop {
            let taken = {
                let mut lines = self.turns.lines.lock();
                // Those behind the first in the line are the others that wait.
                self.take_turn(&mut lines, address, key, is_right, usize::MAX)
            };
            match taken {
                Ok(()) => return Ok(()),
                Err(due) => sleep_until(due).await,
            }
        }
    }

    /// Takes the turn if it has come, and no more than this many others wait for it; else says when
    /// it comes.
    fn take_turn(
        &self,
        lines: &mut Lines,
        address: IpAddr,
        key: LineKey,
        is_right: bool,
        others: usize,
    ) -> Result<(), Instant> {
        let penalties = &self.turns.penalties;
        let now = Instant::now();
        let delay = penalties.delay(address, now.into_std());
        if let Some(line) = lines.table.get(&key)
            && !delay.is_zero()
            && (line.next > now || line.waiting > others)
        {
            return Err(line.next);
        }
        if is_right && delay.is_zero() {
            return Ok(());
        }
        let Some(line) = lines.line(key, now) else {
            // There is no room to remember more. Who has failed repeatedly waits until there is.
            if !delay.is_zero() {
                return Err(now + delay);
            }
            penalties.failed(address, now.into_std());
            return Ok(());
        };
        if is_right {
            return Ok(());
        }
        let is_second_half = line.failed.take_if(|(at, was_encrypted)| {
            *was_encrypted != self.is_encrypted && self.began <= *at + OTHER_ENCRYPTION
        });
        if is_second_half.is_none() {
            penalties.failed(address, now.into_std());
            line.failed = Some((now, self.is_encrypted));
        }
        line.next = now + penalties.delay(address, now.into_std());
        Ok(())
    }
}

impl Lines {
    fn is_full(&self, key: &LineKey) -> bool {
        let in_line = self.table.get(key).map_or(0, |line| line.waiting);
        in_line >= MAX_WAITING_IN_LINE || self.waiting >= MAX_WAITING
    }

    /// Joins a line. Returns the lock that the first in it holds.
    fn join(&mut self, key: LineKey) -> Result<Arc<tokio::sync::Mutex<()>>, TooManyWait> {
        if self.is_full(&key) {
            return Err(TooManyWait);
        }
        let line = self.table.get_mut(&key).ok_or(TooManyWait)?;
        line.waiting += 1;
        self.waiting += 1;
        Ok(line.first.clone())
    }

    /// The line with this key, which is made if there is room.
    fn line(&mut self, key: LineKey, now: Instant) -> Option<&mut Line> {
        if !self.table.contains_key(&key) {
            self.sweep(now);
            if self.table.len() >= MAX_LINES {
                return None;
            }
        }
        Some(self.table.entry(key).or_insert_with(|| Line {
            next: now,
            waiting: 0,
            first: Arc::default(),
            failed: None,
        }))
    }

    /// Forgets the lines that are no longer needed, when there are twice as many as were left the
    /// last time; at the bound, once a second at most.
    fn sweep(&mut self, now: Instant) {
        let is_due = self.table.len() >= self.next_sweep.max(FEW_LINES)
            || self.table.len() >= MAX_LINES
                && self
                    .last_sweep
                    .is_none_or(|last| now > last + OTHER_ENCRYPTION);
        if !is_due {
            return;
        }
        self.table.retain(|_, line| {
            line.waiting > 0
                || line.next > now
                || line
                    .failed
                    .is_some_and(|(at, _)| at + OTHER_ENCRYPTION > now)
        });
        self.next_sweep = self.table.len() * 2;
        self.last_sweep = Some(now);
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut lines = self.lines.lock();
        lines.waiting -= 1;
        if let Some(line) = lines.table.get_mut(&self.key) {
            line.waiting -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// How long it takes until an attempt is told its verdict.
    async fn verdict(turns: &Turns, from: &str, user: &str, is_right: bool) -> Duration {
        let began = Instant::now();
        let attempt = turns.attempt(Some(address(from)), user, false);
        attempt.judged(is_right).await.unwrap();
        began.elapsed()
    }

    async fn fail(turns: &Turns, user: &str, times: usize) {
        for _ in 0..times {
            verdict(turns, "192.0.2.1", user, false).await;
        }
    }

    fn millis(duration: Duration) -> u128 {
        duration.as_millis()
    }

    #[tokio::test(start_paused = true)]
    async fn three_failures_are_free_and_further_ones_take_turns() {
        let turns = Turns::default();
        let mut waits = Vec::new();
        for _ in 0..9 {
            waits.push(millis(verdict(&turns, "192.0.2.1", "ana", false).await));
        }
        assert_eq!(waits, [0, 0, 0, 250, 500, 1000, 2000, 4000, 5000]);
        let right = verdict(&turns, "192.0.2.1", "ana", true).await;
        assert_eq!(millis(right), 5000, "a right password waits as long");
        let next = verdict(&turns, "192.0.2.1", "ana", true).await;
        assert_eq!(millis(next), 0, "whoever knows it has nothing to guess");
        let wrong = verdict(&turns, "192.0.2.1", "ana", false).await;
        assert_eq!(millis(wrong), 0, "the turn is still there");
        let wrong = verdict(&turns, "192.0.2.1", "ana", false).await;
        assert_eq!(millis(wrong), 5000);
    }

    #[tokio::test(start_paused = true)]
    async fn other_users_networks_and_right_passwords_go_on() {
        let turns = Turns::default();
        for _ in 0..100 {
            let wait = verdict(&turns, "192.0.2.1", "ana", true).await;
            assert_eq!(millis(wait), 0);
        }
        fail(&turns, "ana", 9).await;
        for _ in 0..20 {
            assert_eq!(millis(verdict(&turns, "192.0.2.1", "bob", true).await), 0);
        }
        assert_eq!(millis(verdict(&turns, "192.0.2.2", "ana", true).await), 0);
        let local = turns.attempt(None, "ana", false);
        assert_eq!(local.judged(false).await, Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn impatient_guesses_are_told_no_more_than_patient_ones() {
        let turns = Arc::new(Turns::default());
        let (told, refused) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let start = Instant::now();
        while start.elapsed() < Duration::from_mins(1) {
            let (turns, told, refused) = (turns.clone(), told.clone(), refused.clone());
            tokio::spawn(async move {
                let attempt = turns.attempt(Some(address("192.0.2.1")), "ana", false);
                let judged = tokio::time::timeout(Duration::from_millis(50), attempt.judged(false));
                match judged.await {
                    Ok(Ok(())) => told.fetch_add(1, Ordering::Relaxed),
                    Ok(Err(TooManyWait)) => refused.fetch_add(1, Ordering::Relaxed),
                    Err(_) => 0,
                };
            });
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // At 0, 0, 0, 0.25, 0.75, 1.75, 3.75 and 7.75 s, and each 5 s from then on.
        let told = told.load(Ordering::Relaxed);
        assert!((12..=19).contains(&told), "{told}");
        assert!(refused.load(Ordering::Relaxed) > 1_000);
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(
            turns.lines.lock().waiting,
            0,
            "who leaves leaves nothing behind"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_bounded_number_waits_in_its_order() {
        let turns = Arc::new(Turns::default());
        fail(&turns, "ana", 9).await;
        let order = Arc::new(Mutex::new(Vec::new()));
        let start = Instant::now();
        for number in 0..6 {
            let (turns, order) = (turns.clone(), order.clone());
            tokio::spawn(async move {
                let attempt = turns.attempt(Some(address("192.0.2.1")), "ana", false);
                let judged = attempt.judged(number % 2 == 0).await;
                order
                    .lock()
                    .push((number, judged.is_ok(), start.elapsed().as_secs()));
            });
            tokio::task::yield_now().await;
        }
        let attempt = turns.attempt(Some(address("192.0.2.1")), "ana", false);
        assert!(attempt.is_hopeless());
        tokio::time::sleep(Duration::from_mins(1)).await;
        assert_eq!(
            *order.lock(),
            [
                (4, false, 0),
                (5, false, 0),
                (0, true, 5),
                (1, true, 5),
                (2, true, 10),
                (3, true, 10)
            ]
        );
        assert!(!attempt.is_hopeless());
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_failure_with_and_without_tls_counts_once() {
        let turns = Turns::default();
        let fail = async |is_encrypted| {
            let attempt = turns.attempt(Some(address("192.0.2.1")), "ana", is_encrypted);
            attempt.judged(false).await.unwrap();
        };
        let delay = || {
            let delay = turns
                .penalties
                .delay(address("192.0.2.1"), Instant::now().into());
            millis(delay)
        };
        for _ in 0..2 {
            fail(true).await;
            fail(false).await;
        }
        assert_eq!(delay(), 0, "that were two failures");
        fail(true).await;
        assert_eq!(delay(), 250);
        // It began soon after the other, though it had to wait.
        fail(false).await;
        assert_eq!(delay(), 250);
        // A third one in a row is another login.
        fail(true).await;
        assert_eq!(delay(), 500);
        tokio::time::sleep(Duration::from_secs(2)).await;
        fail(false).await;
        assert_eq!(delay(), 1000);
    }

    #[tokio::test(start_paused = true)]
    async fn the_lines_are_bounded() {
        let turns = Turns::default();
        fail(&turns, "ana", 9).await;
        for number in 0..MAX_LINES + 10 {
            let attempt = turns.attempt(Some(address("192.0.2.1")), &number.to_string(), false);
            let _ = attempt.judged(false).await;
        }
        assert_eq!(turns.lines.lock().table.len(), MAX_LINES);
        tokio::time::sleep(Duration::from_mins(1)).await;
        fail(&turns, "bob", 1).await;
        assert_eq!(turns.lines.lock().table.len(), 1);
    }
}
