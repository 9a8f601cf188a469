//! Who may log in to what, as far as the configuration says it before anybody comes.

use std::collections::{BTreeMap, BTreeSet};

use super::arn::Name;
use crate::config::{Auth, Choice, Config, Listener, Location, Role, Target, User};
use crate::route::{LoginRequest, identity};

/// One way to use a target.
#[derive(Debug)]
pub struct Use<'a> {
    /// The server.
    pub target: &'a Target,
    /// The role that asks for the credential; `None`: the proxy's own identity does.
    pub role: Option<Role>,
    /// Database user to ask for.
    pub db_user: Name<'a>,
    /// Groups in place of the target's.
    pub db_groups: Option<&'a [String]>,
}

/// Every way to use a target, of every listener.
pub fn uses(config: &Config) -> Vec<Use<'_>> {
    let mut uses = Vec::new();
    for listener in &config.listeners {
        for (name, settings) in clients(listener, config) {
            for target in &listener.targets {
                if settings
                    .and_then(|user| user.targets.as_ref())
                    .is_some_and(|targets| !targets.contains(&target.name))
                {
                    continue;
                }
                let request = LoginRequest {
                    user: name.unwrap_or_default(),
                    settings,
                    database: None,
                    server_name: None,
                };
                let db_user = match (
                    settings.and_then(|user| user.db_user.as_ref()),
                    &target.db_user,
                ) {
                    (Some(db_user), _) | (None, Choice::Fixed(db_user)) => Name::Exactly(db_user),
                    (None, Choice::Client) => name.map_or(Name::Any, Name::Exactly),
                };
                let db_groups = settings.and_then(|user| user.db_groups.as_deref());
                uses.push(Use {
                    target,
                    role: identity(target, &request).role,
                    db_user,
                    db_groups,
                });
            }
        }
    }
    uses
}

/// Names that the listener may let in, with what the configuration says of them. The name `None` is
/// anybody else.
fn clients<'a>(
    listener: &'a Listener,
    config: &'a Config,
) -> BTreeMap<Option<&'a str>, Option<&'a User>> {
    let settings = |name: &str| config.users.get(name).map(AsRef::as_ref);
    let mut clients = BTreeMap::new();
    // The first rule that fits decides; those after it are not for these.
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
            // Nobody proves a password that is not stored.
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
