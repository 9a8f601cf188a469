//! How is pg-iam-proxy measured? It takes the server for RDS and signs tokens by itself, so it
//! never asks AWS.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, bail};

use super::{Files, Mode, Peer, Upstream, command};
use crate::load::Tls;
use crate::process::Process;

/// There are twice as many warm sessions as clients that log in at a time.
const WARM_SESSIONS: usize = 32;

pub fn start(
    binary: &Path,
    mode: Mode,
    dir: &Path,
    files: &Files,
    upstream: &Upstream,
) -> Result<Peer> {
    let kept = match mode {
        Mode::Default | Mode::Fresh => String::new(),
        Mode::Warm => format!("warm_sessions = {WARM_SESSIONS}\n"),
        Mode::Reused => "reuse_sessions = true\n".to_string(),
    };
    let target = format!(
        "engine = \"rds\"\nhost = \"127.0.0.1\"\nport = {}\ndb_user = \"{}\"\ndatabase = \"{}\"\n\
         region = \"us-west-2\"\nca_file = \"{}\"\n{kept}",
        upstream.port,
        upstream.iam_user,
        upstream.database,
        files.authority.display(),
    );
    start_with_target(binary, dir, files, &target, &upstream.aws)
}

/// Starts a proxy with these lines of a target, and with a log in JSON.
pub fn start_with_target(
    binary: &Path,
    dir: &Path,
    files: &Files,
    target: &str,
    aws: &[(String, String)],
) -> Result<Peer> {
    let text = format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\ntargets = [\"bench\"]\nauth = \"trust\"\n\
         [[listener]]\naddress = \"127.0.0.1:0\"\ntargets = [\"bench\"]\nauth = \"trust\"\n\
         tls = \"required\"\ncertificate = \"{}\"\nkey = \"{}\"\n[limits]\nmax_sessions = 25000\n\
         startup_timeout = \"60s\"\n[log]\nformat = \"json\"\n[target.bench]\n\
         max_logins_per_second = 100000\nmax_concurrent_logins = 10000\n{target}",
        files.certificate.display(),
        files.key.display(),
    );
    let file = dir.join("pg-iam-proxy.toml");
    fs::write(&file, text)?;
    let mut command = command(binary, dir)?;
    command.envs(aws.iter().cloned()).stdout(Stdio::piped());
    let mut process = Process::start(command.arg("run").arg("--config").arg(file))?;
    let stdout = BufReader::new(process.child().stdout.take().context("piped")?);
    let mut addresses: Vec<SocketAddr> = Vec::new();
    let mut lines = stdout.lines();
    for line in lines.by_ref() {
        addresses.extend(
            line?
                .rsplit_once(" on ")
                .and_then(|(_, address)| address.parse::<SocketAddr>().ok()),
        );
        if let [plain, tls] = addresses[..] {
            // Whatever else the proxy prints must be read, or it would block.
            std::thread::spawn(move || lines.for_each(drop));
            return Ok(Peer {
                process: Some(process),
                plain,
                tls: Some(tls),
                handshake: Tls::SslRequest,
                user: "bench".into(),
                password: String::new(),
                database: "bench".into(),
            });
        }
    }
    let log = fs::read_to_string(dir.join("log")).unwrap_or_default();
    bail!(
        "{}",
        log.trim_end().replace(&format!("{}/", dir.display()), "")
    )
}
