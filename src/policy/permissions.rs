//! Which permissions does each AWS identity need: the proxy's own, and each role's?

use std::collections::{BTreeMap, BTreeSet};

use super::allowed_logins::{AllowedLogin, targets};
use super::aws_ids::AwsIds;
use super::notes::Notes;
use crate::config::{
    Choice, ClusterName, Config, Discovery, EndpointSource, Engine, Redshift, RedshiftApi, Role,
    TargetSettings,
};
use crate::iam::{Action, DSQL_ADMIN, Name, ResourceNames, account_of, resource_arns};

/// What a policy allows. Each permission is a statement, and statements are in this order.
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

impl Permission {
    /// The `Sid` of the statement.
    pub fn sid(self) -> &'static str {
        match self {
            Self::RdsConnect => "RdsConnect",
            Self::RedshiftCredentials => "RedshiftCredentials",
            Self::RedshiftCreateUser => "RedshiftCreateUser",
            Self::RedshiftJoinGroup => "RedshiftJoinGroup",
            Self::RedshiftCredentialsWithIam => "RedshiftCredentialsWithIam",
            Self::RedshiftEndpoints => "RedshiftEndpoints",
            Self::RedshiftDomains => "RedshiftDomains",
            Self::ServerlessCredentials => "ServerlessCredentials",
            Self::ServerlessEndpoints => "ServerlessEndpoints",
            Self::DsqlConnect => "DsqlConnect",
            Self::DsqlConnectAdmin => "DsqlConnectAdmin",
            Self::RdsInstanceEndpoints => "RdsInstanceEndpoints",
            Self::RdsClusterEndpoints => "RdsClusterEndpoints",
            Self::AssumeRoles => "AssumeRoles",
            Self::NamePeople => "NamePeople",
        }
    }

    /// The `Action` of the statement.
    pub fn actions(self) -> &'static [Action] {
        match self {
            Self::RdsConnect => &[Action::RdsDbConnect],
            Self::RedshiftCredentials => &[Action::RedshiftGetClusterCredentials],
            Self::RedshiftCreateUser => &[Action::RedshiftCreateClusterUser],
            Self::RedshiftJoinGroup => &[Action::RedshiftJoinGroup],
            Self::RedshiftCredentialsWithIam => &[Action::RedshiftGetClusterCredentialsWithIam],
            Self::RedshiftEndpoints => &[Action::RedshiftDescribeClusters],
            Self::RedshiftDomains => &[Action::RedshiftDescribeCustomDomainAssociations],
            Self::ServerlessCredentials => &[Action::RedshiftServerlessGetCredentials],
            Self::ServerlessEndpoints => &[Action::RedshiftServerlessGetWorkgroup],
            Self::DsqlConnect => &[Action::DsqlDbConnect],
            Self::DsqlConnectAdmin => &[Action::DsqlDbConnectAdmin],
            Self::RdsInstanceEndpoints => &[Action::RdsDescribeDbInstances],
            Self::RdsClusterEndpoints => &[Action::RdsDescribeDbClusters],
            Self::AssumeRoles => &[Action::StsAssumeRole],
            Self::NamePeople => &[Action::StsSetSourceIdentity, Action::StsTagSession],
        }
    }
}

/// The permissions of one policy, each with the resources that it is for.
pub type Permissions = BTreeMap<Permission, BTreeSet<String>>;

/// The AWS identity that a policy is attached to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Principal {
    /// The proxy's own identity: that of a profile, or of the default chain when `None`.
    Proxy(Option<String>),
    /// The role that has this ARN.
    Role(String),
}

/// How the proxy assumes a role.
#[derive(Debug, Default)]
pub struct AssumedRole {
    /// Profiles of the identities that assume it; `None` is the default chain.
    pub by_profiles: BTreeSet<Option<String>>,
    /// The `ExternalId` of each login that uses the role; `None` for a login that has none.
    pub external_ids: BTreeSet<Option<String>>,
    /// Whether the client's name goes with it, as `SourceIdentity` and as a session tag.
    pub names_people: bool,
}

/// All permissions that a configuration needs.
#[derive(Debug, Default)]
pub struct RequiredPermissions {
    pub by_principal: BTreeMap<Principal, Permissions>,
    /// The roles that are assumed, by ARN.
    pub roles: BTreeMap<String, AssumedRole>,
    /// The one account that all roles belong to. It is taken for the account of the proxy's own
    /// identity when that is not known; `None` when there are several, or no roles.
    pub account_of_roles: Option<String>,
}

