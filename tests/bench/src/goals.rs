//! What is asked of the proxy, as ratios to peers measured in the same run.

use crate::peers::LegKind;
use crate::results::{Results, Spread};

/// The build that is judged.
pub const OURS: &str = "pg-iam-proxy";
const PEERS: [&str; 4] = ["haproxy", "nginx", "pgbouncer", "stunnel"];

pub struct Goal {
    pub figure: &'static str,
    pub leg: LegKind,
    pub against: Against,
    pub bound: Bound,
}

#[derive(Clone, Copy)]
pub enum Against {
    /// Whichever peer has the better median.
    Best,
    Peer(&'static str),
    /// A peer's other figure.
    Figure(&'static str, &'static str),
    /// The same without a proxy.
    Direct,
    /// The figure itself is judged.
    Nothing,
}

#[derive(Clone, Copy)]
pub enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

pub struct Judged {
    pub goal: Goal,
    pub ours: Spread,
    /// Against whom, and their figure.
    pub peer: Option<(String, Spread)>,
    pub ratio: Spread,
    pub met: bool,
}

use Against::{Best, Direct, Figure, Nothing, Peer};
use Bound::{AtLeast, AtMost};
use LegKind::{Plain, Tls};

pub fn goals() -> Vec<Goal> {
    let mut goals = Vec::new();
    let mut add = |figure, leg, against, bound| goals.push(Goal { figure, leg, against, bound });
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
        for figure in ["trips_1_p50_us", "trips_1_p99_us", "trips_16_p50_us", "trips_16_p99_us", "trips_64_p50_us", "trips_64_p99_us"] {
            add(figure, leg, Best, AtMost(1.0));
        }
    }
    for (leg, more) in [(Plain, 3.5), (Tls, 3.0)] {
        add("logins_fresh_per_s", leg, Peer("pgbouncer"), AtLeast(more));
        add("logins_fresh_cpu_ms", leg, Peer("pgbouncer"), AtMost(0.30));
        add("login_warm_p50_ms", leg, Figure("pgbouncer", "login_pooled_p50_ms"), AtMost(1.0));
        add("login_reused_p50_ms", leg, Figure("pgbouncer", "login_pooled_p50_ms"), AtMost(1.0));
    }
    for (leg, down, trips) in [(Plain, 0.85, 0.78), (Tls, 0.77, 0.66)] {
        add("real_copy_down_mb_s", leg, Direct, AtLeast(down));
        add("real_tps_16_simple", leg, Direct, AtLeast(trips));
        add("real_tps_16_simple", leg, Peer("pgbouncer"), AtLeast(1.15));
    }
    for (leg, most) in [(Plain, 12.0), (Tls, 14.0)] {
        for figure in ["memory_1000_kib", "memory_1000_burst_kib", "memory_10000_kib", "memory_10000_burst_kib"] {
            add(figure, leg, Nothing, AtMost(most));
        }
        add("beside_growth", leg, Nothing, AtMost(1.05));
    }
    goals
}

impl Goal {
    /// None where it was not measured.
    pub fn judge(self, results: &Results) -> Option<Judged> {
        let ours = results.spread(self.figure, self.leg, OURS)?;
        let higher = matches!(self.bound, AtLeast(_));
        let (peer, figure, leg) = match self.against {
            Nothing => (None, self.figure, self.leg),
            Peer(name) => (Some(name), self.figure, self.leg),
            Figure(name, figure) => (Some(name), figure, self.leg),
            Direct => (Some("direct"), self.figure, Tls),
            Best => {
                let median = |peer: &&str| results.spread(self.figure, self.leg, peer).map(|spread| spread.median);
                let mut known: Vec<(f64, &str)> = PEERS.iter().filter_map(|peer| Some((median(peer)?, *peer))).collect();
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
        Some(Judged { goal: self, ours, peer, ratio, met })
    }
}
