//! Who may log in to what, as far as the configuration tells before anybody connects?

use std::collections::{BTreeMap, BTreeSet};

use crate::config::{
    Auth, Choice, Config, Engine, ListenerSettings, Location, RedshiftApi, Role, TargetSettings,
    UserSettings,
};
use crate::iam::Name;
use crate::route::{LoginRequest, identity};

/// Stands for the name of a client that no rule names. It goes into the session name of a role
/// only, and policies do not contain that.
const ANY_CLIENT: &str = "*";

/// A login that the configuration allows.
#[derive(Debug)]
pub struct AllowedLogin<'a> {
    /// The target of the login.
    pub target: &'a TargetSettings,
    /// The role with which AWS is asked for the credential; `None` when the proxy asks with its own
    /// identity.
    pub role: Option<Role>,
    /// The database user of the credential.
    pub db_user: Name<'a>,
    /// `DbGroups` of the credential.
    pub db_groups: &'a [String],
}

/// Every login that some listener allows.
pub fn allowed_logins(config: &Config) -> Vec<AllowedLogin<'_>> {
    let mut logins = Vec::new();
    for listener in &config.listeners {
        for (name, settings) in clients(listener, config) {
            let may_use = |target: &TargetSettings| {
                settings
                    .and_then(|user| user.targets.as_ref())
                    .is_none_or(|targets| targets.contains(&target.name))
            };
            logins.extend(
                listener
                    .targets
                    .iter()
                    .filter(|target| may_use(target))
                    .map(|target| login(target, name, settings)),
            );
        }
    }
    logins
}

/// Every target that a listener has, once and sorted by name.
pub fn targets(config: &Config) -> impl Iterator<Item = &TargetSettings> {
    let by_name: BTreeMap<&str, &TargetSettings> = config
        .listeners
        .iter()
        .flat_map(|listener| &listener.targets)
        .map(|target| (&*target.name, &**target))
        .collect();
    by_name.into_values()
}

fn login<'a>(
    target: &'a TargetSettings,
    name: Option<&'a str>,
    settings: Option<&'a UserSettings>,
) -> AllowedLogin<'a> {
    let request = LoginRequest {
        user: name.unwrap_or(ANY_CLIENT),
        settings,
        database: None,
        server_name: None,
    };
    let db_user = match (
        settings.and_then(|user| user.db_user.as_ref()),
        &target.db_user,
    ) {
        (Some(db_user), _) | (None, Choice::Fixed(db_user)) => Name::Exactly(db_user),
        (None, Choice::Client) => Name::from(name),
    };
    AllowedLogin {
        target,
        role: identity(target, &request).role,
        db_user,
        db_groups: settings
            .and_then(|user| user.db_groups.as_deref())
            .unwrap_or_else(|| db_groups(target)),
    }
}

fn db_groups(target: &TargetSettings) -> &[String] {
    match &target.engine {
        Engine::Redshift(redshift) => match &redshift.api {
            RedshiftApi::GetClusterCredentials { db_groups, .. } => db_groups,
            RedshiftApi::GetClusterCredentialsWithIam => &[],
        },
        Engine::RedshiftServerless(_) | Engine::Rds(_) | Engine::Dsql(_) => &[],
    }
}

/// The clients that the listener may let in, with their settings. The name is `None` for everybody
/// whose name is neither in a rule nor in the configuration of users.
fn clients<'a>(
    listener: &'a ListenerSettings,
    config: &'a Config,
) -> BTreeMap<Option<&'a str>, Option<&'a UserSettings>> {
    let settings = |name: &str| config.users.get(name).map(AsRef::as_ref);
    let mut clients = BTreeMap::new();
    // The first rule that matches a client decides, so later rules do not apply to these names.
    let mut decided = BTreeSet::new();
    for rule in &listener.rules {
        let named: Vec<&str> = match &rule.users {
            Some(names) => names.iter().map(String::as_str).collect(),
            None => config.users.keys().map(String::as_str).collect(),
        };
        let named: Vec<_> = named
            .into_iter()
            .filter(|name| !decided.contains(name))
            .map(|name| (name, settings(name)))
            .collect();
        if rule.from == Location::Anywhere {
            decided.extend(named.iter().map(|(name, _)| *name));
        }
        match rule.auth {
            Auth::Reject => {}
            // A user without a stored password cannot pass a rule that asks for one.
            Auth::ScramSha256 | Auth::Md5 | Auth::Password => {
                let known = named
                    .into_iter()
                    .filter(|(_, user)| user.is_some_and(|user| user.verifier.is_some()));
                clients.extend(known.map(|(name, user)| (Some(name), user)));
            }
            Auth::Trust | Auth::Cert | Auth::Peer => {
                clients.extend(named.into_iter().map(|(name, user)| (Some(name), user)));
                if rule.users.is_none() {
                    clients.insert(None, None);
                }
            }
        }
        if rule.from == Location::Anywhere && rule.users.is_none() {
            break;
        }
    }
    clients
}
