//! `make bench`: the proxy and its peers, measured on the same work in one interleaved run.
//!
//! Backend and load are processes of their own (this program again), so that what they cost is never a proxy's.

mod backend;
mod figures;
mod goals;
mod leg;
mod load;
mod noise;
mod options;
mod peers;
mod process;
mod record;
mod report;
mod results;
mod run;
mod threads;
mod wire;

use std::process::ExitCode;

use anyhow::{Result, bail};

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
        _ => Err(anyhow::anyhow!("usage: bench, with variables QUICK, ONLY, ROUNDS, PEERS, LEGS, PROXY, OUTPUT in the environment")),
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
            "{asked} idle sessions: {fit} fit under the hard limit of open files, and stand for them; raise it (ulimit -Hn)"
        ));
    }
    let peers = run.start_all(Mode::Default, |_| true);
    if peers.is_empty() {
        bail!("nobody to measure");
    }
    for round in 0..run.options.rounds {
        if run.options.has("bulk") {
            figures::bulk::one_session(&mut run, round, &peers);
        }
        if run.options.has("together") {
            figures::bulk::two_sessions(&mut run, round, &peers);
        }
        if run.options.has("trips") {
            figures::trips::measure(&mut run, round, &peers);
        }
    }
    drop(peers);
    if run.options.has("memory") {
        for round in 0..run.options.rounds.div_ceil(3) {
            figures::memory::measure(&mut run, round);
        }
    }
    report::write(&run)
}
