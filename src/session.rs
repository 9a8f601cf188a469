//! One connection from top to bottom: the only file that sees both legs.
//!
//! negotiate → authenticate → route → credentials → connect upstream → log in → welcome → splice.
//! Each phase consumes what the one before gave; the three that reach the server may have been done
//! before, for a client like this one (`reach`). The splice runs as a task of its own, so that the
//! login's state does not live as long as the session.

mod attempt;
mod cancel_request;
mod established;
mod facts;
mod identify;
mod reach;

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout_at;
use tokio_util::sync::CancellationToken;

use crate::cancel::{Cancels, Destination, Registration};
use crate::client::authenticate::PasswordChecker;
use crate::client::negotiate::{self, ClientRequest, NegotiatedConnection};
use crate::client::penalty::Penalties;
use crate::client::stream::{ClientAddr, ClientStream, Security};
use crate::client::{reject, version, welcome};
use crate::config::{Limits, Listener, Target, User};
use crate::credentials::Broker;
use crate::error::{ErrorKind, LoginError, Refusal};
use crate::governor::Governor;
use crate::metrics::Metrics;
use crate::places::{Place, Places, Taken};
use crate::route::{Asked, route};
use crate::tls::stream::TlsStream;
use crate::upstream::Connection;
use crate::upstream::log_in::LoggedIn;
use crate::upstream::warm::Warm;
use crate::wire::proxy_header;
use crate::wire::startup::StartupMessage;
use attempt::{Attempt, Ready};
use facts::Facts;

pub use established::Established;
use established::Succession;

/// How long a client may take to accept the end of its cancel request.
const GOODBYE: Duration = Duration::from_secs(2);

/// Sessions that are logged in before their client comes.
pub type Spares = Warm<Attempt>;

/// What all sessions share.
pub struct Shared {
    /// Credentials and endpoints.
    pub broker: Arc<Broker>,
    /// Sessions that can be cancelled.
    pub cancels: Arc<Cancels>,
    /// Bounds on clients.
    pub limits: Limits,
    /// How many sessions there may be.
    pub places: Arc<Places>,
    /// Sessions that are logged in before their client comes.
    pub warm: Spares,
    /// What the configuration says of users.
    pub users: HashMap<String, Arc<User>>,
    /// Every target, by name.
    pub targets: HashMap<String, Arc<Target>>,
    /// How fast servers are given logins.
    pub governor: Arc<Governor>,
    /// Judges passwords.
    pub password_checker: PasswordChecker,
    /// Addresses whose logins have failed repeatedly.
    pub penalties: Penalties,
    /// Addresses that have sent cancel requests for sessions which are not known here.
    pub cancel_penalties: Penalties,
    /// What operators count.
    pub metrics: Arc<Metrics>,
    /// Cancelled when the proxy stops: logins under way are refused from then on.
    pub stopping: CancellationToken,
}

/// A client just accepted.
pub enum Accepted {
    /// Over the network.
    Tcp(TcpStream, std::net::SocketAddr),
    /// Through a unix socket, as this operating system user.
    Unix(UnixStream, u32),
}

impl Accepted {
    /// Has what happens on it reported to this thread, where another one has accepted it.
    ///
    /// # Errors
    /// The system does not watch it.
    pub fn adopt(self) -> io::Result<Self> {
        Ok(match self {
            Self::Tcp(tcp, address) => Self::Tcp(TcpStream::from_std(tcp.into_std()?)?, address),
            Self::Unix(unix, user) => Self::Unix(UnixStream::from_std(unix.into_std()?)?, user),
        })
    }
}

/// Serves a connection up to the end of its login. `None`: it was a cancel, or it is over.
pub async fn open(shared: &Shared, listener: &Listener, accepted: Accepted) -> Option<Established> {
    let mut login = Login {
        shared,
        listener,
        facts: Facts::new(&accepted, shared.metrics.clone()),
        places: Taken::default(),
    };
    let (mut stream, ending) = match login.negotiate(accepted).await {
        Ok(NegotiatedConnection {
            mut stream,
            request: Ok(ClientRequest::Cancel(request)),
            ..
        }) => {
            cancel_request::serve(shared, listener, &login.facts.client, &request).await;
            // The close, which is the only answer, says that the server has acted. Without TLS's
            // close_notify libpq takes it for a failure.
            let _ = tokio::time::timeout(GOODBYE, stream.shutdown()).await;
            return None;
        }
        Ok(NegotiatedConnection {
            mut stream,
            security,
            request: Ok(ClientRequest::Session(startup)),
        }) => match login.serve(&mut stream, &security, &startup).await {
            Ok((upstream, registration, succession)) => {
                login.facts.log_opened();
                let Login { facts, places, .. } = login;
                return Some(Established {
                    client: stream,
                    upstream,
                    facts,
                    registration,
                    places,
                    succession,
                });
            }
            Err(ending) => (stream, ending),
        },
        Ok(NegotiatedConnection {
            stream,
            request: Err(ending),
            ..
        }) => (stream, ending),
        Err(ending) => {
            login.facts.log_failed(&ending);
            return None;
        }
    };
    login.facts.log_failed(&ending);
    match ending {
        LoginError::Refused(refusal) => {
            reject::send(
                &mut stream,
                &reject::error_response(&refusal, &login.facts.id),
            )
            .await;
        }
        LoginError::ServerError(response) => reject::send(&mut stream, &response).await,
        LoginError::ClientGone | LoginError::StartupTimeout | LoginError::TlsFailed(_) => {}
    }
    None
}

