//! From an error to words: what is wrong, and what to do about it.

use std::io;

use super::{Failure, engine};
use crate::config::{AwsIdentity, Endpoint, region_of_host};
use crate::credentials::{AwsError, AwsErrorReason, Caller, Search, clock_in_words, search};
use crate::error::{Refusal, chain};
use crate::route::Route;
use crate::tls::TlsFailure;
use crate::upstream::connect::ConnectError;
use crate::upstream::log_in::LogInError;
use crate::upstream::query::QueryError;

/// What is known of a login so far.
#[derive(Clone, Copy)]
pub struct Attempt<'a> {
    pub route: &'a Route,
    /// `None`: STS did not say.
    pub caller: Option<&'a Caller>,
    pub endpoint: Option<&'a Endpoint>,
}

impl Attempt<'_> {
    /// Who asks AWS.
    pub fn caller_arn(&self) -> &str {
        self.caller
            .map_or("the proxy's AWS identity", |caller| &caller.arn)
    }

    /// An ARN in the target's region; the account is `*` where it is not known.
    pub fn arn(&self, service: &str, resource: &str) -> String {
        let region = &self.route.target.region;
        let partition = match region.split('-').collect::<Vec<_>>()[..] {
            ["cn", ..] => "aws-cn",
            [_, "gov", ..] => "aws-us-gov",
            _ => "aws",
        };
        let account = self.caller.map_or("*", |caller| &caller.account);
        format!("arn:{partition}:{service}:{region}:{account}:{resource}")
    }
}

/// How far our clock is off, where that is worth a word.
pub fn clock(caller: &Caller) -> Option<String> {
    clock_in_words(caller.clock_ahead?)
}

pub const SET_THE_CLOCK: &str = "set the clock, and have chrony or systemd-timesyncd keep it";

/// The names that a login would use are none.
pub fn route(refusal: &Refusal) -> Failure {
    Failure {
        error: refusal.message.to_string(),
        explanation: "the login is refused before AWS or a server is asked".to_string(),
        remedy: "correct the target, or give other names with --user and --database".to_string(),
    }
}

/// There is no AWS identity. `source` is who wanted to assume the role.
pub async fn identity(aws_error: &AwsError, aws: &AwsIdentity, source: Option<&Caller>) -> Failure {
    match (&aws_error.reason, &aws.role) {
        (AwsErrorReason::NoCredentials, _) => no_credentials(search(aws.profile.as_deref()).await, aws),
        (AwsErrorReason::AccessDenied { action }, Some(role)) if action == "sts:AssumeRole" => {
            let source = source.map_or("the source of the role", |caller| &caller.arn);
            Failure {
                error: aws_error.to_string(),
                explanation: format!("{source} may not assume {}", role.arn),
                remedy: format!(
                    "allow {action} on {} to {source}, and name that in the role's trust policy; where it has a condition on \
                     sts:ExternalId, set external_id",
                    role.arn
                ),
            }
        }
        _ => Failure {
            error: aws_error.to_string(),
            explanation: cause(aws_error),
            remedy: match aws_error.reason {
                AwsErrorReason::Unavailable => {
                    "try again; if it is single sign-on: aws sso login; see whether this machine reaches STS and the source"
                }
                _ => "correct what is named; an access key must be active, the secret its own, and a temporary one (ASIA…) needs its session token",
            }
            .to_string(),
        },
    }
}

fn no_credentials(search: Search, aws: &AwsIdentity) -> Failure {
    let error = "no AWS credentials".to_string();
    match search {
        Search::NoSuchProfile { name, files, nearest } => Failure {
            error,
            explanation: format!("there is no profile \"{name}\" in {files}"),
            remedy: {
                let setting = if aws.profile.is_some() { "profile of the target" } else { "AWS_PROFILE" };
                match nearest {
                    Some(nearest) => format!("correct {setting} (did you mean \"{nearest}\"?), or add the profile: aws configure sso"),
                    None => format!("correct {setting}, or add the profile: aws configure sso"),
                }
            },
        },
        Search::Nothing(places) => Failure {
            error,
            explanation: format!("looked at: {}", places.join("; ")),
            remedy: "log in (aws sso login), name a profile with profile or AWS_PROFILE, or give this machine a role".to_string(),
        },
    }
}

