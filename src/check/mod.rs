//! `pg-iam-proxy check`: does every step of a login to each target work, and what is to be done
//! about the first one that does not?
//!
//! `target_check` goes through the steps in their order, and `steps` has each of them, made of the
//! code that serves sessions. `login` is what is known of the login that is checked, `explain`
//! finds the words for an error, and `reporter` prints lines or JSON.

mod explain;
mod login;
mod report;
mod reporter;
mod steps;
mod target_check;

use std::collections::HashMap;
use std::sync::Arc;

pub use steps::LoginNames;

use crate::config::{TargetSettings, UserSettings};
use crate::credentials::Broker;
use report::{Report, TargetReport};
use reporter::Reporter;
use steps::Steps;
use target_check::check_target;

/// Checks one target after the other and prints what it finds, as lines or as one JSON object.
/// Returns whether every target works.
pub async fn check(
    targets: &[Arc<TargetSettings>],
    users: &HashMap<String, Arc<UserSettings>>,
    names: &LoginNames,
    json: bool,
) -> bool {
    let (identities, metrics) = (Arc::default(), Arc::default());
    let reporter = Reporter::new(json);
    let mut reports = Vec::new();
    for target in targets {
        reporter.begin_target(target);
        let steps = Steps {
            target,
            users,
            names,
            broker: &Broker::new(&target.name, &identities, &metrics),
        };
        reports.push(TargetReport::new(
            target,
            check_target(&steps, &reporter).await,
        ));
    }
    let report = Report::new(reports);
    reporter.end(&report);
    report.ok
}
