//! How is a login to RDS or Aurora authenticated? By a token that the proxy signs itself, without a
//! call to AWS.

use std::time::Duration;

use aws_config::{Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_sdk_rds::auth_token::{AuthTokenGenerator, Config};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::Credential;
use super::error::AwsError;
use super::identity::AwsContext;
use crate::config::Endpoint;
use crate::secret::Secret;

/// Servers accept no token that is older than this.
const TOKEN_LIFE: Duration = Duration::from_mins(15);
/// Everything but the unreserved characters of RFC 3986 is percent-encoded.
pub(super) const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// Signs a token for a database user of the server whose name is `endpoint`. For a login through
/// RDS Proxy, that is the RDS Proxy.
///
/// It lives for 15 minutes, or for as long as the credentials that sign it if that is shorter.
///
/// # Errors
/// The AWS credentials have expired.
pub async fn mint(
    aws: &AwsContext,
    endpoint: &Endpoint,
    db_user: &str,
) -> Result<Credential, AwsError> {
    let (credentials, life) = aws.signing_credentials(TOKEN_LIFE)?;
    let token = token(&aws.config, credentials, endpoint, db_user).await?;
    Ok(Credential::new(
        db_user.to_string(),
        Secret::new(token),
        life,
    ))
}

async fn token(
    config: &SdkConfig,
    credentials: Credentials,
    endpoint: &Endpoint,
    db_user: &str,
) -> Result<String, AwsError> {
    let signer = Config::builder()
        .hostname(&endpoint.host)
        .port(u64::from(endpoint.port))
        // The generator pastes the user name into a URL as it is: a space would make it panic,
        // `a+b` would be signed as `a b`, and `x&Action=…` would add a parameter.
        .username(utf8_percent_encode(db_user, ESCAPED).to_string())
        // Without a region, the generator would sign for us-east-1.
        .region(
            config
                .region()
                .cloned()
                .unwrap_or(Region::from_static("unset")),
        )
        .credentials(credentials)
        .build()
        .map_err(AwsError::cannot_sign)?;
    let token = AuthTokenGenerator::new(signer)
        .auth_token(config)
        .await
        .map_err(AwsError::cannot_sign)?;
    Ok(token.as_str().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    use aws_config::BehaviorVersion;
    use testbed::Accounts;
    use testbed::sigv4::{Presigned, verify_presigned};

    #[tokio::test]
    async fn a_token_for_rds_proxy_is_signed_for_the_proxys_own_name() {
        let accounts = Accounts::default();
        let key = accounts.add_user("ana");
        let config = aws_config::defaults(BehaviorVersion::latest())
            .region("eu-central-1")
            .no_credentials()
            .load()
            .await;
        let credentials = Credentials::new(key.id, key.secret, None, None, "test");
        let endpoint = Endpoint {
            host: "myproxy.proxy-abcdefghijkl.eu-central-1.rds.amazonaws.com".to_string(),
            port: 5432,
        };
        let token = token(&config, credentials, &endpoint, "a+b").await.unwrap();
        let (host, query) = token.split_once("/?").unwrap();
        assert_eq!(host, endpoint.to_string());
        let presigned = Presigned {
            host,
            query,
            region: "eu-central-1",
            service: "rds-db",
            max_life: TOKEN_LIFE,
        };
        let (_, parameters) = verify_presigned(&presigned, &accounts, SystemTime::now()).unwrap();
        assert_eq!(parameters["DBUser"], "a+b");
    }
}
