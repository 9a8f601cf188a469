//! `check`: does every step of a login to each target work, and what is to be done about the first
//! that does not?
//!
//! `steps` walks, with the code that serves sessions; `explain` finds the words, `engine` those
//! that differ between engines; `render` shows lines or JSON.

mod engine;
mod explain;
mod render;
mod steps;

use std::collections::HashMap;
use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;

use crate::config::{Target, User};
use crate::credentials::Broker;
use render::Screen;
use steps::Walk;

/// Who logs in, where a target leaves that to the client.
#[derive(Debug, Clone, Default)]
pub struct Client {
    /// User name; the operating system's when `None`.
    pub user: Option<String>,
    /// Database; named like the user when `None`.
    pub database: Option<String>,
}

/// Walks one target after the other and shows it. Whether all is well.
pub async fn check(
    targets: &[Arc<Target>],
    users: &HashMap<String, Arc<User>>,
    client: &Client,
    json: bool,
) -> bool {
    let (identities, metrics) = (Arc::default(), Arc::default());
    let screen = Screen::new(json);
    let mut report = Report {
        ok: true,
        targets: Vec::new(),
    };
    for target in targets {
        screen.target(target);
        let steps = Walk {
            target,
            users,
            client,
            broker: &Broker::new(&target.name, &identities, &metrics),
            screen: &screen,
        }
        .run()
        .await;
        let ok = steps
            .iter()
            .all(|step| matches!(step.status, Status::Ok | Status::Unknown));
        report.ok &= ok;
        report.targets.push(TargetReport {
            target: target.name.clone(),
            engine: target.engine.name().as_str(),
            region: target.region.clone(),
            ok,
            steps,
        });
    }
    screen.end(&report);
    report.ok
}

/// The JSON object of `--json`; the README documents it.
#[derive(Serialize)]
struct Report {
    ok: bool,
    targets: Vec<TargetReport>,
}

#[derive(Serialize)]
struct TargetReport {
    target: String,
    engine: &'static str,
    region: String,
    ok: bool,
    steps: Vec<StepReport>,
}

/// What became of one step; the last two are there when it failed.
#[derive(Serialize)]
struct StepReport {
    step: Step,
    status: Status,
    ms: Option<f64>,
    text: Option<String>,
    facts: Value,
    explanation: Option<String>,
    remedy: Option<String>,
}

/// The steps of a login, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Step {
    Route,
    Identity,
    Endpoint,
    Mint,
    Dns,
    Tcp,
    Tls,
    Login,
    Select,
}

impl Step {
    const ALL: [Self; 9] = [
        Self::Route,
        Self::Identity,
        Self::Endpoint,
        Self::Mint,
        Self::Dns,
        Self::Tcp,
        Self::Tls,
        Self::Login,
        Self::Select,
    ];
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Status {
    Ok,
    /// Not to be found out, and not needed to log in.
    Unknown,
    Failed,
    /// A step before it failed.
    NotTried,
}

/// Why a step failed, and what to do.
#[derive(Debug)]
struct Failure {
    error: String,
    explanation: String,
    remedy: String,
}
