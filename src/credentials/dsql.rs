//! How is a login to Aurora DSQL authenticated? By a token that the proxy signs itself, without a
//! call to AWS.
//!
//! The token is signed with `aws-sigv4`, which every service client brings along, rather than with
//! `aws-sdk-dsql`, whose generator is also just these few lines. It would bring in a whole service
//! client to build (4 s of CPU without optimisation, 48 s with it) for nothing else.

use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{
    SignableBody, SignableRequest, SignatureLocation, SigningSettings, sign,
};
use aws_sigv4::sign::v4::SigningParams;
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::identity::Identity;
use percent_encoding::utf8_percent_encode;

use super::Credential;
use super::error::AwsError;
use super::identity::AwsContext;
use super::rds::ESCAPED;
use crate::iam::dsql_connect_action;
use crate::secret::Secret;

/// AWS would accept up to a week. But a stolen token is valid for this long, and a new one costs no
/// call.
const TOKEN_LIFE: Duration = Duration::from_mins(15);

/// Signs a token for the cluster whose host name is `name`. The token does not contain the user:
/// the cluster knows which IAM roles may log in as which database roles.
///
/// It lives for 15 minutes, or for as long as the credentials that sign it if that is shorter.
///
/// # Errors
/// The AWS credentials have expired.
pub fn mint(aws: &AwsContext, name: &str, db_user: &str) -> Result<Credential, AwsError> {
    let (credentials, life) = aws.signing_credentials(TOKEN_LIFE)?;
    let region = aws.config.region().map(AsRef::as_ref).unwrap_or_default();
    let token = token(
        credentials,
        region,
        name,
        action(db_user),
        SystemTime::now(),
    )
    .map_err(AwsError::cannot_sign)?;
    Ok(Credential::new(
        db_user.to_string(),
        Secret::new(token),
        life,
    ))
}

fn action(db_user: &str) -> &'static str {
    dsql_connect_action(db_user).without_service()
}

/// The token: a presigned GET request without its scheme.
fn token(
    credentials: Credentials,
    region: &str,
    name: &str,
    action: &str,
    signed_at: SystemTime,
) -> Result<String, BoxError> {
    let mut settings = SigningSettings::default();
    settings.expires_in = Some(TOKEN_LIFE);
    settings.signature_location = SignatureLocation::QueryParams;
    let identity = Identity::from(credentials);
    let params = SigningParams::builder()
        .identity(&identity)
        .region(region)
        .name("dsql")
        .time(signed_at)
        .settings(settings)
        .build()?;
    let mut token = format!("{name}/?Action={action}");
    let request = SignableRequest::new(
        "GET",
        format!("https://{token}"),
        std::iter::empty(),
        SignableBody::empty(),
    )?;
    let (instructions, _) = sign(request, &params.into())?.into_parts();
    for (name, value) in instructions.params() {
        token += &format!("&{name}={}", utf8_percent_encode(value, ESCAPED));
    }
    Ok(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The signatures that botocore 1.44.5 makes for the same key, time and name. The order of the
    /// parameters does not matter.
    const BOTOCORE: [(&str, &str); 2] = [
        (
            "an_app_user",
            "DbConnect 90dc6246a2acc52fa98090873e828b5decdc928d376c0586a63818415b88017f",
        ),
        (
            "admin",
            "DbConnectAdmin e6f63e4e5fe2b17f304f57ef8b39990c4cdb843b148ce03cae406a60b6e79689",
        ),
    ];

    #[test]
    fn tokens_equal_those_of_botocore() {
        let credentials = Credentials::new(
            "AKIDEXAMPLE",
            "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY",
            Some("a+b/c==".to_string()),
            None,
            "test",
        );
        let name = "foo0bar1baz2quux3quuux4qux.dsql.us-east-1.on.aws";
        let signed_at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_233_906);
        for (db_user, expected) in BOTOCORE {
            let token = token(
                credentials.clone(),
                "us-east-1",
                name,
                action(db_user),
                signed_at,
            )
            .unwrap();
            let parameters = token
                .strip_prefix(name)
                .unwrap()
                .strip_prefix("/?")
                .unwrap();
            let mut found: Vec<_> = parameters.split('&').collect();
            found.sort_unstable();
            let (action, signature) = expected.split_once(' ').unwrap();
            let wanted = [
                &format!("Action={action}"),
                "X-Amz-Algorithm=AWS4-HMAC-SHA256",
                "X-Amz-Credential=AKIDEXAMPLE%2F20261121%2Fus-east-1%2Fdsql%2Faws4_request",
                "X-Amz-Date=20261121T040506Z",
                "X-Amz-Expires=900",
                "X-Amz-Security-Token=a%2Bb%2Fc%3D%3D",
                &format!("X-Amz-Signature={signature}"),
                "X-Amz-SignedHeaders=host",
            ];
            assert_eq!(found, wanted);
        }
    }

    #[test]
    fn only_the_user_admin_gets_the_admin_action() {
        for other in ["Admin", "admin ", "administrator", ""] {
            assert_eq!(action(other), "DbConnect", "{other}");
        }
    }
}
