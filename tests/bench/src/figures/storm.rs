//! How long does a login take when a thousand clients come at once?
//!
//! The time is that from the client's connect to the answer to its first query, as for all logins.

use crate::load::Job;
use crate::peers::{Mode, Peer, Subject};
use crate::run::Run;

const CLIENTS: usize = 1000;

/// Nobody keeps sessions, so every login reaches the server.
pub fn start(run: &mut Run) -> Vec<(Subject, Peer)> {
    let mut peers = run.start_all(Mode::Default, |subject| {
        !matches!(subject, Subject::Pgbouncer | Subject::Direct)
    });
    peers.extend(run.start_all(Mode::Fresh, |subject| *subject == Subject::Pgbouncer));
    peers
}

pub fn measure(run: &mut Run, round: usize, peers: &[(Subject, Peer)]) {
    run.interleaved(
        &format!("{CLIENTS} logins at once"),
        round,
        peers,
        |results, load, subject, peer, leg| {
            let rush = |sessions| Job::Rush {
                server: peer.server(leg),
                sessions,
            };
            load.perform(&rush(1))?;
            let done = load.perform(&rush(CLIENTS))?;
            let mut add = |figure: &str, value| {
                let figure = format!("storm_{figure}");
                results.add(&figure, leg, subject.name(), round, value);
            };
            add("p50_ms", done.p50_us / 1e3);
            add("p99_ms", done.p99_us / 1e3);
            Ok(())
        },
    );
}
