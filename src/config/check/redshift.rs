//! What must be known of a Redshift target, provisioned or serverless?

use super::target::Dial;
use super::{Checker, Head};
use crate::config::keys::{self, Api};
use crate::config::{
    ClusterName, Discovery, Endpoint, EndpointSource, Engine, Redshift, RedshiftApi,
    RedshiftServerless, WorkgroupName, redshift_rules,
};

const DEFAULT_PORT: u16 = 5439;
/// The value that AWS uses when `DurationSeconds` is not given.
const DEFAULT_DURATION_SECONDS: i32 = 900;

impl Checker<'_> {
    pub(super) fn redshift(
        &mut self,
        head: &Head<'_>,
        raw: &keys::Target,
        dial: Dial,
    ) -> Option<(Engine, EndpointSource)> {
        self.rule(
            "cluster_identifier",
            raw.cluster_identifier.as_ref(),
            redshift_rules::check_cluster_identifier,
        );
        self.rule(
            "database",
            raw.database.as_ref(),
            redshift_rules::check_database,
        );
        let api = self.redshift_api(raw);
        let identifier = raw
            .cluster_identifier
            .text()
            .or_else(|| dial.first_label_of("redshift"));
        let Dial { host, port, .. } = dial;
        let domain = raw.custom_domain_name.text();
        let host = host.or_else(|| domain.clone());
        let cluster = match (domain, identifier.clone()) {
            (Some(domain), identifier) => ClusterName::CustomDomain { domain, identifier },
            (None, Some(identifier)) => ClusterName::Identifier(identifier),
            (None, None) => {
                self.missing(
                    head,
                    &["cluster_identifier", "custom_domain_name", "host"],
                    "cluster_identifier: say which cluster, as in cluster_identifier = \
                     \"examplecluster\" (or custom_domain_name, or a host that ends in \
                     .redshift.amazonaws.com)",
                );
                return None;
            }
        };
        let endpoint = endpoint(host, identifier.map(Discovery::RedshiftCluster), port)?;
        Some((
            Engine::Redshift(Redshift {
                cluster,
                api,
                duration_seconds: raw.duration_seconds.or(DEFAULT_DURATION_SECONDS),
            }),
            endpoint,
        ))
    }

    pub(super) fn redshift_serverless(
        &mut self,
        head: &Head<'_>,
        raw: &keys::Target,
        dial: Dial,
    ) -> Option<(Engine, EndpointSource)> {
        self.rule(
            "workgroup_name",
            raw.workgroup_name.as_ref(),
            redshift_rules::check_workgroup_name,
        );
        self.rule(
            "database",
            raw.database.as_ref(),
            redshift_rules::check_database,
        );
        let name = raw
            .workgroup_name
            .text()
            .or_else(|| dial.first_label_of("redshift-serverless"));
        let Dial { host, port, .. } = dial;
        let domain = raw.custom_domain_name.text();
        let host = host.or_else(|| domain.clone());
        // The workgroup's own name comes first, because the call fails with a custom domain name
        // that is not registered any more.
        let workgroup = match (name.clone(), domain) {
            (Some(name), _) => WorkgroupName::Name(name),
            (None, Some(domain)) => WorkgroupName::CustomDomain(domain),
            (None, None) => {
                self.missing(
                    head,
                    &["workgroup_name", "custom_domain_name", "host"],
                    "workgroup_name: say which workgroup, as in workgroup_name = \"myworkgroup\" \
                     (or custom_domain_name, or a host that ends in \
                     .redshift-serverless.amazonaws.com)",
                );
                return None;
            }
        };
        let endpoint = endpoint(host, name.map(Discovery::RedshiftWorkgroup), port)?;
        Some((
            Engine::RedshiftServerless(RedshiftServerless {
                workgroup,
                duration_seconds: raw.duration_seconds.or(DEFAULT_DURATION_SECONDS),
            }),
            endpoint,
        ))
    }

    fn redshift_api(&mut self, raw: &keys::Target) -> RedshiftApi {
        match raw.api.or(Api::GetClusterCredentials) {
            Api::GetClusterCredentials => {
                let db_user = raw.db_user.as_ref();
                self.rule("db_user", db_user, redshift_rules::check_db_user);
                self.groups("db_groups", &raw.db_groups);
                RedshiftApi::GetClusterCredentials {
                    auto_create: raw.auto_create.or(false),
                    db_groups: raw.db_groups.texts().unwrap_or_default(),
                }
            }
            Api::GetClusterCredentialsWithIam => {
                let text = "get-cluster-credentials-with-iam maps the AWS identity to the \
                            database user and takes none of this: delete it";
                self.foreign("db_user", &raw.db_user, text);
                self.foreign("auto_create", &raw.auto_create, text);
                self.foreign("db_groups", &raw.db_groups, text);
                RedshiftApi::GetClusterCredentialsWithIam
            }
        }
    }
}

fn endpoint(
    host: Option<String>,
    discovery: Option<Discovery>,
    port: Option<u16>,
) -> Option<EndpointSource> {
    match (host, discovery) {
        (Some(host), _) => Some(EndpointSource::Fixed(Endpoint {
            host,
            port: port.unwrap_or(DEFAULT_PORT),
        })),
        (None, Some(what)) => Some(EndpointSource::Discover { what, port }),
        (None, None) => None,
    }
}
