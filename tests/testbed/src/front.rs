//! What does Redshift do at login that stock PostgreSQL does not?
//!
//! A front takes TLS, asks with the chosen challenge, finds the live credential that the client's
//! answer was made from, and logs in to PostgreSQL as that credential's role. If none matches, the
//! login goes on under the DbUser's own name. Either way PostgreSQL decides on password, expiry and
//! SQL, and its refusal is passed back. After ReadyForQuery the front only passes bytes on.

use std::net::Ipv4Addr;
use std::sync::Arc;

use anyhow::{Result, bail};
use aws_lc_rs::digest::{SHA256, digest};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio_rustls::TlsAcceptor;

use crate::pki::{Pki, ServerCertificate};
use crate::redshift::{Backend, Credential};
use crate::runtime::{Background, Guard};
use crate::wire::{self, First, Startup};
use crate::{locked, random};

/// How a front asks for the password.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Challenge {
    /// AuthenticationMD5Password (5).
    #[default]
    Md5,
    /// Redshift's digest request (13), with SHA-256.
    Digest,
    /// AuthenticationCleartextPassword (3).
    Cleartext,
    /// A request with this code and no body, which clients should refuse: 14 (IdP), or one that
    /// does not exist.
    Code(u32),
}

#[derive(Clone, Copy, Debug, Default)]
pub struct FrontOptions {
    pub challenge: Challenge,
    pub certificate: ServerCertificate,
}

pub struct Front {
    port: u16,
    _guard: Guard,
}

/// Parameters of Amazon's drivers, which Redshift knows and PostgreSQL refuses.
const REDSHIFT_ONLY: [&str; 10] = [
    "client_protocol_version",
    "driver_version",
    "os_version",
    "plugin_name",
    "driver_discovery_version",
    "idp_type",
    "provider_name",
    "token_type",
    "identity_namespace",
    "idc_client_display_name",
];
/// Parameters of PostgreSQL that Redshift refuses, because it is older than they are.
const UNKNOWN_TO_REDSHIFT: [&str; 3] = [
    "IntervalStyle",
    "standard_conforming_strings",
    "ssl_renegotiation_limit",
];
/// Settings that PostgreSQL reports with ParameterStatus and Redshift does not.
const NOT_REPORTED: [&str; 7] = [
    "IntervalStyle",
    "standard_conforming_strings",
    "application_name",
    "default_transaction_read_only",
    "in_hot_standby",
    "scram_iterations",
    "search_path",
];

impl Front {
    pub(crate) async fn open(
        options: FrontOptions,
        pki: &Pki,
        backend: Arc<Backend>,
        background: &Background,
    ) -> Result<Front> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let port = listener.local_addr()?.port();
        let acceptor = TlsAcceptor::from(pki.server_config(options.certificate)?);
        let guard = background.spawn(serve(listener, acceptor, options.challenge, backend));
        Ok(Front {
            port,
            _guard: guard,
        })
    }

    pub fn port(&self) -> u16 {
        self.port
    }
}

async fn serve(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    challenge: Challenge,
    backend: Arc<Backend>,
) {
    // Sessions end with the front, like those of a cluster that goes away.
    let mut sessions = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (acceptor, backend) = (acceptor.clone(), Arc::clone(&backend));
        sessions.spawn(async move { session(stream, &acceptor, challenge, &backend).await });
        while sessions.try_join_next().is_some() {}
    }
}

async fn session(
    mut stream: TcpStream,
    acceptor: &TlsAcceptor,
    challenge: Challenge,
    backend: &Backend,
) -> Result<()> {
    stream.set_nodelay(true)?;
    loop {
        match wire::read_first(&mut stream).await? {
            None => return Ok(()),
            Some(First::GssEncRequest) => stream.write_all(b"N").await?,
            Some(First::Cancel(packet)) => return cancel(&packet, backend).await,
            Some(First::Startup(startup)) => return refuse_without_tls(stream, &startup).await,
            Some(First::SslRequest) => {
                stream.write_all(b"S").await?;
                let client = acceptor.accept(stream).await?;
                return encrypted(client, challenge, backend).await;
            }
        }
    }
}

