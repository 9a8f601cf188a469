//! Which account numbers and resource ids are known: from the command line, from the configuration,
//! or because AWS was asked?

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::allowed_logins::targets;
use super::notes::Notes;
use crate::config::{AwsIdentity, Config, TargetSettings};
use crate::credentials::{Identities, resource_id};
use crate::iam::{account_of, configured_server_id};

/// The ids that are known. In a policy, a wildcard takes the place of any other.
#[derive(Debug, Default)]
pub struct AwsIds {
    /// The account of the proxy's own identity, as the user gives it. It wins over what AWS says.
    account: Option<String>,
    /// Accounts that AWS was asked for, by profile; `None` is the default chain.
    accounts: BTreeMap<Option<String>, String>,
    /// Server ids that AWS was asked for, by the name of the target.
    server_ids: BTreeMap<String, String>,
}

impl AwsIds {
    /// What is known before AWS is asked.
    pub fn of_account(account: Option<String>) -> Self {
        Self {
            account,
            ..Self::default()
        }
    }

    /// Asks AWS for everything that is not known. A note says what it did not answer, and why.
    pub async fn discover(&mut self, config: &Config, notes: &mut Notes) {
        let identities = Arc::<Identities>::default();
        let mut asked_profiles = BTreeSet::new();
        for target in targets(config) {
            let own = AwsIdentity {
                role: None,
                ..target.aws.clone()
            };
            if self.account.is_none() && asked_profiles.insert(own.profile.clone()) {
                match identities.caller(&own, &target.region).await {
                    Ok(caller) => {
                        self.accounts.insert(own.profile.clone(), caller.account);
                    }
                    Err(error) => notes.add(format!("the account is not known: {error}")),
                }
            }
            if self.server_id(target).is_some() {
                continue;
            }
            let identity = if self.role_is_in_own_account(target) {
                &own
            } else {
                &target.aws
            };
            match resource_id(&identities, target, identity).await {
                Ok(id) => {
                    self.server_ids.insert(target.name.clone(), id);
                }
                Err(error) => notes.add(format!(
                    "{}: the server's id is not known: {error}",
                    target.name
                )),
            }
        }
    }

    /// The account of the proxy's own identity, or of a profile.
    pub fn account_of_profile(&self, profile: Option<&String>) -> Option<&str> {
        self.account
            .as_ref()
            .or_else(|| self.accounts.get(&profile.cloned()))
            .map(String::as_str)
    }

    /// What ARNs call the server.
    pub fn server_id<'a>(&'a self, target: &'a TargetSettings) -> Option<&'a str> {
        configured_server_id(target)
            .or_else(|| self.server_ids.get(&target.name).map(String::as_str))
    }

    /// Whether the target's role belongs to the account of the proxy's own identity. Then the role
    /// is not needed to look something up, and it may not exist before its policy does.
    fn role_is_in_own_account(&self, target: &TargetSettings) -> bool {
        let role = target.aws.role.as_ref();
        let account = role.and_then(|role| account_of(&role.arn));
        account.is_some() && account == self.account_of_profile(target.aws.profile.as_ref())
    }
}
