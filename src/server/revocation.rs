//! How often is an operator told that a revocation list runs out? When it is noticed, and daily.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, sleep};

use crate::tls::listener::ListenerTls;

const CHECK_INTERVAL: Duration = Duration::from_mins(1);
const REPEAT_AFTER: Duration = Duration::from_hours(24);

/// Looks at the lists for ever. What is to be said of them at the start has been said by then.
pub(super) async fn watch(listeners: Vec<Arc<ListenerTls>>) {
    let mut told = Told::default();
    drop(told.news(warnings(&listeners), Instant::now()));
    loop {
        sleep(CHECK_INTERVAL).await;
        for warning in told.news(warnings(&listeners), Instant::now()) {
            tracing::warn!("{warning}");
        }
    }
}

fn warnings(listeners: &[Arc<ListenerTls>]) -> Vec<String> {
    let now = SystemTime::now();
    let warnings = listeners.iter().map(|tls| tls.revocation_warning(now));
    warnings.flatten().collect()
}

/// The warnings that hold at the moment, with the time at which they were last given.
#[derive(Default)]
struct Told(HashMap<String, Instant>);

impl Told {
    /// Those of the current warnings that are new or have not been given for a day.
    fn news(&mut self, current: Vec<String>, now: Instant) -> Vec<String> {
        self.0.retain(|warning, told| {
            current.contains(warning) && now.duration_since(*told) < REPEAT_AFTER
        });
        let mut news = Vec::new();
        for warning in current {
            if !self.0.contains_key(&warning) {
                self.0.insert(warning.clone(), now);
                news.push(warning);
            }
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_is_given_once_a_day_while_it_holds() {
        let start = Instant::now();
        let mut told = Told::default();
        let mut news = |hours: u64, current: &[&str]| {
            let current = current.iter().map(ToString::to_string).collect();
            told.news(current, start + Duration::from_hours(hours))
        };
        assert_eq!(news(0, &["soon", "soon"]), ["soon"], "two listeners");
        assert!(news(23, &["soon"]).is_empty());
        assert_eq!(news(24, &["soon"]), ["soon"]);
        assert_eq!(news(25, &["expired"]), ["expired"]);
        assert!(news(26, &[]).is_empty());
        assert_eq!(news(27, &["expired"]), ["expired"], "it holds again");
    }
}