/// Redshift does not say that TLS is missing: without it, temporary passwords are just wrong.
async fn refuse_without_tls(mut stream: TcpStream, startup: &Startup) -> Result<()> {
    let user = startup.value("user").unwrap_or_default();
    stream
        .write_all(&wire::authentication(5, &random::bytes(4)))
        .await?;
    let _ = wire::read_message(&mut stream).await?;
    stream.write_all(&password_failed(user)).await?;
    Ok(stream.shutdown().await?)
}

async fn cancel(packet: &[u8], backend: &Backend) -> Result<()> {
    let mut upstream = UnixStream::connect(&backend.socket).await?;
    upstream.write_all(packet).await?;
    // PostgreSQL closes the connection when it has sent the signal, and a client may wait for just
    // that.
    let _ = upstream.read(&mut [0]).await?;
    Ok(())
}

async fn encrypted<S: AsyncRead + AsyncWrite + Unpin>(
    mut client: S,
    challenge: Challenge,
    backend: &Backend,
) -> Result<()> {
    let startup = match wire::read_first(&mut client).await? {
        Some(First::Startup(startup)) => startup,
        Some(First::Cancel(packet)) => {
            cancel(&packet, backend).await?;
            return Ok(client.shutdown().await?);
        }
        _ => bail!("no StartupMessage inside TLS"),
    };
    locked(&backend.startups).push(startup.parameters.clone());
    let outcome = log_in(&mut client, &startup, challenge, backend).await;
    match outcome {
        Ok(mut upstream) => {
            // Clients that just close the connection are as welcome as those that end TLS properly.
            let _ = copy_bidirectional(&mut client, &mut upstream).await;
        }
        // A leader that is down says nothing.
        Err(error)
            if error
                .chain()
                .any(<dyn std::error::Error>::is::<std::io::Error>) => {}
        Err(refusal) => {
            client
                .write_all(&refusal.downcast::<Refused>().map_or_else(
                    |error| wire::fatal("08P01", &error.to_string()),
                    |refused| refused.0,
                ))
                .await?;
        }
    }
    Ok(client.shutdown().await?)
}

/// An ErrorResponse that is passed to the client.
#[derive(Debug)]
struct Refused(Vec<u8>);

impl std::fmt::Display for Refused {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&String::from_utf8_lossy(&self.0))
    }
}

impl std::error::Error for Refused {}

async fn log_in<S: AsyncRead + AsyncWrite + Unpin>(
    client: &mut S,
    startup: &Startup,
    challenge: Challenge,
    backend: &Backend,
) -> Result<UnixStream> {
    let user = startup.value("user").ok_or_else(|| {
        Refused(wire::fatal(
            "28000",
            "no user name specified in startup packet",
        ))
    })?;
    let options: Vec<&str> = startup
        .parameters
        .iter()
        .map(|(name, _)| name.as_str())
        .filter(|name| name.starts_with("_pq_."))
        .collect();
    if options.contains(&"_pq_.compression") {
        return Err(Refused(wire::fatal(
            "0A000",
            "_pq_.compression is not served here: it has to be taken out on the way",
        ))
        .into());
    }
    if startup.minor > 0 || !options.is_empty() {
        client.write_all(&wire::negotiate_version(&options)).await?;
    }
    let live: Vec<Credential> = locked(&backend.credentials)
        .iter()
        .filter(|credential| credential.db_user == user)
        .cloned()
        .collect();
    let credential = ask(client, user, challenge, live).await?;
    let (login_role, password) = credential
        .map_or((user.to_owned(), random::base64(20)), |found| {
            (found.login_role, found.password)
        });

    let mut upstream = UnixStream::connect(&backend.socket).await?;
    upstream
        .write_all(&wire::startup(&startup.for_postgres(&login_role)))
        .await?;
    let rename = Rename {
        login_role: &login_role,
        user,
    };
    give_password(&mut upstream, &password, &rename).await?;
    client.write_all(&wire::authentication(0, &[])).await?;
    if let Some(refusal) = refused_parameter(startup) {
        return Err(Refused(refusal).into());
    }
    report_parameters(client, &mut upstream, startup, &rename).await?;
    Ok(upstream)
}

