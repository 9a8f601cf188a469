//! Which target a login goes to, and as whom: a pure function of the startup message and the configuration.

use std::sync::Arc;

use crate::config::{Choice, Engine, Listener, RedshiftApi, Target, check_database, check_db_user};
use crate::error::{Kind, Refusal};
use crate::wire::startup::StartupMessage;

/// Where a login goes.
#[derive(Debug, Clone)]
pub struct Route {
    /// The server.
    pub target: Arc<Target>,
    /// Database user to ask credentials for; empty where the AWS identity decides it.
    pub db_user: String,
    /// Database to open.
    pub database: String,
}

/// Chooses by the number of the listener's targets: one takes every login; among several the database name
/// is a target's name, or `target/database`.
///
/// # Errors
/// 3D000 when no target fits; 28000 when a name is one that the engine cannot have.
pub fn route(listener: &Listener, startup: &StartupMessage) -> Result<Route, Refusal> {
    let user = utf8("user name", startup.parameter("user"))?.unwrap_or_default();
    let asked = utf8("database name", startup.parameter("database"))?.filter(|name| !name.is_empty());
    let (target, asked) = match &listener.targets[..] {
        [only] => (only, asked),
        several => choose(several, asked.unwrap_or(user))?,
    };
    let db_user = match &target.db_user {
        Choice::Fixed(name) => name.clone(),
        Choice::Client => user.to_string(),
    };
    let database = match &target.database {
        Choice::Fixed(name) => name.clone(),
        // As the server would: the database is named like the user when the client names none.
        Choice::Client => asked.unwrap_or(user).to_string(),
    };
    match &target.engine {
        Engine::Redshift(redshift) => {
            valid("database", &database, check_database)?;
            match redshift.api {
                RedshiftApi::GetClusterCredentials { .. } => {
                    valid("user name", &db_user, check_db_user)?;
                    Ok(Route { target: target.clone(), db_user, database })
                }
                RedshiftApi::GetClusterCredentialsWithIam => Ok(Route { target: target.clone(), db_user: String::new(), database }),
            }
        }
        Engine::Rds(_) => Ok(Route { target: target.clone(), db_user, database }),
    }
}

fn choose<'a, 's>(targets: &'a [Arc<Target>], asked: &'s str) -> Result<(&'a Arc<Target>, Option<&'s str>), Refusal> {
    let (name, database) = match asked.split_once('/') {
        Some((name, database)) => (name, Some(database).filter(|database| !database.is_empty())),
        None => (asked, None),
    };
    let target = targets.iter().find(|target| target.name == name).ok_or_else(|| {
        Refusal::new(Kind::NoSuchTarget, format!("no target \"{name}\" on this address"))
            .hint("Give a target's name as the database, or target/database.")
    })?;
    Ok((target, database))
}

fn utf8<'a>(what: &str, value: Option<&'a bytes::Bytes>) -> Result<Option<&'a str>, Refusal> {
    value
        .map(|value| std::str::from_utf8(value))
        .transpose()
        .map_err(|_| Refusal::new(Kind::InvalidAuthorization, format!("{what} is not valid UTF-8")))
}

fn valid(what: &str, name: &str, check: impl Fn(&str) -> Result<(), &'static str>) -> Result<(), Refusal> {
    check(name).map_err(|rule| Refusal::new(Kind::InvalidAuthorization, format!("{what} \"{name}\" {rule}")))
}
