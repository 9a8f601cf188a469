//! How does a subcommand print, and with which exit code does it end?

use std::io::Write;
use std::process::ExitCode;

use crate::config::ConfigError;

/// sysexits: the command line is wrong.
pub(super) const EX_USAGE: u8 = 64;
/// sysexits: the configuration is wrong.
const EX_CONFIG: u8 = 78;

/// Ends with 1.
pub(super) fn failed(error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("pg-iam-proxy: {error}");
    ExitCode::FAILURE
}

/// Prints every mistake of a configuration, and ends with 78.
pub(super) fn bad_configuration(error: &ConfigError) -> ExitCode {
    // Colours are taken out where standard error is no terminal, or where NO_COLOR asks for that.
    anstream::eprintln!("{}", error.styled());
    ExitCode::from(EX_CONFIG)
}

/// Says what is wrong with the command line, and ends with 64.
pub(super) fn usage(error: &str) -> ExitCode {
    eprintln!("pg-iam-proxy: {error}");
    ExitCode::from(EX_USAGE)
}

/// A reader that has gone away must not end the proxy, as `println!` would.
pub(super) fn print_lines(lines: &[String]) {
    let mut stdout = std::io::stdout().lock();
    let _ = lines
        .iter()
        .try_for_each(|line| writeln!(stdout, "{line}"))
        .and_then(|()| stdout.flush());
}
