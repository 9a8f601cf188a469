//! What must the proxy achieve, as ratios to peers measured in the same run?

use crate::peers::LegKind;
use crate::results::{Results, Spread};

/// The name of the build that is judged.
pub const OURS: &str = "pg-iam-proxy";
/// The share of all processors above which the machine counts as full.
const FULL: f64 = 0.9;
const PEERS: [&str; 4] = ["haproxy", "nginx", "pgbouncer", "stunnel"];

pub struct Goal {
    pub figure: &'static str,
    pub leg: LegKind,
    pub against: Against,
    pub bound: Bound,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Against {
    /// Compares with the peer that has the best median.
    Best,
    Peer(&'static str),
    /// Compares with another figure of this peer.
    Figure(&'static str, &'static str),
    /// Compares with the same work without a proxy.
    Direct,
    /// Judges the figure itself.
    Nothing,
}

#[derive(Clone, Copy)]
pub enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

pub struct GoalResult {
    pub goal: Goal,
    pub ours: Spread,
    /// The peer of the comparison, and its figure.
    pub peer: Option<(String, Spread)>,
    pub ratio: Spread,
    pub word: Word,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    Met,
    Missed,
    /// Server, load and proxy left no processor idle, so the machine was measured rather than the
    /// proxy.
    MachineFull,
}

use Against::{Best, Direct, Figure, Nothing, Peer};
use Bound::{AtLeast, AtMost};
use LegKind::{Plain, Tls};

pub fn goals() -> Vec<Goal> {
    let mut goals = Vec::new();
    let mut add = |figure, leg, against, bound| {
        goals.push(Goal {
            figure,
            leg,
            against,
            bound,
        });
    };
    for figure in ["bulk_down_mb_s", "bulk_up_mb_s"] {
        add(figure, Plain, Best, AtLeast(1.5));
        add(figure, Plain, Peer("pgbouncer"), AtLeast(2.8));
        add(figure, Tls, Best, AtLeast(1.6));
        add(figure, Tls, Peer("pgbouncer"), AtLeast(3.0));
    }
    for figure in ["bulk_down_cpu_s_per_gb", "bulk_up_cpu_s_per_gb"] {
        add(figure, Plain, Best, AtMost(0.65));
        add(figure, Tls, Best, AtMost(0.60));
    }
    for figure in ["together_down_gain", "together_up_gain"] {
        add(figure, Plain, Nothing, AtLeast(1.8));
        add(figure, Tls, Nothing, AtLeast(1.8));
    }
    for leg in [Plain, Tls] {
        add("trips_16_cpu_us", leg, Best, AtMost(1.0));
        for figure in [
            "trips_1_p50_us",
            "trips_1_p99_us",
            "trips_16_p50_us",
            "trips_16_p99_us",
            "trips_64_p50_us",
            "trips_64_p99_us",
        ] {
            add(figure, leg, Best, AtMost(1.0));
        }
    }
    for (leg, more) in [(Plain, 3.5), (Tls, 3.0)] {
        add("logins_fresh_per_s", leg, Peer("pgbouncer"), AtLeast(more));
        add("logins_fresh_cpu_ms", leg, Peer("pgbouncer"), AtMost(0.30));
        add(
            "login_warm_p50_ms",
            leg,
            Figure("pgbouncer", "login_pooled_p50_ms"),
            AtMost(1.0),
        );
        add(
            "login_reused_p50_ms",
            leg,
            Figure("pgbouncer", "login_pooled_p50_ms"),
            AtMost(1.0),
        );
    }
    for leg in [Plain, Tls] {
        add("pinned_p99_us", leg, Best, AtMost(1.0));
        for figure in ["storm_p50_ms", "storm_p99_ms"] {
            add(figure, leg, Best, AtMost(1.0));
        }
        for (figure, theirs, bound) in [
            ("burst_reused_per_s", "burst_pooled_per_s", AtLeast(1.0)),
            ("burst_reused_p99_ms", "burst_pooled_p99_ms", AtMost(1.0)),
        ] {
            add(figure, leg, Figure("pgbouncer", theirs), bound);
        }
    }
    for (leg, down, trips) in [(Plain, 0.85, 0.78), (Tls, 0.77, 0.66)] {
        add("real_copy_down_mb_s", leg, Direct, AtLeast(down));
        add("real_tps_16_simple", leg, Direct, AtLeast(trips));
        add("real_tps_16_simple", leg, Peer("pgbouncer"), AtLeast(1.15));
    }
    for (leg, most) in [(Plain, 12.0), (Tls, 14.0)] {
        for figure in [
            "memory_1000_kib",
            "memory_1000_burst_kib",
            "memory_10000_kib",
            "memory_10000_burst_kib",
        ] {
            add(figure, leg, Nothing, AtMost(most));
        }
        // The rest of its memory is pages of the program's file, mostly code of the AWS SDK.
        add("memory_rest_anonymous_kib", leg, Nothing, AtMost(8192.0));
        add("beside_growth", leg, Nothing, AtMost(1.05));
    }
    goals
}

impl Goal {
    /// Returns `None` if the figure was not measured.
    pub fn judge(self, results: &Results) -> Option<GoalResult> {
        let ours = results.spread(self.figure, self.leg, OURS)?;
        let higher = matches!(self.bound, AtLeast(_));
        let (peer, figure, leg) = match self.against {
            Nothing => (None, self.figure, self.leg),
            Peer(name) => (Some(name), self.figure, self.leg),
            Figure(name, figure) => (Some(name), figure, self.leg),
            Direct => (Some("direct"), self.figure, Tls),
            Best => {
                let median = |peer: &&str| {
                    results
                        .spread(self.figure, self.leg, peer)
                        .map(|spread| spread.median)
                };
                let mut known: Vec<(f64, &str)> = PEERS
                    .iter()
                    .filter_map(|peer| Some((median(peer)?, *peer)))
                    .collect();
                known.sort_by(|one, other| one.0.total_cmp(&other.0));
                let best = if higher { known.last() } else { known.first() };
                (Some(best?.1), self.figure, self.leg)
            }
        };
        let ratio = match peer {
            None => ours,
            Some(peer) => results.ratio((self.figure, self.leg, OURS), (figure, leg, peer))?,
        };
        let peer = match peer {
            None => None,
            Some(name) => Some((name.to_owned(), results.spread(figure, leg, name)?)),
        };
        let met = match self.bound {
            AtLeast(least) => ratio.median >= least,
            AtMost(most) => ratio.median <= most,
        };
        let busy = results.spread(&self.figure.replace("_gain", "_busy"), self.leg, OURS);
        let full = self.figure.ends_with("_gain") && busy.is_some_and(|busy| busy.median >= FULL);
        let word = match (met, full) {
            (true, _) => Word::Met,
            (false, true) => Word::MachineFull,
            (false, false) => Word::Missed,
        };
        Some(GoalResult {
            goal: self,
            ours,
            peer,
            ratio,
            word,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results(figures: &[(&str, &str, &[f64])]) -> Results {
        let mut results = Results::default();
        for (figure, subject, rounds) in figures {
            for (round, value) in rounds.iter().enumerate() {
                results.add(figure, Plain, subject, round, *value);
            }
        }
        results
    }

    fn judge(
        results: &Results,
        figure: &'static str,
        against: Against,
        bound: Bound,
    ) -> GoalResult {
        Goal {
            figure,
            leg: Plain,
            against,
            bound,
        }
        .judge(results)
        .expect("it was measured")
    }

    #[test]
    fn the_best_peer_is_the_one_with_the_better_median() {
        let results = results(&[
            ("x", OURS, &[6.0, 6.0, 6.0]),
            ("x", "nginx", &[1.0, 3.0, 9.0]),
            ("x", "haproxy", &[2.0, 2.0, 2.0]),
        ]);
        assert_eq!(
            judge(&results, "x", Best, AtLeast(2.0))
                .peer
                .expect("there is one")
                .0,
            "nginx"
        );
        assert_eq!(
            judge(&results, "x", Best, AtMost(2.0))
                .peer
                .expect("there is one")
                .0,
            "haproxy"
        );
    }

    #[test]
    fn ratios_are_of_the_same_round() {
        let results = results(&[
            ("x", OURS, &[2.0, 40.0, 9.0]),
            ("x", "nginx", &[1.0, 10.0, 3.0]),
        ]);
        let judged = judge(&results, "x", Best, AtLeast(3.0));
        assert_eq!(
            (judged.ratio.min, judged.ratio.median, judged.ratio.max),
            (2.0, 3.0, 4.0)
        );
        assert_eq!(judged.word, Word::Met);
        assert_eq!(judge(&results, "x", Best, AtLeast(3.1)).word, Word::Missed);
    }

    #[test]
    fn two_sessions_on_a_full_machine_are_not_a_miss() {
        let gain = ("together_down_gain", OURS, &[1.2][..]);
        let full = results(&[gain, ("together_down_busy", OURS, &[0.97])]);
        let idle = results(&[gain, ("together_down_busy", OURS, &[0.60])]);
        assert_eq!(
            judge(&full, "together_down_gain", Nothing, AtLeast(1.8)).word,
            Word::MachineFull
        );
        assert_eq!(
            judge(&idle, "together_down_gain", Nothing, AtLeast(1.8)).word,
            Word::Missed
        );
    }
}
