//! Why does AWS give no identity, no endpoint or no credential?

use crate::check::login::CheckedLogin;
use crate::check::report::{Advice, Failure};
use crate::config::{AwsIdentity, Role};
use crate::credentials::{
    AwsError, AwsErrorReason, Caller, CredentialSources, inspect_credential_sources,
};
use crate::iam::Action;

const USE_VALID_CREDENTIALS: &str = "correct what is named; an access key must be active, the \
     secret its own, and a temporary one (ASIA…) needs its session token";

/// There is no AWS identity to log in with. `source` is the identity that wanted to assume the
/// role, where that is known.
pub async fn identity(
    error: &AwsError,
    identity: &AwsIdentity,
    source: Option<&Caller>,
) -> Failure {
    if error.reason == AwsErrorReason::NoCredentials {
        return no_credentials(identity).await;
    }
    let advice = match (&error.reason, &identity.role) {
        (AwsErrorReason::AccessDenied { action }, Some(role))
            if Action::from_name(action) == Some(Action::StsAssumeRole) =>
        {
            may_not_assume(role, source)
        }
        (AwsErrorReason::Unavailable, _) => Advice::new(
            cause(error),
            "try again; with single sign-on, log in first (aws sso login); see whether this \
             machine reaches STS and the source of its credentials",
        ),
        _ => Advice::new(cause(error), USE_VALID_CREDENTIALS),
    };
    Failure {
        error: error.to_string(),
        advice,
    }
}

fn may_not_assume(role: &Role, source: Option<&Caller>) -> Advice {
    let source = source.map_or("the source of the role", |caller| &caller.arn);
    let (action, role) = (Action::StsAssumeRole, &role.arn);
    Advice::new(
        format!("{source} may not assume {role}"),
        format!(
            "allow {action} on {role} to {source}, and name that in the role's trust policy; \
             where it has a condition on sts:ExternalId, set external_id"
        ),
    )
}

async fn no_credentials(identity: &AwsIdentity) -> Failure {
    let advice = match inspect_credential_sources(identity.profile.as_deref()).await {
        CredentialSources::NoSuchProfile {
            name,
            files,
            nearest,
        } => {
            let setting = if identity.profile.is_some() {
                "profile of the target"
            } else {
                "AWS_PROFILE"
            };
            let hint = nearest
                .map(|nearest| format!(" (did you mean \"{nearest}\"?)"))
                .unwrap_or_default();
            Advice::new(
                format!("there is no profile \"{name}\" in {files}"),
                format!("correct {setting}{hint}, or add the profile: aws configure sso"),
            )
        }
        CredentialSources::NoneHasCredentials(places) => Advice::new(
            format!("looked at: {}", places.join("; ")),
            "log in (aws sso login), name a profile with profile or AWS_PROFILE, or give this \
             machine a role",
        ),
    };
    Failure {
        error: "no AWS credentials".to_string(),
        advice,
    }
}

/// AWS was asked for the endpoint or for the credential, and did not give it.
pub fn aws_call(error: &AwsError, login: CheckedLogin<'_>) -> Failure {
    let advice = match &error.reason {
        AwsErrorReason::AccessDenied { action } => Advice::new(
            format!("{} may not use {action}", login.caller_arn()),
            format!(
                "allow {action} on {} to {}",
                login.resources(action),
                login.caller_arn()
            ),
        ),
        AwsErrorReason::NotFound => login.wrong_region().unwrap_or_else(|| not_found(login)),
        AwsErrorReason::Unavailable => Advice::new(
            cause(error),
            format!(
                "try again; if it stays so, see whether this machine reaches AWS in {} \
                 (HTTPS_PROXY, VPC endpoint, endpoint_url)",
                login.target.region
            ),
        ),
        AwsErrorReason::NoCredentials | AwsErrorReason::CredentialsNotValid => {
            Advice::new(cause(error), USE_VALID_CREDENTIALS)
        }
        AwsErrorReason::Rejected | AwsErrorReason::NotSigned => {
            Advice::new(cause(error), "correct what is named")
        }
    };
    Failure {
        error: error.to_string(),
        advice,
    }
}

fn not_found(login: CheckedLogin<'_>) -> Advice {
    Advice::new(
        format!(
            "nothing of this name is ready in account {}, region {}",
            login.caller.map_or("(unknown)", |caller| &caller.account),
            login.target.region
        ),
        format!(
            "correct the identifier or region, or take an identity of the server's account; \
             this one is {}",
            login.caller_arn()
        ),
    )
}

/// What AWS said, on one line: the SDK lists what it has tried on several.
fn cause(error: &AwsError) -> String {
    let cause = error.cause().unwrap_or_else(|| error.to_string());
    cause.split_whitespace().collect::<Vec<_>>().join(" ")
}
