//! Where does the proxy get its own AWS credentials, and how seldom does it ask for them?

use std::path::Path;
use std::time::Duration;

use testbed::aws::{
    CONTAINER_TOKEN, EXTERNAL_ID, PARTNER_ROLE, SSO_TOKEN, WEB_IDENTITY_ROLE, WEB_IDENTITY_TOKEN,
};
use testbed::{Aws, Testbed};

use crate::support::client::Client;
use crate::support::proxy::{Proxy, redshift_config};

/// With this API, the database user tells who the proxy is to AWS.
const KEYS: &str = "api = \"get-cluster-credentials-with-iam\"\ndatabase = \"dev\"";

/// Logs in and returns the database user that the proxy's AWS identity is mapped to.
fn identity(aws: &Aws, keys: &str, env: &[(&str, &str)]) -> String {
    let mut all = aws.env_without_key();
    all.retain(|(name, _)| !env.iter().any(|(other, _)| other == name));
    all.extend(
        env.iter()
            .map(|&(name, value)| (name.to_string(), value.to_string())),
    );
    let proxy = Proxy::with_config_and_env(&redshift_config(aws, &format!("{KEYS}\n{keys}")), all);
    let user = Client::log_in(proxy.address(), &[("user", "x")])
        .map(|mut client| client.value("select current_user"));
    user.unwrap_or_else(|error| panic!("{error:?}\n{}", proxy.log()))
}

fn file(directory: &Path, name: &str, text: &str) -> String {
    let path = directory.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

#[test]
fn keys_in_the_environment_are_used() {
    let aws = Testbed::shared().aws();
    let env = [
        ("AWS_ACCESS_KEY_ID", aws.access_key_id()),
        ("AWS_SECRET_ACCESS_KEY", aws.secret_access_key()),
    ];
    assert_eq!(identity(&aws, "", &env), format!("IAM:{}", aws.user_name()));
}

#[test]
fn a_profile_named_by_the_target_is_used() {
    let aws = Testbed::shared().aws();
    let directory = tempfile::tempdir().unwrap();
    let text = format!(
        "[work]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
        aws.access_key_id(),
        aws.secret_access_key()
    );
    let credentials = file(directory.path(), "credentials", &text);
    assert_eq!(
        identity(
            &aws,
            "profile = \"work\"",
            &[("AWS_SHARED_CREDENTIALS_FILE", &credentials)]
        ),
        format!("IAM:{}", aws.user_name())
    );
}

#[test]
fn a_credential_process_is_used() {
    let aws = Testbed::shared().aws();
    let directory = tempfile::tempdir().unwrap();
    let answer = format!(
        r#"{{"Version": 1, "AccessKeyId": "{}", "SecretAccessKey": "{}"}}"#,
        aws.access_key_id(),
        aws.secret_access_key()
    );
    let answer = file(directory.path(), "answer.json", &answer);
    let config = file(
        directory.path(),
        "config",
        &format!("[default]\ncredential_process = cat {answer}\n"),
    );
    assert_eq!(
        identity(&aws, "", &[("AWS_CONFIG_FILE", &config)]),
        format!("IAM:{}", aws.user_name())
    );
}

#[test]
fn single_sign_on_is_used() {
    let aws = Testbed::shared().aws();
    let directory = tempfile::tempdir().unwrap();
    let start_url = "https://example.awsapps.com/start";
    let config = format!(
        "[profile sso]\nsso_start_url = {start_url}\nsso_region = us-west-2\n\
         sso_account_id = 123456789012\nsso_role_name = analyst\n"
    );
    let config = file(directory.path(), "config", &config);
    // The name of the cache file is the SHA-1 of the start URL, as `aws sso login` writes it.
    let token = format!(
        "{{\"accessToken\": \"{SSO_TOKEN}\", \"expiresAt\": \"2099-01-01T00:00:00Z\", \
         \"startUrl\": \"{start_url}\", \"region\": \"us-west-2\"}}"
    );
    let digest = aws_lc_rs::digest::digest(
        &aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY,
        start_url.as_bytes(),
    );
    let name: String = digest
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    file(
        directory.path(),
        &format!(".aws/sso/cache/{name}.json"),
        &token,
    );
    let home = directory.path().display().to_string();
    assert_eq!(
        identity(
            &aws,
            "profile = \"sso\"",
            &[("AWS_CONFIG_FILE", &config), ("HOME", &home)]
        ),
        "IAMR:analyst"
    );
    assert_eq!(aws.calls("GetRoleCredentials"), 1);
}

#[test]
fn a_web_identity_is_used() {
    let aws = Testbed::shared().aws();
    let directory = tempfile::tempdir().unwrap();
    let token = file(directory.path(), "token", WEB_IDENTITY_TOKEN);
    let role = aws.add_role(WEB_IDENTITY_ROLE, None);
    let env = [
        ("AWS_WEB_IDENTITY_TOKEN_FILE", token.as_str()),
        ("AWS_ROLE_ARN", &role),
        ("AWS_ROLE_SESSION_NAME", "pod"),
    ];
    assert_eq!(
        identity(&aws, "", &env),
        format!("IAMR:{WEB_IDENTITY_ROLE}")
    );
}

#[test]
fn container_credentials_are_used() {
    let aws = Testbed::shared().aws();
    let url = aws.container_credentials_url();
    let env = [
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", url.as_str()),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN", CONTAINER_TOKEN),
    ];
    assert_eq!(identity(&aws, "", &env), "IAMR:task-role");
}

