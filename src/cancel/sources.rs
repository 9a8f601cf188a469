//! How many cancel requests may come from one source, and how many of them may be guesses?
//!
//! A cancel request asks for no proof but its key. A key of four bytes can be guessed, so wrong ones
//! are counted: by source, and all of them together where servers are asked that may know better.
//! A count is not a penalty: it runs off at a steady rate, whatever else is sent, so who shares an
//! address with others is never locked out for long.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::address::{ClientAddr, network};

/// Requests of one source, of whatever kind.
const REQUESTS: Allowance = Allowance::new(200, 20);
/// Wrong keys of one source. To find a key of four bytes takes more than ten years at this rate.
const GUESSES: Allowance = Allowance::new(100, 5);
/// Wrong keys of all sources that servers are asked about. At this rate it takes three years.
const GUESSES_OF_ALL: Allowance = Allowance::new(400, 20);
/// The most sources that are remembered, which take about a megabyte.
const MAX_SOURCES: usize = 10_000;

/// So much at once, and so much each second after that.
struct Allowance {
    at_once: u32,
    interval: Duration,
}

impl Allowance {
    const fn new(at_once: u32, per_second: u32) -> Self {
        Self {
            at_once,
            interval: Duration::from_nanos(1_000_000_000 / per_second as u64),
        }
    }
}

/// What has been used of an allowance, as the moment at which it will be whole again.
#[derive(Debug, Clone, Copy)]
struct Used(Instant);

impl Used {
    fn take(&mut self, allowance: &Allowance, now: Instant) -> bool {
        let whole_at = self.0.max(now) + allowance.interval;
        let is_left = whole_at <= now + allowance.interval * allowance.at_once;
        if is_left {
            self.0 = whole_at;
        }
        is_left
    }

    fn give_back(&mut self, allowance: &Allowance) {
        self.0 = self.0.checked_sub(allowance.interval).unwrap_or(self.0);
    }

    fn is_whole(self, now: Instant) -> bool {
        self.0 <= now
    }
}

/// Who has sent cancel requests lately.
pub(super) struct Sources(Mutex<Table>);

struct Table {
    sources: HashMap<Source, Counts>,
    guesses_of_all: Used,
    /// Whether the log has said that there are too many of all.
    is_reported: bool,
}

/// The network of a client, or the operating system user on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Source {
    Network(IpAddr),
    User(u32),
}

#[derive(Debug, Clone, Copy)]
struct Counts {
    requests: Used,
    guesses: Used,
    /// Whether the log has said that there are too many.
    is_reported: bool,
}

impl Sources {
    pub fn new(now: Instant) -> Self {
        Self(Mutex::new(Table {
            sources: HashMap::new(),
            guesses_of_all: Used(now),
            is_reported: false,
        }))
    }

    /// Counts a request. Returns whether it is within the limit.
    pub fn request(&self, client: ClientAddr, now: Instant) -> bool {
        self.count(
            client,
            now,
            "too many cancel requests from this address",
            |counts| counts.requests.take(&REQUESTS, now),
        )
    }

    /// Counts a key that may be wrong. Returns whether it is within the limit of its source.
    pub fn guess(&self, client: ClientAddr, now: Instant) -> bool {
        self.count(
            client,
            now,
            "too many wrong cancel keys from this address",
            |counts| counts.guesses.take(&GUESSES, now),
        )
    }

    /// Counts a key that servers are asked about. Returns whether it is within the limit of all
    /// sources.
    pub fn guess_of_all(&self, now: Instant) -> bool {
        let mut table = self.0.lock();
        if table.guesses_of_all.is_whole(now) {
            table.is_reported = false;
        }
        let is_within = table.guesses_of_all.take(&GUESSES_OF_ALL, now);
        if !is_within && !std::mem::replace(&mut table.is_reported, true) {
            drop(table);
            tracing::warn!("too many cancel keys of other replicas from all addresses");
        }
        is_within
    }

    /// Forgets a key that was right after all, or that nothing was asked about.
    pub fn give_back_guess(&self, client: ClientAddr) {
        if let Some(counts) = self.0.lock().sources.get_mut(&Source::of(client)) {
            counts.guesses.give_back(&GUESSES);
        }
    }

    /// Forgets a key that no server was asked about.
    pub fn give_back_guess_of_all(&self) {
        self.0.lock().guesses_of_all.give_back(&GUESSES_OF_ALL);
    }

    fn count(
        &self,
        client: ClientAddr,
        now: Instant,
        complaint: &str,
        take: impl FnOnce(&mut Counts) -> bool,
    ) -> bool {
        let mut table = self.0.lock();
        let counts = table.counts(Source::of(client), now);
        let is_within = take(counts);
        if !is_within && !counts.is_reported {
            counts.is_reported = true;
            drop(table);
            tracing::warn!(%client, "{complaint}");
        }
        is_within
    }
}

impl Table {
    fn counts(&mut self, source: Source, now: Instant) -> &mut Counts {
        if self.sources.len() >= MAX_SOURCES && !self.sources.contains_key(&source) {
            self.make_room(now);
        }
        let fresh = Counts {
            requests: Used(now),
            guesses: Used(now),
            is_reported: false,
        };
        let counts = self.sources.entry(source).or_insert(fresh);
        if counts.is_whole(now) {
            *counts = fresh;
        }
        counts
    }

