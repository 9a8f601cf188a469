//! How long does a round trip take when the proxy has one processor to itself, and server and load
//! have another? Without the scheduler's moves between processors, this is the proxy's own tail.

use anyhow::{Context, Result};

use crate::load::Job;
use crate::peers::{Mode, Peer, Subject};
use crate::process::{pin, processors};
use crate::run::Run;

const CLIENTS: usize = 16;

pub struct Pinned {
    peers: Vec<(Subject, Peer)>,
    /// The processor of server and load.
    other: usize,
}

/// Starts the peers on one processor, so that those that count processors find one.
pub fn start(run: &mut Run) -> Result<Pinned> {
    let processors = processors()?;
    let [own, .., other] = processors[..] else {
        anyhow::bail!("pinned round trips take two processors");
    };
    // Whoever is started inherits the processors of this process.
    pin(std::process::id(), &[own])?;
    let peers = run.start_all(Mode::Default, |subject| *subject != Subject::Direct);
    pin(std::process::id(), &processors)?;
    Ok(Pinned { peers, other })
}

pub fn measure(run: &mut Run, round: usize, pinned: &Pinned) -> Result<()> {
    let processors = processors()?;
    let parts = [std::process::id(), run.backend()];
    for part in parts {
        pin(part, &[pinned.other]).context("pinned round trips")?;
    }
    round_trips(run, round, &pinned.peers);
    for part in parts {
        pin(part, &processors).context("pinned round trips")?;
    }
    Ok(())
}

fn round_trips(run: &mut Run, round: usize, peers: &[(Subject, Peer)]) {
    let milliseconds = run.options.milliseconds;
    run.interleaved(
        &format!("pinned round trips of {CLIENTS}"),
        round,
        peers,
        |results, load, subject, peer, leg| {
            load.perform(&Job::Open {
                server: peer.server(leg),
                sessions: CLIENTS,
                clients: CLIENTS,
            })?;
            let trips = |milliseconds| Job::Trips {
                sessions: CLIENTS,
                milliseconds,
            };
            load.perform(&trips(50))?;
            let done = load.perform(&trips(milliseconds))?;
            let mut add = |figure: &str, value| {
                let figure = format!("pinned_{figure}");
                results.add(&figure, leg, subject.name(), round, value);
            };
            add("per_s", done.count / done.seconds);
            add("p50_us", done.p50_us);
            add("p99_us", done.p99_us);
            Ok(())
        },
    );
}
