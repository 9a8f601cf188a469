//! How do programs that are not Rust tests use the stand-ins? They run `testbed serve`.

use std::process::ExitCode;

use anyhow::{Result, bail};
use serde_json::json;
use testbed::{Aws, Challenge, Front, FrontOptions, Testbed};
use tokio::io::AsyncReadExt;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("testbed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments != ["serve"] {
        bail!(
            "usage: testbed serve\nStarts the stand-ins, prints where they are as a line of JSON, \
             and ends with its stdin or a signal."
        );
    }
    let end = End::listen()?;
    let testbed = Testbed::start()?;
    let aws = testbed.aws();
    let digest = testbed.redshift().front(FrontOptions {
        challenge: Challenge::Digest,
        ..FrontOptions::default()
    })?;
    println!("{}", description(&testbed, &aws, &digest));
    end.wait();
    Ok(())
}

fn description(testbed: &Testbed, aws: &Aws, digest: &Front) -> serde_json::Value {
    let (rds, dsql, redshift) = (testbed.rds(), testbed.dsql(), testbed.redshift());
    json!({
        "ca_file": testbed.ca_file(),
        "other_ca_file": testbed.other_ca_file(),
        "endpoint_url": aws.endpoint_url(),
        "access_key_id": aws.access_key_id(),
        "secret_access_key": aws.secret_access_key(),
        "region": aws.region(),
        "rds": {
            "host": rds.host(),
            "reader_host": rds.reader_host(),
            "port": rds.port(),
            "user": testbed::rds::IAM_USERS[0],
            "database": "postgres",
        },
        "dsql": {
            "host": dsql.host(),
            "port": dsql.port(),
            "user": testbed::dsql::USER,
            "database": "postgres",
        },
        "redshift": {
            "host": redshift.host(),
            "port": redshift.port(),
            "direct_port": redshift.direct_port(),
            "digest_port": digest.port(),
            "cluster_identifier": redshift.cluster_identifier(),
            "workgroup_name": testbed::redshift::WORKGROUP,
            "db_user": "ana",
            "database": "dev",
        },
        "pids": testbed.process_ids(),
    })
}

/// Listens for signals from the start, because a signal at any time has to clean up.
struct End {
    runtime: Runtime,
    interrupt: Signal,
    terminate: Signal,
}

impl End {
    fn listen() -> Result<End> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let signals = runtime.block_on(async {
            std::io::Result::Ok((
                signal(SignalKind::interrupt())?,
                signal(SignalKind::terminate())?,
            ))
        });
        let (interrupt, terminate) = signals?;
        Ok(End {
            runtime,
            interrupt,
            terminate,
        })
    }

    fn wait(mut self) {
        self.runtime.block_on(async {
            let mut stdin = tokio::io::stdin();
            let closed =
                async { while stdin.read(&mut [0; 512]).await.is_ok_and(|count| count > 0) {} };
            tokio::select! {
                () = closed => {}
                _ = self.interrupt.recv() => {}
                _ = self.terminate.recv() => {}
            }
        });
        // The thread that reads stdin may still be doing so after a signal, and the ordinary drop
        // would wait for it.
        self.runtime.shutdown_background();
    }
}
