//! What do a process and its descendants cost, according to /proc, and how does a process end with
//! its owner?

use std::collections::BTreeMap;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

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

/// The processors that this process may use.
pub fn processors() -> Result<Vec<usize>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let list = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))
        .context("no Cpus_allowed_list in /proc/self/status")?;
    let ranges = list.trim().split(',').map(|range| {
        let (first, end) = range.split_once('-').unwrap_or((range, range));
        Ok(first.parse::<usize>()?..=end.parse()?)
    });
    let ranges = ranges.collect::<Result<Vec<_>>>()?;
    Ok(ranges.into_iter().flatten().collect())
}

/// Has all threads of a process use these processors only, and whatever it starts from now on.
pub fn pin(process: u32, processors: &[usize]) -> Result<()> {
    let list: Vec<String> = processors.iter().map(usize::to_string).collect();
    // taskset(1) does it, because affinities need unsafe code or a dependency.
    let status = Command::new("taskset")
        .args(["--all-tasks", "--cpu-list", "--pid", &list.join(",")])
        .arg(process.to_string())
        .stdout(Stdio::null())
        .status()
        .context("taskset")?;
    anyhow::ensure!(status.success(), "a process cannot be pinned: {status}");
    Ok(())
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

#[allow(
    clippy::disallowed_methods,
    reason = "a pause between two looks, and for what is measured to come to rest"
)]
pub fn pause(time: Duration) {
    std::thread::sleep(time);
}
