//! Why did AWS give no answer, and what does that mean for a login?

use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::sync::Arc;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_rds::operation::describe_db_clusters::DescribeDBClustersError;
use aws_sdk_rds::operation::describe_db_instances::DescribeDBInstancesError;
use aws_sdk_rds::operation::describe_db_proxies::DescribeDBProxiesError;
use aws_sdk_redshift::operation::describe_clusters::DescribeClustersError;
use aws_sdk_redshift::operation::describe_custom_domain_associations::DescribeCustomDomainAssociationsError;
use aws_sdk_redshift::operation::get_cluster_credentials::GetClusterCredentialsError;
use aws_sdk_redshift::operation::get_cluster_credentials_with_iam::GetClusterCredentialsWithIAMError;
use aws_sdk_redshiftserverless::operation::get_credentials::GetCredentialsError;
use aws_sdk_redshiftserverless::operation::get_workgroup::GetWorkgroupError;
use aws_sdk_sts::operation::assume_role::AssumeRoleError;
use aws_sdk_sts::operation::get_caller_identity::GetCallerIdentityError;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::SdkError;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use aws_types::request_id::RequestId;

use crate::error::{ErrorKind, Refusal, causes, chain};
use crate::iam::Action;

const CANNOT_LOAD: &str = "AWS credentials cannot be loaded now";

/// An AWS call, or a search for AWS credentials, that failed.
///
/// Its `Display` is for the client that logs in: it names the IAM action first, since clients
/// truncate messages, and quotes nothing that AWS said. Its source has AWS's own words.
#[derive(Clone)]
pub struct AwsError {
    /// What went wrong.
    pub reason: AwsErrorReason,
    message: Cow<'static, str>,
    source: Option<Arc<dyn Error + Send + Sync>>,
}

/// What went wrong with an AWS call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AwsErrorReason {
    /// No source of the credential chain has AWS credentials.
    NoCredentials,
    /// There are credentials, but AWS does not accept them, or no longer accepts them.
    CredentialsNotValid,
    /// The identity lacks a permission, such as `redshift:JoinGroup`.
    AccessDenied {
        /// The missing IAM action, which may differ from the one that was called.
        action: String,
    },
    /// AWS knows no such cluster, workgroup or instance, or it has no endpoint yet.
    NotFound,
    /// AWS throttles the call, fails, cannot be reached, or does not finish its answer.
    Unavailable,
    /// AWS refuses the call for another reason.
    Rejected,
    /// A token could not be signed, although that takes neither network nor permission.
    NotSigned,
}

/// What AWS said, with the request id that AWS support asks for.
#[derive(Debug, thiserror::Error)]
#[error(
    "{code}: {message}{}",
    .request_id.as_ref().map(|id| format!(" (request {id})")).unwrap_or_default()
)]
struct ServiceMessage {
    code: String,
    message: String,
    request_id: Option<String>,
}

/// Service errors for which the SDK has a type that says more than the error's code would.
pub(super) trait TypedServiceError:
    ProvideErrorMetadata + Error + Send + Sync + 'static
{
    /// Whether the cluster, workgroup or instance does not exist.
    fn is_not_found(&self) -> bool {
        false
    }
}

/// Implements [`TypedServiceError`] from the variants that mean that something does not exist.
macro_rules! not_found_if {
    ($($error:ty: $($is:ident)|*;)*) => {$(
        impl TypedServiceError for $error {
            fn is_not_found(&self) -> bool {
                false $(|| self.$is())*
            }
        }
    )*};
}

not_found_if! {
    DescribeClustersError: is_cluster_not_found_fault;
    DescribeCustomDomainAssociationsError: is_custom_domain_association_not_found_fault;
    DescribeDBClustersError: is_db_cluster_not_found_fault;
    DescribeDBInstancesError: is_db_instance_not_found_fault;
    DescribeDBProxiesError: is_db_proxy_not_found_fault;
    GetClusterCredentialsError: is_cluster_not_found_fault;
    GetClusterCredentialsWithIAMError: is_cluster_not_found_fault;
    GetCredentialsError: is_resource_not_found_exception;
    GetWorkgroupError: is_resource_not_found_exception;
    AssumeRoleError: ;
    GetCallerIdentityError: ;
}

