//! Which of a client's startup parameters is a server given?
//!
//! A server ends the login when it gets a parameter that it does not know. Stock PostgreSQL does
//! not know what Amazon's Redshift drivers send; Redshift, which is PostgreSQL 8.0 at heart, does
//! not know what modern drivers send; and Aurora DSQL accepts hardly any.

use bytes::Bytes;

use crate::config::{Engine, TargetSettings};
use crate::wire::startup::is_protocol_option;

/// Parameters that Amazon's Redshift drivers send; PostgreSQL answers "unrecognized configuration
/// parameter".
const REDSHIFT_ONLY: [&str; 13] = [
    "client_protocol_version",
    "driver_discovery_version",
    "driver_version",
    "idc_client_display_name",
    "identity_namespace",
    "idp_host",
    "idp_port",
    "idp_tenant",
    "idp_type",
    "os_version",
    "plugin_name",
    "provider_name",
    "token_type",
];

/// Parameters that PostgreSQL drivers send; Redshift answers "unrecognized configuration parameter"
/// or that permission is missing. They were seen with LibPQ.jl, npgsql, SQLAlchemy, node-postgres
/// and Go drivers.
const NOT_ON_REDSHIFT: [&str; 9] = [
    "IntervalStyle",
    "bytea_output",
    "default_transaction_read_only",
    "idle_in_transaction_session_timeout",
    "lc_monetary",
    "lock_timeout",
    "ssl_renegotiation_limit",
    "standard_conforming_strings",
    "xmloption",
];

/// The only parameters that Aurora DSQL is given: it answers most of PostgreSQL's parameters with
/// "setting configuration parameter … not supported", and AWS publishes no list of the others.
/// `statement_timeout`, `client_min_messages` and `role` are reported as refused. The parameters
/// here are those that pgjdbc and libpq send, which AWS documents for DSQL; none of them has been
/// tried one by one against a cluster. `options` is among them because `-c amzn-cluster-id=…` says
/// which cluster is meant, and because a person asked for what it contains and has to be told when
/// it is refused.
const KNOWN_TO_DSQL: [&str; 7] = [
    "DateStyle",
    "TimeZone",
    "application_name",
    "client_encoding",
    "extra_float_digits",
    "options",
    "search_path",
];

/// The highest `extra_float_digits` that Redshift accepts; PostgreSQL drivers ask for 3.
const REDSHIFT_EXTRA_FLOAT_DIGITS: &[u8] = b"2";

/// The longest name, in bytes: `NAMEDATALEN` - 1.
const LONGEST_NAME: usize = 63;

/// The parameters that the server is given, and the names of those that it is not.
#[derive(Debug, PartialEq, Eq)]
pub struct Forwarded {
    /// The parameters, in the client's order.
    pub parameters: Vec<(Bytes, Bytes)>,
    /// The names that were left out.
    pub dropped: Vec<Bytes>,
}

/// Replaces the client's user and database with those of the login, and leaves out what the engine
/// refuses.
///
/// `person`, if there is one, is appended to `application_name`, so that the server's own views
/// show who it is.
pub fn forward(
    target: &TargetSettings,
    client: &[(Bytes, Bytes)],
    user: &str,
    database: &str,
    person: Option<&str>,
) -> Forwarded {
    let mut forwarded = Forwarded {
        parameters: Vec::with_capacity(client.len() + 1),
        dropped: Vec::new(),
    };
    let mut has_database = false;
    for (name, value) in client {
        let value = match &name[..] {
            b"user" => Bytes::copy_from_slice(user.as_bytes()),
            b"database" => {
                has_database = true;
                Bytes::copy_from_slice(database.as_bytes())
            }
            other if is_refused(target, other) => {
                forwarded.dropped.push(name.clone());
                continue;
            }
            other => engine_value(&target.engine, other, value),
        };
        forwarded.parameters.push((name.clone(), value));
    }
    if !has_database {
        forwarded.parameters.push((
            Bytes::from_static(b"database"),
            Bytes::copy_from_slice(database.as_bytes()),
        ));
    }
    if let Some(person) = person {
        append_person(&mut forwarded.parameters, person);
    }
    forwarded
}

/// Servers truncate names to 63 bytes, so the client's own name is shortened to make room. Of
/// several `application_name`s in any case of letters, a server takes the last one; so the person
/// goes into that one, and the others are left out.
fn append_person(parameters: &mut Vec<(Bytes, Bytes)>, person: &str) {
    const NAME: &[u8] = b"application_name";
    let is_name = |(name, _): &(Bytes, Bytes)| name.eq_ignore_ascii_case(NAME);
    let own = parameters.iter().rfind(|parameter| is_name(parameter));
    let own = own.map(|(_, value)| value.clone()).unwrap_or_default();
    let room = LONGEST_NAME.saturating_sub(person.len() + 1);
    let suffixed = [&own[..own.len().min(room)], b" ", person.as_bytes()].concat();
    parameters.retain(|parameter| !is_name(parameter));
    parameters.push((
        Bytes::from_static(NAME),
        Bytes::copy_from_slice(suffixed.trim_ascii_start()),
    ));
}

fn is_refused(target: &TargetSettings, name: &[u8]) -> bool {
    let listed = |list: &[&str]| {
        list.iter()
            .any(|refused| name.eq_ignore_ascii_case(refused.as_bytes()))
    };
    let by_engine = match target.engine {
        Engine::Redshift(_) | Engine::RedshiftServerless(_) => listed(&NOT_ON_REDSHIFT),
        Engine::Rds(_) => listed(&REDSHIFT_ONLY),
        Engine::Dsql(_) => !listed(&KNOWN_TO_DSQL),
    };
    by_engine
        || is_protocol_option(name)
        || target
            .ignore_startup_parameters
            .iter()
            .any(|ignored| name.eq_ignore_ascii_case(ignored.as_bytes()))
}

fn engine_value(engine: &Engine, name: &[u8], value: &Bytes) -> Bytes {
    match engine {
        Engine::Redshift(_) | Engine::RedshiftServerless(_)
            if name.eq_ignore_ascii_case(b"extra_float_digits") && value == "3" =>
        {
            Bytes::from_static(REDSHIFT_EXTRA_FLOAT_DIGITS)
        }
        _ => value.clone(),
    }
}
