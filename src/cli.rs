//! The command line: parse, load, run, and the exit code.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use crate::check::{self, LoginNames};
use crate::config::{
    self, Address, Auth, Choice, Config, Engine, Listener, LogFormat, LogLevel, Target,
};
use crate::hash_password;
use crate::iam::is_account_id;
use crate::nearest::nearest;
use crate::policy;
use crate::runtime::Lifecycle;
use crate::server::Server;
use crate::server::workers::Workers;
use crate::telemetry;

/// sysexits: the command line is wrong.
const EX_USAGE: u8 = 64;
/// sysexits: the configuration is wrong.
const EX_CONFIG: u8 = 78;

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

#[derive(Args)]
struct Run {
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

#[derive(Args)]
struct Check {
    /// Configuration file (TOML)
    #[arg(
        long,
        value_name = "FILE",
        env = "PG_IAM_PROXY_CONFIG",
        required_unless_present = "targets"
    )]
    config: Option<PathBuf>,
    /// Parse and validate only: ask neither AWS nor any server
    #[arg(long)]
    offline: bool,
    /// One JSON object instead of lines
    #[arg(long, conflicts_with = "offline")]
    json: bool,
    /// The client's user name, for targets that leave the database user to the client; the
    /// operating system's when omitted
    #[arg(long)]
    user: Option<String>,
    /// The client's database, for targets that leave it to the client; named like the user when
    /// omitted
    #[arg(long)]
    database: Option<String>,
    /// Names of targets, or target URLs as for `run`; every target of the file when omitted
    #[arg(value_name = "TARGET")]
    targets: Vec<String>,
}

#[derive(Args)]
struct Policy {
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

#[derive(Args)]
struct Schema {
    /// `markdown` makes docs/configuration.md
    #[arg(long, value_enum, default_value_t, hide = true)]
    format: SchemaFormat,
}

/// For whom the keys of the configuration are described.
#[derive(Debug, Clone, Copy, Default, clap::ValueEnum)]
enum SchemaFormat {
    /// For programs: a JSON Schema.
    #[default]
    Json,
    /// For people: the reference page.
    Markdown,
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
        Command::Run(arguments) => {
            match config::load(arguments.config.as_deref(), &arguments.target_urls) {
                Ok(config) => run(config, &arguments),
                Err(error) => bad_configuration(&error),
            }
        }
        Command::Check(arguments) => check(&arguments),
        Command::Policy(arguments) => match config::load(Some(&arguments.config), &[]) {
            Ok(config) => print_policy(&config, arguments),
            Err(error) => bad_configuration(&error),
        },
        Command::HashPassword => match hash_password::run() {
            Ok(verifier) => {
                print_lines(&[verifier]);
                ExitCode::SUCCESS
            }
            Err(error) => failed(&error),
        },
        Command::Schema(arguments) => {
            let text = match arguments.format {
                SchemaFormat::Json => config::schema(),
                SchemaFormat::Markdown => config::reference(),
            };
            print_lines(&[text.trim_end().to_string()]);
            ExitCode::SUCCESS
        }
    }
}

fn failed(error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("pg-iam-proxy: {error}");
    ExitCode::FAILURE
}

