//! What does a check find out? The JSON object of `--json`, which `docs/check.md` documents.

use serde::Serialize;
use serde_json::{Value, json};

use crate::config::TargetSettings;

/// All targets of a check.
#[derive(Serialize)]
pub struct Report {
    pub ok: bool,
    pub targets: Vec<TargetReport>,
}

impl Report {
    pub fn new(targets: Vec<TargetReport>) -> Self {
        Self {
            ok: targets.iter().all(|target| target.ok),
            targets,
        }
    }
}

/// One target and all steps of a login to it.
#[derive(Serialize)]
pub struct TargetReport {
    target: String,
    engine: &'static str,
    region: String,
    pub ok: bool,
    steps: Vec<StepReport>,
}

impl TargetReport {
    pub fn new(target: &TargetSettings, steps: Vec<StepReport>) -> Self {
        Self {
            target: target.name.clone(),
            engine: target.engine.name().as_str(),
            region: target.region.clone(),
            ok: steps
                .iter()
                .all(|step| matches!(step.status, StepStatus::Ok | StepStatus::Unknown)),
            steps,
        }
    }
}

/// What became of one step.
#[derive(Serialize)]
pub struct StepReport {
    pub step: Step,
    pub status: StepStatus,
    /// How long it took, in milliseconds; `None` when it was not tried.
    pub ms: Option<f64>,
    /// What was found out or what failed; `None` when the step was not tried.
    pub text: Option<String>,
    /// The same for programs; empty unless the status is `ok`.
    pub facts: Value,
    /// Why the step failed; `None` unless it did.
    pub explanation: Option<String>,
    /// What to do about it; `None` unless the step failed.
    pub remedy: Option<String>,
}

impl StepReport {
    /// The report of a step that comes after one that failed.
    pub fn not_tried(step: Step) -> Self {
        Self {
            step,
            status: StepStatus::NotTried,
            ms: None,
            text: None,
            facts: json!({}),
            explanation: None,
            remedy: None,
        }
    }
}

/// The steps of a login, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Find the database user, the database and the AWS identity that the configuration gives.
    Route,
    /// Find AWS credentials, and ask AWS whose they are.
    Identity,
    /// Find the server's host and port.
    Endpoint,
    /// Obtain the temporary password.
    Mint,
    /// Resolve the host name.
    Dns,
    /// Connect.
    Tcp,
    /// Verify the server's certificate.
    Tls,
    /// Log in.
    Login,
    /// `SELECT 1`
    Select,
}

impl Step {
    pub const ALL: [Self; 9] = [
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

    /// The name in lines for people, which is also the one in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Route => "route",
            Self::Identity => "identity",
            Self::Endpoint => "endpoint",
            Self::Mint => "mint",
            Self::Dns => "dns",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
            Self::Login => "login",
            Self::Select => "select",
        }
    }
}

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StepStatus {
    Ok,
    /// It could not be found out, and logins do not need it.
    Unknown,
    Failed,
    /// An earlier step failed.
    NotTried,
}

/// A step that failed.
#[derive(Debug)]
pub struct Failure {
    /// What failed, in the words of the error itself.
    pub error: String,
    pub advice: Advice,
}

/// What helps a person to get a failed step to work.
#[derive(Debug, PartialEq, Eq)]
pub struct Advice {
    /// Why it failed.
    pub explanation: String,
    /// What to do about it.
    pub remedy: String,
}

impl Advice {
    pub fn new(explanation: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            explanation: explanation.into(),
            remedy: remedy.into(),
        }
    }
}
