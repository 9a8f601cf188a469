//! Is this request signed with Signature Version 4 by a key we know?
//!
//! It is written from the published algorithm and not with the SDK, so that something else judges
//! the SDK's own signatures. There are two forms: signed headers (API calls) and a presigned query
//! (RDS authentication tokens).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use aws_lc_rs::{digest, hmac};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use time::macros::format_description;
use time::{OffsetDateTime, PrimitiveDateTime};

use crate::accounts::{AccessKey, Accounts, Principal};

/// An HTTP request as it came in. The names of its headers are in lower case.
pub struct Request<'a> {
    pub method: &'a str,
    pub path: &'a str,
    pub query: &'a str,
    pub headers: &'a [(String, String)],
    pub body: &'a [u8],
}

/// Who has signed, and for which service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signer {
    pub access_key_id: String,
    pub principal: Principal,
    pub service: String,
}

/// What a presigned query must be valid for.
pub struct Presigned<'a> {
    /// The signed Host header, `host:port`.
    pub host: &'a str,
    pub query: &'a str,
    pub region: &'a str,
    pub service: &'a str,
    pub max_life: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the request is not signed")]
    Unsigned,
    #[error("malformed signature: {0}")]
    Malformed(String),
    #[error("header {0} must be signed")]
    HeaderNotSigned(&'static str),
    #[error("unknown access key {0}")]
    UnknownKey(String),
    #[error("the session token is not the one of this access key")]
    SessionToken,
    #[error("the access key has expired")]
    KeyExpired,
    #[error("signed for region {0}")]
    Region(String),
    #[error("signed for service {0}")]
    Service(String),
    #[error("the scope's date is not the signature's date")]
    ScopeDate,
    #[error("signature not yet current")]
    NotYetCurrent,
    #[error("signature expired")]
    Expired,
    #[error("X-Amz-Expires={0} is more than allowed")]
    LifeTooLong(u64),
    #[error("the payload hash is not the body's")]
    PayloadHash,
    #[error("the signature does not match")]
    SignatureMismatch,
}

/// How far a caller's clock may be off.
const SKEW: Duration = Duration::from_mins(5);
const ALGORITHM: &str = "AWS4-HMAC-SHA256";
/// Unreserved characters of RFC 3986 stay as they are, and all others are encoded.
const RESERVED: AsciiSet = NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

pub fn verify_headers(
    request: &Request<'_>,
    accounts: &Accounts,
    region: &str,
    now: SystemTime,
) -> Result<Signer, Refusal> {
    let authorization = header(request, "authorization").ok_or(Refusal::Unsigned)?;
    let fields = authorization_fields(authorization)?;
    let scope = Scope::parse(field(&fields, "Credential")?)?;
    let signed: Vec<&str> = field(&fields, "SignedHeaders")?.split(';').collect();
    let date = header(request, "x-amz-date").ok_or_else(|| malformed("no x-amz-date"))?;

    scope.check_region(region)?;
    for name in ["host", "x-amz-date", "x-amz-security-token"] {
        if header(request, name).is_some() && !signed.contains(&name) {
            return Err(Refusal::HeaderNotSigned(name));
        }
    }
    if !signed.contains(&"host") {
        return Err(Refusal::HeaderNotSigned("host"));
    }
    let at = scope.check_date(date)?;
    if at > now + SKEW {
        return Err(Refusal::NotYetCurrent);
    }
    if at + SKEW < now {
        return Err(Refusal::Expired);
    }
    let (secret, principal) = known_key(
        accounts,
        scope.access_key_id,
        header(request, "x-amz-security-token"),
        now,
    )?;

    let payload = hex(digest::digest(&digest::SHA256, request.body).as_ref());
    if header(request, "x-amz-content-sha256").is_some_and(|claimed| claimed != payload) {
        return Err(Refusal::PayloadHash);
    }
    let canonical = canonical_request(
        request.method,
        request.path,
        request.query,
        &canonical_headers(request, &signed)?,
        &signed,
        &payload,
    );
    scope.check_signature(&secret, date, &canonical, field(&fields, "Signature")?)?;
    Ok(Signer {
        access_key_id: scope.access_key_id.to_owned(),
        principal,
        service: scope.service.to_owned(),
    })
}

