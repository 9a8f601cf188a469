//! Which target a login goes to, and as whom: a pure function of who the client is, what it asks
//! for and the configuration.

use std::sync::Arc;

use crate::config::{
    AwsIdentity, Choice, Engine, Listener, RedshiftApi, Role, Target, User, check_database,
    check_db_user,
};
use crate::error::{ErrorKind, Refusal};

/// What a client asks for, once it is known who it is.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The client's name.
    pub user: &'a str,
    /// What the configuration says of this user, where it says something.
    pub settings: Option<&'a User>,
    /// Database name of the startup message.
    pub database: Option<&'a str>,
    /// Host name of the TLS handshake (SNI).
    pub server_name: Option<&'a str>,
}

/// Where a login goes.
#[derive(Debug, Clone)]
pub struct Route {
    /// The server.
    pub target: Arc<Target>,
    /// With which AWS identity.
    pub aws: AwsIdentity,
    /// Database user to ask credentials for; empty where the AWS identity decides it.
    pub db_user: String,
    /// `DbGroups` to ask for.
    pub db_groups: Vec<String>,
    /// Database to open.
    pub database: String,
}

/// Chooses by the number of the listener's targets: one takes every login; among several the first
/// label of the TLS server name is a target's name, or the database name is, or is
/// `target/database`.
///
/// # Errors
/// 3D000 when no target fits; 28000 when the user may not use it, or a name is one that the engine
/// cannot have.
pub fn route(listener: &Listener, asked: &Asked<'_>) -> Result<Route, Refusal> {
    let (target, database) = choose(listener, asked)?;
    to_target(target, database, asked)
}

/// A login to this target.
///
/// # Errors
/// 28000, as [`route`].
pub fn to_target(
    target: &Arc<Target>,
    database: Option<&str>,
    asked: &Asked<'_>,
) -> Result<Route, Refusal> {
    let settings = asked.settings;
    if settings
        .and_then(|user| user.targets.as_ref())
        .is_some_and(|targets| !targets.contains(&target.name))
    {
        return Err(Refusal::new(
            ErrorKind::InvalidAuthorization,
            format!(
                "user \"{}\" may not use target \"{}\"",
                asked.user, target.name
            ),
        ));
    }
    let db_user = match (
        settings.and_then(|user| user.db_user.as_ref()),
        &target.db_user,
    ) {
        (Some(name), _) | (None, Choice::Fixed(name)) => name.clone(),
        (None, Choice::Client) => asked.user.to_string(),
    };
    let database = match &target.database {
        Choice::Fixed(name) => name.clone(),
        // As the server would: the database is named like the user when the client names none.
        Choice::Client => database
            .or(target.engine.only_database())
            .unwrap_or(asked.user)
            .to_string(),
    };
    let aws = identity(target, asked);
    let mut route = Route {
        target: target.clone(),
        aws,
        db_user,
        db_groups: Vec::new(),
        database,
    };
    match &target.engine {
        Engine::Rds(_) => {}
        Engine::Dsql(_) => valid_only(&route.database, target)?,
        Engine::RedshiftServerless(_) => {
            valid("database", &route.database, check_database)?;
            route.db_user.clear();
        }
        Engine::Redshift(redshift) => {
            valid("database", &route.database, check_database)?;
            match &redshift.api {
                RedshiftApi::GetClusterCredentials { db_groups, .. } => {
                    valid("user name", &route.db_user, check_db_user)?;
                    route.db_groups.clone_from(
                        settings
                            .and_then(|user| user.db_groups.as_ref())
                            .unwrap_or(db_groups),
                    );
                }
                RedshiftApi::GetClusterCredentialsWithIam => route.db_user.clear(),
            }
        }
    }
    Ok(route)
}

fn choose<'a>(
    listener: &'a Listener,
    asked: &Asked<'a>,
) -> Result<(&'a Arc<Target>, Option<&'a str>), Refusal> {
    let named = asked.database.filter(|name| !name.is_empty());
    let find = |name: &str| listener.targets.iter().find(|target| target.name == name);
    if let [only] = &listener.targets[..] {
        return Ok((only, named));
    }
    if let Some(target) = asked
        .server_name
        .and_then(|name| find(name.split('.').next()?))
    {
        return Ok((target, named));
    }
    let name = named.unwrap_or(asked.user);
    let (name, database) = match name.split_once('/') {
        Some((name, database)) => (name, Some(database).filter(|database| !database.is_empty())),
        None => (name, None),
    };
    let target = find(name).ok_or_else(|| {
        Refusal::new(
            ErrorKind::NoSuchTarget,
            format!("no target \"{name}\" on this address"),
        )
        .hint("Give a target's name as the database, or target/database.")
    })?;
    Ok((target, database))
}

/// The target's identity, with the user's own role in it, and the user's name where it shall
/// travel.
pub fn identity(target: &Target, asked: &Asked<'_>) -> AwsIdentity {
    let own_role = asked.settings.and_then(|user| user.role_arn.clone());
    let role = match (&target.aws.role, own_role) {
        (Some(role), Some(arn)) => Some(Role {
            arn,
            ..role.clone()
        }),
        (Some(role), None) => Some(role.clone()),
        (None, Some(arn)) => Some(Role {
            arn,
            external_id: None,
            session_name: None,
            person: None,
        }),
        (None, None) => None,
    };
    let role = match (&target.session_name_of_person, role) {
        (Some(name), Some(role)) => Some(Role {
            session_name: Some(name.replace("{user}", asked.user)),
            person: Some(asked.user.to_string()),
            ..role
        }),
        (_, role) => role,
    };
    AwsIdentity {
        role,
        ..target.aws.clone()
    }
}

/// The server would say so too, in words that do not help.
fn valid_only(database: &str, target: &Target) -> Result<(), Refusal> {
    match target.engine.only_database() {
        Some(only) if only != database => Err(Refusal::new(
            ErrorKind::NoSuchTarget,
            format!(
                "database \"{database}\" does not exist; \"{}\" has {only} only",
                target.name
            ),
        )
        .hint(format!(
            "Connect to database {only}, or configure database = \"{only}\" for all clients."
        ))),
        _ => Ok(()),
    }
}

fn valid(
    what: &str,
    name: &str,
    check: impl Fn(&str) -> Result<(), &'static str>,
) -> Result<(), Refusal> {
    check(name).map_err(|rule| {
        Refusal::new(
            ErrorKind::InvalidAuthorization,
            format!("{what} \"{name}\" {rule}"),
        )
    })
}
