//! Which phases make up a login, by the proxy's own log, and how often is AWS asked when everybody
//! logs in at once?

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use testbed::{Aws, Testbed};

use crate::goals::OURS;
use crate::load::Job;
use crate::peers::{LegKind, Peer, Subject, start_with_target};
use crate::run::Run;

const PHASES: [&str; 4] = ["startup", "credentials", "connect", "login"];
const TOGETHER: usize = 1000;
const OPERATION: &str = "GetClusterCredentials";

/// # Errors
/// When not every login succeeded, or when AWS was asked more than once.
pub fn measure(run: &mut Run, testbed: &Arc<Testbed>) -> Result<()> {
    let Some(Subject::Ours { binary, .. }) = run
        .options
        .subjects
        .iter()
        .find(|subject| subject.name() == OURS)
        .cloned()
    else {
        return Ok(());
    };
    phases(run, testbed, &binary)?;
    first_logins(run, testbed, &binary)
}

/// Measures how long each phase of a login takes when there is no crowd.
fn phases(run: &mut Run, testbed: &Testbed, binary: &Path) -> Result<()> {
    run.progress("phases of a login");
    let aws = testbed.aws();
    let redshift = testbed.redshift();
    let server = (redshift.host(), redshift.port());
    let (peer, log) = start(run, testbed, binary, &aws, server)?;
    let milliseconds = if run.options.quick { 1000 } else { 5000 };
    let mut load = run.load()?;
    load.perform(&Job::Logins {
        server: peer.server(LegKind::Plain),
        clients: 1,
        milliseconds,
        pause_milliseconds: 0,
    })?;
    drop(peer);
    // The first login waits for AWS, unlike the others.
    let opened = lines(&log, "session opened")?.split_off(1);
    for phase in PHASES {
        let mut times: Vec<f64> = opened
            .iter()
            .filter_map(|line| line.get(format!("{phase}_ms"))?.as_f64())
            .collect();
        times.sort_by(f64::total_cmp);
        for share in [50, 99] {
            let time = times
                .get(times.len() * share / 100)
                .copied()
                .context("no times in the log")?;
            let figure = format!("phase_{phase}_p{share}_ms");
            run.results.add(&figure, LegKind::Plain, OURS, 0, time);
        }
    }
    Ok(())
}

/// Counts the calls to AWS when a thousand clients log in before there is a credential.
fn first_logins(run: &mut Run, testbed: &Testbed, binary: &Path) -> Result<()> {
    run.progress(&format!("{TOGETHER} first logins at once"));
    let aws = testbed.aws();
    let server = ("127.0.0.1", run.next_port());
    let (peer, log) = start(run, testbed, binary, &aws, server)?;
    let done = run.load()?.perform(&Job::Rush {
        server: peer.server(LegKind::Plain),
        sessions: TOGETHER,
    })?;
    drop(peer);
    let waits = lines(&log, "session opened")?
        .iter()
        .filter_map(|line| line.get("credentials_ms")?.as_f64())
        .fold(0.0, f64::max);
    let calls = aws.calls(OPERATION);
    for (figure, value) in [
        ("first_logins", done.count),
        ("first_logins_aws_calls", calls as f64),
        ("first_logins_longest_wait_ms", waits),
    ] {
        run.results.add(figure, LegKind::Plain, OURS, 0, value);
    }
    ensure!(
        done.count as usize == TOGETHER,
        "{} of {TOGETHER} first logins got in",
        done.count
    );
    ensure!(
        calls == 1,
        "{TOGETHER} first logins called {OPERATION} {calls} times"
    );
    Ok(())
}

/// Starts a proxy that gets credentials for a Redshift cluster and uses them at `server`. Returns
/// it with the path of its log.
fn start(
    run: &Run,
    testbed: &Testbed,
    binary: &Path,
    aws: &Aws,
    (host, port): (&str, u16),
) -> Result<(Peer, PathBuf)> {
    let authorities = run.files.dir.join("both.pem");
    fs::write(
        &authorities,
        [
            fs::read(testbed.ca_file())?,
            fs::read(&run.files.authority)?,
        ]
        .concat(),
    )?;
    let target = format!(
        "engine = \"redshift\"\ncluster_identifier = \"{}\"\nhost = \"{host}\"\nport = {port}\n\
         region = \"{}\"\nca_file = \"{}\"\nendpoint_url = \"{}\"\ndb_user = \"ana\"\n\
         database = \"dev\"\n",
        testbed.redshift().cluster_identifier(),
        aws.region(),
        authorities.display(),
        aws.endpoint_url(),
    );
    let dir = tempfile::Builder::new()
        .prefix("credentials")
        .tempdir_in(&run.files.dir)?
        .keep();
    let peer = start_with_target(binary, &dir, &run.files, &target, &aws.env())?;
    Ok((peer, dir.join("log")))
}

fn lines(log: &Path, message: &str) -> Result<Vec<Value>> {
    let text = fs::read_to_string(log)?;
    let lines = text
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let lines: Vec<Value> = lines
        .filter(|line| line.get("message").and_then(Value::as_str) == Some(message))
        .collect();
    ensure!(!lines.is_empty(), "no line {message:?} in the proxy's log");
    Ok(lines)
}