#[test]
fn the_instance_metadata_service_is_used() {
    let aws = Testbed::shared().aws();
    let url = aws.imds_url();
    let env = [
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", url.as_str()),
        ("AWS_EC2_METADATA_DISABLED", "false"),
    ];
    assert_eq!(identity(&aws, "", &env), "IAMR:instance-role");
}

#[test]
fn a_login_fails_with_28000_when_there_are_no_aws_credentials() {
    let aws = Testbed::shared().aws();
    let proxy = Proxy::with_config_and_env(
        &redshift_config(&aws, "db_user = \"ana\""),
        aws.env_without_key(),
    );
    let error = Client::log_in(proxy.address(), &[("user", "x")])
        .err()
        .unwrap();
    let message = "no AWS credentials: none in the environment, the profile, a web identity, a \
        container or the instance metadata";
    assert_eq!((error.sqlstate(), error.message()), ("28000", message));
}

#[test]
fn sts_is_asked_once_for_a_role_that_many_logins_use() {
    let aws = Testbed::shared().aws();
    let role = format!(
        "{KEYS}\nrole_arn = \"{}\"\nexternal_id = \"{EXTERNAL_ID}\"",
        aws.add_role(PARTNER_ROLE, Some(EXTERNAL_ID))
    );
    let config = redshift_config(
        &aws,
        &format!("{role}\nsts_endpoint_url = \"{}\"", aws.endpoint_url()),
    );
    let proxy = Proxy::with_config(&aws, &config);
    for _ in 0..5 {
        let mut client = Client::log_in(proxy.address(), &[("user", "x")]).unwrap();
        assert_eq!(
            client.value("select current_user"),
            format!("IAMR:{PARTNER_ROLE}")
        );
    }
    assert_eq!(aws.calls("AssumeRole"), 1);
    let request = aws
        .requests()
        .into_iter()
        .find(|request| request.action == "AssumeRole")
        .unwrap();
    assert_eq!(
        request.params.get("RoleSessionName").map(String::as_str),
        Some("pg-iam-proxy")
    );
}

/// Logs in with a profile whose role is assumed from the keys of another one, where the target says
/// which STS is asked and the environment says another or none. Returns the database user.
fn identity_of_role_in_profile(aws: &Aws, keys: &str, env: &[(&str, &str)]) -> String {
    let directory = tempfile::tempdir().unwrap();
    let (id, secret) = (aws.access_key_id(), aws.secret_access_key());
    let config = format!(
        "[profile partner]\nrole_arn = {}\nexternal_id = {EXTERNAL_ID}\n\
         role_session_name = reports\nsource_profile = base\n\
         [profile base]\naws_access_key_id = {id}\naws_secret_access_key = {secret}\n\
         [profile own]\nrole_arn = {}\ncredential_source = Environment\n",
        aws.add_role(PARTNER_ROLE, Some(EXTERNAL_ID)),
        aws.add_role("own", None),
    );
    let config = file(directory.path(), "config", &config);
    let url = aws.endpoint_url();
    let keys = format!("{KEYS}\n{keys}\nsts_endpoint_url = \"{url}\"");
    let mut all = aws.env_without_key();
    all.retain(|(name, _)| name != "AWS_ENDPOINT_URL" && name != "AWS_CONFIG_FILE");
    all.extend(
        env.iter()
            .chain(&[("AWS_CONFIG_FILE", config.as_str())])
            .map(|&(name, value)| (name.to_string(), value.to_string())),
    );
    let proxy = Proxy::with_config_and_env(&redshift_config(aws, &keys), all);
    let user = Client::log_in(proxy.address(), &[("user", "x")])
        .map(|mut client| client.value("select current_user"));
    user.unwrap_or_else(|error| panic!("{error:?}\n{}", proxy.log()))
}

