//! Phase 9: a session whose login is done, and what becomes of the server's side once the client
//! has left.

use std::net::SocketAddr;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::attempt::{Attempt, Ready};
use super::facts::Facts;
use crate::cancel::Registration;
use crate::client::stream::ClientStream;
use crate::places::{Place, Taken};
use crate::splice::{IdleTracker, Observer, Outcome, PlainStream, splice};
use crate::tls::stream::TlsStream;
use crate::tls::upstream::VerifiedCertificate;
use crate::upstream::Connection;
use crate::upstream::log_in::LoggedIn;
use crate::upstream::warm::{Kind, Pool};
use crate::wire::backend::{BackendKey, RawMessage};
use crate::wire::settings::Settings;
use crate::workers::Seat;

/// A session whose login is done: all that is left is to move bytes.
pub struct Established {
    pub(super) client: ClientStream,
    pub(super) upstream: TlsStream<TcpStream>,
    pub(super) facts: Facts,
    pub(super) registration: Option<Registration>,
    pub(super) places: Taken,
    /// Boxed: few sessions have it, and it would be most of the others' size.
    pub(super) succession: Option<Box<Succession>>,
}

/// Where the server's side goes when the client leaves it idle, and what it needs to be a spare
/// there.
pub(super) struct Succession {
    pub heirs: Heirs,
    pub address: SocketAddr,
    pub certificate: VerifiedCertificate,
    pub server_name: ServerName<'static>,
    pub settings: Vec<RawMessage>,
    pub key: Option<BackendKey>,
    pub ready: RawMessage,
    pub db_user: String,
    pub since: Instant,
}

/// Clients who may have a session after its client.
pub(super) struct Heirs {
    pool: Arc<Pool<Attempt>>,
    kind: Arc<Kind>,
}

impl Heirs {
    /// `None` where sessions of this kind are for one client only.
    pub(super) fn of(pool: &Arc<Pool<Attempt>>, kind: Arc<Kind>) -> Option<Self> {
        // What a WAL sender does is not under DISCARD ALL's rule.
        let replicates = kind
            .parameters
            .iter()
            .any(|(name, _)| name.eq_ignore_ascii_case(b"replication"));
        (pool.reuses() && !replicates).then(|| Self {
            pool: pool.clone(),
            kind,
        })
    }
}

impl Established {
    /// Moves bytes until both sides have ended, and keeps the seat until then.
    pub async fn run(mut self, _seat: Seat) {
        if let Some(succession) = self.succession.take() {
            return Box::pin(self.run_and_hand_on(*succession)).await;
        }
        let Self {
            client,
            mut upstream,
            mut facts,
            registration: _registration,
            places: _places,
            ..
        } = self;
        facts.log_ended(&splice_client(client, &mut upstream, &mut ()).await);
    }

    async fn run_and_hand_on(self, succession: Succession) {
        let Self {
            client,
            upstream: mut stream,
            mut facts,
            registration,
            places,
            ..
        } = self;
        let Succession {
            heirs: Heirs { pool, kind },
            address,
            certificate,
            server_name,
            settings,
            key,
            ready,
            db_user,
            since,
        } = succession;
        let mut observer = IdleTracker::new(Settings::at_login(&settings));
        let outcome = splice_client(client, &mut stream, &mut observer).await;
        facts.log_ended(&outcome);
        // The client's cancel key dies before anybody else can get the session.
        let quiet = registration.is_none_or(Registration::retire);
        if !outcome.upstream_left_open {
            return;
        }
        let place = Place::Target(facts.target);
        let session = LoggedIn {
            connection: Connection {
                stream,
                address,
                certificate,
                server_name,
            },
            settings,
            key,
            ready,
        };
        let ready = |left| Ready {
            session,
            db_user,
            since,
            left,
        };
        match observer.into_settings() {
            Ok(left) if quiet => pool.offer(&kind, ready(Some(left)), places.only(&place)),
            Ok(_) => {
                pool.end(ready(None), "a cancel request was under way")
                    .await;
            }
            Err(reason) => pool.end(ready(None), reason).await,
        }
    }
}

async fn splice_client(
    client: ClientStream,
    upstream: &mut TlsStream<TcpStream>,
    observer: &mut impl Observer,
) -> Outcome {
    match client {
        ClientStream::Plain(tcp) => splice(&mut PlainStream::new(tcp), upstream, observer).await,
        ClientStream::Tls(mut tls) => splice(&mut *tls, upstream, observer).await,
        ClientStream::Unix(unix) => splice(&mut PlainStream::new(unix), upstream, observer).await,
    }
}
