//! RDS and Aurora authentication tokens: signed here, no call to AWS.

use std::time::{Duration, SystemTime};

use aws_config::Region;
use aws_sdk_rds::auth_token::{AuthTokenGenerator, Config};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::Credential;
use super::failure;
use super::identity::Aws;
use crate::config::Endpoint;
use crate::error::Refusal;
use crate::secret::Secret;

/// A server takes no token older than this.
const TOKEN_LIFE: Duration = Duration::from_mins(15);
/// RFC 3986 unreserved characters stay.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Signs a token for a database user of the server that calls itself `endpoint`.
///
/// It lives for 15 minutes, or as long as the credentials that sign it where that is shorter.
///
/// # Errors
/// There are no AWS credentials.
pub async fn mint(aws: &Aws, endpoint: &Endpoint, db_user: &str) -> Result<Credential, Refusal> {
    let credentials = aws.credentials().await?;
    let signed_at = SystemTime::now();
    let expires = credentials.expiry().map_or(signed_at + TOKEN_LIFE, |expiry| expiry.min(signed_at + TOKEN_LIFE));
    let config = Config::builder()
        .hostname(&endpoint.host)
        .port(u64::from(endpoint.port))
        // The generator pastes it into a URL as it is: a space would make it panic, `a+b` would be signed as `a b`,
        // and `x&Action=…` would add a parameter.
        .username(utf8_percent_encode(db_user, ESCAPED).to_string())
        // Without a region it would sign for us-east-1.
        .region(aws.config.region().cloned().unwrap_or(Region::from_static("unset")))
        .credentials(credentials)
        .build()
        .map_err(|error| failure::cannot_sign(&*error))?;
    let token = AuthTokenGenerator::new(config).auth_token(&aws.config).await.map_err(|error| failure::cannot_sign(&*error))?;
    Ok(Credential::new(db_user.to_string(), Secret::new(token.as_str()), expires))
}