/// Verifies a presigned query, and returns its parameters too, decoded.
pub fn verify_presigned(
    presigned: &Presigned<'_>,
    accounts: &Accounts,
    now: SystemTime,
) -> Result<(Signer, BTreeMap<String, String>), Refusal> {
    let parameters = decode_query(presigned.query)?;
    let parameter = |name: &str| {
        parameters
            .get(name)
            .map(String::as_str)
            .ok_or_else(|| malformed(&format!("no {name}")))
    };
    if parameter("X-Amz-Algorithm")? != ALGORITHM {
        return Err(malformed("X-Amz-Algorithm"));
    }
    if parameter("X-Amz-SignedHeaders")? != "host" {
        return Err(Refusal::HeaderNotSigned("host"));
    }
    let credential = parameter("X-Amz-Credential")?;
    let scope = Scope::parse(credential)?;
    scope.check_region(presigned.region)?;
    if scope.service != presigned.service {
        return Err(Refusal::Service(scope.service.to_owned()));
    }
    let life: u64 = parameter("X-Amz-Expires")?
        .parse()
        .map_err(|_| malformed("X-Amz-Expires"))?;
    if life > presigned.max_life.as_secs() {
        return Err(Refusal::LifeTooLong(life));
    }
    let date = parameter("X-Amz-Date")?;
    let at = scope.check_date(date)?;
    // The date is in whole seconds, so a token of this very second is never ahead of the clock.
    if at > now {
        return Err(Refusal::NotYetCurrent);
    }
    if at + Duration::from_secs(life) < now {
        return Err(Refusal::Expired);
    }
    let token = parameters.get("X-Amz-Security-Token").map(String::as_str);
    let (secret, principal) = known_key(accounts, scope.access_key_id, token, now)?;

    let headers = format!("host:{}\n", presigned.host);
    let canonical = canonical_request(
        "GET",
        "/",
        presigned.query,
        &headers,
        &["host"],
        &hex(digest::digest(&digest::SHA256, b"").as_ref()),
    );
    scope.check_signature(&secret, date, &canonical, parameter("X-Amz-Signature")?)?;
    let signer = Signer {
        access_key_id: scope.access_key_id.to_owned(),
        principal,
        service: scope.service.to_owned(),
    };
    Ok((signer, parameters))
}

/// An RDS authentication token, for tests that need one without an AWS client.
pub struct Token<'a> {
    pub host: &'a str,
    pub port: u16,
    pub user: &'a str,
    pub region: &'a str,
    pub life: Duration,
    pub at: SystemTime,
}

impl Token<'_> {
    pub fn sign(&self, key: &AccessKey) -> String {
        let date = amz_date(self.at);
        let scope = format!("{}/{}/rds-db/aws4_request", &date[..8], self.region);
        let mut query = format!(
            "Action=connect&DBUser={}&X-Amz-Algorithm={ALGORITHM}&X-Amz-Credential={}\
             &X-Amz-Date={date}&X-Amz-Expires={}",
            encode(self.user),
            encode(&format!("{}/{scope}", key.id)),
            self.life.as_secs()
        );
        if let Some(token) = &key.session_token {
            let _ = write!(query, "&X-Amz-Security-Token={}", encode(token));
        }
        query.push_str("&X-Amz-SignedHeaders=host");
        let empty = hex(digest::digest(&digest::SHA256, b"").as_ref());
        let host = format!("{}:{}", self.host, self.port);
        let canonical = canonical_request(
            "GET",
            "/",
            &query,
            &format!("host:{host}\n"),
            &["host"],
            &empty,
        );
        let signature = signature(&key.secret, &scope, &date, &canonical);
        format!("{host}/?{query}&X-Amz-Signature={signature}")
    }
}