/// Asks for the password, and returns the live credential of the user that the answer was made
/// from.
async fn ask<S: AsyncRead + AsyncWrite + Unpin>(
    client: &mut S,
    user: &str,
    challenge: Challenge,
    live: Vec<Credential>,
) -> Result<Option<Credential>> {
    let salt = random::bytes(4);
    let nonce = random::bytes(16);
    let request = match challenge {
        Challenge::Md5 => wire::authentication(5, &salt),
        Challenge::Digest => wire::authentication(
            13,
            &[&0_u32.to_be_bytes()[..], &counted(&salt), &counted(&nonce)].concat(),
        ),
        Challenge::Cleartext => wire::authentication(3, &[]),
        Challenge::Code(code) => wire::authentication(code, &[]),
    };
    client.write_all(&request).await?;
    client.flush().await?;
    let (kind, answer) = wire::read_message(client).await?;
    let expected = if challenge == Challenge::Digest {
        b'd'
    } else {
        b'p'
    };
    if kind != expected {
        return Err(Refused(wire::fatal(
            "08P01",
            &format!("expected an answer of type {expected:#x}, got {kind:#x}"),
        ))
        .into());
    }
    let answered_with = |credential: &Credential| match challenge {
        Challenge::Md5 => {
            let hash = postgres_protocol::authentication::md5_hash(
                user.as_bytes(),
                credential.password.as_bytes(),
                [salt[0], salt[1], salt[2], salt[3]],
            );
            answer == wire::cstring(&hash)
        }
        Challenge::Digest => is_digest_of(&answer, &credential.password, &salt, &nonce),
        Challenge::Cleartext => answer == wire::cstring(&credential.password),
        Challenge::Code(_) => false,
    };
    Ok(live.into_iter().find(answered_with))
}

/// The answer is `Int32 length, digest, Int32 length, client nonce`, where the digest is
/// SHA256(SHA256(password, salt), server nonce, client nonce). It does not depend on the user.
fn is_digest_of(answer: &[u8], password: &str, salt: &[u8], nonce: &[u8]) -> bool {
    let Some(rest) = answer.strip_prefix(&32_u32.to_be_bytes()) else {
        return false;
    };
    let Some((claimed, rest)) = rest.split_at_checked(32) else {
        return false;
    };
    let Some((size, client_nonce)) = rest.split_at_checked(4) else {
        return false;
    };
    let stored = digest(&SHA256, &[password.as_bytes(), salt].concat());
    let expected = digest(&SHA256, &[stored.as_ref(), nonce, client_nonce].concat());
    size == counted_size(client_nonce) && claimed == expected.as_ref()
}

/// Over the Unix socket PostgreSQL asks for the password itself, in the way that suits how it is
/// stored.
async fn give_password(
    upstream: &mut UnixStream,
    password: &str,
    rename: &Rename<'_>,
) -> Result<()> {
    loop {
        match wire::read_message(upstream).await? {
            (b'R', body) if body == 3_u32.to_be_bytes() => {
                upstream
                    .write_all(&wire::message(b'p', &wire::cstring(password)))
                    .await?;
            }
            (b'R', body) if body == 0_u32.to_be_bytes() => return Ok(()),
            (b'E', body) => return Err(Refused(wire::message(b'E', &rename.in_text(&body))).into()),
            (kind, _) => bail!("PostgreSQL answered {:?} to the password", char::from(kind)),
        }
    }
}

