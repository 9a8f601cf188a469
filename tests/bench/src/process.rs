//! What do a process and its descendants cost, according to /proc, and how does a process end with
//! its owner?

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::load::{Done, Job};

/// The unit of /proc/PID/stat is USER_HZ, which is 100 on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// A process that ends with its owner: it is asked to first, and then killed.
pub struct Process(Child);

#[derive(Clone, Copy, Debug, Default)]
struct Stat {
    parent: u32,
    /// The ticks of the process itself.
    own: u64,
    /// The ticks of its children that have ended.
    ended: u64,
}

impl Process {
    pub fn start(command: &mut Command) -> Result<Process> {
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        Ok(Process(child))
    }

    pub fn id(&self) -> u32 {
        self.0.id()
    }

    pub fn child(&mut self) -> &mut Child {
        &mut self.0
    }

    pub fn has_ended(&mut self) -> bool {
        !matches!(self.0.try_wait(), Ok(None))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // kill(1) sends the SIGTERM, because signals need unsafe code or a dependency.
        let _ = Command::new("kill")
            .arg(self.id().to_string())
            .stderr(Stdio::null())
            .status();
        let deadline = Instant::now() + Duration::from_secs(2);
        while Instant::now() < deadline && !self.has_ended() {
            pause(Duration::from_millis(5));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The CPU seconds, user and system, of a process and its living descendants.
pub fn cpu_seconds(root: u32) -> f64 {
    let stats = stats();
    tree(root, &stats)
        .iter()
        .map(|id| stats[id].own)
        .sum::<u64>() as f64
        / TICKS_PER_SECOND
}

/// The same, including the descendants that have ended.
pub fn cpu_seconds_of_all(root: u32) -> f64 {
    let stats = stats();
    tree(root, &stats)
        .iter()
        .map(|id| stats[id].own + stats[id].ended)
        .sum::<u64>() as f64
        / TICKS_PER_SECOND
}

/// The resident memory of a process and its descendants.
#[derive(Clone, Copy, Default)]
pub struct Resident {
    pub all_kib: f64,
    /// The part that is not pages of a file, which are mostly the program's own code and which the
    /// kernel can drop.
    pub anonymous_kib: f64,
}

pub fn resident(root: u32) -> Resident {
    let mut resident = Resident::default();
    for id in tree(root, &stats()) {
        let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<f64>().ok())
                .unwrap_or_default()
        };
        resident.all_kib += field("VmRSS:");
        resident.anonymous_kib += field("RssAnon:");
    }
    resident
}

fn tree(root: u32, stats: &BTreeMap<u32, Stat>) -> Vec<u32> {
    let mut found = vec![root];
    let mut next = 0;
    while next < found.len() {
        let parent = found[next];
        found.extend(
            stats
                .iter()
                .filter(|(_, stat)| stat.parent == parent)
                .map(|(id, _)| *id),
        );
        next += 1;
    }
    found.retain(|id| stats.contains_key(id));
    found
}

fn stats() -> BTreeMap<u32, Stat> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    ids.filter_map(|id| Some((id, stat(id)?))).collect()
}

fn stat(id: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The name of a program may contain spaces and parentheses.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    Some(Stat {
        parent: fields.get(1)?.parse().ok()?,
        own: number(11)? + number(12)?,
        ended: number(13)? + number(14)?,
    })
}

/// Another process of this program, which is spoken to in lines.
pub struct Part {
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    _process: Process,
}

impl Part {
    pub fn start(arguments: &[&str]) -> Result<Part> {
        let mut command = Command::new(std::env::current_exe()?);
        let mut process = Process::start(
            command
                .args(arguments)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped()),
        )?;
        let stdin = process.child().stdin.take().context("piped")?;
        let stdout = BufReader::new(process.child().stdout.take().context("piped")?);
        Ok(Part {
            stdin,
            stdout,
            _process: process,
        })
    }

    pub fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        ensure!(
            self.stdout.read_line(&mut line)? > 0,
            "a part of the benchmark has ended"
        );
        Ok(line)
    }

    /// Has the load do a job.
    pub fn perform(&mut self, job: &Job) -> Result<Done> {
        writeln!(self.stdin, "{}", serde_json::to_string(job)?)?;
        let done: Done = serde_json::from_str(&self.line()?)?;
        if let Some(error) = done.error {
            bail!("{error}");
        }
        Ok(done)
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "a pause between two looks, and for what is measured to come to rest"
)]
pub fn pause(time: Duration) {
    std::thread::sleep(time);
}
