//! What is printed while a check runs: a line for each step as it ends, or one JSON object at the
//! end?

use std::io::{IsTerminal, Write, stdout};

use super::report::{Report, Step, StepReport, StepStatus};
use crate::config::TargetSettings;

/// Prints to standard output.
pub struct Reporter {
    json: bool,
    /// Whether a person watches a terminal: then the step that is under way is shown too.
    is_watched: bool,
}

impl Reporter {
    /// Prints one JSON object at the end with `json`, and lines without.
    pub fn new(json: bool) -> Self {
        Self {
            json,
            is_watched: !json && stdout().is_terminal(),
        }
    }

    /// The check of a target begins.
    pub fn begin_target(&self, target: &TargetSettings) {
        if !self.json {
            print(&format!(
                "{} ({}, {})\n",
                target.name,
                target.engine.name(),
                target.region
            ));
        }
    }

    /// A step begins.
    pub fn begin_step(&self, step: Step) {
        if self.is_watched {
            print(&format!("  {:<9} …", step.name()));
        }
    }

    /// A step has ended, or is not tried.
    pub fn end_step(&self, report: &StepReport) {
        if self.is_watched {
            // A carriage return, and the sequence that erases to the end of the line.
            print("\r\x1b[K");
        }
        if !self.json {
            print(&lines(report));
        }
    }

    /// Every target has been checked.
    pub fn end(&self, report: &Report) {
        if self.json {
            print(&format!(
                "{}\n",
                serde_json::to_string_pretty(report).expect("texts and numbers are JSON")
            ));
        } else {
            let good = report.targets.iter().filter(|target| target.ok).count();
            print(&format!(
                "{good} of {} targets good\n",
                report.targets.len()
            ));
        }
    }
}

fn lines(report: &StepReport) -> String {
    let status = match report.status {
        StepStatus::Ok => "ok",
        StepStatus::Unknown => "unknown",
        StepStatus::Failed => "FAILED",
        StepStatus::NotTried => "not tried",
    };
    let time = report
        .ms
        .map(|ms| format!("{ms:.1} ms"))
        .unwrap_or_default();
    let text = report.text.as_deref().unwrap_or_default();
    let line = format!("  {:<9} {status:<9} {time:>10}  {text}", report.step.name());
    let mut lines = format!("{}\n", line.trim_end());
    for (label, text) in [("why", &report.explanation), ("remedy", &report.remedy)] {
        if let Some(text) = text {
            lines += &format!("    {label:<7} {text}\n");
        }
    }
    lines
}

/// Writes to standard output. When nobody reads it any more, the check goes on, because its exit
/// code still tells the result.
fn print(text: &str) {
    let mut stdout = stdout().lock();
    let _ = stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush());
}
