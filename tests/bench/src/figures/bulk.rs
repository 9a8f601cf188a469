//! How many megabytes a second, for how much CPU, and do two sessions use two processors?

use anyhow::Result;

use crate::backend::PIECE;
use crate::load::Job;
use crate::noise::Busy;
use crate::part::Part;
use crate::peers::{LegKind, Peer, Subject};
use crate::results::Results;
use crate::run::{Cost, Run, costed};

/// 64 MiB are little enough that a measurement lasts as long as it should, rather than as long as a
/// statement.
const PIECES: usize = 64 * 1024 * 1024 / PIECE;

pub fn one_session(run: &mut Run, round: usize, peers: &[(Subject, Peer)]) {
    let milliseconds = run.options.milliseconds;
    run.interleaved("bulk", round, peers, |results, load, subject, peer, leg| {
        load.perform(&Job::Open {
            server: peer.server(leg),
            sessions: 1,
            clients: 1,
        })?;
        // The first statement would find cold caches and a small congestion window.
        for direction in ["down", "up"] {
            moved(load, peer, direction, 1, 0)?;
            let cost = moved(load, peer, direction, 1, milliseconds)?;
            let mut add = |figure: &str, value| {
                results.add(
                    &format!("bulk_{direction}_{figure}"),
                    leg,
                    subject.name(),
                    round,
                    value,
                );
            };
            add("mb_s", cost.done.count / cost.done.seconds / 1e6);
            if *subject != Subject::Direct {
                add("cpu_s_per_gb", cost.cpu / cost.done.count * 1e9);
            }
        }
        Ok(())
    });
}

/// Compares two busy sessions with one of them.
pub fn two_sessions(run: &mut Run, round: usize, peers: &[(Subject, Peer)]) {
    let (milliseconds, quick) = (run.options.milliseconds, run.options.quick);
    run.interleaved(
        "two sessions together",
        round,
        peers,
        |results, load, subject, peer, leg| {
            load.perform(&Job::Open {
                server: peer.server(leg),
                sessions: 2,
                clients: 2,
            })?;
            for direction in if quick {
                &["down"][..]
            } else {
                &["down", "up"]
            } {
                moved(load, peer, direction, 2, 0)?;
                together(
                    results,
                    load,
                    (subject, peer, leg),
                    round,
                    (direction, milliseconds),
                )?;
            }
            Ok(())
        },
    );
}

fn together(
    results: &mut Results,
    load: &mut Part,
    (subject, peer, leg): (&Subject, &Peer, LegKind),
    round: usize,
    (direction, milliseconds): (&str, u64),
) -> Result<()> {
    let speed = |cost: Cost| cost.done.count / cost.done.seconds / 1e6;
    let one = speed(moved(load, peer, direction, 1, milliseconds)?);
    let busy = Busy::start();
    let two = speed(moved(load, peer, direction, 2, milliseconds)?);
    results.add(
        &format!("together_{direction}_busy"),
        leg,
        subject.name(),
        round,
        busy.share(),
    );
    results.add(
        &format!("together_{direction}_mb_s"),
        leg,
        subject.name(),
        round,
        two,
    );
    results.add(
        &format!("together_{direction}_gain"),
        leg,
        subject.name(),
        round,
        two / one,
    );
    Ok(())
}

fn moved(
    load: &mut Part,
    peer: &Peer,
    direction: &str,
    sessions: usize,
    milliseconds: u64,
) -> Result<Cost> {
    let statement = format!("{direction} {PIECES}");
    let job = match direction {
        "down" => Job::Down {
            statement,
            sessions,
            milliseconds,
        },
        _ => Job::Up {
            statement,
            pieces: PIECES,
            sessions,
            milliseconds,
        },
    };
    costed(load, peer, &job)
}
