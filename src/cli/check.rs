//! `pg-iam-proxy check`: which targets are checked, and how does it end?

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;

use super::output::{bad_configuration, print_lines, usage};
use crate::check::{self, LoginNames};
use crate::config::{self, Config, ListenerSettings, TargetSettings};
use crate::nearest::nearest;

#[derive(Args)]
pub(super) struct Check {
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

/// Checks the targets that are meant.
pub(super) fn check(arguments: &Check) -> ExitCode {
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
    for warning in &config.warnings {
        eprintln!("pg-iam-proxy: {warning}");
    }
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
fn chosen(
    config: &Config,
    urls: &[String],
    names: &[&String],
) -> Result<Vec<Arc<TargetSettings>>, String> {
    let targets = |listeners: &[ListenerSettings]| -> BTreeMap<String, Arc<TargetSettings>> {
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
async fn walk(
    targets: &[Arc<TargetSettings>],
    config: &Config,
    names: &LoginNames,
    json: bool,
) -> bool {
    check::check(targets, &config.users, names, json).await
}