/// Sends everything from AuthenticationOk to ReadyForQuery.
async fn report_parameters<S: AsyncWrite + Unpin>(
    client: &mut S,
    upstream: &mut UnixStream,
    startup: &Startup,
    rename: &Rename<'_>,
) -> Result<()> {
    let mut flight = Vec::new();
    loop {
        let (kind, body) = wire::read_message(upstream).await?;
        match kind {
            b'E' => return Err(Refused(wire::message(b'E', &rename.in_text(&body))).into()),
            b'S' => flight.extend(redshift_status(&body, rename.user)),
            b'Z' => {
                flight.extend(wire::message(kind, &body));
                client.write_all(&flight).await?;
                return Ok(client.flush().await?);
            }
            b'K' => {
                for (name, value) in redshift_only_status(startup) {
                    flight.extend(wire::parameter_status(name, value));
                }
                flight.extend(wire::message(kind, &body));
            }
            _ => flight.extend(wire::message(kind, &body)),
        }
    }
}

fn redshift_status(body: &[u8], user: &str) -> Vec<u8> {
    let name = wire::text(body);
    match name.as_str() {
        "server_version" => wire::parameter_status("server_version", "8.0.2"),
        "session_authorization" => wire::parameter_status("session_authorization", user),
        name if NOT_REPORTED.contains(&name) => Vec::new(),
        _ => wire::message(b'S', body),
    }
}

/// asyncpg recognizes Redshift by padb_revision.
fn redshift_only_status(startup: &Startup) -> Vec<(&'static str, &'static str)> {
    let mut status = vec![
        ("padb_revision", "unknown"),
        ("padb_version", "1.0.0"),
        ("max_numeric_precision", "38"),
        ("max_varchar_size", "65535"),
    ];
    // PostgreSQL's RowDescription is that of version 0, whatever the driver offers.
    if startup.value("client_protocol_version").is_some() {
        status.push(("server_protocol_version", "0"));
    }
    status
}

/// As on Redshift, a bad parameter is found only after the password was accepted.
fn refused_parameter(startup: &Startup) -> Option<Vec<u8>> {
    startup.parameters.iter().find_map(|(name, value)| {
        let is = |other: &str| name.eq_ignore_ascii_case(other);
        if UNKNOWN_TO_REDSHIFT.iter().any(|unknown| is(unknown)) {
            return Some(wire::fatal(
                "42704",
                &format!("unrecognized configuration parameter \"{name}\""),
            ));
        }
        if is("lc_monetary") {
            return Some(wire::fatal(
                "42501",
                "permission denied to set parameter \"lc_monetary\"",
            ));
        }
        if is("extra_float_digits") && value.trim().parse::<i32>().is_ok_and(|digits| digits > 2) {
            let text = format!(
                "{value} is outside the valid range for parameter \"extra_float_digits\" (-15 .. 2)"
            );
            return Some(wire::fatal("22023", &text));
        }
        None
    })
}

impl Startup {
    fn value(&self, name: &str) -> Option<&str> {
        self.parameters
            .iter()
            .rfind(|(found, _)| found == name)
            .map(|(_, value)| value.as_str())
    }

    fn for_postgres(&self, login_role: &str) -> Vec<(String, String)> {
        let database = self
            .value("database")
            .or(self.value("user"))
            .unwrap_or_default();
        let known = self.parameters.iter().filter(|(name, _)| {
            let replaced = name == "user" || name == "database" || name.starts_with("_pq_.");
            !replaced
                && !REDSHIFT_ONLY
                    .iter()
                    .any(|ours| name.eq_ignore_ascii_case(ours))
        });
        let own = [
            ("user".to_owned(), login_role.to_owned()),
            ("database".to_owned(), database.to_owned()),
        ];
        own.into_iter().chain(known.cloned()).collect()
    }
}

/// Replaces the name of the credential's role, which the client does not know.
struct Rename<'a> {
    login_role: &'a str,
    user: &'a str,
}

impl Rename<'_> {
    fn in_text(&self, body: &[u8]) -> Vec<u8> {
        String::from_utf8_lossy(body)
            .replace(self.login_role, self.user)
            .into_bytes()
    }
}

fn password_failed(user: &str) -> Vec<u8> {
    wire::fatal(
        "28000",
        &format!("password authentication failed for user \"{user}\""),
    )
}

fn counted(bytes: &[u8]) -> Vec<u8> {
    [&counted_size(bytes)[..], bytes].concat()
}

fn counted_size(bytes: &[u8]) -> [u8; 4] {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes()
}