impl AwsError {
    pub(super) fn new(reason: AwsErrorReason, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            reason,
            message: message.into(),
            source: None,
        }
    }

    fn with_source(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into().into());
        self
    }

    /// A call of this IAM action failed.
    pub(super) fn call_failed<E: TypedServiceError>(
        action: &'static str,
        error: SdkError<E, HttpResponse>,
    ) -> Self {
        let unavailable = |why| Self::unavailable(action, why);
        match &error {
            SdkError::ServiceError(service) => {
                let failed = if service.err().is_not_found() {
                    Self::not_found(action)
                } else {
                    from_code(
                        action,
                        service.err().code().unwrap_or_default(),
                        service.err().message().unwrap_or_default(),
                        service.raw().status().as_u16(),
                    )
                };
                failed.with_source(service_cause(&error))
            }
            SdkError::TimeoutError(_) => {
                unavailable("AWS did not answer in time").with_source(error)
            }
            SdkError::DispatchFailure(_) => unavailable("AWS cannot be reached").with_source(error),
            // These errors hold the whole answer or the request. Only their text is kept.
            SdkError::ResponseError(_) => {
                unavailable("AWS gave an answer that cannot be read").with_source(chain(&error))
            }
            _ => Self::new(
                AwsErrorReason::Rejected,
                format!("{action}: the call could not be made"),
            )
            .with_source(chain(&error)),
        }
    }

    /// There are no AWS credentials: no source of the chain has any, or a source fails.
    pub(super) fn cannot_load_credentials(error: CredentialsError) -> Self {
        let assume_role = assume_role_error(&error);
        // If the source of a role has no credentials, the call fails as if STS could not be
        // reached.
        let source = assume_role
            .and_then(|failure| {
                causes(failure)
                    .filter_map(|cause| cause.downcast_ref())
                    .last()
            })
            .unwrap_or(&error);
        let failed = match (assume_role, source) {
            (Some(SdkError::ServiceError(service)), _) => from_code(
                Action::StsAssumeRole.name(),
                service.err().code().unwrap_or_default(),
                service.err().message().unwrap_or_default(),
                service.raw().status().as_u16(),
            ),
            (_, CredentialsError::CredentialsNotLoaded(_)) => {
                Self::new(AwsErrorReason::NoCredentials, NO_CREDENTIALS_FOUND)
            }
            (_, CredentialsError::InvalidConfiguration(_)) => {
                Self::new(AwsErrorReason::Rejected, NO_CREDENTIALS_FOUND)
            }
            (Some(_), _) => {
                Self::unavailable(Action::StsAssumeRole.name(), "AWS cannot be reached")
            }
            (None, _) => Self::new(AwsErrorReason::Unavailable, CANNOT_LOAD),
        };
        let words: Option<Box<dyn Error + Send + Sync>> = match assume_role {
            Some(error @ SdkError::ServiceError(service)) => {
                service_message(service.err(), error.request_id()).map(Into::into)
            }
            Some(error) => Some(chain(error).into()),
            None => None,
        };
        match words {
            Some(words) => failed.with_source(words),
            None => failed.with_source(error),
        }
    }

    /// There are no AWS credentials, although there were some before: their source does not answer,
    /// or someone is replacing them there.
    pub(super) fn after_earlier_success(self) -> Self {
        match self.reason {
            AwsErrorReason::NoCredentials => Self {
                reason: AwsErrorReason::Unavailable,
                message: CANNOT_LOAD.into(),
                ..self
            },
            _ => self,
        }
    }

    /// The credential chain took too long.
    pub(super) fn loading_timed_out() -> Self {
        Self::new(AwsErrorReason::Unavailable, CANNOT_LOAD)
            .with_source("their source did not answer in time")
    }

    /// The credentials that a source has given have expired, so nothing can be signed with them.
    pub(super) fn credentials_expired() -> Self {
        Self::new(
            AwsErrorReason::CredentialsNotValid,
            "the proxy's AWS credentials have expired",
        )
        .with_source("their source gives none that are still valid by this machine's clock")
    }

    /// AWS's answer lacks a member that the API promises.
    pub(super) fn incomplete_answer(action: &'static str) -> Self {
        Self::unavailable(action, "AWS gave an incomplete answer")
    }

    /// AWS knows the server, but it has no endpoint to connect to.
    pub(super) fn no_endpoint(action: &'static str) -> Self {
        Self::new(
            AwsErrorReason::NotFound,
            format!(
                "{action}: found no endpoint (is the cluster, workgroup or instance still being \
                 created?)"
            ),
        )
    }

    /// The server is not one that this identity can see.
    pub(super) fn no_such_server(why: String) -> Self {
        Self::new(AwsErrorReason::NotFound, why)
    }

    /// Signing failed, although that takes neither network nor permission.
    pub(super) fn cannot_sign(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::new(
            AwsErrorReason::NotSigned,
            "the authentication token could not be signed",
        )
        .with_source(error)
    }

    fn unavailable(action: &'static str, why: &str) -> Self {
        Self::new(AwsErrorReason::Unavailable, format!("{action}: {why}"))
    }

    fn not_found(action: &'static str) -> Self {
        Self::new(
            AwsErrorReason::NotFound,
            format!(
                "{action}: there is no such cluster, workgroup or instance in this account and \
                 region"
            ),
        )
    }

    /// The case of the error table that a login meets.
    pub fn kind(&self) -> ErrorKind {
        match self.reason {
            AwsErrorReason::Unavailable => ErrorKind::CredentialsUnavailable,
            AwsErrorReason::NotFound => ErrorKind::NoSuchCluster,
            AwsErrorReason::NotSigned => ErrorKind::Internal,
            AwsErrorReason::NoCredentials
            | AwsErrorReason::CredentialsNotValid
            | AwsErrorReason::AccessDenied { .. }
            | AwsErrorReason::Rejected => ErrorKind::CredentialsDenied,
        }
    }

    /// Whether the same call may succeed a moment later.
    pub fn is_transient(&self) -> bool {
        self.kind().sqlstate().is_transient()
    }

    /// AWS's own words, or what prevented them from reaching us. They are for the log.
    pub fn cause(&self) -> Option<String> {
        self.source.as_deref().map(|source| chain(source))
    }
}

