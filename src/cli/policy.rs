//! `pg-iam-proxy policy`: prints the IAM policies that a configuration needs.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::output::{bad_configuration, print_lines};
use crate::config::{self, Config};
use crate::iam::is_account_id;
use crate::policy;

#[derive(Args)]
pub(super) struct Policy {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE", env = "PG_IAM_PROXY_CONFIG")]
    config: PathBuf,
    /// Account of the proxy's own AWS identity
    #[arg(long, value_name = "ID", value_parser = account)]
    account: Option<String>,
    /// Ask AWS for the account, and for the ids of servers that the configuration does not have
    #[arg(long)]
    discover: bool,
}

/// Reads the configuration and prints its policies, and notes on standard error.
pub(super) fn print(arguments: Policy) -> ExitCode {
    match config::load(Some(&arguments.config), &[]) {
        Ok(config) => print_policy(&config, arguments),
        Err(error) => bad_configuration(&error),
    }
}

#[tokio::main(flavor = "current_thread")]
async fn print_policy(config: &Config, arguments: Policy) -> ExitCode {
    let answer = policy::policy(config, arguments.account, arguments.discover).await;
    for note in answer.notes {
        eprintln!("pg-iam-proxy: {note}");
    }
    print_lines(&[answer.json]);
    ExitCode::SUCCESS
}

fn account(text: &str) -> Result<String, &'static str> {
    if is_account_id(text) {
        Ok(text.to_string())
    } else {
        Err("an account has twelve digits")
    }
}
