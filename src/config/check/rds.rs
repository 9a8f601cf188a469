//! What must be known of an RDS or Aurora PostgreSQL target?

use super::host::parse_endpoint;
use super::target::Dial;
use super::{Checker, Head};
use crate::config::keys;
use crate::config::{ClusterRole, Discovery, Endpoint, EndpointSource, Engine, Rds};

const DEFAULT_PORT: u16 = 5432;

impl Checker<'_> {
    pub(super) fn rds(
        &mut self,
        head: &Head<'_>,
        raw: &keys::Target,
        dial: Dial,
    ) -> Option<(Engine, EndpointSource)> {
        let Dial { host, port, .. } = dial;
        self.postgresql_name("db_user", raw.db_user.as_ref());
        self.postgresql_name("database", raw.database.as_ref());
        let role = raw.endpoint.or(ClusterRole::Writer);
        let cluster = raw.cluster_identifier.text();
        let instance = raw.instance_identifier.text();
        let cluster_is_wrong = head.has_wrong(&["cluster_identifier"]);
        if let Some(reader) = raw
            .endpoint
            .as_ref()
            .filter(|_| role == ClusterRole::Reader)
            && (cluster.is_none() && !cluster_is_wrong || host.is_some())
        {
            self.problem(
                &reader.span(),
                "endpoint = \"reader\": needs cluster_identifier, and no host: AWS is asked for the reader endpoint"
                    .to_string(),
            );
        }
        let endpoint = match (host, instance, cluster) {
            (Some(host), _, _) => EndpointSource::Fixed(Endpoint {
                host,
                port: port.unwrap_or(DEFAULT_PORT),
            }),
            (None, Some(_), Some(_)) => {
                self.problem(
                    &raw.instance_identifier.as_ref()?.span(),
                    "give instance_identifier or cluster_identifier, not both".to_string(),
                );
                return None;
            }
            (None, Some(instance), None) => EndpointSource::Discover {
                what: Discovery::RdsInstance(instance),
                port,
            },
            (None, None, Some(identifier)) => EndpointSource::Discover {
                what: Discovery::RdsCluster { identifier, role },
                port,
            },
            (None, None, None) => {
                self.missing(
                    head,
                    &["host", "instance_identifier", "cluster_identifier"],
                    "host: say where the server is, as in host = \"mydb.123456789012.us-west-2.rds.amazonaws.com\" (or instance_identifier \
                     or cluster_identifier, to have AWS asked)"
                        .to_string(),
                );
                return None;
            }
        };
        let signing_endpoint = match raw.signing_host.as_ref() {
            None => None,
            Some(value) => {
                let parsed = parse_endpoint(value.as_ref(), port.unwrap_or(DEFAULT_PORT));
                if parsed.is_none() {
                    self.value("signing_host", value, "must be a host name, or host:port");
                }
                parsed
            }
        };
        Some((Engine::Rds(Rds { signing_endpoint }), endpoint))
    }
}