/// The headers that sign a POST to `/` of `host`, for tests that need an API call without an AWS
/// client.
pub fn sign_post(
    host: &str,
    service: &str,
    region: &str,
    body: &str,
    key: &AccessKey,
    at: SystemTime,
) -> Vec<(&'static str, String)> {
    let date = amz_date(at);
    let mut headers = vec![("host", host.to_owned()), ("x-amz-date", date.clone())];
    headers.extend(
        key.session_token
            .clone()
            .map(|token| ("x-amz-security-token", token)),
    );
    let signed: Vec<&str> = headers.iter().map(|(name, _)| *name).collect();
    let text: String = headers
        .iter()
        .map(|(name, value)| format!("{name}:{value}\n"))
        .collect();
    let scope = format!("{}/{region}/{service}/aws4_request", &date[..8]);
    let payload = hex(digest::digest(&digest::SHA256, body.as_bytes()).as_ref());
    let signature = signature(
        &key.secret,
        &scope,
        &date,
        &canonical_request("POST", "/", "", &text, &signed, &payload),
    );
    let authorization = format!(
        "{ALGORITHM} Credential={}/{scope}, SignedHeaders={}, Signature={signature}",
        key.id,
        signed.join(";")
    );
    headers.push(("authorization", authorization));
    headers
}

/// The parts of `key/20261121/us-west-2/redshift/aws4_request`.
struct Scope<'a> {
    access_key_id: &'a str,
    date: &'a str,
    region: &'a str,
    service: &'a str,
}

impl<'a> Scope<'a> {
    fn parse(credential: &'a str) -> Result<Scope<'a>, Refusal> {
        let parts: Vec<&str> = credential.split('/').collect();
        match parts[..] {
            [access_key_id, date, region, service, "aws4_request"] => Ok(Scope {
                access_key_id,
                date,
                region,
                service,
            }),
            _ => Err(malformed("Credential")),
        }
    }

    fn check_region(&self, region: &str) -> Result<(), Refusal> {
        if self.region == region {
            Ok(())
        } else {
            Err(Refusal::Region(self.region.to_owned()))
        }
    }

    fn check_date(&self, date: &str) -> Result<SystemTime, Refusal> {
        let format = format_description!("[year][month][day]T[hour][minute][second]Z");
        let at = PrimitiveDateTime::parse(date, format)
            .map_err(|_| malformed("X-Amz-Date"))?
            .assume_utc();
        if date.get(..8) == Some(self.date) {
            Ok(at.into())
        } else {
            Err(Refusal::ScopeDate)
        }
    }

    fn check_signature(
        &self,
        secret: &str,
        date: &str,
        canonical: &str,
        claimed: &str,
    ) -> Result<(), Refusal> {
        let scope = format!(
            "{}/{}/{}/aws4_request",
            self.date, self.region, self.service
        );
        if signature(secret, &scope, date, canonical) == claimed {
            Ok(())
        } else {
            Err(Refusal::SignatureMismatch)
        }
    }
}

fn known_key(
    accounts: &Accounts,
    id: &str,
    token: Option<&str>,
    now: SystemTime,
) -> Result<(String, Principal), Refusal> {
    let account = accounts
        .find(id)
        .ok_or_else(|| Refusal::UnknownKey(id.to_owned()))?;
    if account.session_token.as_deref() != token {
        return Err(Refusal::SessionToken);
    }
    if account.expires.is_some_and(|expires| expires <= now) {
        return Err(Refusal::KeyExpired);
    }
    Ok((account.secret, account.principal))
}

fn signature(secret: &str, scope: &str, date: &str, canonical: &str) -> String {
    let hash = hex(digest::digest(&digest::SHA256, canonical.as_bytes()).as_ref());
    let to_sign = format!("{ALGORITHM}\n{date}\n{scope}\n{hash}");
    let key = scope
        .split('/')
        .fold(format!("AWS4{secret}").into_bytes(), |key, part| {
            mac(&key, part.as_bytes())
        });
    hex(&mac(&key, to_sign.as_bytes()))
}

fn canonical_request(
    method: &str,
    path: &str,
    query: &str,
    headers: &str,
    signed: &[&str],
    payload: &str,
) -> String {
    let mut pairs: Vec<(String, String)> = pairs(query)
        .filter(|(name, _)| name != b"X-Amz-Signature")
        .map(|(name, value)| (encode_bytes(&name), encode_bytes(&value)))
        .collect();
    pairs.sort();
    let query: Vec<String> = pairs
        .into_iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    let path: Vec<String> = path.split('/').map(encode).collect();
    format!(
        "{method}\n{}\n{}\n{headers}\n{}\n{payload}",
        path.join("/"),
        query.join("&"),
        signed.join(";")
    )
}

fn canonical_headers(request: &Request<'_>, signed: &[&str]) -> Result<String, Refusal> {
    let mut text = String::new();
    for name in signed {
        let values: Vec<String> = request
            .headers
            .iter()
            .filter(|(header, _)| header == name)
            .map(|(_, value)| value.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        if values.is_empty() {
            return Err(malformed(&format!("signed header {name} is absent")));
        }
        let _ = writeln!(text, "{name}:{}", values.join(","));
    }
    Ok(text)
}

fn authorization_fields(authorization: &str) -> Result<BTreeMap<&str, &str>, Refusal> {
    let fields = authorization
        .strip_prefix(ALGORITHM)
        .ok_or_else(|| malformed("Authorization"))?;
    fields
        .split(',')
        .map(|field| {
            field
                .trim()
                .split_once('=')
                .ok_or_else(|| malformed("Authorization"))
        })
        .collect()
}

fn field<'a>(fields: &BTreeMap<&str, &'a str>, name: &str) -> Result<&'a str, Refusal> {
    fields
        .get(name)
        .copied()
        .ok_or_else(|| malformed(&format!("Authorization has no {name}")))
}

