//! Which proxies are measured, each in the way that people run it?

mod haproxy;
mod nginx;
mod ours;
mod pgbouncer;
mod stunnel;

use std::fs::File;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

pub use ours::start_with_target;

use crate::load::{Server, Tls};
use crate::process::{Process, pause};

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Subject {
    /// A build of pg-iam-proxy.
    Ours {
        name: String,
        binary: PathBuf,
    },
    Haproxy,
    Nginx,
    Pgbouncer,
    Stunnel,
    /// There is no proxy, and the client itself speaks TLS to the server.
    Direct,
}

/// What a peer keeps between logins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// Nothing is kept, and every login reaches the server. pgbouncer does what it does by default,
    /// which is to keep sessions.
    Default,
    /// pgbouncer opens a new server connection for each login.
    Fresh,
    /// The proxy has `warm_sessions`.
    Warm,
    /// The proxy has `reuse_sessions`.
    Reused,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum LegKind {
    Plain,
    Tls,
}

/// The server that a peer connects to, and how it logs in.
pub struct Upstream {
    pub port: u16,
    pub user: String,
    pub password: String,
    pub database: String,
    /// The environment of our proxy, and the user for whom it signs tokens.
    pub aws: Vec<(String, String)>,
    pub iam_user: String,
}

/// The files that all peers share.
#[derive(Clone)]
pub struct Files {
    pub dir: PathBuf,
    pub authority: PathBuf,
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// How many sessions a peer can have under the limit of open files.
    pub sessions: usize,
}

pub struct Peer {
    /// `None` if there is no proxy.
    process: Option<Process>,
    plain: SocketAddr,
    tls: Option<SocketAddr>,
    handshake: Tls,
    user: String,
    password: String,
    database: String,
}

impl Subject {
    pub fn name(&self) -> &str {
        match self {
            Subject::Ours { name, .. } => name,
            Subject::Haproxy => "haproxy",
            Subject::Nginx => "nginx",
            Subject::Pgbouncer => "pgbouncer",
            Subject::Stunnel => "stunnel",
            Subject::Direct => "direct",
        }
    }

    pub fn is_ours(&self) -> bool {
        matches!(self, Subject::Ours { .. })
    }

    /// stunnel runs as a TLS client here, so it offers no TLS to clients.
    pub fn legs(&self) -> &'static [LegKind] {
        match self {
            Subject::Stunnel => &[LegKind::Plain],
            Subject::Direct => &[LegKind::Tls],
            _ => &[LegKind::Plain, LegKind::Tls],
        }
    }

    /// The settings that differ from the peer's defaults.
    pub fn settings(&self) -> &'static str {
        match self {
            Subject::Ours { .. } => {
                "engine rds, auth trust, login limits off; threads as it starts them"
            }
            Subject::Haproxy => {
                "mode tcp, TLS 1.3, verify required; nbthread as it starts, one a processor"
            }
            Subject::Nginx => "stream, worker_processes auto, TLS 1.3, proxy_ssl_verify on",
            Subject::Pgbouncer => {
                "pool_mode session, server_tls_sslmode verify-full, TLS 1.3; one thread, it has \
                 no more"
            }
            Subject::Stunnel => "client, protocol pgsql, TLS 1.3, verifyChain, checkHost",
            Subject::Direct => "the client's own TLS 1.3, no proxy",
        }
    }

    pub fn start(&self, mode: Mode, files: &Files, upstream: &Upstream) -> Result<Peer> {
        let dir = tempfile::Builder::new()
            .prefix(self.name().split('/').next_back().unwrap_or("peer"))
            .tempdir_in(&files.dir)?
            .keep();
        let mut peer = match self {
            Subject::Ours { binary, .. } => ours::start(binary, mode, &dir, files, upstream),
            Subject::Haproxy => haproxy::start(&dir, files, upstream),
            Subject::Nginx => nginx::start(&dir, files, upstream),
            Subject::Pgbouncer => pgbouncer::start(mode, &dir, files, upstream),
            Subject::Stunnel => stunnel::start(&dir, files, upstream),
            Subject::Direct => Ok(Peer::direct(upstream)),
        }
        .with_context(|| format!("cannot start {}", self.name()))?;
        peer.wait_until_it_listens().with_context(|| {
            let log = std::fs::read_to_string(dir.join("log")).unwrap_or_default();
            format!(
                "{}: {}",
                self.name(),
                log.lines().rev().take(3).collect::<Vec<_>>().join(" / ")
            )
        })?;
        Ok(peer)
    }
}

impl LegKind {
    pub fn name(self) -> &'static str {
        match self {
            LegKind::Plain => "plain",
            LegKind::Tls => "tls",
        }
    }
}

impl Peer {
    fn direct(upstream: &Upstream) -> Peer {
        let address = SocketAddr::from(([127, 0, 0, 1], upstream.port));
        Peer {
            process: None,
            plain: address,
            tls: Some(address),
            handshake: Tls::SslRequest,
            user: upstream.user.clone(),
            password: upstream.password.clone(),
            database: upstream.database.clone(),
        }
    }

    pub fn id(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    pub fn server(&self, leg: LegKind) -> Server {
        let (address, tls) = match leg {
            LegKind::Plain => (self.plain, Tls::None),
            LegKind::Tls => (self.tls.expect("asked for its legs before"), self.handshake),
        };
        Server {
            address,
            tls,
            user: self.user.clone(),
            database: self.database.clone(),
            password: self.password.clone(),
        }
    }

    fn wait_until_it_listens(&mut self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if TcpStream::connect(self.plain).is_ok()
                && self.tls.is_none_or(|tls| TcpStream::connect(tls).is_ok())
            {
                return Ok(());
            }
            if self.process.as_mut().is_some_and(Process::has_ended) || Instant::now() > deadline {
                bail!("it does not listen on {}", self.plain);
            }
            pause(Duration::from_millis(10));
        }
    }
}

/// A command with a log of its own and without any AWS or PostgreSQL settings of this machine. It
/// ends when the benchmark does, however that happens.
fn command(program: &Path, dir: &Path) -> Result<Command> {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM"]).arg(program);
    for (name, _) in
        std::env::vars().filter(|(name, _)| name.starts_with("AWS_") || name.starts_with("PG"))
    {
        command.env_remove(name);
    }
    let log = File::create(dir.join("log"))?;
    command
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    Ok(command)
}

/// Debian installs daemons in folders that are only on root's PATH.
fn program(name: &str) -> PathBuf {
    let sbin = Path::new("/usr/sbin").join(name);
    if sbin.exists() {
        sbin
    } else {
        PathBuf::from(name)
    }
}

fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

fn is_root() -> Result<bool> {
    use std::os::unix::fs::MetadataExt;
    Ok(std::fs::metadata("/proc/self")?.uid() == 0)
}
