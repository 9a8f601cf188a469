//! How is nginx measured? Its stream module forwards TLS to TLS and knows nothing of PostgreSQL.

use std::fs;
use std::path::Path;

use anyhow::Result;

use super::{Files, Peer, Upstream, command, free_address, is_root, program};
use crate::load::Tls;
use crate::process::Process;

const MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

pub fn start(dir: &Path, files: &Files, upstream: &Upstream) -> Result<Peer> {
    let (plain, tls) = (free_address()?, free_address()?);
    let module = if Path::new(MODULE).exists() {
        format!("load_module {MODULE};\n")
    } else {
        String::new()
    };
    let user = if is_root()? { "user root;\n" } else { "" };
    let text = format!(
        "{module}{user}daemon off;\npid {dir}/pid;\nerror_log {dir}/error.log warn;\n\
         worker_processes auto;\nevents {{ worker_connections 25000; }}\n\
         stream {{\n  proxy_ssl on;\n  proxy_ssl_protocols TLSv1.3;\n  proxy_ssl_verify on;\n  \
         proxy_ssl_trusted_certificate {authority};\n\
         \x20 proxy_ssl_name localhost;\n  proxy_ssl_server_name on;\n  proxy_timeout 1h;\n\
         \x20 server {{ listen {plain}; proxy_pass 127.0.0.1:{port}; }}\n\
         \x20 server {{ listen {tls} ssl; ssl_protocols TLSv1.3; ssl_certificate {certificate}; \
         ssl_certificate_key {key}; proxy_pass 127.0.0.1:{port}; }}\n}}\n",
        dir = dir.display(),
        authority = files.authority.display(),
        certificate = files.certificate.display(),
        key = files.key.display(),
        port = upstream.port,
    );
    let file = dir.join("nginx.conf");
    fs::write(&file, text)?;
    let process = Process::start(
        command(&program("nginx"), dir)?
            .arg("-p")
            .arg(dir)
            .arg("-c")
            .arg(file)
            .arg("-e")
            .arg(dir.join("error.log")),
    )?;
    Ok(Peer {
        process: Some(process),
        plain,
        tls: Some(tls),
        handshake: Tls::Direct,
        ..Peer::direct(upstream)
    })
}