fn header<'a>(request: &'a Request<'_>, name: &str) -> Option<&'a str> {
    request
        .headers
        .iter()
        .find(|(header, _)| header == name)
        .map(|(_, value)| value.as_str())
}

/// If a parameter could be given twice, signer and verifier might read different values.
fn decode_query(query: &str) -> Result<BTreeMap<String, String>, Refusal> {
    let mut parameters = BTreeMap::new();
    for (name, value) in pairs(query) {
        let name = String::from_utf8(name).map_err(|_| malformed("query"))?;
        let value = String::from_utf8(value).map_err(|_| malformed("query"))?;
        if parameters.insert(name.clone(), value).is_some() {
            return Err(malformed(&format!("{name} given twice")));
        }
    }
    Ok(parameters)
}

fn pairs(query: &str) -> impl Iterator<Item = (Vec<u8>, Vec<u8>)> {
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (
                percent_decode_str(name).collect(),
                percent_decode_str(value).collect(),
            )
        })
}

fn amz_date(at: SystemTime) -> String {
    let format = format_description!("[year][month][day]T[hour][minute][second]Z");
    OffsetDateTime::from(at)
        .format(format)
        .expect("the format has only parts of a date")
}

fn encode(text: &str) -> String {
    utf8_percent_encode(text, &RESERVED).to_string()
}

fn encode_bytes(bytes: &[u8]) -> String {
    percent_encoding::percent_encode(bytes, &RESERVED).to_string()
}

