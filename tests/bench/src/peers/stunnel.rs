//! How is stunnel measured? It speaks TLS for a PostgreSQL client: with `protocol = pgsql` it sends
//! the SSLRequest.

use std::fs;
use std::path::Path;

use anyhow::Result;

use super::{Files, Peer, Upstream, command, free_address, program};
use crate::load::Tls;
use crate::process::Process;

pub fn start(dir: &Path, files: &Files, upstream: &Upstream) -> Result<Peer> {
    let plain = free_address()?;
    let text = format!(
        "foreground = quiet\nsyslog = no\npid =\noutput = {}\n[server]\nclient = yes\n\
         accept = {plain}\nconnect = 127.0.0.1:{}\nprotocol = pgsql\nCAfile = {}\n\
         verifyChain = yes\ncheckHost = localhost\nsslVersionMin = TLSv1.3\n",
        dir.join("stunnel.log").display(),
        upstream.port,
        files.authority.display(),
    );
    let file = dir.join("stunnel.conf");
    fs::write(&file, text)?;
    let name = if Path::new("/usr/bin/stunnel4").exists() {
        "stunnel4"
    } else {
        "stunnel"
    };
    let process = Process::start(command(&program(name), dir)?.arg(file))?;
    Ok(Peer {
        process: Some(process),
        plain,
        tls: None,
        handshake: Tls::None,
        ..Peer::direct(upstream)
    })
}
