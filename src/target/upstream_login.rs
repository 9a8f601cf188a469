//! How does the proxy log in to a target's server, for a client that waits or for the pool?

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;

use super::addresses::{Addresses, Answer, Found, names_several_servers};
use super::database_server::DatabaseServer;
use super::pool::{self, LoginFailure, PoolKey};
use crate::address::UpstreamAddr;
use crate::config::{Endpoint, TargetSettings};
use crate::credentials::{Broker, CredentialRequest, Lease};
use crate::error::{ErrorKind, LoginError, Refusal, chain};
use crate::excerpt;
use crate::route::Route;
use crate::tls::stream::TlsStream;
use crate::upstream::Connection;
use crate::upstream::connect::{ConnectError, connect, server_name};
use crate::upstream::log_in::{LoggedIn, UpstreamLoginError, log_in};
use crate::upstream::reset::reset;
use crate::upstream::startup_parameters::forward;
use crate::wire::settings::Settings;

/// What all logins to one target need.
pub(super) struct Dialer {
    pub settings: Arc<TargetSettings>,
    pub broker: Broker,
    pub server: Arc<DatabaseServer>,
    /// They are the target's own, since the targets of one server may know it by several names.
    pub addresses: Addresses,
}

/// A login to a target's server, which can be done as often as it is needed.
#[derive(Clone)]
pub struct UpstreamLogin {
    dialer: Arc<Dialer>,
    route: Route,
    /// The client's startup parameters.
    startup: Vec<(Bytes, Bytes)>,
    /// The person that the server's `application_name` names besides the client's own text.
    person: Option<String>,
}

/// A session at the server.
pub struct UpstreamSession {
    /// The connection, and what the server said at the login.
    pub server: LoggedIn,
    logged_in_at: tokio::time::Instant,
    /// The settings as the client has left them; `None` until a client has left the session.
    client_settings: Option<Settings>,
    target: Arc<TargetSettings>,
}

/// How far a login has got, and how long its phases took.
#[derive(Debug, Default)]
pub struct LoginProgress {
    /// The session's id in the log; `None` for a login of the pool.
    pub session: Option<String>,
    /// The database user of the credential.
    pub db_user: Option<String>,
    /// Where the server is.
    pub upstream: Option<UpstreamAddr>,
    /// Whether the session came from the pool. Then no phase took the client any time.
    pub is_pooled: bool,
    /// Duration of getting the endpoint and the credential.
    pub credentials: Duration,
    /// Duration of name resolution, TCP and TLS.
    pub connect: Duration,
    /// Duration of startup and authentication.
    pub log_in: Duration,
}

impl Dialer {
    /// Connects to the server. If that fails with addresses that were known before, and the server
    /// has others by now, these are tried as well.
    async fn connect(
        &self,
        endpoint: &Endpoint,
        name: ServerName<'static>,
    ) -> Result<Connection, ConnectError> {
        let found = self.addresses.find(endpoint).await?;
        match self.connect_to(&found.answer, name.clone()).await {
            Err(error) if found.is_kept => match self.addresses.find(endpoint).await {
                Ok(Found { answer, .. }) if answer.addresses != found.answer.addresses => {
                    self.connect_to(&answer, name).await
                }
                _ => Err(error),
            },
            result => result,
        }
    }

    async fn connect_to(
        &self,
        answer: &Arc<Answer>,
        name: ServerName<'static>,
    ) -> Result<Connection, ConnectError> {
        let result = connect(&answer.addresses, name, &self.settings.tls).await;
        // They are tried in turn, so one that is not the first means that others have failed.
        if !matches!(&result, Ok(connection) if connection.address == answer.addresses[0]) {
            self.addresses.forget(answer);
        }
        result
    }
}

impl UpstreamLogin {
    pub(super) fn new(
        dialer: &Arc<Dialer>,
        route: Route,
        startup: Vec<(Bytes, Bytes)>,
        person: Option<String>,
    ) -> Self {
        Self {
            dialer: dialer.clone(),
            route,
            startup,
            person,
        }
    }