fn bad_configuration(error: &config::ConfigError) -> ExitCode {
    // Colours are taken out where standard error is no terminal, or where NO_COLOR asks for that.
    anstream::eprintln!("{}", error.styled());
    ExitCode::from(EX_CONFIG)
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

fn check(arguments: &Check) -> ExitCode {
    let is_url = |target: &&String| target.contains("//");
    let (urls, names): (Vec<_>, Vec<_>) = arguments.targets.iter().partition(is_url);
    if arguments.config.is_none() && urls.is_empty() {
        return usage("names of targets are those of a file: give --config FILE, or target URLs");
    }
    let urls: Vec<String> = urls.into_iter().cloned().collect();
    let config = match config::load(arguments.config.as_deref(), &urls) {
        Ok(config) => config,
        Err(error) => return bad_configuration(&error),
    };
    let targets = match chosen(&config, &urls, &names) {
        Ok(targets) => targets,
        Err(error) => return usage(&error),
    };
    if arguments.offline {
        let what = arguments
            .config
            .as_ref()
            .map_or("target URLs".to_string(), |file| file.display().to_string());
        print_lines(&[format!(
            "{what}: good, {} listener(s)",
            config.listeners.len()
        )]);
        return ExitCode::SUCCESS;
    }
    for warning in &config.warnings {
        eprintln!("pg-iam-proxy: {warning}");
    }
    let names = LoginNames {
        user: arguments.user.clone(),
        database: arguments.database.clone(),
    };
    if walk(&targets, &config, &names, arguments.json) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Those named and those of URLs; all when there is neither.
fn chosen(config: &Config, urls: &[String], names: &[&String]) -> Result<Vec<Arc<Target>>, String> {
    let targets = |listeners: &[Listener]| -> BTreeMap<String, Arc<Target>> {
        listeners
            .iter()
            .flat_map(|listener| &listener.targets)
            .map(|target| (target.name.clone(), target.clone()))
            .collect()
    };
    let all = targets(&config.listeners);
    // Each URL's listener comes behind those of the file.
    let mut chosen = targets(&config.listeners[config.listeners.len() - urls.len()..]);
    for &name in names {
        let Some(target) = all.get(name) else {
            let error = format!("there is no target \"{name}\"");
            return Err(match nearest(name, all.keys().map(String::as_str)) {
                Some(nearest) => format!("{error}; did you mean \"{nearest}\"?"),
                None => error,
            });
        };
        chosen.insert(name.clone(), target.clone());
    }
    Ok(if urls.is_empty() && names.is_empty() {
        all
    } else {
        chosen
    }
    .into_values()
    .collect())
}

#[tokio::main(flavor = "current_thread")]
async fn walk(targets: &[Arc<Target>], config: &Config, names: &LoginNames, json: bool) -> bool {
    check::check(targets, &config.users, names, json).await
}

fn usage(error: &str) -> ExitCode {
    eprintln!("pg-iam-proxy: {error}");
    ExitCode::from(EX_USAGE)
}

fn run(config: Config, arguments: &Run) -> ExitCode {
    // A session takes two file descriptors, and the usual soft limit is 1024. What cannot be had is
    // met when it runs out.
    let _ = rlimit::increase_nofile_limit(u64::MAX);
    telemetry::start(
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
    match serve(Config {
        admin: arguments.admin.or(config.admin),
        ..config
    }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&format!("{error:#}")),
    }
}

#[tokio::main(flavor = "current_thread")]
async fn serve(config: Config) -> anyhow::Result<()> {
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

/// A reader that has gone away must not end the proxy, as `println!` would.
fn print_lines(lines: &[String]) {
    let mut stdout = std::io::stdout().lock();
    let _ = lines
        .iter()
        .try_for_each(|line| writeln!(stdout, "{line}"))
        .and_then(|()| stdout.flush());
}

/// What a person pastes into psql and into a JDBC tool.
fn connection_lines(address: &Address, listener: &Listener) -> Vec<String> {
    let (psql_options, jdbc_redshift, jdbc_postgresql) = if listener.tls.is_required() {
        ("?sslmode=require", "ssl=true", "sslmode=require")
    } else {
        ("", "ssl=false", "sslmode=disable")
    };
    let everybody = listener.rules.iter().all(|rule| rule.auth == Auth::Trust);
    // The driver wants one, whatever it is.
    let password = if everybody { "none" } else { "PASSWORD" };
    let mut lines = Vec::new();
    for target in &listener.targets {
        let user = match &target.db_user {
            // Whoever connects is let in under any name: then the one that the server will see is
            // the best.
            Choice::Fixed(user) if everybody => encoded(user),
            Choice::Fixed(_) | Choice::Client => "USER".to_string(),
        };
        let own_database = match &target.database {
            Choice::Fixed(database) => encoded(database),
            Choice::Client => target
                .engine
                .only_database()
                .unwrap_or("DATABASE")
                .to_string(),
        };
        let database = match (&listener.targets[..], &target.database) {
            ([_], _) => own_database,
            (_, Choice::Fixed(_)) => encoded(&target.name),
            (_, Choice::Client) => format!("{}%2F{own_database}", encoded(&target.name)),
        };
        let redshift = format!(
            "jdbc:redshift://{address}/{database}?UID={user}&PWD={password}&{jdbc_redshift}"
        );
        let postgresql =
            format!("jdbc:postgresql://{address}/{database}?user={user}&{jdbc_postgresql}");
        let jdbc = match target.engine {
            Engine::Redshift(_) | Engine::RedshiftServerless(_) => redshift,
            Engine::Rds(_) | Engine::Dsql(_) => postgresql,
        };
        lines.push(format!(
            "{} ({}, {}) on {address}",
            target.name,
            target.engine.name(),
            target.region
        ));
        match address {
            Address::Tcp(_) => {
                lines.push(format!(
                    "  psql  postgresql://{user}@{address}/{database}{psql_options}"
                ));
                lines.push(format!("  JDBC  {jdbc}"));
            }
            // The JDBC drivers cannot do unix sockets.
            Address::Unix(path) => lines.push(unix_line(path, &user, &database)),
        }
    }
    lines
}

/// libpq finds a socket by its folder and the port in its name.
fn unix_line(path: &Path, user: &str, database: &str) -> String {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let folder = encoded(
        &path
            .parent()
            .unwrap_or(Path::new("/"))
            .display()
            .to_string(),
    );
    let port = path
        .extension()
        .and_then(|port| port.to_str())
        .unwrap_or("5432");
    format!("  psql  postgresql://{user}@/{database}?host={folder}&port={port}")
}

fn encoded(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC)
        .to_string()
        .replace("%2D", "-")
        .replace("%5F", "_")
}
