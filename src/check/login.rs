//! Which login is checked, and what is known of it so far?

use std::borrow::Cow;

use rustls::pki_types::ServerName;

use super::report::Advice;
use crate::config::{Endpoint, EndpointSource, Engine, Rds, TargetSettings, region_of_host};
use crate::credentials::Caller;
use crate::iam::{Action, Name, ResourceNames, ResourceType, configured_server_id, resource_arns};
use crate::route::Route;

/// The remedy for what [`CheckedLogin::clock_skew`] explains.
pub const SET_THE_CLOCK: &str = "set the clock, and have chrony or systemd-timesyncd keep it";

/// The login that is checked. It is known better with every step.
#[derive(Clone, Copy)]
pub struct CheckedLogin<'a> {
    pub target: &'a TargetSettings,
    pub route: &'a Route,
    /// The AWS identity; `None` when STS did not say who it is.
    pub caller: Option<&'a Caller>,
    /// Host and port of the server; `None` until they are found.
    pub endpoint: Option<&'a Endpoint>,
}

impl<'a> CheckedLogin<'a> {
    /// The ARN of the identity that asks AWS, or words that stand for it.
    pub fn caller_arn(self) -> &'a str {
        self.caller
            .map_or("the proxy's AWS identity", |caller| &caller.arn)
    }

    /// The database user that the credential is asked for; `None` when AWS derives it from the AWS
    /// identity.
    pub fn db_user(self) -> Option<&'a str> {
        self.route.db_user.name()
    }

    /// The resources that a policy must allow an action on, for a sentence. The action is one that
    /// AWS names in its refusal, so the program may not know it.
    pub fn resources(self, action: &str) -> String {
        let names = ResourceNames {
            target: self.target,
            account: self.caller.map(|caller| caller.account.as_str()).into(),
            server_id: configured_server_id(self.target).into(),
            db_user: self.db_user().into(),
            database: Name::Exactly(&self.route.database),
            db_groups: &self.route.db_groups,
        };
        match Action::from_name(action) {
            // The reference lists no resource type for this action, but AWS's refusals name the
            // cluster as the resource, and this is about such a refusal.
            Some(Action::RedshiftDescribeClusters) => ResourceType::RedshiftCluster.arns(&names),
            Some(action) => resource_arns(action, &names),
            None => vec![Name::Any.to_string()],
        }
        .join(" and ")
    }

    /// How far this machine's clock is off, in words, where that may be why something fails.
    pub fn clock_skew(self) -> Option<String> {
        self.caller?.clock_skew()
    }

    /// The endpoint that a token of RDS is signed for.
    pub fn signing_endpoint(self) -> Option<&'a Endpoint> {
        match &self.target.engine {
            Engine::Rds(Rds {
                signing_endpoint: Some(endpoint),
            }) => Some(endpoint),
            _ => self.dialled_endpoint(),
        }
    }

    /// What to say when the server's own name shows that it is in another region than the one that
    /// calls and tokens are signed for.
    pub fn wrong_region(self) -> Option<Advice> {
        let host = self.host_of_server()?;
        let signed = &self.target.region;
        let region = region_of_host(&host).filter(|region| region != signed)?;
        Some(Advice::new(
            format!("{host} is in {region}, but we sign for {signed}"),
            format!("set region = \"{region}\""),
        ))
    }

    /// The host name that AWS gave the server, whatever is dialled to get there.
    fn host_of_server(self) -> Option<Cow<'a, str>> {
        let target = self.target;
        match &target.engine {
            Engine::Dsql(dsql) => Some(dsql.name.as_str().into()),
            Engine::Rds(_) => self
                .signing_endpoint()
                .map(|endpoint| endpoint.host.as_str().into()),
            Engine::Redshift(_) | Engine::RedshiftServerless(_) => target
                .tls_server_name
                .as_ref()
                .map(ServerName::to_str)
                .or_else(|| {
                    self.dialled_endpoint()
                        .map(|endpoint| endpoint.host.as_str().into())
                }),
        }
    }

    fn dialled_endpoint(self) -> Option<&'a Endpoint> {
        self.endpoint.or(match &self.target.endpoint {
            EndpointSource::Fixed(endpoint) => Some(endpoint),
            EndpointSource::Discover { .. } => None,
        })
    }
}