    /// The key by which the server and AWS can distinguish this login from others. The user name in
    /// the credential is not known yet, but it follows from the rest.
    pub(super) fn pool_key(&self) -> PoolKey {
        let Route {
            aws,
            db_user,
            db_groups,
            database,
        } = &self.route;
        let parameters = forward(
            &self.dialer.settings,
            &self.startup,
            db_user.name().unwrap_or_default(),
            database,
            self.person.as_deref(),
        )
        .parameters;
        PoolKey {
            aws: aws.clone(),
            db_user: db_user.clone(),
            db_groups: db_groups.clone(),
            parameters,
        }
    }

    /// Logs in. If the server refuses a credential from the cache, it is replaced once by a fresh
    /// one.
    ///
    /// # Errors
    /// Whatever a client may be told; `progress` says how far the login got.
    pub(super) async fn log_in(
        &self,
        progress: &mut LoginProgress,
    ) -> Result<UpstreamSession, LoginError> {
        let Dialer {
            settings, broker, ..
        } = &*self.dialer;
        let started = Instant::now();
        let endpoint = broker.endpoint(settings).await.map_err(Refusal::from)?;
        let request = CredentialRequest::new(settings, &self.route, &endpoint);
        let lease = broker.credential(&request).await.map_err(Refusal::from)?;
        progress.credentials = started.elapsed();
        let result = match self.log_in_with(&lease, &endpoint, progress).await {
            Err(ServerLoginError::LogIn(UpstreamLoginError::PasswordRefused(_)))
                if lease.cached =>
            {
                tracing::debug!(
                    session = progress.session,
                    "the server refuses a cached credential; trying a fresh one"
                );
                broker.forget_credential(&request, &lease.credential);
                let fresh = broker.credential(&request).await.map_err(Refusal::from)?;
                let result = self.log_in_with(&fresh, &endpoint, progress).await;
                result
                    .inspect_err(|error| self.note_refused_password(error, &request))
                    .map_err(refused_twice)?
            }
            result => result.inspect_err(|error| self.note_refused_password(error, &request))?,
        };
        Ok(UpstreamSession {
            server: result,
            logged_in_at: tokio::time::Instant::now(),
            client_settings: None,
            target: settings.clone(),
        })
    }

    async fn log_in_with(
        &self,
        lease: &Lease,
        endpoint: &Endpoint,
        progress: &mut LoginProgress,
    ) -> Result<LoggedIn, ServerLoginError> {
        let Dialer {
            settings,
            broker,
            server,
            ..
        } = &*self.dialer;
        let credential = &lease.credential;
        progress.db_user = Some(credential.db_user.clone());
        let _permit = server.pacing.acquire().await?;
        let started = Instant::now();
        let name = server_name(settings, &endpoint.host)?;
        let connection = self.dialer.connect(endpoint, name).await.map_err(|error| {
            broker.forget_endpoint(settings);
            ServerLoginError::Connect(error.into())
        })?;
        progress.upstream = Some(connection.address);
        progress.connect = started.elapsed();
        let started = Instant::now();
        let forwarded = forward(
            settings,
            &self.startup,
            &credential.db_user,
            &self.route.database,
            self.person.as_deref(),
        );
        log_dropped(&forwarded.dropped, progress);
        let logged_in = log_in(
            connection,
            &forwarded.parameters,
            &credential.db_user,
            &credential.password,
        )
        .await?;
        progress.log_in = started.elapsed();
        Ok(logged_in)
    }

    fn note_refused_password(&self, error: &ServerLoginError, request: &CredentialRequest) {
        if let ServerLoginError::LogIn(UpstreamLoginError::PasswordRefused(_)) = error {
            self.dialer.broker.note_fresh_credential_refused(request);
        }
    }
}

