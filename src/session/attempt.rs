//! Phases 5 to 7: from a route to a session that is ready, for a client that waits or as a spare
//! for the next one.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use tokio::net::TcpStream;

use super::facts::Progress;
use crate::config::Endpoint;
use crate::credentials::{Broker, Lease, Request};
use crate::error::{ErrorKind, LoginError, Refusal, chain};
use crate::governor::Governor;
use crate::route::Route;
use crate::tls::stream::TlsStream;
use crate::upstream::connect::{connect, resolve, server_name};
use crate::upstream::log_in::{LogInError, LoggedIn, log_in};
use crate::upstream::reset::reset;
use crate::upstream::startup_parameters::forward;
use crate::upstream::warm::{self, Failure};
use crate::wire::settings::Settings;

/// A login to a server, as often as it is wanted.
#[derive(Clone)]
pub struct Attempt {
    pub(super) broker: Arc<Broker>,
    pub(super) governor: Arc<Governor>,
    pub(super) route: Route,
    /// The client's startup parameters.
    pub(super) startup: Vec<(Bytes, Bytes)>,
    /// Whom the server's `application_name` names besides.
    pub(super) person: Option<String>,
}

/// A session at the server that has no client, or none any more.
pub struct Ready {
    pub(super) session: LoggedIn,
    pub(super) db_user: String,
    pub(super) since: tokio::time::Instant,
    /// Its settings as a client has left them.
    pub(super) left: Option<Settings>,
}

impl Attempt {
    /// What the server and AWS can tell it from others by.
    pub(super) fn kind(&self) -> warm::Kind {
        let Route {
            target,
            aws,
            db_user,
            db_groups,
            database,
        } = &self.route;
        let parameters = forward(
            target,
            &self.startup,
            db_user,
            database,
            self.person.as_deref(),
        )
        .parameters;
        warm::Kind {
            aws: aws.clone(),
            db_user: db_user.clone(),
            db_groups: db_groups.clone(),
            parameters,
        }
    }

    /// Logs in. A credential from the cache that the server refuses is replaced once by a fresh
    /// one.
    ///
    /// `id` is the client's session, for the log.
    pub(super) async fn log_in(
        &self,
        progress: &mut Progress,
        id: Option<&str>,
    ) -> Result<Ready, LoginError> {
        let session = self.log_in_once_or_twice(progress, id).await?;
        Ok(Ready {
            session,
            db_user: progress.db_user.clone(),
            since: tokio::time::Instant::now(),
            left: None,
        })
    }

    async fn log_in_once_or_twice(
        &self,
        progress: &mut Progress,
        id: Option<&str>,
    ) -> Result<LoggedIn, LoginError> {
        let broker = &self.broker;
        let started = Instant::now();
        let endpoint = broker
            .endpoint(&self.route.target)
            .await
            .map_err(Refusal::from)?;
        let Route {
            target,
            aws,
            db_user,
            db_groups,
            database,
        } = self.route.clone();
        let request = Request {
            target,
            aws,
            db_user,
            db_groups,
            database,
            endpoint,
        };
        let lease = broker.credential(&request).await.map_err(Refusal::from)?;
        progress.credentials = started.elapsed();
        match self.with(&request, &lease, progress, id).await {
            Err(Failed::LogIn(LogInError::PasswordRefused(_))) if lease.cached => {
                tracing::debug!(
                    session = id,
                    "the server refuses a cached credential; trying a fresh one"
                );
                broker.forget_credential(&request, &lease.credential);
                let fresh = broker.credential(&request).await.map_err(Refusal::from)?;
                let result = self.with(&request, &fresh, progress, id).await;
                note_refused(broker, &request, &result);
                result.map_err(refused_twice)
            }
            result => {
                note_refused(broker, &request, &result);
                result.map_err(LoginError::from)
            }
        }
    }

