//! How is pgbouncer measured? It pools sessions.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;

use anyhow::{Context, Result};

use super::{Files, Mode, Peer, Upstream, command, free_address, is_root, program};
use crate::load::Tls;
use crate::process::Process;

pub fn start(mode: Mode, dir: &Path, files: &Files, upstream: &Upstream) -> Result<Peer> {
    let address = free_address()?;
    let certificate = dir.join("server.crt");
    let key = dir.join("server.key");
    fs::copy(&files.certificate, &certificate)?;
    fs::copy(&files.key, &key)?;
    // A server connection with no lifetime is used once, and there is no need to reset it.
    let once = if mode == Mode::Fresh {
        "server_lifetime = 0\nserver_reset_query =\n"
    } else {
        ""
    };
    let text = format!(
        "[databases]\n{database} = host=127.0.0.1 port={port} user={user} password={password} \
         dbname={database}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {listen}\n\
         unix_socket_dir =\nauth_type = any\npool_mode = session\n\
         server_tls_sslmode = verify-full\nserver_tls_ca_file = {authority}\n\
         server_tls_protocols = tlsv1.3\nclient_tls_sslmode = allow\n\
         client_tls_cert_file = {certificate}\nclient_tls_key_file = {key}\n\
         client_tls_protocols = tlsv1.3\nmax_client_conn = 25000\ndefault_pool_size = 25000\n\
         {once}",
        database = upstream.database,
        port = upstream.port,
        user = upstream.user,
        password = upstream.password,
        listen = address.port(),
        authority = files.authority.display(),
        certificate = certificate.display(),
        key = key.display(),
    );
    let file = dir.join("pgbouncer.ini");
    fs::write(&file, text)?;
    let mut command = command(&program("pgbouncer"), dir)?;
    if is_root()? {
        // pgbouncer refuses to run as root.
        let (uid, gid) = nobody()?;
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
        for path in [dir, &certificate, &key, &file] {
            chown(path, Some(uid), Some(gid))?;
        }
        command.uid(uid).gid(gid);
    }
    let process = Process::start(command.arg(file))?;
    Ok(Peer {
        process: Some(process),
        plain: address,
        tls: Some(address),
        handshake: Tls::SslRequest,
        ..Peer::direct(upstream)
    })
}

fn nobody() -> Result<(u32, u32)> {
    let passwd = fs::read_to_string("/etc/passwd")?;
    let line = passwd
        .lines()
        .find(|line| line.starts_with("nobody:"))
        .context("there is no user nobody")?;
    let fields: Vec<&str> = line.split(':').collect();
    Ok((fields[2].parse()?, fields[3].parse()?))
}
