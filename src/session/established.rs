//! Phase 9: a session whose login is done, and what becomes of the server's side once the client has
//! left.

use std::sync::Arc;

use tokio::net::TcpStream;

use super::Permits;
use super::record::OpenRecord;
use super::welcome::Welcomed;
use crate::cancel::Registration;
use crate::client::stream::ClientStream;
use crate::limits::Permit;
use crate::splice::{Boundaries, Clear, Leg, Outcome, Traffic, Watch, end, splice};
use crate::target::{Reuse, Target, UpstreamSession};
use crate::tls::stream::TlsStream;
use crate::wire::settings::Settings;

/// A session whose login is done: all that is left is to move bytes.
pub struct Established {
    client: ClientStream,
    upstream: Upstream,
    record: OpenRecord,
    registration: Option<Registration<Arc<Target>>>,
    permits: Permits,
    target_permit: Permit,
}

/// The server's side, by what becomes of it when the client leaves.
enum Upstream {
    /// It ends with its client.
    Single(TlsStream<TcpStream>),
    /// It goes back to the pool. Boxed: few sessions do, and it would be most of the others' size.
    Reusable(Box<(UpstreamSession, Reuse)>),
}

impl Established {
    pub(super) fn new(client: ClientStream, welcomed: Welcomed, record: OpenRecord) -> Self {
        let Welcomed {
            upstream,
            reuse,
            registration,
            permits,
            target_permit,
        } = welcomed;
        Self {
            client,
            upstream: match reuse {
                Some(reuse) => Upstream::Reusable(Box::new((upstream, reuse))),
                None => Upstream::Single(upstream.into_stream()),
            },
            record,
            registration,
            permits,
            target_permit,
        }
    }

    /// Moves bytes until both sides have ended or somebody ends the session.
    pub async fn run(self) {
        let Self {
            client,
            upstream,
            record,
            registration,
            permits,
            target_permit,
        } = self;
        match upstream {
            Upstream::Single(mut stream) => {
                let outcome = splice_client(client, &mut stream, &mut (), &record).await;
                record.log_ended(&outcome);
            }
            Upstream::Reusable(upstream) => {
                let (session, reuse) = *upstream;
                let run = run_reusable(client, session, reuse, record, registration, target_permit);
                Box::pin(run).await;
            }
        }
        drop(permits);
    }
}

async fn run_reusable(
    client: ClientStream,
    mut session: UpstreamSession,
    reuse: Reuse,
    record: OpenRecord,
    registration: Option<Registration<Arc<Target>>>,
    permit: Permit,
) {
    let mut watch = Boundaries::new(Settings::at_login(&session.server.settings));
    let outcome = splice_client(client, session.stream_mut(), &mut watch, &record).await;
    record.log_ended(&outcome);
    // The client's cancel key dies before anybody else can get the session.
    let is_quiet = registration.is_none_or(Registration::retire);
    if !outcome.is_open_upstream {
        return;
    }
    match watch.into_settings() {
        Ok(settings) if is_quiet => reuse.give_back(session.left_with(settings), permit),
        Ok(_) => reuse.end(session, "a cancel request was under way").await,
        Err(reason) => reuse.end(session, reason).await,
    }
}

async fn splice_client(
    client: ClientStream,
    upstream: &mut TlsStream<TcpStream>,
    watch: &mut impl Watch,
    record: &OpenRecord,
) -> Outcome {
    match client {
        ClientStream::Plain(tcp) => run(&mut Clear::new(tcp), upstream, watch, record).await,
        ClientStream::Tls(mut tls) => run(&mut *tls, upstream, watch, record).await,
        ClientStream::Unix(unix) => run(&mut Clear::new(unix), upstream, watch, record).await,
    }
}

async fn run<C: Leg, U: Leg>(
    client: &mut C,
    upstream: &mut U,
    watch: &mut impl Watch,
    record: &OpenRecord,
) -> Outcome {
    let traffic: &Traffic = record.traffic();
    match record
        .run_until_ended(splice(client, upstream, watch, traffic))
        .await
    {
        Some(outcome) => outcome,
        None => end(client, upstream, traffic).await,
    }
}
