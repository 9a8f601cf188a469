//! What a person or a program reads of it: a line a step as it ends, or one JSON object at the end.

use std::io::{IsTerminal, Write, stdout};

use super::{Report, Status, Step, StepReport};
use crate::config::Target;

/// Standard output.
pub struct Screen {
    json: bool,
    /// A person watches: the step under way is shown too.
    watched: bool,
}

impl Screen {
    pub fn new(json: bool) -> Self {
        Self {
            json,
            watched: !json && stdout().is_terminal(),
        }
    }

    pub fn target(&self, target: &Target) {
        if !self.json {
            write(&format!(
                "{} ({}, {})\n",
                target.name,
                target.engine.name(),
                target.region
            ));
        }
    }

    pub fn begin(&self, step: Step) {
        if self.watched {
            write(&format!("  {:<9} …", name(step)));
        }
    }

    pub fn end_step(&self, report: &StepReport) {
        if self.watched {
            // Carriage return, and erase to the end of the line.
            write("\r\x1b[K");
        }
        if !self.json {
            write(&lines(report));
        }
    }

    pub fn end(&self, report: &Report) {
        if self.json {
            write(&format!(
                "{}\n",
                serde_json::to_string_pretty(report).expect("texts and numbers are JSON")
            ));
        } else {
            let good = report.targets.iter().filter(|target| target.ok).count();
            write(&format!(
                "{good} of {} targets good\n",
                report.targets.len()
            ));
        }
    }
}

fn lines(report: &StepReport) -> String {
    let status = match report.status {
        Status::Ok => "ok",
        Status::Unknown => "unknown",
        Status::Failed => "FAILED",
        Status::NotTried => "not tried",
    };
    let time = report
        .ms
        .map(|ms| format!("{ms:.1} ms"))
        .unwrap_or_default();
    let text = report.text.as_deref().unwrap_or_default();
    let line = format!("  {:<9} {status:<9} {time:>10}  {text}", name(report.step));
    let mut lines = format!("{}\n", line.trim_end());
    for (label, text) in [("why", &report.explanation), ("remedy", &report.remedy)] {
        if let Some(text) = text {
            lines += &format!("    {label:<7} {text}\n");
        }
    }
    lines
}

fn name(step: Step) -> &'static str {
    match step {
        Step::Route => "route",
        Step::Identity => "identity",
        Step::Endpoint => "endpoint",
        Step::Mint => "mint",
        Step::Dns => "dns",
        Step::Tcp => "tcp",
        Step::Tls => "tls",
        Step::Login => "login",
        Step::Select => "select",
    }
}

/// A reader that has gone away must not end the check, whose result is the exit code.
fn write(text: &str) {
    let mut stdout = stdout().lock();
    let _ = stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush());
}