impl RequiredPermissions {
    /// Adds up what every allowed login and every endpoint lookup needs.
    pub fn collect(
        config: &Config,
        logins: &[AllowedLogin<'_>],
        ids: &AwsIds,
        notes: &mut Notes,
    ) -> Self {
        let required = Self {
            account_of_roles: account_of_roles(config, logins),
            ..Self::default()
        };
        let mut collector = Collector {
            required,
            ids,
            notes,
        };
        for login in logins {
            collector.add_login(login);
        }
        for target in targets(config) {
            collector.add_endpoint_lookup(target);
        }
        collector.required
    }
}

struct Collector<'a> {
    required: RequiredPermissions,
    ids: &'a AwsIds,
    notes: &'a mut Notes,
}

impl Collector<'_> {
    fn add_login(&mut self, login: &AllowedLogin<'_>) {
        let target = login.target;
        let principal = self.principal(target, login.role.as_ref());
        if login.db_user == Name::Any && !db_user_is_the_aws_identity(&target.engine) {
            self.notes.add(format!(
                "{}: the client chooses the database user, so that every one is allowed: \
                 set db_user, or say in a rule who the users are",
                target.name
            ));
        }
        for permission in login_permissions(login) {
            self.add(&principal, permission, login);
        }
    }

    /// Endpoints are looked up with the target's own identity, whoever logs in.
    fn add_endpoint_lookup(&mut self, target: &TargetSettings) {
        let permissions = lookup_permissions(target);
        if permissions.is_empty() {
            return;
        }
        let principal = self.principal(target, target.aws.role.as_ref());
        let lookup = AllowedLogin {
            target,
            role: None,
            db_user: Name::Any,
            db_groups: &[],
        };
        for permission in permissions {
            self.add(&principal, permission, &lookup);
        }
    }

    /// The identity that asks AWS. A role has to be assumed first, which is a permission of the
    /// proxy's own identity.
    fn principal(&mut self, target: &TargetSettings, role: Option<&Role>) -> Principal {
        let own = Principal::Proxy(target.aws.profile.clone());
        let Some(role) = role else { return own };
        let assumed = self.required.roles.entry(role.arn.clone()).or_default();
        assumed.by_profiles.insert(target.aws.profile.clone());
        assumed.external_ids.insert(role.external_id.clone());
        assumed.names_people |= role.person.is_some();
        self.add_resource(&own, Permission::AssumeRoles, role.arn.clone());
        if role.person.is_some() {
            self.add_resource(&own, Permission::NamePeople, role.arn.clone());
        }
        Principal::Role(role.arn.clone())
    }

    fn add(&mut self, principal: &Principal, permission: Permission, login: &AllowedLogin<'_>) {
        let target = login.target;
        let (ids, server_id) = (self.ids, self.ids.server_id(target));
        for action in permission.actions() {
            let types = action.resource_types();
            if server_id.is_none() {
                for kind in types.iter().filter(|kind| kind.has_server_id()) {
                    self.note_unknown_server(target, &kind.of_every_server());
                }
            }
            let account = if types.is_empty() {
                None
            } else {
                self.account(ids, principal, target)
            };
            let names = ResourceNames {
                target,
                account: account.as_deref().into(),
                server_id: server_id.into(),
                db_user: login.db_user,
                database: match &target.database {
                    Choice::Fixed(name) => Name::Exactly(name),
                    Choice::Client => Name::Any,
                },
                db_groups: login.db_groups,
            };
            for resource in resource_arns(*action, &names) {
                self.add_resource(principal, permission, resource);
            }
        }
    }

    fn add_resource(&mut self, principal: &Principal, permission: Permission, resource: String) {
        self.required
            .by_principal
            .entry(principal.clone())
            .or_default()
            .entry(permission)
            .or_default()
            .insert(resource);
    }

    /// The account of the server, which is that of the identity: a role and the servers that it may
    /// use belong to the same account. `None`, with a note, when it is not known.
    fn account(
        &mut self,
        ids: &AwsIds,
        principal: &Principal,
        target: &TargetSettings,
    ) -> Option<String> {
        let known = match principal {
            Principal::Role(arn) => account_of(arn),
            Principal::Proxy(profile) => ids.account_of_profile(profile.as_ref()),
        };
        match (known, principal, &self.required.account_of_roles) {
            (Some(account), _, _) => Some(account.to_string()),
            (None, Principal::Proxy(_), Some(account)) => {
                self.notes.add(account_of_roles_note(account));
                Some(account.clone())
            }
            (None, _, _) => {
                self.notes.add(format!(
                    "{}: the account is not known and every one is allowed: \
                     run with --account or --discover",
                    target.name
                ));
                None
            }
        }
    }

    fn note_unknown_server(&mut self, target: &TargetSettings, every_server: &str) {
        let id = match target.engine {
            Engine::Rds(_) => "DbiResourceId, DbClusterResourceId or prx-…",
            Engine::Redshift(_) => "ClusterIdentifier",
            Engine::RedshiftServerless(_) => "workgroupId",
            Engine::Dsql(_) => "the cluster's identifier",
        };
        self.notes.add(format!(
            "{}: the server's id is not in the configuration, so that every server of the account \
             and region is allowed: run with --discover, or put the id ({id}) in place of \
             {every_server}",
            target.name
        ));
    }
}

