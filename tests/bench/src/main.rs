//! What does `make bench` do? It measures the proxy and its peers on the same work in one
//! interleaved run.
//!
//! Backend and load are separate processes of this program, so that their cost is never counted as
//! a proxy's.

mod backend;
mod chart;
mod figures;
mod goals;
mod leg;
mod load;
mod noise;
mod options;
mod part;
mod peers;
mod record;
mod report;
mod results;
mod run;
mod threads;
mod titles;
mod wire;

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use bench::process;
use testbed::Testbed;

use options::Options;
use peers::Mode;
use run::Run;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match arguments[..] {
        [] => bench(),
        ["backend", certificate, key] => backend::run(certificate, key),
        ["load", authority] => load::run(authority),
        _ => Err(anyhow::anyhow!(
            "usage: bench, with variables QUICK, ONLY, ROUNDS, PEERS, LEGS, PROXY, OUTPUT, README \
             in the environment"
        )),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn bench() -> Result<()> {
    let options = Options::from_environment()?;
    let mut run = Run::new(options)?;
    if run.files.sessions < run::MANY && run.options.has("memory") {
        let (fit, asked) = (run.files.sessions, run::MANY);
        run.note(&format!(
            "{asked} idle sessions: {fit} fit under the hard limit of open files, and stand for \
             them; raise it (ulimit -Hn)"
        ));
    }
    let failed = measure(&mut run).err();
    report::write(&run)?;
    failed.map_or(Ok(()), Err)
}

fn measure(run: &mut Run) -> Result<()> {
    let rounds = run.options.rounds;
    // These measurements take longest and differ least from round to round.
    let few = rounds.div_ceil(3);
    let has = |run: &Run, groups: &[&str]| groups.iter().any(|group| run.options.has(group));
    let steady =
        has(run, &["bulk", "together", "trips"]).then(|| run.start_all(Mode::Default, |_| true));
    let logins = has(run, &["logins"]).then(|| figures::logins::start(run));
    let storm = has(run, &["storm"]).then(|| figures::storm::start(run));
    let burst = has(run, &["burst"]).then(|| figures::burst::start(run));
    let pinned = match has(run, &["pinned"]).then(|| figures::pinned::start(run)) {
        Some(Err(error)) => {
            run.note(&format!("{error:#}"));
            None
        }
        pinned => pinned.transpose()?,
    };
    let testbed = if has(run, &["real", "credentials"]) {
        Some(Arc::new(Testbed::start()?))
    } else {
        None
    };
    let real = match &testbed {
        Some(testbed) if has(run, &["real"]) => Some(figures::real::Real::start(run, testbed)?),
        _ => None,
    };
    for round in 0..rounds {
        if let Some(peers) = &steady {
            if run.options.has("bulk") {
                figures::bulk::one_session(run, round, peers);
            }
            if run.options.has("together") && (round < few || !run.options.quick) {
                figures::bulk::two_sessions(run, round, peers);
            }
            if run.options.has("trips") {
                figures::trips::measure(run, round, peers);
            }
        }
        if let Some(logins) = &logins {
            figures::logins::measure(run, round, logins);
        }
        if let Some(peers) = storm.as_ref().filter(|_| round < few) {
            figures::storm::measure(run, round, peers);
        }
        if let Some(kinds) = &burst {
            figures::burst::measure(run, round, kinds);
        }
        if let Some(pinned) = &pinned {
            figures::pinned::measure(run, round, pinned)?;
        }
        if let Some(real) = real.as_ref().filter(|_| round < few) {
            real.measure(run, round);
        }
    }
    drop((steady, logins, storm, burst, pinned, real));
    if run.options.has("memory") {
        for round in 0..few.min(3) {
            figures::memory::measure(run, round);
        }
    }
    match &testbed {
        Some(testbed) if run.options.has("credentials") => {
            figures::credentials::measure(run, testbed)
        }
        _ => Ok(()),
    }
}
