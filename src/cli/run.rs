//! `pg-iam-proxy run`: serves clients until it is told to stop.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};

use super::connection_lines::connection_lines;
use super::output::{bad_configuration, failed, print_lines};
use crate::config::{self, Config, LogFormat, LogLevel};
use crate::runtime::Lifecycle;
use crate::server::Server;
use crate::server::workers::Workers;
use crate::telemetry;

#[derive(Args)]
pub(super) struct Run {
    /// Configuration file (TOML)
    #[arg(
        long,
        value_name = "FILE",
        env = "PG_IAM_PROXY_CONFIG",
        required_unless_present = "target_urls"
    )]
    config: Option<PathBuf>,
    /// Target URLs, each with a listener of its own: `redshift://user@cluster.region/database`,
    /// `redshift-serverless://workgroup.region/database`, `rds://user@host:port/database`,
    /// `dsql://user@host/postgres`, or the `jdbc:redshift:iam://` URL of a JDBC tool. Parameters
    /// are the keys of a target in the file, besides listen= and name=
    #[arg(value_name = "TARGET-URL")]
    target_urls: Vec<String>,
    /// How log lines are written, on standard error
    #[arg(long, value_enum, env = "PG_IAM_PROXY_LOG_FORMAT")]
    log_format: Option<LogFormat>,
    /// Least severe level that is logged
    #[arg(long, value_enum, env = "PG_IAM_PROXY_LOG_LEVEL")]
    log_level: Option<LogLevel>,
    /// Address of /metrics, /livez and /readyz, over HTTP
    #[arg(long, value_name = "ADDRESS", env = "PG_IAM_PROXY_ADMIN")]
    admin: Option<SocketAddr>,
}

/// Reads the configuration and serves it.
pub(super) fn run(arguments: &Run) -> ExitCode {
    let config = match config::load(arguments.config.as_deref(), &arguments.target_urls) {
        Ok(config) => config,
        Err(error) => return bad_configuration(&error),
    };
    // A session takes two file descriptors, and the usual soft limit is 1024. What cannot be had is
    // met when it runs out.
    let _ = rlimit::increase_nofile_limit(u64::MAX);
    let log = telemetry::start(
        arguments
            .log_format
            .or(config.log.format)
            .unwrap_or(LogFormat::Text),
        arguments
            .log_level
            .or(config.log.level)
            .unwrap_or(LogLevel::Info),
    );
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let served = serve(Config {
        admin: arguments.admin.or(config.admin),
        ..config
    });
    drop(log);
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&format!("{error:#}")),
    }
}

fn serve(config: Config) -> anyhow::Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(serve_until_stopped(config));
    // Dropping the runtime would wait for name resolution and for files that are being read, which
    // may hang. Nobody needs their results any more.
    runtime.shutdown_background();
    result
}

async fn serve_until_stopped(config: Config) -> anyhow::Result<()> {
    let workers = Workers::start().context("cannot start a thread for each processor")?;
    let lifecycle = Lifecycle::default();
    let server = Server::bind(config, lifecycle.clone()).await?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    // Whoever reads these may send a signal the next moment: the handlers are there.
    if let Some(address) = server.admin_address() {
        print_lines(&[format!("metrics and health\n  http://{address}/metrics")]);
    }
    for (address, listener) in server.addresses() {
        print_lines(&connection_lines(&address, listener));
    }
    let signals = async {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {
                    lifecycle.reload.notify_one();
                    continue;
                }
            }
            if lifecycle.stop.is_cancelled() {
                lifecycle.now.cancel();
            }
            lifecycle.stop.cancel();
        }
    };
    tokio::select! {
        () = server.run(workers) => Ok(()),
        () = signals => Ok(()),
    }
}
