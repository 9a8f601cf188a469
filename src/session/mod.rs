//! How does one connection go from its first byte to its last? This is the only folder that sees
//! both legs.
//!
//! Each phase takes the value that the phase before it returned, and returns the value for the
//! next: negotiate → prove → route → acquire → welcome → established. The splice runs as a task of
//! its own, so that the login's state does not live as long as the session.

mod acquire;
mod cancel;
mod established;
mod negotiate;
mod prove;
mod record;
mod route;
mod welcome;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::{TcpStream, UnixStream};
use tokio::time::Instant;

use crate::address::ClientAddr;
use crate::client::negotiate::{ClientRequest, NegotiatedConnection};
use crate::client::stream::ClientStream;
use crate::client::{reject, version};
use crate::error::{ErrorKind, LoginError, Refusal};
use crate::limits::{self, Permit, UnauthenticatedClient};
use crate::runtime::{Listener, Runtime, Snapshot};
use prove::Startup;
use record::Record;

pub use established::Established;

/// A client that has just been accepted.
pub enum Accepted {
    /// The client came over the network.
    Tcp(TcpStream, SocketAddr),
    /// The client came through a Unix socket, as this operating system user.
    Unix(UnixStream, u32),
}

impl Accepted {
    /// Has the connection's events reported to the calling thread, if another thread has accepted
    /// it.
    ///
    /// # Errors
    /// The system cannot watch it.
    pub fn adopt(self) -> io::Result<Self> {
        Ok(match self {
            Self::Tcp(tcp, address) => Self::Tcp(TcpStream::from_std(tcp.into_std()?)?, address),
            Self::Unix(unix, user) => Self::Unix(UnixStream::from_std(unix.into_std()?)?, user),
        })
    }

    /// Where the client is, as far as the connection itself tells.
    pub fn address(&self) -> ClientAddr {
        match self {
            Self::Tcp(_, address) => ClientAddr::Network(*address),
            Self::Unix(_, user) => ClientAddr::Local(*user),
        }
    }
}

/// What every phase of a login may see.
struct Context<'a> {
    runtime: &'a Runtime,
    snapshot: &'a Snapshot,
    listener: &'a Listener,
}

impl Context<'_> {
    /// The moment by which the client must have sent its last login byte.
    fn deadline(&self, record: &Record) -> Instant {
        (record.opened() + self.snapshot.limits.startup_timeout).into()
    }

    /// Completes when the proxy is told to stop, with what a client is told whose login is not done.
    async fn stopping(&self) -> LoginError {
        self.runtime.lifecycle.stop.cancelled().await;
        Refusal::new(ErrorKind::ShuttingDown, "the proxy is shutting down").into()
    }
}

/// Counts this session against every limit except the target's.
struct Permits {
    _proxy: Permit,
    _listener: Permit,
    /// `None` until it is known who the client is.
    user: Option<Permit>,
}

/// Serves a connection up to the end of its login. Returns `None` if it was a cancel request or if
/// it has ended.
pub async fn open(
    runtime: &Runtime,
    snapshot: &Arc<Snapshot>,
    listener: &Listener,
    accepted: Accepted,
    unauthenticated: UnauthenticatedClient,
) -> Option<Established> {
    let context = Context {
        runtime,
        snapshot,
        listener,
    };
    let mut record = Record::new(runtime, accepted.address());
    let NegotiatedConnection {
        mut stream,
        security,
        request,
    } = match negotiate::negotiate(&context, accepted, &unauthenticated, &mut record).await {
        Ok(negotiated) => negotiated,
        // The client cannot be answered any more.
        Err(error) => {
            record.log_failed(&error);
            return None;
        }
    };
    let welcomed = match request {
        Ok(ClientRequest::Cancel(request)) => {
            // There are limits on these, too, of their own.
            unauthenticated.free();
            cancel::serve(&context, record.client(), &request, stream).await;
            return None;
        }
        Ok(ClientRequest::Session(message)) => {
            let startup = Startup { message, security };
            log_in(
                &context,
                &mut stream,
                startup,
                &unauthenticated,
                &mut record,
            )
            .await
        }
        Err(error) => Err(error),
    };
    match welcomed {
        Ok(welcomed) => Some(Established::new(stream, welcomed, record.open())),
        Err(error) => {
            record.log_failed(&error);
            // A client that has to go is still sent what its connection takes at once.
            tokio::select! {
                biased;
                () = send_error(&mut stream, error, &record) => {}
                () = unauthenticated.must_go() => {}
            }
            None
        }
    }
}

/// Runs the phases of a login, one after the other.
async fn log_in(
    context: &Context<'_>,
    stream: &mut ClientStream,
    startup: Startup,
    unauthenticated: &UnauthenticatedClient,
    record: &mut Record,
) -> Result<welcome::Welcomed, LoginError> {
    version::announce(stream, &startup.message)
        .await
        .map_err(|_| LoginError::ClientGone)?;
    let proven = prove::prove(context, stream, startup, unauthenticated, record).await?;
    let routed = route::route(context, proven, record)?;
    let acquired = acquire::acquire(context, stream, routed, record).await?;
    welcome::welcome(context, stream, acquired, record).await
}

async fn send_error(stream: &mut ClientStream, error: LoginError, record: &Record) {
    match error {
        LoginError::Refused(refusal) => {
            reject::send(
                stream,
                &reject::error_response(&refusal, &record.id().to_string()),
            )
            .await;
        }
        LoginError::ServerError(response) => reject::send(stream, &response).await,
        LoginError::CrowdedOut => {
            let refusal = limits::too_many_clients();
            let response = reject::error_response(&refusal, &record.id().to_string());
            reject::send_at_once(stream, &response).await;
        }
        LoginError::RefusedOldVersion(refusal) => reject::send_version_2(stream, &refusal).await,
        LoginError::ClientGone
        | LoginError::NotPostgres(_)
        | LoginError::Stopping
        | LoginError::StartupTimeout
        | LoginError::TlsFailed(_) => {}
    }
}
