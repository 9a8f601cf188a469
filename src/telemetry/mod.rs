//! Where do log lines go? To standard error, as text or as JSON, from a thread of their own.

mod writer;

use std::io::IsTerminal;
use std::time::Duration;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{LogFormat, LogLevel};
use writer::Writer;

pub use writer::lost_lines;

/// How long the end of the process may wait for the lines that are still to be written.
const LAST_LINES_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a thread that panicked may wait for its line, with all its other sessions.
const PANIC_TIMEOUT: Duration = Duration::from_millis(100);

/// Logging, which writes the lines that are left when it is dropped.
#[must_use]
pub struct Log(Writer);

/// Starts logging. A panic becomes a log line too, since it ends one session and no other.
pub fn start(format: LogFormat, level: LogLevel) -> Log {
    let level = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    // Other crates never log below WARN: at its lower levels, the AWS SDK writes requests and
    // answers, passwords included.
    let filter = Targets::new()
        .with_target("pg_iam_proxy", level)
        .with_default(level.min(LevelFilter::WARN));
    let writer = Writer::start();
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(writer.clone())
        .with_target(false)
        .log_internal_errors(false);
    let lines = match format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry()
        .with(lines.with_filter(filter))
        .init();
    let of_panics = writer.clone();
    std::panic::set_hook(Box::new(move |panic| {
        tracing::error!(%panic, "bug: a task panicked");
        of_panics.flush(PANIC_TIMEOUT);
    }));
    Log(writer)
}

impl Drop for Log {
    fn drop(&mut self) {
        self.0.flush(LAST_LINES_TIMEOUT);
    }
}

#[cfg(test)]
mod tests {
    use std::env;
    use std::process::{self, Command};

    use super::*;

    #[test]
    fn a_panic_is_written_although_the_process_ends_at_once() {
        const CHILD: &str = "PG_IAM_PROXY_TEST_OF_PANICS";
        const NAME: &str = "telemetry::tests::a_panic_is_written_although_the_process_ends_at_once";
        if env::var_os(CHILD).is_some() {
            let _log = start(LogFormat::Text, LogLevel::Error);
            let _ = std::panic::catch_unwind(|| panic!("on purpose"));
            // Without dropping the log, as when a second panic aborts.
            process::exit(0);
        }
        // Without the flush, the line would be lost most times and not always.
        for _ in 0..8 {
            let output = Command::new(env::current_exe().unwrap())
                .args(["--exact", NAME, "--nocapture"])
                .env(CHILD, "1")
                .output()
                .unwrap();
            let log = String::from_utf8(output.stderr).unwrap();
            assert!(
                log.contains("bug: a task panicked") && log.contains("on purpose"),
                "{log}"
            );
        }
    }
}
