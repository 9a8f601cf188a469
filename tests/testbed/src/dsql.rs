//! How does a stand-in for an Aurora DSQL cluster work? It is PostgreSQL with TLS that requires a
//! server name, with tokens for passwords, and with few startup parameters.
//!
//! Behind it is the RDS flavour's server. A front takes TLS, finds the cluster by the name in the
//! handshake, checks the StartupMessage, and passes everything on. PostgreSQL asks for the password
//! and has it judged by a bind server, which recomputes the token's signature.

use std::collections::{BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use anyhow::{Result, bail};
use postgres_protocol::escape::escape_identifier;
use tokio::io::{AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio_postgres::Client;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::accounts::Accounts;
use crate::ldap::{self, Authenticator};
use crate::pki::{Pki, ServerCertificate};
use crate::postgres::Postgres;
use crate::runtime::{Background, Guard};
use crate::sigv4::{self, Presigned};
use crate::wire::{self, First, Startup};
use crate::{REGION, locked, shifted};

pub const CLUSTER: &str = "foo0bar1baz2quux3quuux4qux";
/// The cluster's name at AWS, and its name here.
pub const NAMES: [&str; 2] = [
    "foo0bar1baz2quux3quuux4qux.dsql.us-west-2.on.aws",
    "localhost",
];
/// The user whose tokens are for another action.
pub const ADMIN: &str = "admin";
/// A database role whose tokens are for the ordinary action.
pub const USER: &str = "dsql_reader";
/// The role that all users of the cluster are members of.
pub(crate) const GROUP: &str = "dsql_user";

const MAX_LIFE: Duration = Duration::from_hours(7 * 24);
/// The parameters that common drivers send and that can log in. AWS publishes no list.
const KNOWN_PARAMETERS: [&str; 9] = [
    "user",
    "database",
    "application_name",
    "client_encoding",
    "DateStyle",
    "TimeZone",
    "extra_float_digits",
    "options",
    "search_path",
];

#[derive(Clone)]
pub struct Dsql {
    inner: Arc<Inner>,
}

struct Inner {
    port: u16,
    cluster: Arc<Cluster>,
    _guards: [Guard; 2],
}

/// What the fronts and the bind server base their decisions on, and what they decided.
struct Cluster {
    accounts: Accounts,
    socket: PathBuf,
    accepted: Mutex<Vec<(String, String)>>,
    refusals: Mutex<Vec<String>>,
    startups: Mutex<Vec<Vec<(String, String)>>>,
    /// Denials are by access key, because all tests share the cluster's users.
    denied: Mutex<BTreeSet<String>>,
    clocks_ahead: Mutex<HashMap<String, i64>>,
}

impl Dsql {
    pub(crate) async fn open(
        postgres: &Postgres,
        pki: &Pki,
        binds: TcpListener,
        accounts: Accounts,
        background: &Background,
    ) -> Result<Dsql> {
        create_users(&postgres.superuser("postgres").await?).await?;
        let cluster = Arc::new(Cluster::new(accounts, &postgres.socket()));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let port = listener.local_addr()?.port();
        let acceptor = TlsAcceptor::from(pki.server_config(ServerCertificate::Good)?);
        let guards = [
            background.spawn(ldap::serve(binds, Arc::clone(&cluster))),
            background.spawn(serve(listener, acceptor, Arc::clone(&cluster))),
        ];
        Ok(Dsql {
            inner: Arc::new(Inner {
                port,
                cluster,
                _guards: guards,
            }),
        })
    }

    #[allow(
        clippy::unused_self,
        reason = "belongs to the endpoint as the port does"
    )]
    pub fn host(&self) -> &'static str {
        "localhost"
    }

    pub fn port(&self) -> u16 {
        self.inner.port
    }

    /// Refuses whatever this access key has signed, as if no policy allowed `dsql:DbConnect`.
    pub fn deny(&self, access_key_id: &str) {
        locked(&self.inner.cluster.denied).insert(access_key_id.to_owned());
    }

    /// Judges what this access key has signed by a clock that is ahead of this machine's.
    pub fn set_clock_ahead_for(&self, access_key_id: &str, seconds: i64) {
        locked(&self.inner.cluster.clocks_ahead).insert(access_key_id.to_owned(), seconds);
    }

    /// The user and the action of every token that was accepted, oldest first.
    pub fn accepted(&self) -> Vec<(String, String)> {
        locked(&self.inner.cluster.accepted).clone()
    }

    /// Why tokens were refused, oldest first.
    pub fn refusals(&self) -> Vec<String> {
        locked(&self.inner.cluster.refusals).clone()
    }

    /// The parameters of every StartupMessage, in order of arrival.
    pub fn startups(&self) -> Vec<Vec<(String, String)>> {
        locked(&self.inner.cluster.startups).clone()
    }
}

impl Cluster {
    fn new(accounts: Accounts, socket: &Path) -> Cluster {
        let socket = socket.to_owned();
        Cluster {
            accounts,
            socket,
            accepted: Mutex::default(),
            refusals: Mutex::default(),
            startups: Mutex::default(),
            denied: Mutex::default(),
            clocks_ahead: Mutex::default(),
        }
    }