impl fmt::Display for AwsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// `Debug` is not derived, because that of an SDK error contains the whole answer.
impl fmt::Debug for AwsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AwsError")
            .field("reason", &self.reason)
            .field("message", &self.message)
            .field("source", &self.cause())
            .finish()
    }
}

impl Error for AwsError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source
            .as_deref()
            .map(|source| source as &(dyn Error + 'static))
    }
}

/// The client reads what the error says; only the log has its source.
impl From<AwsError> for Refusal {
    fn from(error: AwsError) -> Self {
        let refusal = Self::new(error.kind(), error.message);
        match error.source {
            Some(source) => refusal.because(source),
            None => refusal,
        }
    }
}

const NO_CREDENTIALS_FOUND: &str = "no AWS credentials: none in the environment, the profile, \
     a web identity, a container or the instance metadata";

/// The part of an error response that is kept; the response itself may hold more than a log should
/// have.
fn service_cause<E: TypedServiceError>(
    error: &SdkError<E, HttpResponse>,
) -> Box<dyn Error + Send + Sync> {
    let id = error.request_id().map(str::to_string);
    let words = error
        .as_service_error()
        .and_then(|service| service_message(service, id.as_deref()));
    words.map_or_else(|| chain(error).into(), Into::into)
}

fn service_message<E: ProvideErrorMetadata>(
    error: &E,
    request_id: Option<&str>,
) -> Option<ServiceMessage> {
    Some(ServiceMessage {
        code: error.code()?.to_string(),
        message: error.message()?.to_string(),
        request_id: request_id.map(str::to_string),
    })
}

