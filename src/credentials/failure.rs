//! What a failing AWS means for a login: may it pass, or will it not?

use std::error::Error;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_sts::operation::assume_role::AssumeRoleError;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::SdkError;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use aws_types::request_id::RequestId;

use crate::error::{Kind, Missing, Refusal};

/// Longest text of AWS that goes into a log line.
const LONGEST_CAUSE: usize = 2_000;

const CANNOT_LOAD: &str = "AWS credentials cannot be loaded now";

/// A call that failed. The client reads the action first, since clients truncate.
pub fn call_failed<E>(action: &'static str, error: &SdkError<E, HttpResponse>) -> Refusal
where
    E: ProvideErrorMetadata + Error + 'static,
{
    let refusal = match error {
        SdkError::ServiceError(service) => {
            let message = service.err().message().unwrap_or_default();
            by_code(
                action,
                service.err().code().unwrap_or_default(),
                message,
                service.raw().status().as_u16(),
            )
        }
        SdkError::TimeoutError(_) => unavailable(action, "AWS did not answer in time"),
        SdkError::DispatchFailure(_) => unavailable(action, "AWS cannot be reached"),
        SdkError::ResponseError(_) => unavailable(action, "AWS gave an answer that cannot be read"),
        _ => Refusal::new(
            Kind::CredentialsDenied,
            format!("{action}: the call could not be made"),
        ),
    };
    refusal.because(in_words(error))
}

/// No AWS credentials: nothing in the chain has any, or a source of the chain fails.
pub fn no_identity(error: &CredentialsError) -> Refusal {
    let assume_role = assume_role_failure(error);
    // A role whose source has no credentials fails as if STS could not be reached.
    let source = assume_role
        .and_then(|failure| {
            causes(failure)
                .filter_map(|cause| cause.downcast_ref())
                .last()
        })
        .unwrap_or(error);
    let refusal = match (assume_role, source) {
        (Some(SdkError::ServiceError(service)), _) => by_code(
            "sts:AssumeRole",
            service.err().code().unwrap_or_default(),
            service.err().message().unwrap_or_default(),
            service.raw().status().as_u16(),
        ),
        (
            _,
            CredentialsError::CredentialsNotLoaded(_) | CredentialsError::InvalidConfiguration(_),
        ) => Refusal::new(
            Kind::CredentialsDenied,
            "no AWS credentials: none in the environment, the profile, a web identity, a container or the instance metadata",
        ),
        (Some(_), _) => unavailable("sts:AssumeRole", "AWS cannot be reached"),
        (None, _) => Refusal::new(Kind::CredentialsUnavailable, CANNOT_LOAD),
    };
    let refusal = match source {
        CredentialsError::CredentialsNotLoaded(_) => refusal.missing(Missing::Credentials),
        _ => refusal,
    };
    refusal.because(assume_role.map_or_else(|| display(error), in_words))
}

/// There are no AWS credentials where there were some before.
pub fn identity_gone(refusal: Refusal) -> Refusal {
    match refusal.missing.as_deref() {
        Some(Missing::Credentials) => Refusal {
            kind: Kind::CredentialsUnavailable,
            message: CANNOT_LOAD.into(),
            ..refusal
        },
        _ => refusal,
    }
}

/// The chain took too long.
pub fn identity_timed_out() -> Refusal {
    Refusal::new(Kind::CredentialsUnavailable, CANNOT_LOAD)
        .because("their source did not answer in time")
}

/// What a source has given is over, and nothing can be signed with it.
pub fn identity_expired() -> Refusal {
    Refusal::new(
        Kind::CredentialsDenied,
        "the proxy's AWS credentials have expired",
    )
    .missing(Missing::ValidCredentials)
    .because("their source gives none that are still valid by this machine's clock")
}

/// An answer without a member that the API promises.
pub fn incomplete_answer(action: &'static str) -> Refusal {
    unavailable(action, "AWS gave an incomplete answer")
}

/// Nothing that could be connected.
pub fn no_endpoint(action: &'static str) -> Refusal {
    Refusal::new(
        Kind::NoSuchCluster,
        format!(
            "{action}: found no endpoint (is the cluster, workgroup or instance still being created?)"
        ),
    )
}

/// Signing failed, which needs neither network nor permission.
pub fn cannot_sign(error: &(dyn Error + 'static)) -> Refusal {
    Refusal::new(
        Kind::Internal,
        "the authentication token could not be signed",
    )
    .because(display(error))
}

/// What AWS said, with the name that its support asks for; else the error.
fn in_words<E: ProvideErrorMetadata + Error + 'static>(
    error: &SdkError<E, HttpResponse>,
) -> String {
    match error
        .as_service_error()
        .and_then(|service| Some((service.code()?, service.message()?)))
    {
        Some((code, message)) => {
            let id = error
                .request_id()
                .map(|id| format!(" (request {id})"))
                .unwrap_or_default();
            cut(format!("{code}: {message}{id}"))
        }
        None => display(error),
    }
}

/// The error with all its causes. Not in their `Debug` form: that has the whole answer, which may
/// be a password.
pub fn display(error: &(dyn Error + 'static)) -> String {
    cut(causes(error)
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": "))
}

/// An error, what caused it, and so on.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

/// Cuts a text to a length that a log line bears.
fn cut(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(LONGEST_CAUSE) {
        text.truncate(end);
    }
    text
}

fn by_code(action: &'static str, code: &str, message: &str, status: u16) -> Refusal {
    match code {
        "Throttling"
        | "ThrottlingException"
        | "RequestLimitExceeded"
        | "TooManyRequestsException"
        | "RequestThrottled"
        | "SlowDown" => unavailable(action, "AWS throttles the calls of this account"),
        _ if status >= 500 => unavailable(action, "AWS fails"),
        "" if status < 300 => unavailable(action, "AWS gave an answer that cannot be read"),
        "ClusterNotFound"
        | "ClusterNotFoundFault"
        | "DBInstanceNotFound"
        | "DBClusterNotFoundFault"
        | "DBProxyNotFoundFault"
        | "ResourceNotFoundException"
        | "CustomDomainAssociationNotFoundFault" => Refusal::new(
            Kind::NoSuchCluster,
            format!(
                "{action}: there is no such cluster, workgroup or instance in this account and region"
            ),
        ),
        "AccessDenied" | "AccessDeniedException" | "UnauthorizedOperation" => {
            let action = denied_action(message).unwrap_or(action);
            Refusal::new(
                Kind::CredentialsDenied,
                format!("{action} is not allowed for the proxy's AWS identity"),
            )
            .missing(Missing::Action(action.to_string()))
        }
        "ExpiredToken" | "ExpiredTokenException" | "RequestExpired" => Refusal::new(
            Kind::CredentialsDenied,
            format!("{action}: the proxy's AWS credentials have expired"),
        )
        .missing(Missing::ValidCredentials),
        "InvalidClientTokenId"
        | "UnrecognizedClientException"
        | "SignatureDoesNotMatch"
        | "InvalidSignatureException" => Refusal::new(
            Kind::CredentialsDenied,
            format!("{action}: AWS does not accept the proxy's AWS credentials ({code})"),
        )
        .missing(Missing::ValidCredentials),
        _ => Refusal::new(
            Kind::CredentialsDenied,
            format!("{action}: AWS refuses the call ({code})"),
        ),
    }
}

/// The action that is missing may be another than the call's: `redshift:JoinGroup`,
/// `redshift:CreateClusterUser`.
fn denied_action(message: &str) -> Option<&str> {
    let action = message
        .split("is not authorized to perform: ")
        .nth(1)?
        .split_ascii_whitespace()
        .next()?;
    action
        .bytes()
        .all(|c| c.is_ascii_alphanumeric() || b":-".contains(&c))
        .then_some(action)
}

fn unavailable(action: &'static str, why: &str) -> Refusal {
    Refusal::new(Kind::CredentialsUnavailable, format!("{action}: {why}"))
}

/// The SDK wraps the answer of STS into an error of the provider.
fn assume_role_failure<'a>(
    error: &'a (dyn Error + 'static),
) -> Option<&'a SdkError<AssumeRoleError, HttpResponse>> {
    causes(error).find_map(|error| error.downcast_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_missing_action_is_named_first() {
        let message = "User: arn:aws:iam::1:user/x is not authorized to perform: redshift:JoinGroup on resource: arn:aws:redshift:r:1:dbgroup:c/bi";
        let refusal = by_code(
            "redshift:GetClusterCredentials",
            "AccessDenied",
            message,
            403,
        );
        assert_eq!(
            refusal.message,
            "redshift:JoinGroup is not allowed for the proxy's AWS identity"
        );
        assert_eq!(refusal.kind, Kind::CredentialsDenied);
    }

    #[test]
    fn what_may_pass_is_told_from_what_will_not() {
        let kind = |code, status| by_code("redshift:GetClusterCredentials", code, "", status).kind;
        assert_eq!(kind("Throttling", 400), Kind::CredentialsUnavailable);
        assert_eq!(kind("InternalFailure", 500), Kind::CredentialsUnavailable);
        assert_eq!(kind("ClusterNotFound", 404), Kind::NoSuchCluster);
        assert_eq!(
            kind("ThrottlingException", 400),
            Kind::CredentialsUnavailable
        );
        assert_eq!(
            kind("InternalServerException", 500),
            Kind::CredentialsUnavailable
        );
        assert_eq!(kind("ResourceNotFoundException", 400), Kind::NoSuchCluster);
        assert_eq!(kind("AccessDeniedException", 400), Kind::CredentialsDenied);
        assert_eq!(kind("ValidationException", 400), Kind::CredentialsDenied);
        assert_eq!(kind("SignatureDoesNotMatch", 403), Kind::CredentialsDenied);
        assert_eq!(kind("InvalidParameterValue", 400), Kind::CredentialsDenied);
    }
}
