//! What was done, what failed, and what explains it?

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use crate::client::Failure;
use crate::faults::Kind;
use crate::proxy::Target;

/// The errors that are shown; more of them would say no more.
const SHOWN: usize = 20;

#[derive(Default)]
pub struct Tally(Mutex<Counts>);

#[derive(Default)]
struct Counts {
    activities: BTreeMap<&'static str, Count>,
    explained: BTreeMap<(String, String), u64>,
    unexplained: Vec<String>,
}

#[derive(Default)]
struct Count {
    turns: u64,
    bytes: u64,
    longest: Duration,
    explained: u64,
}

impl Tally {
    pub fn done(&self, activity: &'static str, bytes: u64, time: Duration) {
        let mut counts = self.0.lock().expect("nobody panics with it");
        let count = counts.activities.entry(activity).or_default();
        count.turns += 1;
        count.bytes += bytes;
        count.longest = count.longest.max(time);
    }

    pub fn failed(
        &self,
        activity: &'static str,
        target: Target,
        failure: &Failure,
        fault: Option<Kind>,
    ) {
        let mut counts = self.0.lock().expect("nobody panics with it");
        match fault {
            Some(kind) => {
                let what = match failure {
                    Failure::Error { sqlstate, .. } => sqlstate.clone(),
                    _ => "closed".to_owned(),
                };
                *counts
                    .explained
                    .entry((kind.to_string(), what))
                    .or_default() += 1;
                counts.activities.entry(activity).or_default().explained += 1;
            }
            None => counts
                .unexplained
                .push(format!("{activity}, {target:?}: {failure}")),
        }
    }

    /// Everything that no fault explains, and every activity that achieved nothing.
    pub fn failures(&self, activities: &[&'static str]) -> Vec<String> {
        let counts = self.0.lock().expect("nobody panics with it");
        let idle = activities.iter().filter(|name| {
            counts
                .activities
                .get(*name)
                .is_none_or(|count| count.turns == 0)
        });
        let mut failures: Vec<String> =
            idle.map(|name| format!("{name}: none succeeded")).collect();
        failures.extend(counts.unexplained.iter().take(SHOWN).cloned());
        if counts.unexplained.len() > SHOWN {
            failures.push(format!(
                "{} more like these",
                counts.unexplained.len() - SHOWN
            ));
        }
        failures
    }

    pub fn print(&self) {
        let counts = self.0.lock().expect("nobody panics with it");
        println!(
            "{:<14} {:>9} {:>10} {:>10} {:>17}",
            "activity", "done", "MB", "longest s", "errors explained"
        );
        for (name, count) in &counts.activities {
            println!(
                "{name:<14} {:>9} {:>10} {:>10.2} {:>17}",
                count.turns,
                count.bytes / 1_000_000,
                count.longest.as_secs_f64(),
                count.explained
            );
        }
        println!("\n{:<30} {:<10} {:>9}", "fault", "error", "clients");
        for ((kind, what), clients) in &counts.explained {
            println!("{kind:<30} {what:<10} {clients:>9}");
        }
    }
}
