//! Which AWS access keys are known, and whose are they?
//!
//! All endpoints and databases of a testbed share one registry, as one AWS account has one IAM.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use crate::{locked, random};

pub const ACCOUNT_ID: &str = "123456789012";

#[derive(Clone, Default)]
pub struct Accounts {
    keys: Arc<Mutex<HashMap<String, Account>>>,
}

#[derive(Clone, Debug)]
pub struct Account {
    pub secret: String,
    pub session_token: Option<String>,
    pub expires: Option<SystemTime>,
    pub principal: Principal,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Principal {
    User(String),
    Role { name: String, session: String },
}

/// The credentials that an identity source hands to a client.
#[derive(Clone, Debug)]
pub struct AccessKey {
    pub id: String,
    pub secret: String,
    pub session_token: Option<String>,
    pub expires: Option<SystemTime>,
}

impl Accounts {
    /// Creates a long-lived key of an IAM user.
    pub fn add_user(&self, name: &str) -> AccessKey {
        self.issue(Principal::User(name.to_owned()), None)
    }

    /// Creates a temporary key with a session token, as every role session has.
    pub fn add_role_session(&self, name: &str, session: &str, life: Duration) -> AccessKey {
        self.issue(
            Principal::Role {
                name: name.to_owned(),
                session: session.to_owned(),
            },
            Some(life),
        )
    }

    pub fn add(&self, id: &str, account: Account) {
        locked(&self.keys).insert(id.to_owned(), account);
    }

    pub fn find(&self, id: &str) -> Option<Account> {
        locked(&self.keys).get(id).cloned()
    }

    /// All secret access keys and session tokens, for tests that make sure they do not show up
    /// anywhere.
    pub fn secrets(&self) -> Vec<String> {
        locked(&self.keys)
            .values()
            .flat_map(|account| [Some(account.secret.clone()), account.session_token.clone()])
            .flatten()
            .collect()
    }

    /// Deletes a key, as an administrator would.
    pub fn remove(&self, id: &str) {
        locked(&self.keys).remove(id);
    }

    fn issue(&self, principal: Principal, life: Option<Duration>) -> AccessKey {
        let prefix = if life.is_some() { "ASIA" } else { "AKIA" };
        let key = AccessKey {
            id: format!("{prefix}{}", random::identifier(16)),
            secret: random::base64(40),
            session_token: life.map(|_| random::base64(356)),
            expires: life.map(|life| SystemTime::now() + life),
        };
        let account = Account {
            secret: key.secret.clone(),
            session_token: key.session_token.clone(),
            expires: key.expires,
            principal,
        };
        self.add(&key.id, account);
        key
    }
}

impl Principal {
    pub fn arn(&self) -> String {
        match self {
            Principal::User(name) => format!("arn:aws:iam::{ACCOUNT_ID}:user/{name}"),
            Principal::Role { name, session } => {
                format!("arn:aws:sts::{ACCOUNT_ID}:assumed-role/{name}/{session}")
            }
        }
    }

    /// The database user that GetClusterCredentialsWithIAM maps the caller to.
    pub fn db_user(&self) -> String {
        match self {
            Principal::User(name) => format!("IAM:{name}"),
            Principal::Role { name, .. } => format!("IAMR:{name}"),
        }
    }
}
