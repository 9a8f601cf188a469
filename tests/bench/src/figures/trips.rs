//! What does a round trip cost, and how long does it take, with 1, 16 and 64 clients?

use crate::load::Job;
use crate::peers::{Peer, Subject};
use crate::run::{Run, costed};

pub const CLIENTS: [usize; 3] = [1, 16, 64];

pub fn measure(run: &mut Run, round: usize, peers: &[(Subject, Peer)]) {
    let milliseconds = run.options.milliseconds;
    for clients in CLIENTS {
        run.interleaved(
            &format!("round trips of {clients}"),
            round,
            peers,
            |results, load, subject, peer, leg| {
                load.perform(&Job::Open {
                    server: peer.server(leg),
                    sessions: clients,
                    clients,
                })?;
                load.perform(&Job::Trips {
                    sessions: clients,
                    milliseconds: 50,
                })?;
                let cost = costed(
                    load,
                    peer,
                    &Job::Trips {
                        sessions: clients,
                        milliseconds,
                    },
                )?;
                let mut add = |figure: &str, value| {
                    results.add(
                        &format!("trips_{clients}_{figure}"),
                        leg,
                        subject.name(),
                        round,
                        value,
                    );
                };
                add("per_s", cost.done.count / cost.done.seconds);
                add("p50_us", cost.done.p50_us);
                add("p99_us", cost.done.p99_us);
                if *subject != Subject::Direct {
                    add("cpu_us", cost.cpu / cost.done.count * 1e6);
                }
                Ok(())
            },
        );
    }
}
