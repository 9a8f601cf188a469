//! What does STS answer? It tells callers who they are, and lets them be somebody else for a while.

use std::collections::HashMap;
use std::time::Duration;

use super::Call;
use super::answer::{ApiError, element};
use crate::accounts::{ACCOUNT_ID, AccessKey};
use crate::timestamp;

/// A role that every caller with a valid signature may assume.
pub const ROLE: &str = "analyst";
/// A role that requires [`EXTERNAL_ID`].
pub const PARTNER_ROLE: &str = "partner";
pub const EXTERNAL_ID: &str = "external-id-7";
/// A role that can be assumed with [`WEB_IDENTITY_TOKEN`].
pub const WEB_IDENTITY_ROLE: &str = "pod-role";
pub const WEB_IDENTITY_TOKEN: &str = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJwb2QifQ.testbed";

pub fn known_roles() -> HashMap<String, Option<String>> {
    [(ROLE, None), (PARTNER_ROLE, Some(EXTERNAL_ID))]
        .map(|(name, id)| (name.to_owned(), id.map(str::to_owned)))
        .into()
}

pub fn role_arn(name: &str) -> String {
    format!("arn:aws:iam::{ACCOUNT_ID}:role/{name}")
}

/// A web identity is proof enough without a signature.
pub fn takes_unsigned(action: &str) -> bool {
    action == "AssumeRoleWithWebIdentity"
}

pub fn assume_role(call: &Call<'_>) -> Result<String, ApiError> {
    call.signer()?;
    let arn = call.required("RoleArn")?;
    let name = role_name(arn).ok_or_else(|| call.denied())?;
    let wanted = call.settings.roles.get(name).ok_or_else(|| call.denied())?;
    if wanted.is_some() && wanted.as_deref() != call.param("ExternalId") {
        return Err(call.denied());
    }
    session(call, name)
}

pub fn assume_role_with_web_identity(call: &Call<'_>) -> Result<String, ApiError> {
    let arn = call.required("RoleArn")?;
    if call.required("WebIdentityToken")?.trim() != WEB_IDENTITY_TOKEN {
        return Err(ApiError::new(
            400,
            "InvalidIdentityToken",
            "No OpenIDConnect provider found for this token.".to_owned(),
        ));
    }
    match role_name(arn) {
        Some(WEB_IDENTITY_ROLE) => session(call, WEB_IDENTITY_ROLE),
        _ => Err(ApiError::new(
            403,
            "AccessDenied",
            "Not authorized to perform sts:AssumeRoleWithWebIdentity".to_owned(),
        )),
    }
}

pub fn caller_identity(call: &Call<'_>) -> Result<String, ApiError> {
    let signer = call.signer()?;
    Ok(element("Arn", &signer.principal.arn())
        + &element("UserId", &signer.access_key_id)
        + &element("Account", ACCOUNT_ID))
}

fn session(call: &Call<'_>, role: &str) -> Result<String, ApiError> {
    let name = call.required("RoleSessionName")?;
    let asked: u64 = call
        .param("DurationSeconds")
        .and_then(|seconds| seconds.parse().ok())
        .unwrap_or(3600);
    let life = call
        .settings
        .role_life
        .unwrap_or(Duration::from_secs(asked));
    let key = call.endpoint.accounts.add_role_session(role, name, life);
    let arn = format!("arn:aws:sts::{ACCOUNT_ID}:assumed-role/{role}/{name}");
    let user = element("AssumedRoleId", &format!("AROA:{name}")) + &element("Arn", &arn);
    Ok(format!(
        "<Credentials>{}</Credentials><AssumedRoleUser>{user}</AssumedRoleUser>",
        credentials(call, &key)
    ))
}

fn credentials(call: &Call<'_>, key: &AccessKey) -> String {
    element("AccessKeyId", &key.id)
        + &element("SecretAccessKey", &key.secret)
        + &element(
            "SessionToken",
            key.session_token.as_deref().unwrap_or_default(),
        )
        + &element(
            "Expiration",
            &key.expires
                .map(|expires| timestamp(call.told(expires)))
                .unwrap_or_default(),
        )
}

fn role_name(arn: &str) -> Option<&str> {
    arn.strip_prefix(&format!("arn:aws:iam::{ACCOUNT_ID}:role/"))
}