fn mac(key: &[u8], data: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), data)
        .as_ref()
        .to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn malformed(what: &str) -> Refusal {
    Refusal::Malformed(what.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accounts::Account;

    const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
    const HOST: (&str, &str) = ("host", "example.amazonaws.com");
    const DATE: (&str, &str) = ("x-amz-date", "20150830T123600Z");

    /// The service of AWS's published test suite is called `service`.
    fn authorization(signed: &str, signature: &str) -> String {
        format!(
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, \
             SignedHeaders={signed}, Signature={signature}"
        )
    }

    fn headers(pairs: &[(&str, &str)], authorization: &str) -> Vec<(String, String)> {
        let all = pairs
            .iter()
            .copied()
            .chain([("authorization", authorization)]);
        all.map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    }

    fn accounts(token: Option<&str>, expires: Option<SystemTime>) -> Accounts {
        let accounts = Accounts::default();
        let principal = Principal::User("example".to_owned());
        accounts.add(
            "AKIDEXAMPLE",
            Account {
                secret: SECRET.to_owned(),
                session_token: token.map(str::to_owned),
                expires,
                principal,
            },
        );
        accounts
    }

    fn at(date: &str) -> SystemTime {
        Scope {
            access_key_id: "",
            date: &date[..8],
            region: "",
            service: "",
        }
        .check_date(date)
        .unwrap()
    }

    fn check(
        method: &str,
        query: &str,
        headers: &[(String, String)],
        body: &str,
    ) -> Result<Signer, Refusal> {
        let request = Request {
            method,
            path: "/",
            query,
            headers,
            body: body.as_bytes(),
        };
        verify_headers(&request, &accounts(None, None), "us-east-1", at(DATE.1))
    }

    const VANILLA: &str = "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31";

    #[test]
    fn aws_test_suite_get_vanilla() {
        let signer = check(
            "GET",
            "",
            &headers(&[HOST, DATE], &authorization("host;x-amz-date", VANILLA)),
            "",
        )
        .unwrap();
        assert_eq!(
            (signer.access_key_id.as_str(), signer.service.as_str()),
            ("AKIDEXAMPLE", "service")
        );
    }

    #[test]
    fn aws_test_suite_post_vanilla() {
        let signature = "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b";
        check(
            "POST",
            "",
            &headers(&[HOST, DATE], &authorization("host;x-amz-date", signature)),
            "",
        )
        .unwrap();
    }

    #[test]
    fn aws_test_suite_get_vanilla_query_order_key_case() {
        let signature = "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500";
        check(
            "GET",
            "Param2=value2&Param1=value1",
            &headers(&[HOST, DATE], &authorization("host;x-amz-date", signature)),
            "",
        )
        .unwrap();
    }

    #[test]
    fn aws_documentation_iam_list_users() {
        let pairs = [
            (
                "content-type",
                "application/x-www-form-urlencoded; charset=utf-8",
            ),
            ("host", "iam.amazonaws.com"),
            DATE,
        ];
        let signature = "5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7";
        let authorization =
            authorization("content-type;host;x-amz-date", signature).replace("/service/", "/iam/");
        check(
            "GET",
            "Action=ListUsers&Version=2010-05-08",
            &headers(&pairs, &authorization),
            "",
        )
        .unwrap();
    }

    #[test]
    fn every_part_of_a_signed_request_is_verified() {
        let good = authorization("host;x-amz-date", VANILLA);
        let refusal = |method, query, pairs: &[(&str, &str)], authorization: &str, body| {
            check(method, query, &headers(pairs, authorization), body).unwrap_err()
        };
        assert_eq!(
            refusal("PUT", "", &[HOST, DATE], &good, ""),
            Refusal::SignatureMismatch
        );
        assert_eq!(
            refusal("GET", "a=b", &[HOST, DATE], &good, ""),
            Refusal::SignatureMismatch
        );
        assert_eq!(
            refusal("GET", "", &[HOST, DATE], &good, "body"),
            Refusal::SignatureMismatch
        );
        assert_eq!(
            refusal("GET", "", &[("host", "elsewhere"), DATE], &good, ""),
            Refusal::SignatureMismatch
        );
        assert_eq!(
            refusal(
                "GET",
                "",
                &[HOST, ("x-amz-date", "20150830T123601Z")],
                &good,
                ""
            ),
            Refusal::SignatureMismatch
        );
        assert_eq!(
            refusal(
                "GET",
                "",
                &[HOST, ("x-amz-date", "20150831T123600Z")],
                &good,
                ""
            ),
            Refusal::ScopeDate
        );
        assert_eq!(
            refusal(
                "GET",
                "",
                &[HOST, DATE, ("x-amz-content-sha256", "00")],
                &good,
                ""
            ),
            Refusal::PayloadHash
        );
        assert_eq!(
            refusal(
                "GET",
                "",
                &[HOST, DATE],
                &good.replace("us-east-1", "us-west-2"),
                ""
            ),
            Refusal::Region("us-west-2".into())
        );
        assert_eq!(
            refusal(
                "GET",
                "",
                &[HOST, DATE],
                &good.replace("/service/", "/other/"),
                ""
            ),
            Refusal::SignatureMismatch
        );
        assert_eq!(
            refusal(
                "GET",
                "",
                &[HOST, DATE],
                &good.replace("AKIDEXAMPLE", "AKIDOTHER"),
                ""
            ),
            Refusal::UnknownKey("AKIDOTHER".into())
        );
        assert_eq!(
            refusal("GET", "", &[HOST, DATE], &good.replace("host;", ""), ""),
            Refusal::HeaderNotSigned("host")
        );
        assert_eq!(
            refusal(
                "GET",
                "",
                &[HOST, DATE],
                &good.replace(";x-amz-date", ""),
                ""
            ),
            Refusal::HeaderNotSigned("x-amz-date")
        );
        let with_token = [HOST, DATE, ("x-amz-security-token", "token")];
        assert_eq!(
            refusal("GET", "", &with_token, &good, ""),
            Refusal::HeaderNotSigned("x-amz-security-token")
        );
        assert_eq!(check("GET", "", &[], "").unwrap_err(), Refusal::Unsigned);
    }

    #[test]
    fn a_signed_request_is_valid_for_five_minutes_and_as_long_as_its_key() {
        let headers = headers(&[HOST, DATE], &authorization("host;x-amz-date", VANILLA));
        let request = Request {
            method: "GET",
            path: "/",
            query: "",
            headers: &headers,
            body: b"",
        };
        let verify = |accounts: &Accounts, now: &str| {
            verify_headers(&request, accounts, "us-east-1", at(now)).map(|_| ())
        };
        let plain = accounts(None, None);
        assert_eq!(verify(&plain, "20150830T124100Z"), Ok(()));
        assert_eq!(verify(&plain, "20150830T124101Z"), Err(Refusal::Expired));
        assert_eq!(
            verify(&plain, "20150830T123059Z"),
            Err(Refusal::NotYetCurrent)
        );
        assert_eq!(
            verify(&accounts(Some("token"), None), DATE.1),
            Err(Refusal::SessionToken)
        );
        assert_eq!(
            verify(&accounts(None, Some(at(DATE.1))), DATE.1),
            Err(Refusal::KeyExpired)
        );
    }

    fn token(user: &str) -> String {
        let key = AccessKey {
            id: "AKIDEXAMPLE".to_owned(),
            secret: SECRET.to_owned(),
            session_token: None,
            expires: None,
        };
        let life = Duration::from_mins(15);
        Token {
            host: "db.example.com",
            port: 5432,
            user,
            region: "us-east-1",
            life,
            at: at(DATE.1),
        }
        .sign(&key)
    }

    fn check_token(token: &str, now: &str) -> Result<BTreeMap<String, String>, Refusal> {
        let (host, query) = token.split_once("/?").unwrap();
        let presigned = Presigned {
            host,
            query,
            region: "us-east-1",
            service: "rds-db",
            max_life: Duration::from_mins(15),
        };
        verify_presigned(&presigned, &accounts(None, None), at(now))
            .map(|(_, parameters)| parameters)
    }

    #[test]
    fn a_token_is_valid_for_any_user_name_for_fifteen_minutes() {
        for user in [
            "peccy",
            "a+b",
            "a@b",
            "a b",
            "x&Action=foo",
            "a#b",
            "\u{fc}",
        ] {
            assert_eq!(check_token(&token(user), DATE.1).unwrap()["DBUser"], user);
        }
        assert!(check_token(&token("peccy"), "20150830T125100Z").is_ok());
        assert_eq!(
            check_token(&token("peccy"), "20150830T125101Z"),
            Err(Refusal::Expired)
        );
        assert_eq!(
            check_token(&token("peccy"), "20150830T123559Z"),
            Err(Refusal::NotYetCurrent)
        );
    }

    #[test]
    fn every_part_of_a_token_is_verified() {
        let refusal = |from: &str, to: &str| {
            check_token(&token("peccy").replace(from, to), DATE.1).unwrap_err()
        };
        for (from, to) in [
            ("db.example.com", "db.example.org"),
            (":5432", ":5433"),
            ("=peccy", "=Peccy"),
            ("=connect", "=drop"),
            ("=900", "=899"),
        ] {
            assert_eq!(refusal(from, to), Refusal::SignatureMismatch, "{from}");
        }
        assert_eq!(refusal("=900", "=901"), Refusal::LifeTooLong(901));
        assert_eq!(
            refusal("us-east-1", "us-east-2"),
            Refusal::Region("us-east-2".into())
        );
        assert_eq!(refusal("rds-db", "rds"), Refusal::Service("rds".into()));
        assert_eq!(
            refusal("SignedHeaders=host", "SignedHeaders="),
            Refusal::HeaderNotSigned("host")
        );
        assert_eq!(
            refusal("=peccy", "=peccy&DBUser=admin"),
            Refusal::Malformed("DBUser given twice".into())
        );
        assert_eq!(
            refusal("=peccy", "=peccy&X-Amz-Security-Token=t"),
            Refusal::SessionToken
        );
        assert_eq!(
            refusal("AKIDEXAMPLE", "AKIDOTHER"),
            Refusal::UnknownKey("AKIDOTHER".into())
        );
    }
}
