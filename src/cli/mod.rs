//! The command line: what did the person ask for, and with which exit code does it end? One file
//! per subcommand.

mod check;
mod connection_lines;
mod hash_password;
mod output;
mod policy;
mod run;
mod schema;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use check::Check;
use output::{EX_USAGE, failed, print_lines};
use policy::Policy;
use run::Run;
use schema::Schema;

/// Logs PostgreSQL clients in to Amazon Redshift, RDS/Aurora PostgreSQL and Aurora DSQL with
/// short-lived IAM credentials.
#[derive(Parser)]
#[command(name = "pg-iam-proxy", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve clients
    Run(Run),
    /// Log in to every target, step by step, and explain what does not work
    Check(Check),
    /// Print the IAM policies that a configuration needs, as JSON
    Policy(Policy),
    /// Read a password, from a prompt or standard input, and print the SCRAM-SHA-256 verifier to
    /// put in its place
    HashPassword,
    /// Print a JSON Schema of the configuration file, for editors
    Schema(Schema),
}

/// Runs the program. 0: clean stop; 1: failed; 64: usage; 78: bad configuration.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Nothing is left to do when the terminal is gone.
            let _ = error.print();
            return if error.use_stderr() {
                ExitCode::from(EX_USAGE)
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    match cli.command {
        Command::Run(arguments) => run::run(&arguments),
        Command::Check(arguments) => check::check(&arguments),
        Command::Policy(arguments) => policy::print(arguments),
        Command::HashPassword => match hash_password::run() {
            Ok(verifier) => {
                print_lines(&[verifier]);
                ExitCode::SUCCESS
            }
            Err(error) => failed(&error),
        },
        Command::Schema(arguments) => schema::print(&arguments),
    }
}
