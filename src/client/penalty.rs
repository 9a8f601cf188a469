//! How long does the answer to a failed login wait, so that guessing passwords is slow?
//!
//! A successful login does not shorten the wait. Otherwise the owner of one account could guess the
//! password of another in between.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::address::network;

/// How many failures are answered at once. They may be mistyped passwords, or a tool that tries
/// those it has saved.
const FREE_FAILURES: u32 = 3;
/// The delay of the first failure that waits. Each further one doubles it.
const FIRST_DELAY: Duration = Duration::from_millis(250);
/// The longest delay.
const MAX_DELAY: Duration = Duration::from_secs(5);
/// The time without a failure after which an address is forgotten.
const FAILURE_MEMORY: Duration = Duration::from_mins(1);
/// The most networks that are remembered, which take about a megabyte.
const MAX_NETWORKS: usize = 10_000;

/// The networks from which logins have failed lately.
#[derive(Debug, Default)]
pub struct Penalties(Mutex<HashMap<IpAddr, Failures>>);

#[derive(Debug)]
struct Failures {
    count: u32,
    last: Instant,
}

impl Penalties {
    /// Records a failed login, and returns how long its answer has to wait.
    pub fn failed(&self, address: IpAddr, now: Instant) -> Duration {
        let network = network(address);
        let count = self.count(network, now);
        if count == FREE_FAILURES + 1 {
            tracing::warn!(
                %address,
                failures = count,
                "repeated failures: this address is slowed down from now on"
            );
        }
        match count.checked_sub(FREE_FAILURES + 1) {
            None => Duration::ZERO,
            // Further doublings would overflow, and the limit has long been reached.
            Some(doublings) => MAX_DELAY.min(FIRST_DELAY * 2u32.pow(doublings.min(16))),
        }
    }

    fn count(&self, network: IpAddr, now: Instant) -> u32 {
        let mut table = self.0.lock();
        if table.len() >= MAX_NETWORKS && !table.contains_key(&network) {
            table.retain(|_, failures| failures.is_remembered(now));
            if table.len() >= MAX_NETWORKS {
                // This is an attack from everywhere. The network that has failed least, and among
                // those the longest ago, matters least.
                let least = table
                    .iter()
                    .min_by_key(|(_, failures)| (failures.count, failures.last))
                    .map(|(network, _)| *network);
                least.and_then(|network| table.remove(&network));
            }
        }
        let failures = table.entry(network).or_insert(Failures {
            count: 0,
            last: now,
        });
        if !failures.is_remembered(now) {
            failures.count = 0;
        }
        *failures = Failures {
            count: failures.count.saturating_add(1),
            last: now,
        };
        failures.count
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
        assert_eq!(penalties.0.lock().len(), MAX_NETWORKS);
        assert_eq!(delays(&penalties, "192.0.2.1", start, 1), [5000]);
        penalties.failed(address("198.51.100.1"), start + FAILURE_MEMORY);
        assert_eq!(penalties.0.lock().len(), 1);
    }
}