/// Classifies the errors that every service has and for which no operation has a type.
fn from_code(action: &'static str, code: &str, message: &str, status: u16) -> AwsError {
    let not_valid = |text| AwsError::new(AwsErrorReason::CredentialsNotValid, text);
    match code {
        "Throttling"
        | "ThrottlingException"
        | "RequestLimitExceeded"
        | "TooManyRequestsException"
        | "RequestThrottled"
        | "SlowDown" => AwsError::unavailable(action, "AWS throttles the calls of this account"),
        _ if status >= 500 => AwsError::unavailable(action, "AWS fails"),
        "" if status < 300 => {
            AwsError::unavailable(action, "AWS gave an answer that cannot be read")
        }
        "AccessDenied" | "AccessDeniedException" | "UnauthorizedOperation" => {
            let action = denied_action(message).unwrap_or(action);
            AwsError::new(
                AwsErrorReason::AccessDenied {
                    action: action.to_string(),
                },
                format!("{action} is not allowed for the proxy's AWS identity"),
            )
        }
        "ExpiredToken" | "ExpiredTokenException" | "RequestExpired" => not_valid(format!(
            "{action}: the proxy's AWS credentials have expired"
        )),
        "InvalidClientTokenId"
        | "UnrecognizedClientException"
        | "SignatureDoesNotMatch"
        | "InvalidSignatureException" => not_valid(format!(
            "{action}: AWS does not accept the proxy's AWS credentials ({code})"
        )),
        _ => AwsError::new(
            AwsErrorReason::Rejected,
            format!("{action}: AWS refuses the call ({code})"),
        ),
    }
}

/// The missing action may differ from the one that was called, as `redshift:JoinGroup` and
/// `redshift:CreateClusterUser` do.
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

/// The error of STS, which the SDK wraps into an error of the credential provider.
fn assume_role_error<'a>(
    error: &'a (dyn Error + 'static),
) -> Option<&'a SdkError<AssumeRoleError, HttpResponse>> {
    causes(error).find_map(|error| error.downcast_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_missing_action_is_named_first() {
        let message = "User: arn:aws:iam::1:user/x is not authorized to perform: \
                       redshift:JoinGroup on resource: arn:aws:redshift:r:1:dbgroup:c/bi";
        let error = from_code(
            "redshift:GetClusterCredentials",
            "AccessDenied",
            message,
            403,
        );
        let refusal = Refusal::from(error.clone());
        assert_eq!(
            refusal.message,
            "redshift:JoinGroup is not allowed for the proxy's AWS identity"
        );
        assert_eq!(refusal.kind, ErrorKind::CredentialsDenied);
        let action = "redshift:JoinGroup".to_string();
        assert_eq!(error.reason, AwsErrorReason::AccessDenied { action });
    }

    #[test]
    fn transient_errors_are_distinguished_from_permanent_ones() {
        let kind =
            |code, status| from_code("redshift:GetClusterCredentials", code, "", status).kind();
        assert_eq!(kind("Throttling", 400), ErrorKind::CredentialsUnavailable);
        assert_eq!(
            kind("InternalFailure", 500),
            ErrorKind::CredentialsUnavailable
        );
        assert_eq!(
            kind("ThrottlingException", 400),
            ErrorKind::CredentialsUnavailable
        );
        assert_eq!(
            kind("InternalServerException", 500),
            ErrorKind::CredentialsUnavailable
        );
        assert_eq!(
            kind("AccessDeniedException", 400),
            ErrorKind::CredentialsDenied
        );
        assert_eq!(
            kind("ValidationException", 400),
            ErrorKind::CredentialsDenied
        );
        assert_eq!(
            kind("SignatureDoesNotMatch", 403),
            ErrorKind::CredentialsDenied
        );
        assert_eq!(
            kind("InvalidParameterValue", 400),
            ErrorKind::CredentialsDenied
        );
    }

    #[test]
    fn a_missing_cluster_is_recognized_by_the_type_of_the_error() {
        use aws_sdk_redshift::types::error::ClusterNotFoundFault;
        let fault = ClusterNotFoundFault::builder().build();
        assert!(GetClusterCredentialsError::ClusterNotFoundFault(fault).is_not_found());
        assert_eq!(
            AwsError::not_found("redshift:GetClusterCredentials").kind(),
            ErrorKind::NoSuchCluster
        );
    }
}
