//! What should this run measure? All options are environment variables, which `make bench
//! NAME=value` passes on.

use std::env;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::peers::{LegKind, Subject};

pub const GROUPS: [&str; 10] = [
    "bulk",
    "together",
    "trips",
    "pinned",
    "logins",
    "burst",
    "storm",
    "memory",
    "real",
    "credentials",
];

pub struct Options {
    /// Stays under five minutes, with fewer rounds, shorter measurements, and 10 000 sessions only
    /// for our own proxy.
    pub quick: bool,
    pub rounds: usize,
    /// The duration of one measurement. Many short ones average out more of the scheduler's moods
    /// than few long ones.
    pub milliseconds: u64,
    pub only: Vec<String>,
    pub legs: Vec<LegKind>,
    pub subjects: Vec<Subject>,
    /// The folder for the table, the JSON and the chart.
    pub output: PathBuf,
    /// Whether to replace the table in docs/performance.md and the chart of the README.
    pub publish: bool,
    pub started: Instant,
}

impl Options {
    /// Reads QUICK, ROUNDS, ONLY (groups), PEERS (names), LEGS (plain, tls), PROXY (a path, or
    /// name=path,...), OUTPUT (a folder) and README.
    pub fn from_environment() -> Result<Options> {
        let list = |name: &str| -> Vec<String> {
            let text = env::var(name).unwrap_or_default();
            text.split([',', ' '])
                .filter(|word| !word.is_empty())
                .map(str::to_owned)
                .collect()
        };
        let quick = env::var("QUICK").is_ok_and(|value| !value.is_empty());
        let only = list("ONLY");
        if let Some(unknown) = only.iter().find(|group| !GROUPS.contains(&group.as_str())) {
            anyhow::bail!("ONLY={unknown}: there are {}", GROUPS.join(", "));
        }
        let beside = env::current_exe()?
            .parent()
            .context("it is in a folder")?
            .to_owned();
        let mut subjects = ours(&list("PROXY"), beside.join("pg-iam-proxy"))?;
        let peers = list("PEERS");
        let all = [
            Subject::Haproxy,
            Subject::Nginx,
            Subject::Pgbouncer,
            Subject::Stunnel,
            Subject::Direct,
        ];
        subjects.extend(
            all.into_iter()
                .filter(|peer| peers.is_empty() || peers.iter().any(|name| name == peer.name())),
        );
        let named = list("LEGS");
        let legs = [LegKind::Plain, LegKind::Tls]
            .into_iter()
            .filter(|leg| named.is_empty() || named.iter().any(|name| name == leg.name()));
        let legs: Vec<LegKind> = legs.collect();
        ensure!(!legs.is_empty(), "LEGS: there are plain and tls");
        let publish = env::var("README").is_ok_and(|value| !value.is_empty());
        ensure!(
            !publish || !quick && only.is_empty() && peers.is_empty() && named.is_empty(),
            "README=1 shows a whole run: leave out QUICK, ONLY, PEERS and LEGS"
        );
        let rounds = env::var("ROUNDS")
            .ok()
            .filter(|text| !text.is_empty())
            .map(|text| text.parse())
            .transpose()
            .context("ROUNDS")?;
        Ok(Options {
            quick,
            rounds: rounds.unwrap_or(if quick { 3 } else { 11 }),
            milliseconds: if quick { 400 } else { 600 },
            only,
            legs,
            subjects,
            output: env::var_os("OUTPUT")
                .map_or_else(|| beside.with_file_name("bench"), PathBuf::from),
            publish,
            started: Instant::now(),
        })
    }

    pub fn has(&self, group: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == group)
    }
}

/// The first build is "ours", and the others go by their names.
fn ours(builds: &[String], default: PathBuf) -> Result<Vec<Subject>> {
    let mut subjects = Vec::new();
    for (index, build) in builds.iter().enumerate() {
        let (name, path) = build.split_once('=').unwrap_or(("", build));
        let name = match (index, name) {
            (0, _) => crate::goals::OURS.to_owned(),
            (_, "") => format!("ours-{}", index + 1),
            (_, name) => name.to_owned(),
        };
        subjects.push(Subject::Ours {
            name,
            binary: std::path::absolute(path)?,
        });
    }
    if subjects.is_empty() {
        subjects.push(Subject::Ours {
            name: crate::goals::OURS.to_owned(),
            binary: default,
        });
    }
    for subject in &subjects {
        if let Subject::Ours { binary, .. } = subject {
            ensure!(
                binary.exists(),
                "{} is not there: cargo build --release --bin pg-iam-proxy",
                binary.display()
            );
        }
    }
    Ok(subjects)
}
