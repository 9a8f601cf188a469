//! Why is there no verified connection to the server?

use std::io::ErrorKind;

use crate::address::UpstreamAddr;
use crate::check::login::{CheckedLogin, SET_THE_CLOCK};
use crate::check::report::{Advice, Failure};
use crate::error::chain;
use crate::tls::TlsFailure;
use crate::upstream::connect::{ConnectError, ResolveError};

const SEE_WHAT_IS_BETWEEN: &str = "see whether host and port are the server's own, and what \
     stands between (load balancer, tunnel, pooler)";

/// The server cannot be resolved, reached or verified.
pub fn connect(error: &ConnectError, login: CheckedLogin<'_>) -> Failure {
    let advice = match error {
        ConnectError::Resolve(ResolveError { host, .. }) => Advice::new(
            format!("the DNS of this machine has no address for {host}"),
            "see whether host is spelt right; names of a private zone are known inside its VPC \
             only, or through its resolver",
        ),
        ConnectError::Tcp { address, error } => not_reached(*address, error.kind()),
        ConnectError::TlsNotOffered(_) => Advice::new(
            "no password goes over a connection without TLS",
            "turn TLS on in the server, or in what stands before it",
        ),
        ConnectError::Tls { failure, .. } => {
            return Failure {
                error: failure.public_text().to_string(),
                advice: tls(failure, login),
            };
        }
        ConnectError::NoAnswer { address } => Advice::new(
            format!("{address} accepts connections, and then nothing comes back"),
            "see whether the server hangs or is overloaded, and whether what is between is a \
             tunnel or a load balancer without a server behind it",
        ),
        ConnectError::ErrorInSslExchange(_)
        | ConnectError::UnexpectedAnswer { .. }
        | ConnectError::UnencryptedData(_)
        | ConnectError::SslExchange { .. } => Advice::new(
            "what answers there does not do so as a PostgreSQL server does",
            SEE_WHAT_IS_BETWEEN,
        ),
    };
    Failure {
        error: chain(error),
        advice,
    }
}

fn not_reached(address: UpstreamAddr, kind: ErrorKind) -> Advice {
    match kind {
        ErrorKind::TimedOut => Advice::new(
            format!("nothing comes back from {address}: something on the way drops what we send"),
            format!(
                "allow TCP port {} from this machine in the server's security group, and see \
                 whether a route leads there (VPN, peering, public access)",
                address.0.port()
            ),
        ),
        ErrorKind::ConnectionRefused => Advice::new(
            format!(
                "{} is there, and nothing listens on port {}",
                address.0.ip(),
                address.0.port()
            ),
            "see whether host and port are right, the server is running and not paused, and the \
             tunnel, if there is one, is open",
        ),
        _ => Advice::new(
            format!("there is no way to {address}"),
            "see to this machine's network: route, VPN, firewall",
        ),
    }
}

fn tls(failure: &TlsFailure, login: CheckedLogin<'_>) -> Advice {
    match (failure, login.clock_skew()) {
        (TlsFailure::Expired | TlsFailure::NotYetValid, Some(clock_skew)) => {
            Advice::new(clock_skew, SET_THE_CLOCK)
        }
        (
            TlsFailure::WrongName {
                expected,
                presented,
            },
            _,
        ) => wrong_name(expected, presented, login),
        (TlsFailure::UnknownAuthority, _) => Advice::new(
            "neither Amazon Trust Services, nor RDS as built in, nor an authority of ca_file has \
             signed the certificate",
            "if the authority is your own, or RDS has it in a region that is newer than this \
             program: set ca_file to its PEM file \
             (https://truststore.pki.rds.amazonaws.com/global/global-bundle.pem)",
        ),
        (TlsFailure::Expired, None) => Advice::new(
            "the certificate's time is over",
            "renew it in the server; RDS does when the instance's CA is rotated",
        ),
        (TlsFailure::NotYetValid, None) => {
            Advice::new("the certificate's time has not begun", SET_THE_CLOCK)
        }
        (
            TlsFailure::Certificate(_)
            | TlsFailure::NoCertificate
            | TlsFailure::Corrupt(_)
            | TlsFailure::Alert(_)
            | TlsFailure::Io(_),
            _,
        ) => Advice::new(chain(failure), SEE_WHAT_IS_BETWEEN),
    }
}

/// `presented` has the names of the certificate, separated by commas.
fn wrong_name(expected: &str, presented: &str, login: CheckedLogin<'_>) -> Advice {
    let ours = if login.target.tls_server_name.is_some() {
        "tls_server_name is"
    } else {
        "you dial"
    };
    let first = presented
        .split_once(", ")
        .map_or(presented, |(first, _)| first);
    Advice::new(
        format!("the certificate names {presented}, {ours} {expected}"),
        format!(
            "if that is the server you mean, behind a tunnel, load balancer or CNAME: \
             set tls_server_name = \"{first}\""
        ),
    )
}
