//! Phase 9: how does a session run once its login is done, and what happens to the server's side
//! after the client has left?

use std::pin::pin;
use std::sync::Arc;

use tokio::net::TcpStream;

use super::Permits;
use super::record::OpenRecord;
use super::welcome::Welcomed;
use crate::cancel::Registration;
use crate::client::stream::ClientStream;
use crate::limits::Permit;
use crate::splice::{IdleTracker, Leg, Observer, Outcome, PlainStream, end, splice};
use crate::target::{Reuse, Target, UpstreamSession};
use crate::tls::stream::TlsStream;
use crate::wire::settings::Settings;

/// A session whose login is done. All that is left is to pass on bytes.
pub struct Established {
    client: ClientStream,
    upstream: Upstream,
    record: OpenRecord,
    registration: Option<Registration<Arc<Target>>>,
    permits: Permits,
    target_permit: Permit,
}

/// The server's side, by what happens to it when the client leaves.
enum Upstream {
    /// It ends with its client.
    Single(TlsStream<TcpStream>),
    /// It goes back to the pool. It is boxed because few sessions do, and because it would account
    /// for most of the size of the others.
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

    /// Passes on bytes until both sides have ended, or until the session is told to end.
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
    let mut observer = IdleTracker::new(Settings::at_login(&session.server.settings));
    let outcome = splice_client(client, session.stream_mut(), &mut observer, &record).await;
    record.log_ended(&outcome);
    // The client's cancel key becomes invalid before any other client can get the session.
    let is_quiet = registration.is_none_or(Registration::retire);
    if !outcome.upstream_left_open {
        return;
    }
    match observer.into_settings() {
        Ok(settings) if is_quiet => reuse.give_back(session.with_client_settings(settings), permit),
        Ok(_) => reuse.end(session, "a cancel request was under way").await,
        Err(reason) => reuse.end(session, reason).await,
    }
}

async fn splice_client(
    client: ClientStream,
    upstream: &mut TlsStream<TcpStream>,
    observer: &mut impl Observer,
    record: &OpenRecord,
) -> Outcome {
    match client {
        ClientStream::Plain(tcp) => {
            run(&mut PlainStream::new(tcp), upstream, observer, record).await
        }
        ClientStream::Tls(mut tls) => run(&mut *tls, upstream, observer, record).await,
        ClientStream::Unix(unix) => {
            run(&mut PlainStream::new(unix), upstream, observer, record).await
        }
    }
}

async fn run<C: Leg, U: Leg>(
    client: &mut C,
    upstream: &mut U,
    observer: &mut impl Observer,
    record: &OpenRecord,
) -> Outcome {
    let traffic = record.traffic();
    let outcome = {
        let splice = pin!(splice(client, upstream, observer, traffic));
        record.run_until_ended(splice).await
    };
    match outcome {
        Some(outcome) => outcome,
        // Boxed, because every session would have room for what few of them ever do.
        None => Box::pin(end(client, upstream, traffic)).await,
    }
}