fn log_dropped(names: &[Bytes], progress: &LoginProgress) {
    if !names.is_empty() {
        let names: Vec<_> = names
            .iter()
            .map(|name| excerpt::name(&String::from_utf8_lossy(name)).into_owned())
            .collect();
        tracing::debug!(
            session = progress.session,
            names = &*excerpt::text(&names.join(", ")),
            "startup parameters not forwarded"
        );
    }
}

impl UpstreamSession {
    /// The stream, on which nothing is under way.
    pub fn stream_mut(&mut self) -> &mut TlsStream<TcpStream> {
        &mut self.server.connection.stream
    }

    /// The stream alone, for a session that ends with its client.
    pub fn into_stream(self) -> TlsStream<TcpStream> {
        self.server.connection.stream
    }

    /// Notes that a client has left the session idle, with these settings.
    #[must_use]
    pub fn with_client_settings(self, settings: Settings) -> Self {
        Self {
            client_settings: Some(settings),
            ..self
        }
    }
}

impl pool::LogIn for UpstreamLogin {
    type Session = UpstreamSession;

    async fn log_in(&self) -> Result<UpstreamSession, LoginFailure> {
        self.log_in(&mut LoginProgress::default())
            .await
            .map_err(|error| LoginFailure {
                is_permanent: is_permanent(&error),
                text: chain(&error),
            })
    }

    async fn addresses(&self) -> Option<Vec<UpstreamAddr>> {
        let Dialer {
            settings,
            broker,
            addresses,
            ..
        } = &*self.dialer;
        let endpoint = broker.endpoint(settings).await.ok()?;
        if names_several_servers(&endpoint) {
            return None;
        }
        let answer = addresses.ask(&endpoint).await.ok()?;
        Some(answer.addresses.clone())
    }
}

impl pool::Session for UpstreamSession {
    type Stream = TlsStream<TcpStream>;

    fn stream(&mut self) -> &mut Self::Stream {
        self.stream_mut()
    }

    fn address(&self) -> UpstreamAddr {
        self.server.connection.address
    }

    fn logged_in_at(&self) -> tokio::time::Instant {
        self.logged_in_at
    }

    fn adopt(mut self) -> io::Result<Self> {
        self.server.connection.stream = self.server.connection.stream.adopt()?;
        Ok(self)
    }

    async fn reset(&mut self) -> Result<(), String> {
        let Some(mut settings) = self.client_settings.take() else {
            return Ok(());
        };
        let target = self.target.clone();
        reset(self.stream_mut(), &mut settings, &target.reuse_extensions)
            .await
            .map_err(|error| chain(&error))
    }
}

/// Whether such logins are refused, rather than impossible at the moment.
pub(super) fn is_permanent(error: &LoginError) -> bool {
    error
        .sqlstate()
        .is_some_and(|sqlstate| !sqlstate.is_transient())
}

/// Why a login with one credential failed.
enum ServerLoginError {
    Connect(Refusal),
    LogIn(UpstreamLoginError),
}

impl From<Refusal> for ServerLoginError {
    fn from(refusal: Refusal) -> Self {
        Self::Connect(refusal)
    }
}

impl From<UpstreamLoginError> for ServerLoginError {
    fn from(error: UpstreamLoginError) -> Self {
        Self::LogIn(error)
    }
}

impl From<ServerLoginError> for LoginError {
    fn from(error: ServerLoginError) -> Self {
        match error {
            ServerLoginError::Connect(refusal) => refusal.into(),
            ServerLoginError::LogIn(error) => error.into(),
        }
    }
}

fn refused_twice(error: ServerLoginError) -> LoginError {
    match error {
        ServerLoginError::LogIn(UpstreamLoginError::PasswordRefused(response)) => Refusal::new(
            ErrorKind::TemporaryPasswordRefused,
            format!(
                "the database server refused the temporary password twice: {}",
                excerpt::text(&response.message())
            ),
        )
        .into(),
        other => other.into(),
    }
}
