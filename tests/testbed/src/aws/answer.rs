//! How does a service answer? Success and errors are in the XML of the query protocol or in JSON
//! 1.1, as the service speaks it.

use std::fmt::Write as _;
use std::time::SystemTime;

use axum::body::Body;
use axum::http::HeaderValue;
use axum::http::header::CONTENT_TYPE;
use axum::response::Response;
use serde_json::json;
use time::OffsetDateTime;
use time::macros::format_description;

use crate::random;
use crate::sigv4::Refusal;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    Redshift,
    RedshiftServerless,
    Rds,
    Sts,
}

pub struct ApiError {
    status: u16,
    code: &'static str,
    message: String,
}

impl Service {
    pub fn of_action(action: &str) -> Option<Service> {
        match action {
            "GetClusterCredentials"
            | "GetClusterCredentialsWithIAM"
            | "DescribeClusters"
            | "DescribeCustomDomainAssociations" => Some(Service::Redshift),
            "GetCredentials" | "GetWorkgroup" => Some(Service::RedshiftServerless),
            "DescribeDBInstances" | "DescribeDBClusters" | "DescribeDBProxies" => {
                Some(Service::Rds)
            }
            "AssumeRole" | "AssumeRoleWithWebIdentity" | "GetCallerIdentity" => Some(Service::Sts),
            _ => None,
        }
    }

    /// The name that the credential scope of a signature has for the service.
    pub fn scope(self) -> &'static str {
        match self {
            Service::Redshift => "redshift",
            Service::RedshiftServerless => "redshift-serverless",
            Service::Rds => "rds",
            Service::Sts => "sts",
        }
    }

    /// The namespace of the XML, which JSON does not have.
    fn namespace(self) -> &'static str {
        match self {
            Service::RedshiftServerless => "",
            Service::Redshift => "http://redshift.amazonaws.com/doc/2012-12-01/",
            Service::Rds => "http://rds.amazonaws.com/doc/2014-10-31/",
            Service::Sts => "https://sts.amazonaws.com/doc/2011-06-15/",
        }
    }
}

impl ApiError {
    pub fn new(status: u16, code: &'static str, message: String) -> ApiError {
        ApiError {
            status,
            code,
            message,
        }
    }

    /// JSON services name exceptions where query services have codes, and answer all mistakes of
    /// the caller with one status.
    fn in_json(&self) -> (u16, &'static str) {
        let name = match self.code {
            "Throttling" => "ThrottlingException",
            "AccessDenied" => "AccessDeniedException",
            "InternalFailure" => "InternalServerException",
            "ResourceNotFoundException" => "ResourceNotFoundException",
            "MissingAuthenticationToken" => "MissingAuthenticationTokenException",
            "IncompleteSignature" => "IncompleteSignatureException",
            "InvalidClientTokenId" => "UnrecognizedClientException",
            "ExpiredToken" => "ExpiredTokenException",
            "SignatureDoesNotMatch" => "InvalidSignatureException",
            "InvalidAction" => "UnknownOperationException",
            _ => "ValidationException",
        };
        (if self.status < 500 { 400 } else { self.status }, name)
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> ApiError {
        let (status, code) = match refusal {
            Refusal::Unsigned => (403, "MissingAuthenticationToken"),
            Refusal::Malformed(_) => (400, "IncompleteSignature"),
            Refusal::UnknownKey(_) | Refusal::SessionToken => (403, "InvalidClientTokenId"),
            Refusal::KeyExpired => (403, "ExpiredToken"),
            _ => (403, "SignatureDoesNotMatch"),
        };
        let message = match refusal {
            Refusal::Unsigned => "Request is missing Authentication Token".to_owned(),
            Refusal::UnknownKey(_) | Refusal::SessionToken => {
                "The security token included in the request is invalid.".to_owned()
            }
            Refusal::KeyExpired => {
                "The security token included in the request is expired".to_owned()
            }
            other => other.to_string(),
        };
        ApiError {
            status,
            code,
            message,
        }
    }
}

pub fn success(service: Option<Service>, action: &str, result: &str) -> Response {
    if service == Some(Service::RedshiftServerless) {
        return json_1_1(200, result.to_owned());
    }
    let namespace = service.map_or("", Service::namespace);
    let id = request_id();
    xml(
        200,
        &id,
        format!(
            "<{action}Response xmlns=\"{namespace}\"><{action}Result>{result}</{action}Result>\
             <ResponseMetadata><RequestId>{id}</RequestId></ResponseMetadata></{action}Response>"
        ),
    )
}

pub fn error(service: Option<Service>, error: &ApiError) -> Response {
    if service == Some(Service::RedshiftServerless) {
        let (status, name) = error.in_json();
        return json_1_1(
            status,
            json!({"__type": name, "message": error.message}).to_string(),
        );
    }
    let blame = if error.status < 500 {
        "Sender"
    } else {
        "Receiver"
    };
    let id = request_id();
    xml(
        error.status,
        &id,
        format!(
            "<ErrorResponse xmlns=\"{}\"><Error><Type>{blame}</Type>{}{}</Error>\
             <RequestId>{id}</RequestId></ErrorResponse>",
            service.map_or("", Service::namespace),
            element("Code", error.code),
            element("Message", &error.message),
        ),
    )
}

pub fn malformed(service: Option<Service>) -> Response {
    if service == Some(Service::RedshiftServerless) {
        return json_1_1(200, "{\"dbUser\":\"IAM:".to_owned());
    }
    xml(
        200,
        &request_id(),
        "<GetClusterCredentialsResponse><GetClusterCredentialsResult><DbUser>IAM:".to_owned(),
    )
}

pub fn status(status: u16) -> Response {
    respond(status, "text/plain", String::new())
}

pub fn respond(status: u16, content_type: &str, body: String) -> Response {
    let response = Response::builder()
        .status(status)
        .header(CONTENT_TYPE, content_type)
        .body(Body::from(body));
    response.expect("a status and a content type of ours are valid")
}

pub fn element(name: &str, text: &str) -> String {
    let mut escaped = String::new();
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            character => escaped.push(character),
        }
    }
    format!("<{name}>{escaped}</{name}>")
}

fn json_1_1(status: u16, body: String) -> Response {
    respond(status, "application/x-amz-json-1.1", body)
}

pub fn http_date(at: SystemTime) -> HeaderValue {
    let format = format_description!(
        "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
    );
    let text = OffsetDateTime::from(at)
        .format(format)
        .expect("the format has only parts of a date");
    HeaderValue::from_str(&text).expect("a date is ASCII")
}

fn xml(status: u16, id: &str, body: String) -> Response {
    let mut response = respond(status, "text/xml", body);
    response.headers_mut().insert(
        "x-amzn-requestid",
        HeaderValue::from_str(id).expect("an id is ASCII"),
    );
    response
}

fn request_id() -> String {
    let mut id = String::new();
    for (index, byte) in random::bytes(16).iter().enumerate() {
        let dash = if matches!(index, 4 | 6 | 8 | 10) {
            "-"
        } else {
            ""
        };
        let _ = write!(id, "{dash}{byte:02x}");
    }
    id
}
