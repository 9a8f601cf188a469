//! How do clients get AWS credentials without a key? From instance metadata (version 2), from
//! container credentials, and from the single sign-on portal.

use std::collections::BTreeMap;
use std::future::pending;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::http::Method;
use axum::http::request::Parts;
use axum::response::Response;
use serde_json::{Value, json};

use super::answer::{respond, status};
use super::fault::Fault;
use super::{Endpoint, form};
use crate::accounts::AccessKey;
use crate::{REGION, timestamp};

pub const INSTANCE_ROLE: &str = "instance-role";
/// The Authorization header that container credentials accept. A request without one is accepted
/// too.
pub const CONTAINER_TOKEN: &str = "container-authorization-token";
/// The access token of a single sign-on session.
pub const SSO_TOKEN: &str = "sso-access-token";

const CONTAINER_ROLE: &str = "task-role";
const IMDS_TOKEN: &str = "imds-session-token";
const IMDS_CREDENTIALS: &str = "/latest/meta-data/iam/security-credentials/";

pub async fn serve(endpoint: &Endpoint, parts: &Parts) -> Response {
    let path = parts.uri.path();
    let action = match path {
        "/container/credentials" => "container",
        "/federation/credentials" => "GetRoleCredentials",
        _ => "metadata",
    };
    let query = form(parts.uri.query().unwrap_or_default().as_bytes());
    let logged: BTreeMap<String, String> = query
        .clone()
        .into_iter()
        .chain([("path".to_owned(), path.to_owned())])
        .collect();
    endpoint.log(action, logged, None);
    let fault = endpoint.fault(action);
    if let Some(Fault::Slow(late)) = fault {
        tokio::time::sleep(late).await;
    }
    match fault {
        Some(Fault::Hang) => pending().await,
        Some(Fault::Throttle) => status(429),
        Some(Fault::Deny | Fault::DenyAction(_)) => status(403),
        Some(Fault::InternalError) => status(500),
        Some(Fault::Malformed) => respond(200, "application/json", "{\"Code\":".to_owned()),
        None | Some(Fault::Slow(_)) => match action {
            "container" => container(endpoint, parts),
            "GetRoleCredentials" => single_sign_on(endpoint, parts, &query),
            _ => instance(endpoint, parts),
        },
    }
}

fn instance(endpoint: &Endpoint, parts: &Parts) -> Response {
    let path = parts.uri.path();
    if path == "/latest/api/token" {
        let life = header(parts, "x-aws-ec2-metadata-token-ttl-seconds")
            .and_then(|seconds| seconds.parse::<u32>().ok());
        return match life {
            Some(1..=21_600) if parts.method == Method::PUT => {
                imds_token(header(parts, "x-aws-ec2-metadata-token-ttl-seconds"))
            }
            _ => status(400),
        };
    }
    // Version 1, which has no session token, is switched off.
    if header(parts, "x-aws-ec2-metadata-token") != Some(IMDS_TOKEN) {
        return status(401);
    }
    match path.strip_prefix(IMDS_CREDENTIALS) {
        Some("") => respond(200, "text/plain", INSTANCE_ROLE.to_owned()),
        Some(INSTANCE_ROLE) => {
            let key = endpoint.accounts.add_role_session(
                INSTANCE_ROLE,
                "i-0123456789abcdef0",
                endpoint.role_life(),
            );
            let mut body = credentials(&key);
            body["Code"] = json!("Success");
            body["Type"] = json!("AWS-HMAC");
            body["LastUpdated"] = json!(timestamp(SystemTime::now()));
            respond(200, "application/json", body.to_string())
        }
        _ if path == "/latest/meta-data/placement/region" => {
            respond(200, "text/plain", REGION.to_owned())
        }
        _ => status(404),
    }
}

fn imds_token(life: Option<&str>) -> Response {
    let mut response = respond(200, "text/plain", IMDS_TOKEN.to_owned());
    let life = life.and_then(|life| life.parse().ok());
    // SDKs read the token's life from the answer, and refuse an answer without it.
    response.headers_mut().extend(life.map(|life| {
        (
            axum::http::HeaderName::from_static("x-aws-ec2-metadata-token-ttl-seconds"),
            life,
        )
    }));
    response
}

fn container(endpoint: &Endpoint, parts: &Parts) -> Response {
    if header(parts, "authorization").is_some_and(|token| token != CONTAINER_TOKEN) {
        return respond(
            401,
            "application/json",
            json!({"code": "Unauthorized", "message": "bad authorization token"}).to_string(),
        );
    }
    let key = endpoint
        .accounts
        .add_role_session(CONTAINER_ROLE, "task", endpoint.role_life());
    respond(200, "application/json", credentials(&key).to_string())
}

fn single_sign_on(
    endpoint: &Endpoint,
    parts: &Parts,
    query: &BTreeMap<String, String>,
) -> Response {
    let role = query
        .get("role_name")
        .filter(|_| query.contains_key("account_id"));
    let (Some(role), Some(SSO_TOKEN)) = (role, header(parts, "x-amz-sso_bearer_token")) else {
        let mut refusal = respond(
            401,
            "application/json",
            json!({"message": "Session token not found or invalid"}).to_string(),
        );
        refusal.headers_mut().insert(
            "x-amzn-errortype",
            axum::http::HeaderValue::from_static("UnauthorizedException"),
        );
        return refusal;
    };
    let key = endpoint
        .accounts
        .add_role_session(role, "sso-user", endpoint.role_life());
    let expiration = key
        .expires
        .and_then(|expires| expires.duration_since(UNIX_EPOCH).ok())
        .map(|since| since.as_millis());
    let body = json!({"roleCredentials": {
        "accessKeyId": key.id,
        "secretAccessKey": key.secret,
        "sessionToken": key.session_token,
        "expiration": expiration.and_then(|millis| u64::try_from(millis).ok()),
    }});
    respond(200, "application/json", body.to_string())
}

fn credentials(key: &AccessKey) -> Value {
    json!({
        "AccessKeyId": key.id,
        "SecretAccessKey": key.secret,
        "Token": key.session_token,
        "Expiration": key.expires.map(timestamp),
    })
}

fn header<'a>(parts: &'a Parts, name: &str) -> Option<&'a str> {
    parts.headers.get(name)?.to_str().ok()
}
