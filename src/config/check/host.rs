//! Which host names can be dialled, and what do those of AWS tell?

use std::net::IpAddr;

use rustls::pki_types::ServerName;

use crate::config::Endpoint;

pub(super) fn parse_endpoint(text: &str, default_port: u16) -> Option<Endpoint> {
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => (host, port.parse().ok().filter(|&port| port > 0)?),
        None => (text, default_port),
    };
    is_host(host).then(|| Endpoint {
        host: host.to_string(),
        port,
    })
}

/// Whether a name can be dialled, certified and signed for. The RDS token generator panics on
/// others.
pub(super) fn is_host(text: &str) -> bool {
    ServerName::try_from(text).is_ok()
        && (text.parse::<IpAddr>().is_ok()
            || text
                .bytes()
                .all(|c| c.is_ascii_alphanumeric() || b".-_".contains(&c)))
}

pub(super) fn is_region(text: &str) -> bool {
    text.split('-').count() >= 3
        && text
            .bytes()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-')
        && text.ends_with(|c: char| c.is_ascii_digit())
}

/// The region in a host name of AWS, where it has one.
pub fn region_of_host(host: &str) -> Option<String> {
    AwsHostName::parse(host).map(|name| name.region)
}

/// `<name>.<hash>.<region>.<service>.amazonaws.com[.cn]`, or `<name>.dsql[-<endpoint
/// service>].<region>.on.aws`
pub(super) struct AwsHostName {
    pub first_label: String,
    pub region: String,
    pub service: String,
}

impl AwsHostName {
    pub(super) fn parse(host: &str) -> Option<Self> {
        let host = host.to_ascii_lowercase();
        let labels = |rest: &str| rest.split('.').map(str::to_string).collect::<Vec<_>>();
        let found = if let Some(rest) = host.strip_suffix(".on.aws") {
            let [first_label, service, region] = labels(rest).try_into().ok()?;
            // In `dsql-fnh4` the second part names the endpoint service of a PrivateLink endpoint.
            let service = service
                .split('-')
                .next()
                .filter(|service| *service == "dsql")?
                .to_string();
            Self {
                first_label,
                region,
                service,
            }
        } else {
            let rest = host
                .strip_suffix(".amazonaws.com")
                .or_else(|| host.strip_suffix(".amazonaws.com.cn"))?;
            let labels = labels(rest);
            let [first_label, .., region, service] = &labels[..] else {
                return None;
            };
            Self {
                first_label: first_label.clone(),
                region: region.clone(),
                service: service.clone(),
            }
        };
        is_region(&found.region).then_some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_read_from_aws_host_names_only() {
        let region = |host| AwsHostName::parse(host).map(|name| name.region);
        assert_eq!(
            region("mydb.123456789012.us-west-2.rds.amazonaws.com").as_deref(),
            Some("us-west-2")
        );
        assert_eq!(
            region("c.cluster-ro-1.cn-north-1.rds.amazonaws.com.cn").as_deref(),
            Some("cn-north-1")
        );
        assert_eq!(
            region("examplecluster.abc.us-gov-west-1.redshift.amazonaws.com").as_deref(),
            Some("us-gov-west-1")
        );
        assert_eq!(
            region("myproxy.proxy-abcdefghijkl.eu-central-1.rds.amazonaws.com").as_deref(),
            Some("eu-central-1")
        );
        assert_eq!(
            region("wg.123456789012.us-east-2.redshift-serverless.amazonaws.com").as_deref(),
            Some("us-east-2")
        );
        assert_eq!(
            region("foo0bar1baz2quux3quuux4qux.dsql.us-east-1.on.aws").as_deref(),
            Some("us-east-1")
        );
        assert_eq!(
            region("foo0bar1baz2quux3quuux4qux.dsql-fnh4.us-east-1.on.aws").as_deref(),
            Some("us-east-1")
        );
        assert_eq!(
            region("foo0bar1baz2quux3quuux4qux.lambda-url.us-east-1.on.aws"),
            None
        );
        assert_eq!(region("warehouse.example.com"), None);
        assert_eq!(
            region("mydb.us-west-2.rds.amazonaws.com.evil.example"),
            None
        );
    }
}
