//! Which target does a login go to, and as which user? The answer is a pure function of who the
//! client is, what it asks for, and the configuration.

use std::sync::Arc;

use crate::config::{
    AwsIdentity, Choice, Engine, RedshiftApi, Role, TargetSettings, UserSettings, check_database,
    check_db_user,
};
use crate::error::{ErrorKind, Refusal};
use crate::excerpt;

/// What a client asks for, once it is known who the client is.
#[derive(Debug, Clone, Copy)]
pub struct LoginRequest<'a> {
    /// The client's name.
    pub user: &'a str,
    /// What the configuration says about this user, if it says anything.
    pub settings: Option<&'a UserSettings>,
    /// The database name in the startup message.
    pub database: Option<&'a str>,
    /// The host name in the TLS handshake (SNI).
    pub server_name: Option<&'a str>,
}

/// As which user a login goes to its target, and to which database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The AWS identity that asks for the credential.
    pub aws: AwsIdentity,
    /// The database user to request a credential for.
    pub db_user: DbUser,
    /// The `DbGroups` to request.
    pub db_groups: Vec<String>,
    /// The database to open.
    pub database: String,
}

/// The database user that a credential is requested for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum DbUser {
    /// The user with this name.
    Named(String),
    /// The user that AWS derives from the AWS identity (`IAM:name`, `IAMR:role`), as
    /// `GetClusterCredentialsWithIAM` and Redshift Serverless do.
    FromAwsIdentity,
}

impl DbUser {
    /// The name, if it is known before AWS is asked.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Named(name) => Some(name),
            Self::FromAwsIdentity => None,
        }
    }
}

/// Chooses one of a listener's targets. If there is only one, it takes every login. If there are
/// several, the target is the one whose name is the first label of the TLS server name, or else the
/// database name, which may also have the form `target/database`.
///
/// # Errors
/// SQLSTATE 3D000 if no target matches; 28000 if the user may not use the target, or if a name is
/// one that the engine cannot have.
pub fn route<'a, T: AsRef<TargetSettings>>(
    targets: &'a [Arc<T>],
    request: &LoginRequest<'_>,
) -> Result<(&'a Arc<T>, Route), Refusal> {
    let (target, database) = choose(targets, request)?;
    Ok((
        target,
        route_to_target((**target).as_ref(), database, request)?,
    ))
}

/// Routes a login to this target.
///
/// # Errors
/// SQLSTATE 28000 or 3D000, as for [`route`].
pub fn route_to_target(
    target: &TargetSettings,
    database: Option<&str>,
    request: &LoginRequest<'_>,
) -> Result<Route, Refusal> {
    check_access(target, request)?;
    let database = match &target.database {
        Choice::Fixed(name) => name.clone(),
        // As in PostgreSQL itself, the database is named like the user if the client does not name
        // one.
        Choice::Client => database
            .or(target.engine.only_database())
            .unwrap_or(request.user)
            .to_string(),
    };
    check_database_name(target, &database)?;
    let settings = request.settings;
    let db_user = match (
        settings.and_then(|user| user.db_user.as_ref()),
        &target.db_user,
    ) {
        (Some(name), _) | (None, Choice::Fixed(name)) => name.clone(),
        (None, Choice::Client) => request.user.to_string(),
    };
    let (db_user, db_groups) = match &target.engine {
        Engine::Rds(_) | Engine::Dsql(_) => (DbUser::Named(db_user), Vec::new()),
        Engine::RedshiftServerless(_) => (DbUser::FromAwsIdentity, Vec::new()),
        Engine::Redshift(redshift) => match &redshift.api {
            RedshiftApi::GetClusterCredentialsWithIam => (DbUser::FromAwsIdentity, Vec::new()),
            RedshiftApi::GetClusterCredentials { db_groups, .. } => {
                check_name("user name", &db_user, check_db_user)?;
                let own = settings.and_then(|user| user.db_groups.as_ref());
                (DbUser::Named(db_user), own.unwrap_or(db_groups).clone())
            }
        },
    };
    Ok(Route {
        aws: identity(target, request),
        db_user,
        db_groups,
        database,
    })
}

fn check_access(target: &TargetSettings, request: &LoginRequest<'_>) -> Result<(), Refusal> {
    let allowed = request.settings.and_then(|user| user.targets.as_ref());
    if allowed.is_none_or(|targets| targets.contains(&target.name)) {
        return Ok(());
    }
    Err(Refusal::new(
        ErrorKind::InvalidAuthorization,
        format!(
            "user \"{}\" may not use target \"{}\"",
            excerpt::name(request.user),
            target.name
        ),
    ))
}

fn check_database_name(target: &TargetSettings, database: &str) -> Result<(), Refusal> {
    match &target.engine {
        Engine::Rds(_) => Ok(()),
        Engine::Dsql(_) => check_only_database(database, target),
        Engine::Redshift(_) | Engine::RedshiftServerless(_) => {
            check_name("database", database, check_database)
        }
    }
}

fn choose<'a, 'b, T: AsRef<TargetSettings>>(
    targets: &'a [Arc<T>],
    request: &LoginRequest<'b>,
) -> Result<(&'a Arc<T>, Option<&'b str>), Refusal> {
    let named = request.database.filter(|name| !name.is_empty());
    let find = |name: &str| {
        targets
            .iter()
            .find(|target| (***target).as_ref().name == name)
    };
    if let [only] = targets {
        return Ok((only, named));
    }
    if let Some(target) = request
        .server_name
        .and_then(|name| find(name.split('.').next()?))
    {
        return Ok((target, named));
    }
    let name = named.unwrap_or(request.user);
    let (name, database) = match name.split_once('/') {
        Some((name, database)) => (name, Some(database).filter(|database| !database.is_empty())),
        None => (name, None),
    };
    let target = find(name).ok_or_else(|| {
        Refusal::new(
            ErrorKind::NoSuchTarget,
            format!("no target \"{}\" on this address", excerpt::name(name)),
        )
        .hint("Give a target's name as the database, or target/database.")
    })?;
    Ok((target, database))
}

/// The target's AWS identity, with the user's own role if there is one, and with the user's name if
/// the configuration passes it on to AWS.
pub fn identity(target: &TargetSettings, request: &LoginRequest<'_>) -> AwsIdentity {
    let own_role = request.settings.and_then(|user| user.role_arn.clone());
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
            session_name: Some(name.clone()),
            person: Some(request.user.to_string()),
            ..role
        }),
        (_, role) => role,
    };
    AwsIdentity {
        role,
        ..target.aws.clone()
    }
}

/// Refuses a database that the engine does not have. The server would refuse it too, in words that
/// do not help.
fn check_only_database(database: &str, target: &TargetSettings) -> Result<(), Refusal> {
    match target.engine.only_database() {
        Some(only) if only != database => Err(Refusal::new(
            ErrorKind::NoSuchTarget,
            format!(
                "database \"{}\" does not exist; \"{}\" has {only} only",
                excerpt::name(database),
                target.name
            ),
        )
        .hint(format!(
            "Connect to database {only}, or configure database = \"{only}\" for all clients."
        ))),
        _ => Ok(()),
    }
}

fn check_name(
    what: &str,
    name: &str,
    check: impl Fn(&str) -> Result<(), &'static str>,
) -> Result<(), Refusal> {
    check(name).map_err(|rule| {
        Refusal::new(
            ErrorKind::InvalidAuthorization,
            format!("{what} \"{}\" {rule}", excerpt::name(name)),
        )
    })
}
