//! What makes up a run, and how is a measurement taken?

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use testbed::ServerCertificate;
use testbed::pki::Pki;

use crate::load::{Done, Job};
use crate::noise::Noise;
use crate::options::Options;
use crate::part::Part;
use crate::peers::{Files, LegKind, Mode, Peer, Subject, Upstream};
use crate::process::cpu_seconds;
use crate::results::Results;

/// The largest number of idle sessions that is measured.
pub const MANY: usize = 10_000;
/// The files that a proxy has open besides its sessions.
const SPARE_FILES: u64 = 400;

pub struct Run {
    pub options: Options,
    pub files: Files,
    pub results: Results,
    pub noise: Noise,
    /// The ports of the synthetic server.
    ports: Vec<u16>,
    peers_started: usize,
    backend: Part,
    _dir: TempDir,
}

/// What was done, and the CPU seconds that the peer spent on it.
pub struct Cost {
    pub done: Done,
    pub cpu: f64,
}

impl Run {
    pub fn new(mut options: Options) -> Result<Run> {
        let sessions = allow_open_files(MANY)?;
        let dir = tempfile::Builder::new().prefix("bench-").tempdir()?;
        // Peers that do not run as root need to read this folder.
        fs::set_permissions(
            dir.path(),
            std::os::unix::fs::PermissionsExt::from_mode(0o755),
        )?;
        let pki = Pki::create()?;
        let [authority, _] = pki.write_authorities(dir.path())?;
        let identity = pki.identity(ServerCertificate::Good);
        let write = |name: &str, text: &str| -> Result<PathBuf> {
            let file = dir.path().join(name);
            fs::write(&file, text)?;
            Ok(file)
        };
        let files = Files {
            dir: dir.path().to_owned(),
            authority,
            certificate: write("server.crt", &identity.certificate)?,
            key: write("server.key", &identity.key)?,
            sessions,
        };
        for (index, subject) in options.subjects.iter_mut().enumerate() {
            if let Subject::Ours { binary, .. } = subject {
                // A build during the run must not replace what is measured.
                let copy = dir.path().join(format!("pg-iam-proxy-{index}"));
                fs::copy(&binary, &copy)?;
                *binary = copy;
            }
        }
        let path = |path: &PathBuf| {
            path.to_str()
                .map(str::to_owned)
                .context("TMPDIR is not UTF-8")
        };
        let mut backend =
            Part::start(&["backend", &path(&files.certificate)?, &path(&files.key)?])?;
        let ports = serde_json::from_str(&backend.line()?)?;
        Ok(Run {
            options,
            files,
            results: Results::default(),
            noise: Noise::start(),
            ports,
            peers_started: 0,
            backend,
            _dir: dir,
        })
    }

    /// Starts a peer in front of the synthetic server.
    pub fn start(&mut self, subject: &Subject, mode: Mode) -> Result<Peer> {
        let port = self.next_port();
        subject.start(mode, &self.files, &Upstream::synthetic(port))
    }

    /// A port of the synthetic server for another peer.
    pub fn next_port(&mut self) -> u16 {
        self.peers_started += 1;
        self.ports[self.peers_started % self.ports.len()]
    }

    /// Starts all that can be started, and notes what cannot.
    pub fn start_all(
        &mut self,
        mode: Mode,
        wanted: impl Fn(&Subject) -> bool,
    ) -> Vec<(Subject, Peer)> {
        let subjects: Vec<Subject> = self
            .options
            .subjects
            .iter()
            .filter(|subject| wanted(subject))
            .cloned()
            .collect();
        let start = |subject: Subject| match self.start(&subject, mode) {
            Ok(peer) => Some((subject, peer)),
            Err(error) => {
                self.note(&format!("{error:#}"));
                None
            }
        };
        subjects.into_iter().filter_map(start).collect()
    }

    /// The process of the synthetic server.
    pub fn backend(&self) -> u32 {
        self.backend.id()
    }

    pub fn load(&self) -> Result<Part> {
        Part::start(&[
            "load",
            self.files
                .authority
                .to_str()
                .context("TMPDIR is not UTF-8")?,
        ])
    }

    /// Measures each peer on each leg once in every round, and begins with another one each time.
    /// What fails is noted and left out.
    pub fn interleaved(
        &mut self,
        what: &str,
        round: usize,
        peers: &[(Subject, Peer)],
        mut measure: impl FnMut(&mut Results, &mut Part, &Subject, &Peer, LegKind) -> Result<()>,
    ) {
        for leg in self.options.legs.clone() {
            if peers.is_empty() {
                return;
            }
            self.noise.calibrate();
            self.progress(&format!("round {}: {what}, {}", round + 1, leg.name()));
            for index in 0..peers.len() {
                let (subject, peer) = &peers[(index + round) % peers.len()];
                if !subject.legs().contains(&leg) {
                    continue;
                }
                let done = self
                    .load()
                    .and_then(|mut load| measure(&mut self.results, &mut load, subject, peer, leg));
                if let Err(error) = done {
                    self.note(&format!(
                        "{what}, {}, {}: {error:#}",
                        subject.name(),
                        leg.name()
                    ));
                }
            }
        }
    }

    pub fn progress(&self, text: &str) {
        eprintln!("[{:>4} s] {text}", self.options.started.elapsed().as_secs());
    }

    pub fn note(&mut self, failure: &str) {
        self.progress(&format!("not measured: {failure}"));
        if !self.results.failures.iter().any(|known| known == failure) {
            self.results.failures.push(failure.to_owned());
        }
    }
}

impl Upstream {
    fn synthetic(port: u16) -> Upstream {
        let aws = [
            ("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE"),
            (
                "AWS_SECRET_ACCESS_KEY",
                "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
            ),
        ];
        Upstream {
            port,
            user: "bench".into(),
            password: "bench".into(),
            database: "bench".into(),
            aws: aws
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            iam_user: "bench".into(),
        }
    }
}

/// Has the load do a job, and measures what the peer spends on it.
pub fn costed(load: &mut Part, peer: &Peer, job: &Job) -> Result<Cost> {
    let cpu = || peer.id().map_or(0.0, cpu_seconds);
    let before = cpu();
    let done = load.perform(job)?;
    Ok(Cost {
        done,
        cpu: cpu() - before,
    })
}

/// Raises the limit of open files for this process and everybody it starts. Returns how many of
/// `sessions` a proxy can then have, each of which takes it two files.
pub fn allow_open_files(sessions: usize) -> Result<usize> {
    let needed = 2 * sessions as u64 + SPARE_FILES;
    let (_, hard) = rlimit::getrlimit(rlimit::Resource::NOFILE)?;
    let wanted = needed.max(hard);
    if rlimit::setrlimit(rlimit::Resource::NOFILE, wanted, wanted).is_err() {
        rlimit::setrlimit(rlimit::Resource::NOFILE, hard, hard)?;
    }
    let (soft, _) = rlimit::getrlimit(rlimit::Resource::NOFILE)?;
    ensure!(
        soft >= 4096,
        "the hard limit of open files is {hard}: raise it (ulimit -Hn, or run as root)"
    );
    Ok(sessions.min(((soft - SPARE_FILES) / 2) as usize))
}
