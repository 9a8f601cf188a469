//! How many logins are there in a second, for how much CPU, and how long does one take when there
//! is no crowd?
//!
//! A login lasts until its first query is answered, because a pooler may welcome a client before it
//! has a server for it.

use anyhow::Result;

use std::time::Duration;

use crate::load::Job;
use crate::part::Part;
use crate::peers::{LegKind, Mode, Peer, Subject};
use crate::process::pause;
use crate::results::Results;
use crate::run::{Run, costed};

const CLIENTS: usize = 16;
/// The pause between the logins whose duration is measured.
const PAUSE_MILLISECONDS: u64 = 5;

/// The peers, by what they keep between logins.
pub struct Kinds(Vec<(&'static str, Vec<(Subject, Peer)>)>);

pub fn start(run: &mut Run) -> Kinds {
    let mut kinds = vec![(
        "fresh",
        run.start_all(Mode::Default, |subject| {
            !matches!(subject, Subject::Pgbouncer | Subject::Direct)
        }),
    )];
    kinds[0]
        .1
        .extend(run.start_all(Mode::Fresh, |subject| *subject == Subject::Pgbouncer));
    kinds.push((
        "pooled",
        run.start_all(Mode::Default, |subject| *subject == Subject::Pgbouncer),
    ));
    kinds.push(("warm", run.start_all(Mode::Warm, Subject::is_ours)));
    kinds.push(("reused", run.start_all(Mode::Reused, Subject::is_ours)));
    Kinds(kinds)
}

pub fn measure(run: &mut Run, round: usize, kinds: &Kinds) {
    let milliseconds = run.options.milliseconds;
    for (kind, peers) in &kinds.0 {
        run.interleaved(
            &format!("logins, {kind}"),
            round,
            peers,
            |results, load, subject, peer, leg| {
                one(
                    results,
                    load,
                    (subject, peer, leg),
                    (kind, round, milliseconds),
                )
            },
        );
    }
}

fn one(
    results: &mut Results,
    load: &mut Part,
    (subject, peer, leg): (&Subject, &Peer, LegKind),
    (kind, round, milliseconds): (&str, usize, u64),
) -> Result<()> {
    let job = |clients, milliseconds, pause_milliseconds| Job::Logins {
        server: peer.server(leg),
        clients,
        milliseconds,
        pause_milliseconds,
    };
    load.perform(&job(1, 50, 0))?;
    // The proxy fills its pool up again in the meantime.
    pause(Duration::from_millis(200));
    let calm = load.perform(&job(1, milliseconds, PAUSE_MILLISECONDS))?;
    let cost = costed(load, peer, &job(CLIENTS, milliseconds, 0))?;
    let mut add = |figure: &str, value| results.add(figure, leg, subject.name(), round, value);
    add(&format!("login_{kind}_p50_ms"), calm.p50_us / 1e3);
    add(&format!("login_{kind}_p99_ms"), calm.p99_us / 1e3);
    add(
        &format!("logins_{kind}_per_s"),
        cost.done.count / cost.done.seconds,
    );
    add(
        &format!("logins_{kind}_cpu_ms"),
        cost.cpu / cost.done.count * 1e3,
    );
    Ok(())
}
