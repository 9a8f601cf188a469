//! Was the machine quiet enough to believe the figures?

use std::fs;
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{SHA256, digest};
use serde_json::{Value, json};

use crate::process::{cpu_seconds_of_all, pause};

/// Hashing this much takes about 15 ms of one processor.
const HASHED: usize = 16 * 1024 * 1024;
const SETTLE: Duration = Duration::from_millis(50);
/// No figure can be more accurate than a loop that does the same work each time.
const MOST_SPREAD: f64 = 0.15;
const MOST_STEAL: f64 = 0.03;
const MOST_OTHERS: f64 = 0.08;
const TICKS_PER_SECOND: f64 = 100.0;

pub struct Noise {
    loops: Vec<f64>,
    block: Vec<u8>,
    start: Ticks,
    own_at_start: f64,
}

pub struct Verdict {
    /// How much longer the slowest tenth of the calibration loops took than the fastest tenth.
    pub spread: f64,
    /// The share of the processors' time that the hypervisor took.
    pub steal: f64,
    /// The share of the processors' time that other programs than the benchmark took.
    pub others: f64,
    /// Why the machine was not quiet; empty if it was.
    pub reasons: Vec<String>,
}

#[derive(Clone, Copy)]
struct Ticks {
    busy: f64,
    steal: f64,
    all: f64,
}

impl Noise {
    pub fn start() -> Noise {
        Noise {
            loops: Vec::new(),
            block: vec![7; HASHED],
            start: ticks(),
            own_at_start: cpu_seconds_of_all(std::process::id()),
        }
    }

    /// Runs the calibration loop between measurements, when nothing of ours is running.
    pub fn calibrate(&mut self) {
        // Programs that were just stopped may still be cleaning up.
        pause(SETTLE);
        let started = Instant::now();
        std::hint::black_box(digest(&SHA256, &self.block));
        self.loops.push(started.elapsed().as_secs_f64());
    }

    pub fn verdict(&self) -> Verdict {
        let now = ticks();
        let all = (now.all - self.start.all).max(1.0);
        let own = (cpu_seconds_of_all(std::process::id()) - self.own_at_start) * TICKS_PER_SECOND;
        let others = ((now.busy - self.start.busy - own) / all).max(0.0);
        let steal = (now.steal - self.start.steal) / all;
        let mut loops = self.loops.clone();
        loops.sort_by(f64::total_cmp);
        let at = |tenth: usize| loops.get(loops.len() * tenth / 10).copied().unwrap_or(1.0);
        let spread = at(9) / at(1) - 1.0;
        let mut reasons = Vec::new();
        for (value, most, what) in [
            (
                spread,
                MOST_SPREAD,
                "the calibration loop's time differs by",
            ),
            (steal, MOST_STEAL, "the hypervisor took"),
            (others, MOST_OTHERS, "other programs took"),
        ] {
            if value > most {
                reasons.push(format!(
                    "{what} {:.0} %, more than {:.0} %",
                    value * 100.0,
                    most * 100.0
                ));
            }
        }
        Verdict {
            spread,
            steal,
            others,
            reasons,
        }
    }
}

impl Verdict {
    pub fn to_json(&self) -> Value {
        json!({
            "calibration_spread": self.spread,
            "steal": self.steal,
            "others": self.others,
            "too_noisy": self.reasons,
        })
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (spread, steal, others) =
            (self.spread * 100.0, self.steal * 100.0, self.others * 100.0);
        write!(
            f,
            "calibration loop within {spread:.0} %, {steal:.1} % of the processors stolen, \
             {others:.1} % taken by other programs"
        )
    }
}

/// Measures how busy the machine is while something is done.
pub struct Busy(Ticks);

impl Busy {
    pub fn start() -> Busy {
        Busy(ticks())
    }

    /// The share of all processors' time that was used since then.
    pub fn share(&self) -> f64 {
        let now = ticks();
        (now.busy - self.0.busy) / (now.all - self.0.all).max(1.0)
    }
}

/// Reads the first line of /proc/stat.
fn ticks() -> Ticks {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let fields: Vec<f64> = text
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .filter_map(|field| field.parse().ok())
        .collect();
    let field = |index: usize| fields.get(index).copied().unwrap_or_default();
    Ticks {
        busy: field(0) + field(1) + field(2) + field(5) + field(6),
        steal: field(7),
        all: fields.iter().take(8).sum(),
    }
}