fn login_permissions(login: &AllowedLogin<'_>) -> Vec<Permission> {
    match &login.target.engine {
        Engine::Rds(_) => vec![Permission::RdsConnect],
        Engine::Redshift(redshift) => match &redshift.api {
            RedshiftApi::GetClusterCredentials { auto_create, .. } => {
                let mut permissions = vec![Permission::RedshiftCredentials];
                if *auto_create {
                    permissions.push(Permission::RedshiftCreateUser);
                }
                if !login.db_groups.is_empty() {
                    permissions.push(Permission::RedshiftJoinGroup);
                }
                permissions
            }
            RedshiftApi::GetClusterCredentialsWithIam => {
                vec![Permission::RedshiftCredentialsWithIam]
            }
        },
        Engine::RedshiftServerless(_) => vec![Permission::ServerlessCredentials],
        Engine::Dsql(_) => match login.db_user {
            Name::Any => vec![Permission::DsqlConnect, Permission::DsqlConnectAdmin],
            Name::Exactly(DSQL_ADMIN) => vec![Permission::DsqlConnectAdmin],
            Name::Exactly(_) => vec![Permission::DsqlConnect],
        },
    }
}

fn lookup_permissions(target: &TargetSettings) -> Vec<Permission> {
    let mut permissions = Vec::new();
    if let Engine::Redshift(Redshift {
        cluster: ClusterName::CustomDomain {
            identifier: None, ..
        },
        ..
    }) = &target.engine
    {
        // The cluster's identifier is looked up when AWS refuses the custom domain name.
        permissions.push(Permission::RedshiftDomains);
    }
    if let EndpointSource::Discover { what, .. } = &target.endpoint {
        permissions.push(match what {
            Discovery::RedshiftCluster(_) => Permission::RedshiftEndpoints,
            Discovery::RedshiftWorkgroup(_) => Permission::ServerlessEndpoints,
            Discovery::RdsInstance(_) => Permission::RdsInstanceEndpoints,
            Discovery::RdsCluster { .. } => Permission::RdsClusterEndpoints,
        });
    }
    permissions
}

/// Whether AWS derives the database user from the AWS identity, whatever the client asks for.
fn db_user_is_the_aws_identity(engine: &Engine) -> bool {
    match engine {
        Engine::Redshift(redshift) => {
            matches!(redshift.api, RedshiftApi::GetClusterCredentialsWithIam)
        }
        Engine::RedshiftServerless(_) => true,
        Engine::Rds(_) | Engine::Dsql(_) => false,
    }
}

/// The note for policies in which the account of the roles is taken for the proxy's own.
pub fn account_of_roles_note(account: &str) -> String {
    format!(
        "the proxy is taken to be in account {account}, as its roles are: --account says otherwise"
    )
}

fn account_of_roles(config: &Config, logins: &[AllowedLogin<'_>]) -> Option<String> {
    let of_targets = targets(config).filter_map(|target| target.aws.role.as_ref());
    let roles = logins
        .iter()
        .filter_map(|login| login.role.as_ref())
        .chain(of_targets);
    let accounts: BTreeSet<&str> = roles.filter_map(|role| account_of(&role.arn)).collect();
    match accounts.into_iter().collect::<Vec<_>>()[..] {
        [only] => Some(only.to_string()),
        _ => None,
    }
}
