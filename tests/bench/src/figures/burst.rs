//! How fast do eight clients come again at once, where sessions are kept for them?

use crate::load::Job;
use crate::peers::{Mode, Peer, Subject};
use crate::run::Run;

/// Fewer than the sessions that the proxy keeps by default.
const CLIENTS: usize = 8;

/// The peers, by what they do with sessions.
pub struct Kinds([(&'static str, Vec<(Subject, Peer)>); 2]);

pub fn start(run: &mut Run) -> Kinds {
    Kinds([
        ("reused", run.start_all(Mode::Reused, Subject::is_ours)),
        (
            "pooled",
            run.start_all(Mode::Default, |subject| *subject == Subject::Pgbouncer),
        ),
    ])
}

pub fn measure(run: &mut Run, round: usize, kinds: &Kinds) {
    let milliseconds = run.options.milliseconds;
    for (kind, peers) in &kinds.0 {
        run.interleaved(
            &format!("{CLIENTS} clients leave and come again, {kind}"),
            round,
            peers,
            |results, load, subject, peer, leg| {
                let job = |milliseconds| Job::Logins {
                    server: peer.server(leg),
                    clients: CLIENTS,
                    milliseconds,
                    pause_milliseconds: 0,
                };
                // The first ones find nothing that was kept.
                load.perform(&job(50))?;
                let done = load.perform(&job(milliseconds))?;
                let mut add = |figure: &str, value| {
                    let figure = format!("burst_{kind}_{figure}");
                    results.add(&figure, leg, subject.name(), round, value);
                };
                add("per_s", done.count / done.seconds);
                add("p99_ms", done.p99_us / 1e3);
                Ok(())
            },
        );
    }
}
