//! Does the testbed agree with software that is not ours? Amazon's Python SDK signs, and libpq logs
//! in.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use testbed::Testbed;

#[test]
fn botocore_and_libpq_are_accepted_and_altered_requests_are_refused() {
    let python = python();
    assert!(
        python.exists(),
        "{} does not exist: run\n    make venv",
        python.display()
    );
    let testbed = Testbed::shared();
    let aws = testbed.aws();
    let description = serde_json::json!({
        "ca_file": testbed.ca_file(),
        "endpoint_url": aws.endpoint_url(),
        "access_key_id": aws.access_key_id(),
        "secret_access_key": aws.secret_access_key(),
        "user_name": aws.user_name(),
        "region": aws.region(),
        "rds_port": testbed.rds().port(),
        "dsql_port": testbed.dsql().port(),
        "redshift_port": testbed.redshift().port(),
        "web_identity_token": testbed::aws::WEB_IDENTITY_TOKEN,
        "container_token": testbed::aws::CONTAINER_TOKEN,
        "sso_token": testbed::aws::SSO_TOKEN,
    });

    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/boto3_check.py");
    let mut check = Command::new(python);
    for (name, _) in
        std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("AWS_"))
    {
        check.env_remove(name);
    }
    check
        .arg(script)
        .stdin(Stdio::piped())
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env("NO_PROXY", "*");
    let mut check = check.spawn().unwrap();
    writeln!(check.stdin.take().unwrap(), "{description}").unwrap();
    let status = check.wait().unwrap();
    assert!(
        status.success(),
        "boto3_check.py failed; refused so far: {:#?}",
        testbed.rds().refusals()
    );

    assert_eq!(testbed.rds().accepted(), 5);
    let port = testbed.rds().port();
    let mismatch = "the signature does not match";
    let expected = [
        format!("signed for endpoint elsewhere:{port}"),
        mismatch.to_owned(),
        format!("signed for endpoint localhost:{}", port + 1),
        "signed for user jane_doe".to_owned(),
        mismatch.to_owned(),
        "signed for region eu-west-1".to_owned(),
        mismatch.to_owned(),
        "unknown access key AKIAUNKNOWNUNKNOWN12".to_owned(),
        "the session token is not the one of this access key".to_owned(),
        "the session token is not the one of this access key".to_owned(),
        "X-Amz-Expires=901 is more than allowed".to_owned(),
        mismatch.to_owned(),
        "signature expired".to_owned(),
        "signature not yet current".to_owned(),
        mismatch.to_owned(),
        "malformed signature: DBUser given twice".to_owned(),
        "not a token: 8 bytes without \"/?\"".to_owned(),
    ];
    assert_eq!(testbed.rds().refusals(), expected);

    let accepted: Vec<String> = testbed
        .dsql()
        .accepted()
        .iter()
        .map(|(user, action)| format!("{user} {action}"))
        .collect();
    let reader = "dsql_reader DbConnect";
    assert_eq!(
        accepted,
        [reader, reader, "admin DbConnectAdmin", reader, reader]
    );
    let expected = [
        "DbConnect for user admin".to_owned(),
        "DbConnectAdmin for user dsql_reader".to_owned(),
        mismatch.to_owned(),
        "signed for host elsewhere".to_owned(),
        format!("signed for host localhost:{}", testbed.dsql().port()),
        "signed for region eu-west-1".to_owned(),
        "signed for service rds-db".to_owned(),
        "X-Amz-Expires=604801 is more than allowed".to_owned(),
        "signature expired".to_owned(),
        "not a token: 8 bytes without \"/?\"".to_owned(),
    ];
    assert_eq!(testbed.dsql().refusals(), expected);
}

fn python() -> PathBuf {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/venv/bin/python");
    std::env::var_os("TESTBED_PYTHON").map_or_else(|| default.into(), PathBuf::from)
}