#[test]
fn the_role_of_a_profile_is_assumed_at_the_sts_of_the_target() {
    const NOBODY: &str = "http://127.0.0.1:1";
    let aws = Testbed::shared().aws();
    let named = "profile = \"partner\"";
    for (keys, env) in [
        (named, &[][..]),
        (named, &[("AWS_ENDPOINT_URL_STS", NOBODY)]),
        (named, &[("AWS_ENDPOINT_URL", NOBODY)]),
        // The default chain finds the profile.
        (
            "",
            &[("AWS_PROFILE", "partner"), ("AWS_ENDPOINT_URL_STS", NOBODY)],
        ),
    ] {
        assert_eq!(
            identity_of_role_in_profile(&aws, keys, env),
            format!("IAMR:{PARTNER_ROLE}")
        );
    }
    let requests = aws.requests();
    let mut assumed = requests
        .iter()
        .filter(|request| request.action == "AssumeRole")
        .map(|request| request.params.get("RoleSessionName").map(String::as_str));
    assert_eq!(assumed.clone().count(), 4);
    assert!(assumed.all(|name| name == Some("reports")));
}

#[test]
fn the_role_of_a_profile_may_be_assumed_with_keys_of_the_environment() {
    let aws = Testbed::shared().aws();
    let env = [
        ("AWS_ACCESS_KEY_ID", aws.access_key_id()),
        ("AWS_SECRET_ACCESS_KEY", aws.secret_access_key()),
        ("AWS_PROFILE", "partner"),
    ];
    let identity = |keys| identity_of_role_in_profile(&aws, keys, &env);
    assert_eq!(identity("profile = \"own\""), "IAMR:own");
    // In the default chain, they are used without the profile.
    assert_eq!(identity(""), format!("IAM:{}", aws.user_name()));
    assert_eq!(aws.calls("AssumeRole"), 1);
}

#[test]
fn a_role_session_is_renewed_before_it_ends_and_tokens_do_not_outlive_it() {
    let bed = Testbed::shared();
    let aws = bed.aws();
    bed.rds().create_user("short").unwrap();
    aws.set_role_life(Duration::from_secs(2));
    let keys = format!(
        "db_user = \"short\"\ndatabase = \"postgres\"\nrole_arn = \"{}\"\nendpoint_url = \"{}\"",
        aws.add_role("brief", None),
        aws.endpoint_url()
    );
    let proxy = Proxy::with_config(&aws, &crate::support::proxy::rds_config(&keys));
    crate::support::wait_for("the third role session", || {
        let user = Client::log_in(proxy.address(), &[("user", "x")])
            .unwrap()
            .value("select current_user");
        assert_eq!(user, "short");
        (aws.calls("AssumeRole") >= 3).then_some(())
    });
    assert!(
        bed.rds().refusals_of("short").is_empty(),
        "no token was used after its role session had ended"
    );
}

#[test]
fn a_login_fails_with_28000_when_the_role_may_not_be_assumed() {
    let aws = Testbed::shared().aws();
    let role = aws.add_role("guarded", Some("another id"));
    let proxy = Proxy::with_config(
        &aws,
        &redshift_config(
            &aws,
            &format!("{KEYS}\nrole_arn = \"{role}\"\nexternal_id = \"wrong\""),
        ),
    );
    let error = Client::log_in(proxy.address(), &[("user", "x")])
        .err()
        .unwrap();
    assert_eq!(
        (error.sqlstate(), error.message()),
        (
            "28000",
            "sts:AssumeRole is not allowed for the proxy's AWS identity"
        )
    );
}
