//! What does `make soak` do? It uses one proxy in every way at once, before real servers that are
//! stopped and an AWS that fails, and then looks for whatever was lost, leaked or not explained.
//!
//! SOAK_SECONDS says for how long (1800), and PROXY which binary is soaked.

mod activities;
mod client;
mod faults;
mod proxy;
mod tally;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use testbed::Testbed;

use activities::Scene;
use faults::Faults;
use proxy::{Proxy, Rest};
use tally::Tally;

const SECONDS: u64 = 1800;
/// The bytes that are copied each way in [`SECONDS`].
const BYTES: u64 = 10_000_000_000;
/// Passwords, and the sessions of the role that signs tokens, are good for a minute.
const CREDENTIAL_LIFE: Duration = Duration::from_mins(1);
const ACTIVITIES: [&str; 6] = [
    "logins",
    "queries",
    "COPY down",
    "COPY up",
    "cancels",
    "key updates",
];
/// What the proxy may hold more at rest than after the warm-up. Memory is not given back page by
/// page, and connections to AWS stay open for a while.
const MORE_KIB: f64 = 8192.0;
const MORE_FILES: f64 = 8.0;
/// Threads that resolve names end ten seconds after their last one, and a name is asked for every
/// five while there is a pool.
const MORE_THREADS: f64 = 4.0;

fn main() -> ExitCode {
    match soak() {
        Ok(failures) if failures.is_empty() => {
            println!("\nThe soak passed.");
            ExitCode::SUCCESS
        }
        Ok(failures) => {
            println!("\nThe soak failed:");
            for failure in failures {
                println!("  {failure}");
            }
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("soak: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn soak() -> Result<Vec<String>> {
    let seconds = match std::env::var("SOAK_SECONDS") {
        Ok(text) if !text.is_empty() => text.parse().context("SOAK_SECONDS")?,
        _ => SECONDS,
    };
    let beside = std::env::current_exe()?.with_file_name("pg-iam-proxy");
    let binary = std::env::var_os("PROXY").map_or(beside, PathBuf::from);
    let bed = Testbed::start()?;
    let aws = bed.aws();
    aws.set_credential_life(CREDENTIAL_LIFE);
    aws.set_role_life(CREDENTIAL_LIFE);
    let mut proxy = Proxy::start(&binary, &bed, &aws)?;

    let (warm_up, tally) = ((seconds / 10).clamp(10, 60), Tally::default());
    println!("Warming up for {warm_up} s, without faults.");
    let faults = Faults::default();
    activities::run(&scene(&proxy, &faults, &tally, warm_up));
    let mut failures = tally.failures(&ACTIVITIES);
    let before = proxy.at_rest()?;

    println!("Soaking for {seconds} s.");
    let tally = Tally::default();
    let scene = scene(&proxy, &faults, &tally, seconds);
    let injected = std::thread::scope(|scope| {
        let injected = scope.spawn(|| faults.inject(&bed, &aws, scene.end));
        activities::run(&scene);
        injected.join().expect("no panic")
    })?;
    failures.extend(tally.failures(&ACTIVITIES));

    println!();
    tally.print();
    println!(
        "\n{injected} faults, {} logins with a session of the pool, {} passwords and {} role \
         sessions from AWS",
        proxy.ready_sessions(),
        aws.calls("GetClusterCredentials"),
        aws.calls("AssumeRole"),
    );
    match proxy.at_rest() {
        Ok(after) => failures.extend(compare(before, after)),
        Err(error) => failures.push(format!("{error:#}")),
    }
    if proxy.ready_sessions() == 0 {
        failures.push("no login got a session of the pool".into());
    }
    failures.extend(proxy.errors().into_iter().take(5));
    match proxy.stop() {
        Ok(time) => println!("stopped in {:.2} s", time.as_secs_f64()),
        Err(error) => failures.push(format!("{error:#}: {}", proxy.last_words())),
    }
    Ok(failures)
}

fn scene<'a>(proxy: &'a Proxy, faults: &'a Faults, tally: &'a Tally, seconds: u64) -> Scene<'a> {
    Scene {
        doors: &proxy.doors,
        faults,
        tally,
        end: Instant::now() + Duration::from_secs(seconds),
        bytes: BYTES / SECONDS * seconds,
    }
}

/// Shows what the proxy held at rest before and after, and returns what is too much.
fn compare(before: Rest, after: Rest) -> Vec<String> {
    println!(
        "\n{:<22} {:>8} {:>8} {:>10}",
        "at rest", "before", "after", "at most"
    );
    let mut failures = Vec::new();
    for (what, before, after, more) in [
        (
            "memory, KiB",
            before.anonymous_kib,
            after.anonymous_kib,
            MORE_KIB,
        ),
        ("open files", before.files, after.files, MORE_FILES),
        ("threads", before.threads, after.threads, MORE_THREADS),
    ] {
        let most = before + more;
        println!("{what:<22} {before:>8} {after:>8} {most:>10}");
        if after > most {
            failures.push(format!("{what} at rest: {after}, and {before} before"));
        }
    }
    failures
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_above_its_bound_at_rest_is_a_leak() {
        let rest = |anonymous_kib, files, threads| Rest {
            anonymous_kib,
            files,
            threads,
        };
        let before = rest(7000.0, 20.0, 5.0);
        let leaks = |after| compare(before, after).len();
        let most = rest(7000.0 + MORE_KIB, 20.0 + MORE_FILES, 5.0 + MORE_THREADS);
        assert_eq!(leaks(most), 0);
        assert_eq!(leaks(rest(7001.0 + MORE_KIB, 20.0, 5.0)), 1);
        assert_eq!(leaks(rest(7000.0, 21.0 + MORE_FILES, 5.0)), 1);
        assert_eq!(leaks(rest(7000.0, 20.0, 6.0 + MORE_THREADS)), 1);
    }
}