    async fn with(
        &self,
        request: &Request,
        lease: &Lease,
        progress: &mut Progress,
        id: Option<&str>,
    ) -> Result<LoggedIn, Failed> {
        let Request {
            target,
            endpoint,
            database,
            ..
        } = request;
        let credential = &lease.credential;
        progress.db_user.clone_from(&credential.db_user);
        let _leave = self.governor.admit(target).await?;
        let started = Instant::now();
        let connection = connect(endpoint, server_name(target, &endpoint.host)?, &target.tls)
            .await
            .map_err(|error| {
                self.broker.forget_endpoint(target);
                Failed::Connect(error.into())
            })?;
        progress.upstream = Some(connection.address);
        progress.connect = started.elapsed();
        let started = Instant::now();
        let forwarded = forward(
            target,
            &self.startup,
            &credential.db_user,
            database,
            self.person.as_deref(),
        );
        if !forwarded.dropped.is_empty() {
            let names = forwarded
                .dropped
                .iter()
                .map(|name| String::from_utf8_lossy(name))
                .collect::<Vec<_>>()
                .join(", ");
            tracing::debug!(session = id, names, "startup parameters not forwarded");
        }
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
}

impl warm::LogIn for Attempt {
    type Session = Ready;

    async fn log_in(&self) -> Result<Ready, Failure> {
        self.log_in(&mut Progress::default(), None)
            .await
            .map_err(|ending| failure(&ending))
    }

    async fn addresses(&self) -> Option<Vec<SocketAddr>> {
        let endpoint = self.broker.endpoint(&self.route.target).await.ok()?;
        if names_many(&endpoint) {
            return None;
        }
        resolve(&endpoint).await.ok()
    }
}

impl warm::Session for Ready {
    type Stream = TlsStream<TcpStream>;

    fn stream(&mut self) -> &mut Self::Stream {
        &mut self.session.connection.stream
    }

    fn address(&self) -> SocketAddr {
        self.session.connection.address
    }

    fn since(&self) -> tokio::time::Instant {
        self.since
    }

    fn adopt(mut self) -> io::Result<Self> {
        self.session.connection.stream = self.session.connection.stream.adopt()?;
        Ok(self)
    }

    async fn reset(&mut self) -> Result<(), String> {
        match self.left.take() {
            Some(mut settings) => reset(&mut self.session.connection.stream, &mut settings)
                .await
                .map_err(|error| error.to_string()),
            None => Ok(()),
        }
    }
}

/// Aurora's reader and custom endpoints: each answer is one of several servers, and the others are
/// as good.
fn names_many(endpoint: &Endpoint) -> bool {
    [".cluster-ro-", ".cluster-custom-"]
        .iter()
        .any(|label| endpoint.host.contains(label))
}

/// Whether logins of this kind are refused, as opposed to not possible just now.
pub(super) fn is_refusal(error: &LoginError) -> bool {
    error
        .sqlstate()
        .is_some_and(|sqlstate| !sqlstate.is_transient())
}

fn failure(error: &LoginError) -> Failure {
    Failure {
        refused: is_refusal(error),
        text: chain(error),
    }
}

/// One attempt at the server failed.
enum Failed {
    Connect(Refusal),
    LogIn(LogInError),
}

impl From<Refusal> for Failed {
    fn from(refusal: Refusal) -> Self {
        Self::Connect(refusal)
    }
}

impl From<LogInError> for Failed {
    fn from(error: LogInError) -> Self {
        Self::LogIn(error)
    }
}

impl From<Failed> for LoginError {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Connect(refusal) => refusal.into(),
            Failed::LogIn(error) => error.into(),
        }
    }
}

fn note_refused<T>(broker: &Broker, request: &Request, result: &Result<T, Failed>) {
    if let Err(Failed::LogIn(LogInError::PasswordRefused(_))) = result {
        broker.refused_fresh(request);
    }
}

fn refused_twice(failed: Failed) -> LoginError {
    match failed {
        Failed::LogIn(LogInError::PasswordRefused(response)) => Refusal::new(
            ErrorKind::TemporaryPasswordRefused,
            format!(
                "the database server refused the temporary password twice: {}",
                response.message()
            ),
        )
        .into(),
        other => other.into(),
    }
}
