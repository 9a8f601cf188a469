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
        self.reader_is_possible(head, raw, host.is_some());
        let endpoint = match (host, instance, cluster) {
            (Some(host), _, _) => EndpointSource::Fixed(Endpoint {
                host,
                port: port.unwrap_or(DEFAULT_PORT),
            }),
            (None, Some(_), Some(_)) => {
                self.problem(
                    &raw.instance_identifier.as_ref()?.span(),
                    "give instance_identifier or cluster_identifier, not both",
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
                    "host: say where the server is, as in host = \
                     \"mydb.123456789012.us-west-2.rds.amazonaws.com\" (or instance_identifier or \
                     cluster_identifier, to have AWS asked)",
                );
                return None;
            }
        };
        let signing_endpoint = self.signing_endpoint(raw, port);
        Some((Engine::Rds(Rds { signing_endpoint }), endpoint))
    }

    /// Refuses `endpoint = "reader"` where AWS cannot be asked, since only AWS knows it.
    fn reader_is_possible(&mut self, head: &Head<'_>, raw: &keys::Target, has_host: bool) {
        let Some(endpoint) = raw.endpoint.as_ref() else {
            return;
        };
        let has_cluster =
            !raw.cluster_identifier.is_none() || head.has_wrong(&["cluster_identifier"]);
        if *endpoint.as_ref() == ClusterRole::Reader && (!has_cluster || has_host) {
            self.problem(
                &endpoint.span(),
                "endpoint = \"reader\": needs cluster_identifier, and no host: AWS is asked for \
                 the reader endpoint",
            );
        }
    }

    fn signing_endpoint(&mut self, raw: &keys::Target, port: Option<u16>) -> Option<Endpoint> {
        let value = raw.signing_host.as_ref()?;
        let parsed = parse_endpoint(value.as_ref(), port.unwrap_or(DEFAULT_PORT));
        if parsed.is_none() {
            self.value("signing_host", value, "must be a host name, or host:port");
        }
        parsed
    }
}
