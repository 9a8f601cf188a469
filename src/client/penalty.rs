//! How much are the logins from a network slowed down, after how many failures?
//!
//! A successful login does not shorten the delay. Otherwise the owner of one account could guess the
//! password of another in between.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::address::network;

/// How many failures cause no delay. They may be mistyped passwords, or a tool that tries those it
/// has saved.
const FREE_FAILURES: u32 = 3;
/// The delay after that. Each further failure doubles it.
const FIRST_DELAY: Duration = Duration::from_millis(250);
/// The longest delay.
const MAX_DELAY: Duration = Duration::from_secs(5);
/// The time without a failure after which an address is forgotten.
const FAILURE_MEMORY: Duration = Duration::from_mins(1);
/// The most networks that are remembered, which take about a megabyte.
const MAX_NETWORKS: usize = 10_000;
/// The time between two looks for networks that can be forgotten, while there are as many as that.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// The networks from which logins have failed lately.
#[derive(Debug, Default)]
pub struct Penalties(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    networks: HashMap<IpAddr, Failures>,
    /// The same, those first that matter least.
    by_weight: BTreeSet<(Failures, IpAddr)>,
    last_sweep: Option<Instant>,
}

/// Those that are fewer matter less, and among these the ones that are longer ago.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Failures {
    count: u32,
    last: Instant,
}

impl Penalties {
    /// Records a failed login, and returns how long its answer has to wait.
    pub fn failed(&self, address: IpAddr, now: Instant) -> Duration {
        let count = self.0.lock().count(network(address), now);
        if count == FREE_FAILURES + 1 {
            tracing::warn!(
                %address,
                failures = count,
                "repeated failures: this address is slowed down from now on"
            );
        }
        delay(count - 1)
    }

    /// How long a login from this address has to wait.
    pub fn delay(&self, address: IpAddr, now: Instant) -> Duration {
        let table = self.0.lock();
        let failures = table.networks.get(&network(address));
        failures
            .filter(|failures| failures.is_remembered(now))
            .map_or(Duration::ZERO, |failures| delay(failures.count))
    }
}

/// The delay after this many failures.
fn delay(failures: u32) -> Duration {
    match failures.checked_sub(FREE_FAILURES) {
        None => Duration::ZERO,
        // Further doublings would overflow, and the limit has long been reached.
        Some(doublings) => MAX_DELAY.min(FIRST_DELAY * 2u32.pow(doublings.min(16))),
    }
}

impl Table {
    fn count(&mut self, network: IpAddr, now: Instant) -> u32 {
        let before = self.remove(network);
        if before.is_none() && self.networks.len() >= MAX_NETWORKS {
            self.make_room(now);
        }
        let count = before
            .filter(|failures| failures.is_remembered(now))
            .map_or(0, |failures| failures.count);
        let failures = Failures {
            count: count.saturating_add(1),
            last: now,
        };
        self.networks.insert(network, failures);
        self.by_weight.insert((failures, network));
        failures.count
    }

    fn make_room(&mut self, now: Instant) {
        let is_due = self
            .last_sweep
            .is_none_or(|last| now.saturating_duration_since(last) >= SWEEP_INTERVAL);
        if is_due {
            self.last_sweep = Some(now);
            self.networks
                .retain(|_, failures| failures.is_remembered(now));
            self.by_weight
                .retain(|(failures, _)| failures.is_remembered(now));
        }
        if self.networks.len() >= MAX_NETWORKS {
            // This is an attack from everywhere.
            if let Some((_, network)) = self.by_weight.pop_first() {
                self.networks.remove(&network);
            }
        }
    }

    fn remove(&mut self, network: IpAddr) -> Option<Failures> {
        let failures = self.networks.remove(&network)?;
        self.by_weight.remove(&(failures, network));
        Some(failures)
    }
}

impl Failures {
    fn is_remembered(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.last) < FAILURE_MEMORY
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn delays(penalties: &Penalties, from: &str, now: Instant, times: usize) -> Vec<u128> {
        (0..times)
            .map(|_| penalties.failed(address(from), now).as_millis())
            .collect()
    }

    #[test]
    fn the_delay_doubles_after_a_few_failures_up_to_five_seconds() {
        let (penalties, now) = (Penalties::default(), Instant::now());
        assert_eq!(
            delays(&penalties, "192.0.2.1", now, 10),
            [0, 0, 0, 250, 500, 1000, 2000, 4000, 5000, 5000]
        );
        assert_eq!(
            delays(&penalties, "192.0.2.1", now, 1000).last(),
            Some(&5000)
        );
        assert_eq!(delays(&penalties, "192.0.2.2", now, 1), [0]);
    }

    #[test]
    fn a_minute_without_failure_is_forgiven() {
        let (penalties, start) = (Penalties::default(), Instant::now());
        delays(&penalties, "192.0.2.1", start, 9);
        let almost = start + Duration::from_secs(59);
        assert_eq!(delays(&penalties, "192.0.2.1", almost, 1), [5000]);
        assert_eq!(
            delays(&penalties, "192.0.2.1", almost + FAILURE_MEMORY, 4),
            [0, 0, 0, 250]
        );
    }

    #[test]
    fn one_attackers_addresses_count_as_one() {
        let (penalties, now) = (Penalties::default(), Instant::now());
        delays(&penalties, "2001:db8::1", now, 3);
        assert_eq!(delays(&penalties, "2001:db8::ffff:0:0:2", now, 1), [250]);
        assert_eq!(delays(&penalties, "2001:db8:0:1::1", now, 1), [0]);
        delays(&penalties, "192.0.2.1", now, 3);
        assert_eq!(delays(&penalties, "::ffff:192.0.2.1", now, 1), [250]);
    }

    #[test]
    fn the_table_is_bounded_and_keeps_who_fails_most() {
        let (penalties, start) = (Penalties::default(), Instant::now());
        delays(&penalties, "192.0.2.1", start, 9);
        for number in 0..u32::try_from(MAX_NETWORKS).unwrap() + 100 {
            penalties.failed(IpAddr::V4((0x0a00_0000 + number).into()), start);
        }
        assert_eq!(penalties.0.lock().networks.len(), MAX_NETWORKS);
        assert_eq!(delays(&penalties, "192.0.2.1", start, 1), [5000]);
        penalties.failed(address("198.51.100.1"), start + FAILURE_MEMORY);
        assert_eq!(penalties.0.lock().networks.len(), 1);
    }
}