    /// Forgets a tenth of the sources, or more: those that have used least. A tenth, so that a flood
    /// of new sources does not make each of them search the table.
    fn make_room(&mut self, now: Instant) {
        self.sources.retain(|_, counts| !counts.is_whole(now));
        let spare = MAX_SOURCES - MAX_SOURCES / 10;
        if self.sources.len() <= spare {
            return;
        }
        let mut sources: Vec<_> = self
            .sources
            .iter()
            .map(|(source, counts)| (counts.guesses.0, counts.requests.0, *source))
            .collect();
        let forgotten = sources.len() - spare;
        sources
            .select_nth_unstable_by_key(forgotten, |(guesses, requests, _)| (*guesses, *requests));
        for (.., source) in &sources[..forgotten] {
            self.sources.remove(source);
        }
    }
}

impl Counts {
    fn is_whole(&self, now: Instant) -> bool {
        self.requests.is_whole(now) && self.guesses.is_whole(now)
    }
}

impl Source {
    fn of(client: ClientAddr) -> Self {
        match client {
            ClientAddr::Network(address) => Self::Network(network(address.ip())),
            ClientAddr::Local(user) => Self::User(user),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(address: &str) -> ClientAddr {
        ClientAddr::Network(format!("{address}:1234").parse().unwrap())
    }

    /// How many of these guesses are within the limit.
    fn guesses(sources: &Sources, from: ClientAddr, now: Instant, times: usize) -> usize {
        (0..times).filter(|_| sources.guess(from, now)).count()
    }

    #[test]
    fn wrong_keys_have_a_limit_that_runs_off_steadily() {
        let now = Instant::now();
        let sources = Sources::new(now);
        let from = client("192.0.2.1");
        assert_eq!(guesses(&sources, from, now, 1_000), 100);
        let mut now = now;
        for _ in 0..10 {
            now += Duration::from_secs(1);
            // What is refused counts for nothing, however often it is tried.
            assert_eq!(guesses(&sources, from, now, 1_000), 5);
        }
        assert_eq!(guesses(&sources, client("192.0.2.2"), now, 1_000), 100);
        assert_eq!(guesses(&sources, ClientAddr::Local(1000), now, 1_000), 100);
        now += Duration::from_mins(1);
        assert_eq!(guesses(&sources, from, now, 1_000), 100);
    }

    #[test]
    fn what_was_no_guess_is_given_back() {
        let now = Instant::now();
        let sources = Sources::new(now);
        let from = client("192.0.2.1");
        for _ in 0..1_000 {
            assert!(sources.guess(from, now));
            sources.give_back_guess(from);
            assert!(sources.guess_of_all(now));
            sources.give_back_guess_of_all();
        }
        assert_eq!(guesses(&sources, from, now, 1_000), 100);
    }

    #[test]
    fn requests_have_a_limit_of_their_own() {
        let now = Instant::now();
        let sources = Sources::new(now);
        let from = client("192.0.2.1");
        assert_eq!(guesses(&sources, from, now, 1_000), 100);
        let requests = || (0..1_000).filter(|_| sources.request(from, now)).count();
        assert_eq!(requests(), 200);
    }

    #[test]
    fn guesses_from_everywhere_have_a_limit_together() {
        let now = Instant::now();
        let sources = Sources::new(now);
        let within = |now| (0..1_000).filter(|_| sources.guess_of_all(now)).count();
        assert_eq!(within(now), 400);
        assert_eq!(within(now + Duration::from_secs(1)), 20);
    }

    #[test]
    fn one_attackers_addresses_count_as_one() {
        let now = Instant::now();
        let sources = Sources::new(now);
        assert_eq!(guesses(&sources, client("[2001:db8::1]"), now, 1_000), 100);
        assert_eq!(guesses(&sources, client("[2001:db8::2]"), now, 1_000), 0);
        assert_eq!(guesses(&sources, client("[2001:db8:0:1::1]"), now, 1), 1);
        assert_eq!(guesses(&sources, client("192.0.2.1"), now, 1_000), 100);
        assert_eq!(guesses(&sources, client("[::ffff:192.0.2.1]"), now, 1), 0);
    }

    #[test]
    fn the_table_is_bounded_and_keeps_who_guesses_most() {
        let now = Instant::now();
        let sources = Sources::new(now);
        let attacker = client("192.0.2.1");
        guesses(&sources, attacker, now, 100);
        for number in 0..u32::try_from(MAX_SOURCES).unwrap() * 2 {
            let address = IpAddr::V4((0x0a00_0000 + number).into());
            sources.guess(ClientAddr::Network((address, 1).into()), now);
            assert!(sources.0.lock().sources.len() <= MAX_SOURCES);
        }
        assert!(!sources.guess(attacker, now));
        let later = now + Duration::from_mins(1);
        for number in 0..u32::try_from(MAX_SOURCES).unwrap() {
            let address = IpAddr::V4((0x0b00_0000 + number).into());
            sources.guess(ClientAddr::Network((address, 1).into()), later);
        }
        assert!(sources.0.lock().sources.len() <= MAX_SOURCES);
    }
}
