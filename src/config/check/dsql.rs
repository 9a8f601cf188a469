//! What must be known of an Aurora DSQL target?

use std::net::IpAddr;

use super::target::Dial;
use super::{Checker, Head};
use crate::config::keys;
use crate::config::{Dsql, Endpoint, EndpointSource, Engine};

const DEFAULT_PORT: u16 = 5432;

impl Checker<'_> {
    pub(super) fn dsql(
        &mut self,
        head: &Head<'_>,
        raw: &keys::Target,
        dial: Dial,
    ) -> Option<(Engine, EndpointSource)> {
        self.postgresql_name("db_user", raw.db_user.as_ref());
        self.rule("database", raw.database.as_ref(), |name| match name {
            "postgres" => Ok(()),
            _ => Err("must be \"postgres\": a cluster of Aurora DSQL has no other database"),
        });
        let identifier = raw.cluster_identifier.as_ref();
        self.rule("cluster_identifier", identifier, check_identifier);
        // The endpoint has the identifier in its name, so AWS need not be asked.
        let public_name = match (raw.cluster_identifier.value(), &dial.region) {
            (Some(identifier), Some(region)) => Some(format!("{identifier}.dsql.{region}.on.aws")),
            // The missing region has been reported.
            (Some(_), None) => return None,
            (None, _) => None,
        };
        let Some(host) = dial.host.or_else(|| public_name.clone()) else {
            self.missing(
                head,
                &["host", "cluster_identifier", "region"],
                "host: say where the cluster is, as in host = \
                 \"foo0bar1baz2quux3quuux4qux.dsql.us-east-1.on.aws\" (or cluster_identifier and \
                 region)",
            );
            return None;
        };
        let name = raw
            .tls_server_name
            .text()
            .or(public_name)
            .unwrap_or_else(|| host.clone());
        if name.parse::<IpAddr>().is_ok() {
            let key = raw
                .tls_server_name
                .as_ref()
                .map(|value| ("tls_server_name", value));
            let (key, value) = key.or_else(|| raw.host.as_ref().map(|value| ("host", value)))?;
            let rule = "Aurora DSQL finds the cluster by the name in the TLS handshake (SNI), \
                        where no address can be: give the cluster's own name as tls_server_name";
            self.value(key, value, rule);
        }
        let endpoint = Endpoint {
            host,
            port: dial.port.unwrap_or(DEFAULT_PORT),
        };
        Some((Engine::Dsql(Dsql { name }), EndpointSource::Fixed(endpoint)))
    }
}

fn check_identifier(identifier: &str) -> Result<(), &'static str> {
    let letters = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    if identifier.len() == 26 && identifier.bytes().all(letters) {
        Ok(())
    } else {
        Err("must have 26 lower-case letters and digits")
    }
}
