//! What does an AWS endpoint answer to clients without a signature, and when it is told to fail?

use std::time::{Duration, SystemTime};

use testbed::aws::{
    CONTAINER_TOKEN, INSTANCE_ROLE, SSO_TOKEN, WEB_IDENTITY_ROLE, WEB_IDENTITY_TOKEN,
};
use testbed::{Aws, Fault, FaultRule, Testbed};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Sends a request, and returns the status code and the body.
async fn http(
    aws: &Aws,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> (u16, String) {
    let address = aws.endpoint_url().replace("http://", "");
    let mut stream = TcpStream::connect(&address).await.unwrap();
    let headers: String = headers
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\
         content-length: {length}\r\n{headers}\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (
        head.split(' ').nth(1).unwrap().parse().unwrap(),
        body.to_owned(),
    )
}

/// Makes an API call without an SDK, and returns the answer.
pub fn signed_call(aws: &Aws, service: &str, body: &str) -> String {
    let address = aws.endpoint_url().replace("http://", "");
    let headers = testbed::sigv4::sign_post(
        &address,
        service,
        aws.region(),
        body,
        aws.key(),
        SystemTime::now(),
    );
    let headers: String = headers
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    let request = format!(
        "POST / HTTP/1.1\r\n{headers}connection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    std::io::Write::write_all(&mut stream, request.as_bytes()).unwrap();
    std::io::read_to_string(stream).unwrap()
}

fn web_identity() -> String {
    format!(
        "Action=AssumeRoleWithWebIdentity\
         &RoleArn=arn%3Aaws%3Aiam%3A%3A123456789012%3Arole%2F{WEB_IDENTITY_ROLE}&RoleSessionName=s\
         &WebIdentityToken={WEB_IDENTITY_TOKEN}"
    )
}

#[tokio::test]
async fn instance_metadata_requires_a_session() {
    let aws = Testbed::shared().aws();
    let path = "/latest/meta-data/iam/security-credentials/";
    assert_eq!(http(&aws, "GET", path, &[], "").await.0, 401);
    assert_eq!(http(&aws, "PUT", "/latest/api/token", &[], "").await.0, 400);
    let (status, token) = http(
        &aws,
        "PUT",
        "/latest/api/token",
        &[("x-aws-ec2-metadata-token-ttl-seconds", "60")],
        "",
    )
    .await;
    assert_eq!(status, 200);
    let session = [("x-aws-ec2-metadata-token", token.as_str())];
    assert_eq!(
        http(&aws, "GET", path, &session, "").await,
        (200, INSTANCE_ROLE.to_owned())
    );
    let (_, credentials) = http(&aws, "GET", &format!("{path}{INSTANCE_ROLE}"), &session, "").await;
    assert!(
        credentials.contains("\"Code\":\"Success\"")
            && credentials.contains("\"AccessKeyId\":\"ASIA"),
        "{credentials}"
    );
    assert_eq!(aws.calls("metadata"), 5);
}

#[tokio::test]
async fn container_credentials_and_the_portal_check_their_tokens() {
    let aws = Testbed::shared().aws();
    assert_eq!(
        http(&aws, "GET", "/container/credentials", &[], "").await.0,
        200
    );
    assert_eq!(
        http(
            &aws,
            "GET",
            "/container/credentials",
            &[("authorization", CONTAINER_TOKEN)],
            ""
        )
        .await
        .0,
        200
    );
    assert_eq!(
        http(
            &aws,
            "GET",
            "/container/credentials",
            &[("authorization", "guess")],
            ""
        )
        .await
        .0,
        401
    );
    let portal = "/federation/credentials?role_name=analyst&account_id=123456789012";
    assert_eq!(
        http(
            &aws,
            "GET",
            portal,
            &[("x-amz-sso_bearer_token", "guess")],
            ""
        )
        .await
        .0,
        401
    );
    let (status, body) = http(
        &aws,
        "GET",
        portal,
        &[("x-amz-sso_bearer_token", SSO_TOKEN)],
        "",
    )
    .await;
    assert!(
        status == 200 && body.contains("\"roleCredentials\":{\"accessKeyId\":\"ASIA"),
        "{status} {body}"
    );
}

#[tokio::test]
async fn faults_occur_in_order_and_end() {
    let aws = Testbed::shared().aws();
    let action = "AssumeRoleWithWebIdentity";
    aws.add_fault(FaultRule::new(Fault::Throttle).for_action(action).times(1));
    aws.add_fault(
        FaultRule::new(Fault::InternalError)
            .for_action(action)
            .times(1),
    );
    aws.add_fault(FaultRule::new(Fault::DenyAction("sts:TagSession")).times(1));
    aws.add_fault(FaultRule::new(Fault::Malformed).times(1));
    aws.add_fault(FaultRule::new(Fault::Hang).times(1));
    let (status, body) = http(&aws, "POST", "/", &[], &web_identity()).await;
    assert!(
        status == 400 && body.contains("<Code>Throttling</Code><Message>Rate exceeded</Message>"),
        "{body}"
    );
    assert_eq!(http(&aws, "POST", "/", &[], &web_identity()).await.0, 500);
    let (status, body) = http(&aws, "POST", "/", &[], &web_identity()).await;
    assert!(
        status == 403
            && body.contains(
                "is not authorized to perform: sts:TagSession on resource: arn:aws:iam::"
            ),
        "{body}"
    );
    assert_eq!(http(&aws, "POST", "/", &[], &web_identity()).await.0, 200);
    let body = web_identity();
    assert!(
        tokio::time::timeout(
            Duration::from_millis(200),
            http(&aws, "POST", "/", &[], &body)
        )
        .await
        .is_err()
    );
    let (status, body) = http(&aws, "POST", "/", &[], &web_identity()).await;
    assert!(status == 200 && body.contains("<SessionToken>"), "{body}");
    assert_eq!(aws.calls(action), 6);
    assert_eq!(aws.requests()[0].params["RoleSessionName"], "s");
}

#[tokio::test]
async fn an_unsigned_call_is_refused_as_such() {
    let aws = Testbed::shared().aws();
    let (status, body) = http(
        &aws,
        "POST",
        "/",
        &[],
        "Action=DescribeClusters&Version=2012-12-01",
    )
    .await;
    assert!(
        status == 403 && body.contains("<Code>MissingAuthenticationToken</Code>"),
        "{body}"
    );
}
