//! How is haproxy measured? It forwards TLS to TLS in `mode tcp` and knows nothing of PostgreSQL.

use std::fs;
use std::path::Path;

use anyhow::Result;

use super::{Files, Peer, Upstream, command, free_address, program};
use crate::load::Tls;
use crate::process::Process;

pub fn start(dir: &Path, files: &Files, upstream: &Upstream) -> Result<Peer> {
    let (plain, tls) = (free_address()?, free_address()?);
    let bundle = dir.join("bundle.pem");
    fs::write(
        &bundle,
        [fs::read(&files.certificate)?, fs::read(&files.key)?].concat(),
    )?;
    let text = format!(
        "global\n  maxconn {}\ndefaults\n  mode tcp\n  timeout connect 10s\n  timeout client \
         1h\n  timeout server 1h\nfrontend plain\n  bind {plain}\n  default_backend server\n\
         frontend tls\n  bind {tls} ssl crt {} ssl-min-ver TLSv1.3\n  default_backend server\n\
         backend server\n  server server 127.0.0.1:{} ssl verify required ca-file {} verifyhost \
         localhost sni str(localhost) ssl-min-ver TLSv1.3\n",
        files.sessions + 50,
        bundle.display(),
        upstream.port,
        files.authority.display(),
    );
    let file = dir.join("haproxy.cfg");
    fs::write(&file, text)?;
    let process = Process::start(
        command(&program("haproxy"), dir)?
            .arg("-db")
            .arg("-f")
            .arg(file),
    )?;
    Ok(Peer {
        process: Some(process),
        plain,
        tls: Some(tls),
        handshake: Tls::Direct,
        ..Peer::direct(upstream)
    })
}