struct Login<'a> {
    shared: &'a Shared,
    listener: &'a Listener,
    facts: Facts,
    places: Taken,
}

impl Login<'_> {
    /// Phase 2, behind a PROXY header where the listener has the client's address believed to one.
    async fn negotiate(&mut self, accepted: Accepted) -> Result<NegotiatedConnection, LoginError> {
        let deadline = self.deadline();
        let negotiation = async {
            match accepted {
                Accepted::Unix(unix, _) => Ok(negotiate::unix(unix).await),
                Accepted::Tcp(mut tcp, peer) => {
                    if self
                        .listener
                        .proxy_protocol_from
                        .iter()
                        .any(|network| network.contains(&peer.ip().to_canonical()))
                    {
                        let header = proxy_header::read(&mut tcp).await?;
                        self.facts.client = ClientAddr::Network(header.source.unwrap_or(peer));
                        self.facts.vpc_endpoint = header.vpc_endpoint;
                    }
                    negotiate::tcp(tcp, &self.listener.tls).await
                }
            }
        };
        timeout_at(deadline, negotiation)
            .await
            .unwrap_or(Err(LoginError::StartupTimeout))
    }

    /// Phases 3 to 7, and the client's welcome.
    async fn serve(
        &mut self,
        stream: &mut ClientStream,
        security: &Security,
        startup: &StartupMessage,
    ) -> Result<
        (
            TlsStream<TcpStream>,
            Option<Registration>,
            Option<Box<Succession>>,
        ),
        LoginError,
    > {
        let shared = self.shared;
        shared.places.take(&Place::Proxy, &mut self.places)?;
        shared.places.take(
            &Place::Listener(self.listener.address.to_string()),
            &mut self.places,
        )?;
        let user = utf8("user name", startup.parameter("user"))?.unwrap_or_default();
        let settings = shared.users.get(user).map(|user| &**user);
        self.facts.user = user.to_string();
        timeout_at(
            self.deadline(),
            self.identify(stream, security, user, settings),
        )
        .await
        .unwrap_or_else(|_| {
            Err(Refusal::new(
                ErrorKind::StartupTimeout,
                "canceling authentication due to timeout",
            )
            .into())
        })?;
        self.facts.startup = self.facts.opened.elapsed();
        let database = utf8("database name", startup.parameter("database"))?;
        let route = route(
            self.listener,
            &Asked {
                user,
                settings,
                database,
                server_name: security.server_name.as_deref(),
            },
        )?;
        self.facts.target.clone_from(&route.target.name);
        shared
            .places
            .take(&Place::User(user.to_string()), &mut self.places)?;
        let attempt = Attempt {
            broker: shared.broker.clone(),
            governor: shared.governor.clone(),
            person: route
                .target
                .application_name_suffix
                .then(|| self.facts.person()),
            startup: startup.parameters.clone(),
            route,
        };
        // Given up as soon as the client leaves or the proxy stops.
        let (
            Ready {
                session,
                db_user,
                since,
                ..
            },
            heirs,
        ) = tokio::select! {
            result = self.reach(&attempt) => result?,
            () = stream.gone() => return Err(LoginError::ClientGone),
            () = shared.stopping.cancelled() => return Err(Refusal::new(ErrorKind::ShuttingDown, "the proxy is shutting down").into()),
        };
        let LoggedIn {
            connection,
            settings,
            key,
            ready,
        } = session;
        let agreement = version::agree(startup);
        let heirs = heirs.filter(|_| ready.body == "I");
        let registration = key.clone().map(|key| {
            let (target, server_name) = (
                attempt.route.target.name.clone(),
                connection.server_name.to_str().into_owned(),
            );
            let destination = Destination {
                target,
                address: connection.address,
                server_name,
                key,
            };
            match &heirs {
                Some(_) => shared
                    .cancels
                    .register_for_one(destination, agreement.version),
                None => shared.cancels.register(destination, agreement.version),
            }
        });
        let client_key = registration
            .as_ref()
            .map(|registration| &registration.client_key);
        welcome::welcome(stream, &agreement, &settings, client_key, &ready)
            .await
            .map_err(|_| LoginError::ClientGone)?;
        let Connection {
            stream: upstream,
            address,
            certificate,
            server_name,
        } = connection;
        let succession = heirs.map(|heirs| {
            Box::new(Succession {
                heirs,
                address,
                certificate,
                server_name,
                settings,
                key,
                ready,
                db_user,
                since,
            })
        });
        Ok((upstream, registration, succession))
    }

    /// Until when the client must have sent its last login byte.
    fn deadline(&self) -> tokio::time::Instant {
        (self.facts.opened + self.shared.limits.startup_timeout).into()
    }
}

/// Names decide where a login goes, and AWS takes text only.
fn utf8<'a>(what: &str, value: Option<&'a bytes::Bytes>) -> Result<Option<&'a str>, Refusal> {
    value
        .map(|value| std::str::from_utf8(value))
        .transpose()
        .map_err(|_| {
            Refusal::new(
                ErrorKind::InvalidAuthorization,
                format!("{what} is not valid UTF-8"),
            )
        })
}
