//! The rules of Redshift targets, provisioned and serverless.

use std::ops::Range;

use toml::Spanned;

use super::Checker;
use super::target::Dial;
use crate::config::raw;
use crate::config::{
    ClusterName, Discovery, Endpoint, EndpointSource, Engine, Redshift, RedshiftApi,
    RedshiftServerless, WorkgroupName, redshift_rules,
};

const DEFAULT_PORT: u16 = 5439;

impl Checker<'_> {
    pub(super) fn redshift(
        &mut self,
        span: &Range<usize>,
        raw: &raw::Target,
        dial: Dial,
    ) -> Option<(Engine, EndpointSource)> {
        self.rule(
            "cluster_identifier",
            raw.cluster_identifier.as_ref(),
            redshift_rules::check_cluster_identifier,
        );
        self.rule(
            "db_user",
            raw.db_user.as_ref(),
            redshift_rules::check_db_user,
        );
        self.rule(
            "database",
            raw.database.as_ref(),
            redshift_rules::check_database,
        );
        for group in raw.db_groups.iter().flat_map(Spanned::as_ref) {
            self.rule("db_groups", Some(group), redshift_rules::check_db_group);
        }
        let duration_seconds = self.duration_seconds(raw);
        let api = self.redshift_api(raw)?;
        let identifier =
            text(raw.cluster_identifier.as_ref()).or_else(|| dial.first_label_of("redshift"));
        let Dial { host, port, .. } = dial;
        let domain = text(raw.custom_domain_name.as_ref());
        let host = host.or_else(|| domain.clone());
        let cluster = match (domain, identifier.clone()) {
            (Some(domain), identifier) => ClusterName::CustomDomain { domain, identifier },
            (None, Some(identifier)) => ClusterName::Identifier(identifier),
            (None, None) => {
                self.problem(
                    span,
                    "cluster_identifier: say which cluster, as in cluster_identifier = \"examplecluster\" (or custom_domain_name, or a host \
                     that ends in .redshift.amazonaws.com)"
                        .to_string(),
                );
                return None;
            }
        };
        let endpoint = endpoint(host, identifier.map(Discovery::RedshiftCluster), port)?;
        Some((
            Engine::Redshift(Redshift {
                cluster,
                api,
                duration_seconds,
            }),
            endpoint,
        ))
    }

    pub(super) fn redshift_serverless(
        &mut self,
        span: &Range<usize>,
        raw: &raw::Target,
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
        let text_of_rule = "Redshift Serverless maps the AWS identity to the database user and takes none of this: delete it";
        self.foreign("db_user", raw.db_user.as_ref(), text_of_rule);
        self.foreign("api", raw.api.as_ref(), text_of_rule);
        self.foreign("auto_create", raw.auto_create.as_ref(), text_of_rule);
        self.foreign("db_groups", raw.db_groups.as_ref(), text_of_rule);
        let duration_seconds = self.duration_seconds(raw);
        let name = text(raw.workgroup_name.as_ref())
            .or_else(|| dial.first_label_of("redshift-serverless"));
        let Dial { host, port, .. } = dial;
        let domain = text(raw.custom_domain_name.as_ref());
        let host = host.or_else(|| domain.clone());
        // The workgroup's own name first: a custom domain name that is not registered (any more)
        // fails the call.
        let workgroup = match (name.clone(), domain) {
            (Some(name), _) => WorkgroupName::Name(name),
            (None, Some(domain)) => WorkgroupName::CustomDomain(domain),
            (None, None) => {
                self.problem(
                    span,
                    "workgroup_name: say which workgroup, as in workgroup_name = \"myworkgroup\" (or custom_domain_name, or a host that \
                     ends in .redshift-serverless.amazonaws.com)"
                        .to_string(),
                );
                return None;
            }
        };
        let endpoint = endpoint(host, name.map(Discovery::RedshiftWorkgroup), port)?;
        Some((
            Engine::RedshiftServerless(RedshiftServerless {
                workgroup,
                duration_seconds,
            }),
            endpoint,
        ))
    }

    fn duration_seconds(&mut self, raw: &raw::Target) -> i32 {
        let duration = raw
            .duration_seconds
            .as_ref()
            .map_or(redshift_rules::DEFAULT_DURATION_SECONDS, |value| {
                *value.as_ref()
            });
        if let Some(value) = raw
            .duration_seconds
            .as_ref()
            .filter(|_| !redshift_rules::DURATION_SECONDS.contains(&duration))
        {
            self.problem(&value.span(), format!("duration_seconds = {duration}: must be 900 to 3600 (DurationSeconds of the API)"));
        }
        i32::try_from(duration).unwrap_or(i32::MAX)
    }

    fn redshift_api(&mut self, raw: &raw::Target) -> Option<RedshiftApi> {
        let name = raw
            .api
            .as_ref()
            .map_or("get-cluster-credentials", |api| api.as_ref().as_str());
        match name {
            "get-cluster-credentials" => Some(RedshiftApi::GetClusterCredentials {
                auto_create: raw
                    .auto_create
                    .as_ref()
                    .is_some_and(|value| *value.as_ref()),
                db_groups: raw
                    .db_groups
                    .iter()
                    .flat_map(Spanned::as_ref)
                    .map(|group| group.as_ref().clone())
                    .collect(),
            }),
            "get-cluster-credentials-with-iam" => {
                let text = "get-cluster-credentials-with-iam maps the AWS identity to the database user and takes none of this: delete it";
                self.foreign("db_user", raw.db_user.as_ref(), text);
                self.foreign("auto_create", raw.auto_create.as_ref(), text);
                self.foreign("db_groups", raw.db_groups.as_ref(), text);
                Some(RedshiftApi::GetClusterCredentialsWithIam)
            }
            _ => {
                self.value(
                    "api",
                    raw.api.as_ref()?,
                    "must be \"get-cluster-credentials\" or \"get-cluster-credentials-with-iam\"",
                );
                None
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

fn text(value: Option<&Spanned<String>>) -> Option<String> {
    value.map(|value| value.as_ref().clone())
}