/// AWS was asked, for the endpoint or the credential.
pub fn call(error: &AwsError, attempt: Attempt<'_>) -> Failure {
    let target = &attempt.route.target;
    let (explanation, remedy) = match &error.reason {
        AwsErrorReason::AccessDenied { action } => (
            format!("{} may not use {action}", attempt.caller_arn()),
            format!(
                "allow {action} on {} to {}",
                engine::resources(attempt, action).join(" and "),
                attempt.caller_arn()
            ),
        ),
        AwsErrorReason::NotFound => match region_of_server(attempt) {
            Some((host, region)) => wrong_region(&host, &region, &target.region),
            None => (
                format!(
                    "nothing of this name is ready in account {}, region {}",
                    attempt.caller.map_or("(unknown)", |caller| &caller.account),
                    target.region
                ),
                format!(
                    "correct the identifier or region, or take an identity of the server's account; this one is {}",
                    attempt.caller_arn()
                ),
            ),
        },
        AwsErrorReason::Unavailable => (
            cause(error),
            format!(
                "try again; if it stays so, see whether this machine reaches AWS in {} (HTTPS_PROXY, VPC endpoint, endpoint_url)",
                target.region
            ),
        ),
        _ => (cause(error), "correct what AWS names".to_string()),
    };
    Failure {
        error: error.to_string(),
        explanation,
        remedy,
    }
}

/// The server's own host name, and its region, where calls and tokens are signed for another.
pub fn region_of_server(attempt: Attempt<'_>) -> Option<(String, String)> {
    let host = engine::own_host(attempt)?;
    let region = region_of_host(&host).filter(|region| *region != attempt.route.target.region)?;
    Some((host.into_owned(), region))
}

/// What to say of it.
pub fn wrong_region(host: &str, of_host: &str, signed: &str) -> (String, String) {
    (
        format!("{host} is in {of_host}, but we sign for {signed}"),
        format!("set region = \"{of_host}\""),
    )
}

/// There is no verified connection.
pub fn connect(error: &ConnectError, attempt: Attempt<'_>) -> Failure {
    let explained = |explanation: String, remedy: String| Failure {
        error: error.to_string(),
        explanation,
        remedy,
    };
    match error {
        ConnectError::Resolve { host, .. } => explained(
            format!("the DNS of this machine has no address for {host}"),
            "see whether host is spelt right; names of a private zone are known inside its VPC only, or through its resolver".to_string(),
        ),
        ConnectError::Tcp { address, error } if error.kind() == io::ErrorKind::TimedOut => explained(
            format!("nothing comes back from {address}: something on the way drops what we send"),
            format!(
                "allow TCP port {} from this machine in the server's security group, and see whether a route leads there (VPN, peering, \
                 public access)",
                address.port()
            ),
        ),
        ConnectError::Tcp { address, error } if error.kind() == io::ErrorKind::ConnectionRefused => explained(
            format!("{} is there, and nothing listens on port {}", address.ip(), address.port()),
            "see whether host and port are right, the server is running and not paused, and the tunnel, if there is one, is open"
                .to_string(),
        ),
        ConnectError::Tcp { address, .. } => {
            explained(format!("there is no way to {address}"), "see to this machine's network: route, VPN, firewall".to_string())
        }
        ConnectError::TlsNotOffered(_) => explained(
            "no password goes over a connection without TLS".to_string(),
            "turn TLS on in the server, or in what stands before it".to_string(),
        ),
        ConnectError::Tls { failure, .. } => tls(failure, attempt),
        ConnectError::ErrorInSslExchange(_)
        | ConnectError::UnexpectedAnswer { .. }
        | ConnectError::UnencryptedData(_)
        | ConnectError::SslExchange { .. } => explained(
            "what answers there does not do so as a PostgreSQL server does".to_string(),
            "see whether host and port are the server's own, and what stands between (load balancer, tunnel, pooler)".to_string(),
        ),
    }
}

