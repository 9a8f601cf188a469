//! Which permissions whose policy must have: the proxy's own identity, and each role's.

use std::collections::{BTreeMap, BTreeSet};

use super::Notes;
use super::access::Use;
use super::arn::{Name, account_of, partition};
use super::facts::Facts;
use crate::config::{
    Choice, ClusterName, Config, Discovery, EndpointSource, Engine, Redshift, RedshiftApi, Role,
    Target,
};

/// The one user of DSQL that has an action of its own.
const DSQL_ADMIN: &str = "admin";

/// What a policy allows: each a statement, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Permission {
    RdsConnect,
    RedshiftCredentials,
    RedshiftCreateUser,
    RedshiftJoinGroup,
    RedshiftCredentialsWithIam,
    RedshiftEndpoints,
    RedshiftDomains,
    ServerlessCredentials,
    ServerlessEndpoints,
    DsqlConnect,
    DsqlConnectAdmin,
    RdsInstanceEndpoints,
    RdsClusterEndpoints,
    AssumeRoles,
    NamePeople,
}

/// Resources by permission.
pub type Grants = BTreeMap<Permission, BTreeSet<String>>;

/// Whose policy it is. A profile is an identity of its own; `None` is the default chain.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Holder {
    Proxy(Option<String>),
    Role(String),
}

/// Who assumes a role, and how.
#[derive(Debug, Default)]
pub struct Assumed {
    /// Profiles of the identities that assume it.
    pub by: BTreeSet<Option<String>>,
    /// `ExternalId` of each use.
    pub external_ids: BTreeSet<Option<String>>,
    /// Whether the client's name goes with it.
    pub names_people: bool,
}

/// All policies of a configuration.
#[derive(Debug, Default)]
pub struct Plan {
    pub grants: BTreeMap<Holder, Grants>,
    pub roles: BTreeMap<String, Assumed>,
    /// Account of the proxy's own identity where nobody says: that of the roles, when they are of
    /// one account.
    pub assumed_account: Option<String>,
}

impl Plan {
    /// Adds up the permissions of every login that may come, and of finding the servers.
    pub fn of(config: &Config, uses: &[Use<'_>], facts: &Facts, notes: &mut Notes) -> Self {
        let plan = Self {
            assumed_account: assumed_account(config, uses),
            ..Self::default()
        };
        let mut planner = Planner { plan, facts, notes };
        for one in uses {
            planner.login(one);
        }
        for target in super::targets(config) {
            planner.endpoint(target);
        }
        planner.plan
    }
}

struct Planner<'a> {
    plan: Plan,
    facts: &'a Facts,
    notes: &'a mut Notes,
}

