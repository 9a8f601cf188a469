//! The JSON of policies, in the order in which people read them.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::Notes;
use super::arn::{account_of, partition_of};
use super::facts::Facts;
use super::grants::{Grants, Holder, Permission, Plan, same_account};
use crate::credentials::PERSON_TAG;

/// What is printed: one policy where one identity does everything, else each with its owner.
#[derive(Serialize)]
#[serde(untagged)]
pub enum Printed {
    One(Policy),
    Several(Several),
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Several {
    #[serde(skip_serializing_if = "Option::is_none")]
    proxy_policy: Option<Policy>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    profiles: Vec<OfProfile>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    roles: Vec<OfRole>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct OfProfile {
    profile: String,
    policy: Policy,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct OfRole {
    role_arn: String,
    policy: Policy,
    trust_policy: Policy,
}

/// <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_grammar.html>
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Policy {
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
    action: &'static [&'static str],
    #[serde(skip_serializing_if = "Vec::is_empty")]
    resource: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    condition: BTreeMap<&'static str, BTreeMap<&'static str, Vec<String>>>,
}

impl Printed {
    pub fn of(plan: &Plan, facts: &Facts, notes: &mut Notes) -> Self {
        let owners: Vec<&Holder> = plan.grants.keys().collect();
        if let [] | [Holder::Proxy(_)] = owners[..] {
            return Self::One(Policy::allowing(
                plan.grants.values().next().unwrap_or(&Grants::new()),
            ));
        }
        let mut several = Several {
            proxy_policy: None,
            profiles: Vec::new(),
            roles: Vec::new(),
        };
        for (holder, grants) in &plan.grants {
            let policy = Policy::allowing(grants);
            match holder {
                Holder::Proxy(None) => several.proxy_policy = Some(policy),
                Holder::Proxy(Some(profile)) => several.profiles.push(OfProfile {
                    profile: profile.clone(),
                    policy,
                }),
                Holder::Role(arn) => {
                    let trust_policy = Policy::trusting(arn, plan, facts, notes);
                    several.roles.push(OfRole {
                        role_arn: arn.clone(),
                        policy,
                        trust_policy,
                    });
                }
            }
        }
        Self::Several(several)
    }
}

impl Policy {
    /// The policy of an identity.
    pub fn allowing(grants: &Grants) -> Self {
        let statement = |(permission, resources): (&Permission, &BTreeSet<String>)| {
            let (sid, action) = permission.written();
            Statement {
                resource: resources.iter().cloned().collect(),
                ..Statement::new(sid, action)
            }
        };
        Self::new(grants.iter().map(statement).collect())
    }

    /// Who may assume the role. Conditions stand beside the action whose key they use.
    fn trusting(role: &str, plan: &Plan, facts: &Facts, notes: &mut Notes) -> Self {
        notes.add("trust policies name the proxy's account: put its own role or user in that place where it is known".to_string());
        let assumed = &plan.roles[role];
        let account =
            |profile: &Option<String>| trusted_account(role, profile.as_ref(), plan, facts, notes);
        let accounts: BTreeSet<String> = assumed.by.iter().filter_map(account).collect();
        let principals: Vec<String> = accounts
            .iter()
            .map(|account| format!("arn:{}:iam::{account}:root", partition_of(role)))
            .collect();
        let statement = |sid, action| Statement {
            principal: [("AWS", principals.clone())].into(),
            ..Statement::new(sid, action)
        };
        let mut assume = statement("AssumeRole", &["sts:AssumeRole"]);
        if !assumed.external_ids.contains(&None) {
            let ids = assumed.external_ids.iter().flatten().cloned().collect();
            assume.condition = [("StringEquals", [("sts:ExternalId", ids)].into())].into();
        }
        let mut statements = vec![assume];
        if assumed.names_people {
            let mut tag = statement("TagSession", &["sts:TagSession"]);
            tag.condition = [(
                "ForAllValues:StringEquals",
                [("aws:TagKeys", vec![PERSON_TAG.to_string()])].into(),
            )]
            .into();
            statements.extend([
                statement("SetSourceIdentity", &["sts:SetSourceIdentity"]),
                tag,
            ]);
        }
        Self::new(statements)
    }

    /// Characters as IAM counts them: without white space.
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

/// Never a wildcard, which would let in everybody: where the proxy's account is not known, the
/// role's own.
fn trusted_account(
    role: &str,
    profile: Option<&String>,
    plan: &Plan,
    facts: &Facts,
    notes: &mut Notes,
) -> Option<String> {
    if let Some(account) = facts.account_of_profile(profile) {
        return Some(account.to_string());
    }
    let (account, note) = match &plan.assumed_account {
        Some(account) => (account.as_str(), same_account(account)),
        None => (
            account_of(role)?,
            format!(
                "{role}: its trust policy takes the proxy to be in its own account: --account says otherwise"
            ),
        ),
    };
    notes.add(note);
    Some(account.to_string())
}

impl Statement {
    fn new(sid: &'static str, action: &'static [&'static str]) -> Self {
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

impl Permission {
    /// `Sid` and `Action`.
    fn written(self) -> (&'static str, &'static [&'static str]) {
        match self {
            Self::RdsConnect => ("RdsConnect", &["rds-db:connect"]),
            Self::RedshiftCredentials => {
                ("RedshiftCredentials", &["redshift:GetClusterCredentials"])
            }
            Self::RedshiftCreateUser => ("RedshiftCreateUser", &["redshift:CreateClusterUser"]),
            Self::RedshiftJoinGroup => ("RedshiftJoinGroup", &["redshift:JoinGroup"]),
            Self::RedshiftCredentialsWithIam => (
                "RedshiftCredentialsWithIam",
                &["redshift:GetClusterCredentialsWithIAM"],
            ),
            Self::RedshiftEndpoints => ("RedshiftEndpoints", &["redshift:DescribeClusters"]),
            Self::RedshiftDomains => (
                "RedshiftDomains",
                &["redshift:DescribeCustomDomainAssociations"],
            ),
            Self::ServerlessCredentials => (
                "ServerlessCredentials",
                &["redshift-serverless:GetCredentials"],
            ),
            Self::ServerlessEndpoints => {
                ("ServerlessEndpoints", &["redshift-serverless:GetWorkgroup"])
            }
            Self::DsqlConnect => ("DsqlConnect", &["dsql:DbConnect"]),
            Self::DsqlConnectAdmin => ("DsqlConnectAdmin", &["dsql:DbConnectAdmin"]),
            Self::RdsInstanceEndpoints => ("RdsInstanceEndpoints", &["rds:DescribeDBInstances"]),
            Self::RdsClusterEndpoints => ("RdsClusterEndpoints", &["rds:DescribeDBClusters"]),
            Self::AssumeRoles => ("AssumeRoles", &["sts:AssumeRole"]),
            Self::NamePeople => ("NamePeople", &["sts:SetSourceIdentity", "sts:TagSession"]),
        }
    }
}