fn tls(failure: &TlsFailure, attempt: Attempt<'_>) -> Failure {
    let target = &attempt.route.target;
    let clock = attempt.caller.and_then(clock);
    let (explanation, remedy) = match (failure, clock) {
        (TlsFailure::Expired | TlsFailure::NotYetValid, Some(clock)) => (clock, SET_THE_CLOCK.to_string()),
        (TlsFailure::WrongName { expected, presented }, _) => {
            let ours = if target.tls_server_name.is_some() { "tls_server_name is" } else { "you dial" };
            let first = presented.split(", ").next().unwrap_or_default();
            (
                format!("the certificate names {presented}, {ours} {expected}"),
                format!("if that is the server you mean, behind a tunnel, load balancer or CNAME: set tls_server_name = \"{first}\""),
            )
        }
        (TlsFailure::UnknownAuthority, _) => (
            "neither Amazon Trust Services, nor RDS as built in, nor an authority of ca_file has signed the certificate".to_string(),
            "if the authority is your own, or RDS has it in a region that is newer than this program: set ca_file to its PEM file \
             (https://truststore.pki.rds.amazonaws.com/global/global-bundle.pem)"
                .to_string(),
        ),
        (TlsFailure::Expired, None) => {
            ("the certificate's time is over".to_string(), "renew it in the server; RDS does when the instance's CA is rotated".to_string())
        }
        (TlsFailure::NotYetValid, None) => ("the certificate's time has not begun".to_string(), SET_THE_CLOCK.to_string()),
        (TlsFailure::Certificate(_) | TlsFailure::NoCertificate | TlsFailure::Corrupt(_) | TlsFailure::Alert(_) | TlsFailure::Io(_), _) => (
            chain(failure),
            "see whether host and port are the server's own, and what stands between (load balancer, tunnel, pooler)".to_string(),
        ),
    };
    Failure {
        error: failure.public_text().to_string(),
        explanation,
        remedy,
    }
}

/// The server does not let us in.
pub fn log_in(error: &LogInError, attempt: Attempt<'_>) -> Failure {
    let Route {
        db_user, database, ..
    } = attempt.route;
    let (text, explanation, remedy) = match error {
        LogInError::PasswordRefused(response) => {
            let (explanation, remedy) = engine::password_refused(attempt, response.sqlstate());
            (response.message(), explanation, remedy)
        }
        LogInError::Refused(response) => {
            let (explanation, remedy) = match response.sqlstate().code() {
                "3D000" => (format!("the server has no database \"{database}\""), "correct database, or --database".to_string()),
                "42501" => (
                    format!("the user may not use database \"{database}\""),
                    format!("GRANT CONNECT ON DATABASE {} TO {};", quoted(database), quoted(db_user)),
                ),
                "53300" => ("the server has no connection left".to_string(), "try again when others have ended".to_string()),
                other => (
                    format!("these are the server's own words, SQLSTATE {other}"),
                    "correct what the server names".to_string(),
                ),
            };
            (response.message(), explanation, remedy)
        }
        LogInError::Unsupported(_) => (
            error.to_string(),
            "IAM users are asked for a cleartext password, MD5 or Redshift's digest".to_string(),
            "see whether engine, host and port are right, and the user is one that logs in with IAM".to_string(),
        ),
        LogInError::Violation(_) | LogInError::Closed(_) | LogInError::TimedOut => (
            error.to_string(),
            "the server began a login and did not end it".to_string(),
            "try again, since a paused cluster takes a while to wake up; then see the server's own log".to_string(),
        ),
    };
    Failure {
        error: text,
        explanation,
        remedy,
    }
}

/// The login worked, the query did not.
pub fn query(error: &QueryError) -> Failure {
    Failure {
        error: error.to_string(),
        explanation: "the login was good, but the server does not answer SELECT 1".to_string(),
        remedy:
            "see the server's own log, and its workload management where queries wait in queues"
                .to_string(),
    }
}

/// A name in SQL.
pub fn quoted(name: &str) -> String {
    postgres_protocol::escape::escape_identifier(name)
}

/// On one line: the SDK lists what it has tried on several.
fn cause(error: &AwsError) -> String {
    let cause = error.cause().unwrap_or_else(|| error.to_string());
    cause.split_whitespace().collect::<Vec<_>>().join(" ")
}