impl Planner<'_> {
    fn login(&mut self, one: &Use<'_>) {
        let (target, user) = (one.target, one.db_user);
        let holder = self.holder(target, one.role.as_ref());
        if user == Name::Any && !names_itself(&target.engine) {
            self.notes.add(format!(
                "{}: the client chooses the database user, so that every one is allowed: set db_user, or say in a rule who the users are",
                target.name
            ));
        }
        match &target.engine {
            Engine::Rds(_) => {
                let resource = self.arn(&holder, target, "rds-db", "dbuser", user);
                self.grant(&holder, Permission::RdsConnect, resource);
            }
            Engine::Redshift(redshift) => self.redshift_login(&holder, one, redshift),
            Engine::RedshiftServerless(_) => {
                let resource = self.server_arn(&holder, target, "redshift-serverless", "workgroup");
                self.grant(&holder, Permission::ServerlessCredentials, resource);
            }
            Engine::Dsql(_) => {
                let resource = self.server_arn(&holder, target, "dsql", "cluster");
                if user != Name::Exactly(DSQL_ADMIN) {
                    self.grant(&holder, Permission::DsqlConnect, resource.clone());
                }
                if matches!(user, Name::Any | Name::Exactly(DSQL_ADMIN)) {
                    self.grant(&holder, Permission::DsqlConnectAdmin, resource);
                }
            }
        }
    }

    fn redshift_login(&mut self, holder: &Holder, one: &Use<'_>, redshift: &Redshift) {
        let target = one.target;
        let database = match &target.database {
            Choice::Fixed(name) => Name::Exactly(name),
            Choice::Client => Name::Any,
        };
        let database = self.arn(holder, target, "redshift", "dbname", database);
        match &redshift.api {
            RedshiftApi::GetClusterCredentials {
                auto_create,
                db_groups,
            } => {
                let user = self.arn(holder, target, "redshift", "dbuser", one.db_user);
                self.grant(holder, Permission::RedshiftCredentials, user.clone());
                self.grant(holder, Permission::RedshiftCredentials, database);
                if *auto_create {
                    self.grant(holder, Permission::RedshiftCreateUser, user);
                }
                for group in one.db_groups.unwrap_or(db_groups) {
                    let group =
                        self.arn(holder, target, "redshift", "dbgroup", Name::Exactly(group));
                    self.grant(holder, Permission::RedshiftJoinGroup, group);
                }
            }
            RedshiftApi::GetClusterCredentialsWithIam => {
                self.grant(holder, Permission::RedshiftCredentialsWithIam, database);
            }
        }
    }

    /// An endpoint is asked for with the target's identity, whoever logs in.
    fn endpoint(&mut self, target: &Target) {
        if let Engine::Redshift(Redshift {
            cluster: ClusterName::CustomDomain {
                identifier: None, ..
            },
            ..
        }) = &target.engine
        {
            // For the cluster's identifier, when AWS refuses the domain name.
            let holder = self.holder(target, target.aws.role.as_ref());
            self.grant(&holder, Permission::RedshiftDomains, "*".to_string());
        }
        let EndpointSource::Discover { what, .. } = &target.endpoint else {
            return;
        };
        let holder = self.holder(target, target.aws.role.as_ref());
        let (permission, resource) = match what {
            // The call knows no resources:
            // https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazonredshift.html
            Discovery::RedshiftCluster(_) => (Permission::RedshiftEndpoints, "*".to_string()),
            Discovery::RedshiftWorkgroup(_) => (
                Permission::ServerlessEndpoints,
                self.server_arn(&holder, target, "redshift-serverless", "workgroup"),
            ),
            Discovery::RdsInstance(identifier) => (
                Permission::RdsInstanceEndpoints,
                self.rds_arn(&holder, target, "db", identifier),
            ),
            Discovery::RdsCluster { identifier, .. } => (
                Permission::RdsClusterEndpoints,
                self.rds_arn(&holder, target, "cluster", identifier),
            ),
        };
        self.grant(&holder, permission, resource);
    }

    /// Whose permission it is; a role has to be assumed first.
    fn holder(&mut self, target: &Target, role: Option<&Role>) -> Holder {
        let own = Holder::Proxy(target.aws.profile.clone());
        let Some(role) = role else { return own };
        let assumed = self.plan.roles.entry(role.arn.clone()).or_default();
        assumed.by.insert(target.aws.profile.clone());
        assumed.external_ids.insert(role.external_id.clone());
        assumed.names_people |= role.person.is_some();
        self.grant(&own, Permission::AssumeRoles, role.arn.clone());
        if role.person.is_some() {
            self.grant(&own, Permission::NamePeople, role.arn.clone());
        }
        Holder::Role(role.arn.clone())
    }

    fn grant(&mut self, holder: &Holder, permission: Permission, resource: String) {
        self.plan
            .grants
            .entry(holder.clone())
            .or_default()
            .entry(permission)
            .or_default()
            .insert(resource);
    }

    fn arn(
        &mut self,
        holder: &Holder,
        target: &Target,
        service: &str,
        kind: &str,
        name: Name<'_>,
    ) -> String {
        let server = self.server(target, &format!("{kind}:*"));
        format!(
            "{}{kind}:{server}/{name}",
            self.arn_of(holder, target, service)
        )
    }

    /// Where the server itself is the resource.
    fn server_arn(
        &mut self,
        holder: &Holder,
        target: &Target,
        service: &str,
        kind: &str,
    ) -> String {
        let server = self.server(target, &format!("{kind}/*"));
        format!("{}{kind}/{server}", self.arn_of(holder, target, service))
    }

    fn arn_of(&mut self, holder: &Holder, target: &Target, service: &str) -> String {
        format!(
            "arn:{}:{service}:{}:{}:",
            partition(&target.region),
            target.region,
            self.account(holder, target)
        )
    }

    /// What ARNs call the server, or a wildcard.
    fn server(&mut self, target: &Target, written: &str) -> String {
        if let Some(server) = self.facts.server(target) {
            return server.to_string();
        }
        let text = match target.engine {
            Engine::Rds(_) => "DbiResourceId, DbClusterResourceId or prx-…",
            Engine::Redshift(_) => "ClusterIdentifier",
            Engine::RedshiftServerless(_) => "workgroupId",
            Engine::Dsql(_) => "the cluster's identifier",
        };
        self.notes.add(format!(
            "{}: the server's id is not in the configuration, so that every server of the account and region is allowed: \
             run with --discover, or put the id ({text}) in place of {written}",
            target.name
        ));
        "*".to_string()
    }

    fn rds_arn(
        &mut self,
        holder: &Holder,
        target: &Target,
        kind: &str,
        identifier: &str,
    ) -> String {
        format!("{}{kind}:{identifier}", self.arn_of(holder, target, "rds"))
    }

    /// A role and what it may use are of one account.
    fn account(&mut self, holder: &Holder, target: &Target) -> String {
        let known = match holder {
            Holder::Role(arn) => account_of(arn),
            Holder::Proxy(profile) => self.facts.account_of_profile(profile.as_ref()),
        };
        match (known, holder, &self.plan.assumed_account) {
            (Some(account), _, _) => account.to_string(),
            (None, Holder::Proxy(_), Some(account)) => {
                self.notes.add(same_account(account));
                account.clone()
            }
            (None, _, _) => {
                self.notes
                    .add(format!("{}: the account is not known and every one is allowed: run with --account or --discover", target.name));
                "*".to_string()
            }
        }
    }
}

/// Whether the database user is the AWS identity itself.
fn names_itself(engine: &Engine) -> bool {
    match engine {
        Engine::Redshift(redshift) => {
            matches!(redshift.api, RedshiftApi::GetClusterCredentialsWithIam)
        }
        Engine::RedshiftServerless(_) => true,
        Engine::Rds(_) | Engine::Dsql(_) => false,
    }
}

/// What to say where the account was assumed.
pub fn same_account(account: &str) -> String {
    format!(
        "the proxy is taken to be in account {account}, as its roles are: --account says otherwise"
    )
}

fn assumed_account(config: &Config, uses: &[Use<'_>]) -> Option<String> {
    let of_targets = super::targets(config).filter_map(|target| target.aws.role.as_ref());
    let roles = uses
        .iter()
        .filter_map(|one| one.role.as_ref())
        .chain(of_targets);
    let accounts: BTreeSet<&str> = roles.filter_map(|role| account_of(&role.arn)).collect();
    match accounts.into_iter().collect::<Vec<_>>()[..] {
        [only] => Some(only.to_string()),
        _ => None,
    }
}