    /// Checks a token, and returns the action that it is for.
    fn check(&self, user: &str, password: &[u8], now: SystemTime) -> Result<String, String> {
        let token =
            std::str::from_utf8(password).map_err(|_| "not a token: not UTF-8".to_owned())?;
        let (host, query) = token
            .split_once("/?")
            .ok_or_else(|| format!("not a token: {} bytes without \"/?\"", token.len()))?;
        let presigned = Presigned {
            host,
            query,
            region: REGION,
            service: "dsql",
            max_life: MAX_LIFE,
        };
        let ahead = locked(&self.clocks_ahead)
            .iter()
            .find(|(key, _)| query.contains(*key))
            .map_or(0, |(_, seconds)| *seconds);
        let verified = sigv4::verify_presigned(&presigned, &self.accounts, shifted(now, ahead));
        let (signer, parameters) = verified.map_err(|refusal| refusal.to_string())?;
        if locked(&self.denied).contains(&signer.access_key_id) {
            return Err("told to refuse".to_owned());
        }
        if !NAMES.contains(&host) {
            return Err(format!("signed for host {host}"));
        }
        let action = parameters
            .get("Action")
            .map(String::as_str)
            .unwrap_or_default();
        let wanted = if user == ADMIN {
            "DbConnectAdmin"
        } else {
            "DbConnect"
        };
        if action == wanted {
            Ok(action.to_owned())
        } else {
            Err(format!("{action} for user {user}"))
        }
    }
}

impl Authenticator for Cluster {
    fn decide(&self, user: &str, password: &[u8]) -> bool {
        match self.check(user, password, SystemTime::now()) {
            Ok(action) => {
                locked(&self.accepted).push((user.to_owned(), action));
                true
            }
            Err(reason) => {
                locked(&self.refusals).push(reason);
                false
            }
        }
    }
}

async fn create_users(superuser: &Client) -> Result<()> {
    superuser
        .batch_execute(&format!("CREATE ROLE {GROUP} NOLOGIN"))
        .await?;
    for user in [ADMIN, USER] {
        superuser
            .batch_execute(&format!(
                "CREATE ROLE {} LOGIN IN ROLE {GROUP}",
                escape_identifier(user)
            ))
            .await?;
    }
    Ok(())
}

async fn serve(listener: TcpListener, acceptor: TlsAcceptor, cluster: Arc<Cluster>) {
    while let Ok((stream, _)) = listener.accept().await {
        let (acceptor, cluster) = (acceptor.clone(), Arc::clone(&cluster));
        tokio::spawn(async move { session(stream, &acceptor, &cluster).await });
    }
}

async fn session(mut stream: TcpStream, acceptor: &TlsAcceptor, cluster: &Cluster) -> Result<()> {
    stream.set_nodelay(true)?;
    match wire::read_first(&mut stream).await? {
        None => Ok(()),
        Some(First::SslRequest) => {
            stream.write_all(b"S").await?;
            encrypted(acceptor.accept(stream).await?, cluster).await
        }
        Some(First::GssEncRequest | First::Cancel(_) | First::Startup(_)) => {
            stream
                .write_all(&wire::fatal(
                    "28000",
                    "unable to accept connection, a secure connection is required",
                ))
                .await?;
            Ok(stream.shutdown().await?)
        }
    }
}

async fn encrypted(mut client: TlsStream<TcpStream>, cluster: &Cluster) -> Result<()> {
    let name = client.get_ref().1.server_name().map(str::to_owned);
    let Some(First::Startup(startup)) = wire::read_first(&mut client).await? else {
        bail!("no StartupMessage inside TLS")
    };
    locked(&cluster.startups).push(startup.parameters.clone());
    if let Err((sqlstate, text)) = admit(name.as_deref(), &startup) {
        client.write_all(&wire::fatal(sqlstate, &text)).await?;
        return Ok(client.shutdown().await?);
    }
    let mut upstream = UnixStream::connect(&cluster.socket).await?;
    upstream
        .write_all(&wire::startup(&startup.parameters))
        .await?;
    // Clients that just close the connection are as welcome as those that end TLS properly.
    let _ = copy_bidirectional(&mut client, &mut upstream).await;
    Ok(client.shutdown().await?)
}

/// The texts are those of AWS's documentation where it has them. The codes are not documented.
fn admit(name: Option<&str>, startup: &Startup) -> Result<(), (&'static str, String)> {
    let name = name.ok_or_else(|| {
        (
            "08004",
            "unable to accept connection, sni was not received".to_owned(),
        )
    })?;
    if !NAMES.contains(&name) {
        return Err((
            "08004",
            format!("unable to accept connection, there is no cluster {name}"),
        ));
    }
    for (parameter, value) in &startup.parameters {
        if !KNOWN_PARAMETERS
            .iter()
            .any(|known| parameter.eq_ignore_ascii_case(known))
        {
            return Err((
                "0A000",
                format!("setting configuration parameter \"{parameter}\" not supported"),
            ));
        }
        if parameter == "database" && value != "postgres" {
            return Err(("3D000", format!("database \"{value}\" does not exist")));
        }
    }
    Ok(())
}
