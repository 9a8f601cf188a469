//! How is a policy written in JSON, in the order in which people read it?

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::aws_ids::AwsIds;
use super::notes::Notes;
use super::permissions::{
    Permission, Permissions, Principal, RequiredPermissions, account_of_roles_note,
};
use crate::credentials::PERSON_TAG;
use crate::iam::{Action, account_of, partition_of};

/// What the subcommand prints.
#[derive(Serialize)]
#[serde(untagged)]
pub enum PolicyOutput {
    /// The proxy's own identity does everything.
    One(PolicyDocument),
    /// Several identities have a policy each.
    Several(Policies),
}

/// The policies of several identities.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Policies {
    #[serde(skip_serializing_if = "Option::is_none")]
    proxy_policy: Option<PolicyDocument>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    profiles: Vec<ProfilePolicy>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    roles: Vec<RolePolicies>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ProfilePolicy {
    profile: String,
    policy: PolicyDocument,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct RolePolicies {
    role_arn: String,
    policy: PolicyDocument,
    trust_policy: PolicyDocument,
}

/// A policy document:
/// <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_grammar.html>.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct PolicyDocument {
    version: &'static str,
    statement: Vec<Statement>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Statement {
    sid: &'static str,
    effect: &'static str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    principal: BTreeMap<&'static str, Vec<String>>,
    action: &'static [Action],
    #[serde(skip_serializing_if = "Vec::is_empty")]
    resource: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    condition: BTreeMap<&'static str, BTreeMap<&'static str, Vec<String>>>,
}

impl PolicyOutput {
    /// Writes down the permissions, and the trust policies of the roles.
    pub fn new(required: &RequiredPermissions, ids: &AwsIds, notes: &mut Notes) -> Self {
        let principals: Vec<&Principal> = required.by_principal.keys().collect();
        if let [] | [Principal::Proxy(_)] = principals[..] {
            let only = required.by_principal.values().next();
            return Self::One(PolicyDocument::allowing(
                only.unwrap_or(&Permissions::new()),
            ));
        }
        let mut policies = Policies {
            proxy_policy: None,
            profiles: Vec::new(),
            roles: Vec::new(),
        };
        for (principal, permissions) in &required.by_principal {
            let policy = PolicyDocument::allowing(permissions);
            match principal {
                Principal::Proxy(None) => policies.proxy_policy = Some(policy),
                Principal::Proxy(Some(profile)) => policies.profiles.push(ProfilePolicy {
                    profile: profile.clone(),
                    policy,
                }),
                Principal::Role(arn) => {
                    let trust_policy = PolicyDocument::trusting(arn, required, ids, notes);
                    policies.roles.push(RolePolicies {
                        role_arn: arn.clone(),
                        policy,
                        trust_policy,
                    });
                }
            }
        }
        Self::Several(policies)
    }
}

impl PolicyDocument {
    /// The policy that allows an identity these permissions.
    pub fn allowing(permissions: &Permissions) -> Self {
        let statement = |(permission, resources): (&Permission, &BTreeSet<String>)| Statement {
            resource: resources.iter().cloned().collect(),
            ..Statement::new(permission.sid(), permission.actions())
        };
        Self::new(permissions.iter().map(statement).collect())
    }

    /// The trust policy of a role: who may assume it. Each action has a statement of its own,
    /// because a condition may only use the keys of the action that it is for.
    fn trusting(
        role: &str,
        required: &RequiredPermissions,
        ids: &AwsIds,
        notes: &mut Notes,
    ) -> Self {
        notes.add(
            "trust policies name the proxy's account: put its own role or user in that place \
             where it is known"
                .to_string(),
        );
        let assumed = &required.roles[role];
        let accounts: BTreeSet<String> = assumed
            .by_profiles
            .iter()
            .filter_map(|profile| trusted_account(role, profile.as_ref(), required, ids, notes))
            .collect();
        let principals: Vec<String> = accounts
            .iter()
            .map(|account| format!("arn:{}:iam::{account}:root", partition_of(role)))
            .collect();
        let statement = |sid, actions| Statement {
            principal: [("AWS", principals.clone())].into(),
            ..Statement::new(sid, actions)
        };
        let mut assume = statement("AssumeRole", &[Action::StsAssumeRole]);
        if !assumed.external_ids.contains(&None) {
            let ids = assumed.external_ids.iter().flatten().cloned().collect();
            assume.condition = [("StringEquals", [("sts:ExternalId", ids)].into())].into();
        }
        let mut statements = vec![assume];
        if assumed.names_people {
            let mut tag = statement("TagSession", &[Action::StsTagSession]);
            tag.condition = [(
                "ForAllValues:StringEquals",
                [("aws:TagKeys", vec![PERSON_TAG.to_string()])].into(),
            )]
            .into();
            statements.extend([
                statement("SetSourceIdentity", &[Action::StsSetSourceIdentity]),
                tag,
            ]);
        }
        Self::new(statements)
    }

    /// The number of characters as IAM counts them, which is without white space.
    pub fn size(&self) -> usize {
        serde_json::to_string(self)
            .expect("it has text and lists only")
            .chars()
            .count()
    }

    fn new(statement: Vec<Statement>) -> Self {
        Self {
            version: "2012-10-17",
            statement,
        }
    }
}

/// The account whose identities may assume the role.
///
/// When the account of the proxy is not known, it is taken to be the one of the roles, or the
/// role's own. It is never a wildcard, which would let in every account of AWS.
fn trusted_account(
    role: &str,
    profile: Option<&String>,
    required: &RequiredPermissions,
    ids: &AwsIds,
    notes: &mut Notes,
) -> Option<String> {
    if let Some(account) = ids.account_of_profile(profile) {
        return Some(account.to_string());
    }
    let (account, note) = match &required.account_of_roles {
        Some(account) => (account.as_str(), account_of_roles_note(account)),
        None => (
            account_of(role)?,
            format!(
                "{role}: its trust policy takes the proxy to be in its own account: --account \
                 says otherwise"
            ),
        ),
    };
    notes.add(note);
    Some(account.to_string())
}

impl Statement {
    fn new(sid: &'static str, action: &'static [Action]) -> Self {
        Self {
            sid,
            effect: "Allow",
            principal: BTreeMap::new(),
            action,
            resource: Vec::new(),
            condition: BTreeMap::new(),
        }
    }
}
