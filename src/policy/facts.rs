//! What the configuration does not say and AWS knows: account numbers, and what ARNs call the
//! servers.

use std::collections::{BTreeMap, BTreeSet};

use super::Notes;
use super::arn::account_of;
use crate::config::{AwsIdentity, ClusterName, Config, Engine, Target};
use crate::credentials::Lookup;

/// Everything that is known. What is not becomes a wildcard.
#[derive(Debug, Default)]
pub struct Facts {
    /// Account of the proxy's own identity, as the person says.
    pub account: Option<String>,
    /// Accounts by profile; `None` is the default chain.
    pub accounts: BTreeMap<Option<String>, String>,
    /// What ARNs call the server, by target, where that is not in the configuration.
    pub servers: BTreeMap<String, String>,
}

impl Facts {
    /// Asks AWS. What it does not answer is left out, with a note.
    pub async fn discover(&mut self, config: &Config, notes: &mut Notes) {
        let lookup = Lookup::default();
        let mut asked = BTreeSet::new();
        for target in super::targets(config) {
            let own = AwsIdentity {
                role: None,
                ..target.aws.clone()
            };
            if self.account.is_none() && asked.insert(own.profile.clone()) {
                match lookup.account(&own, &target.region).await {
                    Ok(account) => _ = self.accounts.insert(own.profile.clone(), account),
                    Err(error) => {
                        notes.add(format!("the account is not known: {error}"));
                    }
                }
            }
            if self.server(target).is_some() {
                continue;
            }
            // A role of our own account is not needed to look, and may not exist before its policy
            // does.
            let role_account = target
                .aws
                .role
                .as_ref()
                .and_then(|role| account_of(&role.arn));
            let identity = if role_account.is_some()
                && role_account == self.account_of_profile(own.profile.as_ref())
            {
                &own
            } else {
                &target.aws
            };
            match lookup.server_id(target, identity).await {
                Ok(id) => _ = self.servers.insert(target.name.clone(), id),
                Err(error) => notes.add(format!(
                    "{}: the server's id is not known: {}",
                    target.name, error
                )),
            }
        }
    }

    /// Account of the proxy's own identity.
    pub fn account_of_profile(&self, profile: Option<&String>) -> Option<&str> {
        self.account
            .as_ref()
            .or_else(|| self.accounts.get(&profile.cloned()))
            .map(String::as_str)
    }

    /// What ARNs call the server.
    pub fn server<'a>(&'a self, target: &'a Target) -> Option<&'a str> {
        match &target.engine {
            Engine::Redshift(redshift) => match &redshift.cluster {
                ClusterName::Identifier(identifier)
                | ClusterName::CustomDomain {
                    identifier: Some(identifier),
                    ..
                } => Some(identifier),
                ClusterName::CustomDomain {
                    identifier: None, ..
                } => self.servers.get(&target.name).map(String::as_str),
            },
            Engine::Dsql(dsql) => dsql
                .name
                .split_once(".dsql.")
                .map(|(identifier, _)| identifier),
            Engine::RedshiftServerless(_) | Engine::Rds(_) => {
                self.servers.get(&target.name).map(String::as_str)
            }
        }
    }
}
