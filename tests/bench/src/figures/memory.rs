//! How much memory does an idle session hold, before and after traffic, and do many idle sessions
//! slow busy ones down?

use anyhow::Result;

use std::time::{Duration, Instant};

use crate::load::Job;
use crate::part::Part;
use crate::peers::{LegKind, Mode, Peer, Subject};
use crate::process::{Resident, cpu_seconds, pause, resident};
use crate::results::Results;
use crate::run::{MANY, Run, costed};

/// How many logins run at a time while sessions are opened.
const OPENERS: usize = 16;
/// The pieces that the burst moves in each direction on every session.
const BURST_PIECES: usize = 1;
const BUSY: usize = 16;
/// How long threads need to go to sleep, and allocators to return memory.
const REST: Duration = Duration::from_millis(300);
/// The CPU seconds that an idle peer may use within a rest. /proc counts in hundredths.
const IDLE: f64 = 0.02;
const MOST_WAIT: Duration = Duration::from_secs(20);

/// Each leg gets a peer of its own, because memory that was used once is seldom returned.
pub fn measure(run: &mut Run, round: usize) {
    let subjects: Vec<Subject> = run
        .options
        .subjects
        .iter()
        .filter(|subject| **subject != Subject::Direct)
        .cloned()
        .collect();
    for leg in run.options.legs.clone() {
        for subject in subjects
            .iter()
            .filter(|subject| subject.legs().contains(&leg))
        {
            run.progress(&format!(
                "round {}: memory of idle sessions, {}, {}",
                round + 1,
                leg.name(),
                subject.name()
            ));
            run.noise.calibrate();
            // In a quick run, only our own proxy gets ten thousand sessions.
            let many = if run.options.quick && !subject.is_ours() {
                0
            } else {
                run.files.sessions
            };
            if let Err(error) = one(run, round, subject, leg, many) {
                run.note(&format!(
                    "memory, {}, {}: {error:#}",
                    subject.name(),
                    leg.name()
                ));
            }
        }
    }
}

fn one(run: &mut Run, round: usize, subject: &Subject, leg: LegKind, many: usize) -> Result<()> {
    let milliseconds = run.options.milliseconds;
    let peer = run.start(subject, Mode::Default)?;
    let mut load = run.load()?;
    let results = &mut run.results;
    let mut add = |figure: &str, value| {
        results.add(
            &format!("memory_{figure}"),
            leg,
            subject.name(),
            round,
            value,
        );
    };
    let rest = at_rest(&peer);
    add("rest_kib", rest.all_kib);
    add("rest_anonymous_kib", rest.anonymous_kib);
    load.perform(&Job::Open {
        server: peer.server(leg),
        sessions: 1,
        clients: 1,
    })?;
    load.perform(&Job::Close { sessions: 1 })?;
    let first = rss(&peer);
    add("first_login_kib", first);
    let mut opened = 0;
    for sessions in [100, 1000] {
        load.perform(&Job::Open {
            server: peer.server(leg),
            sessions: sessions - opened,
            clients: OPENERS,
        })?;
        opened = sessions;
        add(
            &format!("{sessions}_kib"),
            (rss(&peer) - first) / sessions as f64,
        );
    }
    load.perform(&Job::Burst {
        pieces: BURST_PIECES,
        clients: 2 * OPENERS,
    })?;
    add("1000_burst_kib", (rss(&peer) - first) / 1000.0);
    drop(load);
    drop(peer);
    if many == 0 {
        return Ok(());
    }
    let peer = run.start(subject, Mode::Default)?;
    let mut load = run.load()?;
    beside(
        &mut run.results,
        &mut load,
        &peer,
        (subject, leg),
        (round, many, milliseconds),
    )
}

fn beside(
    results: &mut Results,
    load: &mut Part,
    peer: &Peer,
    (subject, leg): (&Subject, LegKind),
    (round, many, milliseconds): (usize, usize, u64),
) -> Result<()> {
    load.perform(&Job::Open {
        server: peer.server(leg),
        sessions: BUSY,
        clients: BUSY,
    })?;
    let busy = |load: &mut Part| -> Result<f64> {
        load.perform(&Job::Trips {
            sessions: BUSY,
            milliseconds: 100,
        })?;
        let cost = costed(
            load,
            peer,
            &Job::Trips {
                sessions: BUSY,
                milliseconds: milliseconds.max(1000),
            },
        )?;
        Ok(cost.cpu / cost.done.count * 1e6)
    };
    let before = busy(load)?;
    let first = rss(peer);
    let mut add = |figure: &str, value| results.add(figure, leg, subject.name(), round, value);
    let mut opened = 0;
    let mut among = before;
    for (name, sessions) in [(100, 100), (1000, 1000), (MANY, many)] {
        load.perform(&Job::Open {
            server: peer.server(leg),
            sessions: sessions - opened,
            clients: OPENERS,
        })?;
        opened = sessions;
        if name == MANY {
            add(
                &format!("memory_{name}_kib"),
                (rss(peer) - first) / sessions as f64,
            );
        }
        among = busy(load)?;
        add(&format!("beside_{name}_cpu_us"), among);
    }
    load.perform(&Job::Burst {
        pieces: BURST_PIECES,
        clients: 2 * OPENERS,
    })?;
    add(
        &format!("memory_{MANY}_burst_kib"),
        (rss(peer) - first) / many as f64,
    );
    load.perform(&Job::Close { sessions: many })?;
    wait_until_idle(peer);
    let after = busy(load)?;
    add("beside_0_cpu_us", f64::midpoint(before, after));
    add("beside_growth", among / f64::midpoint(before, after));
    Ok(())
}

/// Some peers are busy for seconds when ten thousand sessions end at once.
fn wait_until_idle(peer: &Peer) {
    let cpu = || peer.id().map_or(0.0, cpu_seconds);
    let deadline = Instant::now() + MOST_WAIT;
    let mut before = cpu();
    while Instant::now() < deadline {
        pause(REST);
        let now = cpu();
        if now - before < IDLE {
            return;
        }
        before = now;
    }
}

fn rss(peer: &Peer) -> f64 {
    at_rest(peer).all_kib
}

fn at_rest(peer: &Peer) -> Resident {
    pause(REST);
    peer.id().map_or_else(Resident::default, resident)
}
