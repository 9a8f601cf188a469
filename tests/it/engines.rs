//! Every engine and API, and every way a server asks for the password.

use testbed::accounts::{Account, Principal};
use testbed::{Challenge, FrontOptions, PasswordEncryption, ServerCertificate, Testbed};

use crate::support::client::Client;
use crate::support::proxy::{Proxy, rds_config, redshift_config};

fn user_of(proxy: &Proxy) -> String {
    Client::log_in(proxy.address(), &[("user", "client_user")]).unwrap().value("select current_user")
}

#[test]
fn rds_user_names_that_need_escaping_are_signed_as_they_are() {
    let aws = Testbed::shared().aws();
    let proxy = Proxy::with_config(&aws, &rds_config("db_user = \"a+b@c d\"\ndatabase = \"postgres\""));
    assert_eq!(user_of(&proxy), "a+b@c d");
}

#[test]
fn rds_without_db_user_takes_the_clients_own_name() {
    let bed = Testbed::shared();
    bed.rds().create_user("own_name").unwrap();
    let aws = bed.aws();
    let proxy = Proxy::with_config(&aws, &rds_config("database = \"postgres\""));
    let mut client = Client::log_in(proxy.address(), &[("user", "own_name")]).unwrap();
    assert_eq!(client.value("select current_user"), "own_name");
}

#[test]
fn rds_tokens_are_signed_for_the_signing_host_when_it_is_not_the_dial_host() {
    let bed = Testbed::shared();
    let aws = bed.aws();
    bed.rds().create_user("tunnelled").unwrap();
    let keys = "db_user = \"tunnelled\"\ndatabase = \"postgres\"\nsigning_host = \"mydb.123456789012.us-west-2.rds.amazonaws.com:5432\"\n\
                tls_server_name = \"mydb.123456789012.us-west-2.rds.amazonaws.com\"";
    let proxy = Proxy::with_config(&aws, &rds_config(keys).replace("region = \"us-west-2\"\n", ""));
    assert_eq!(user_of(&proxy), "tunnelled");
}

#[test]
fn rds_endpoints_are_discovered_for_an_instance_and_for_a_clusters_writer_and_reader() {
    let aws = Testbed::shared().aws();
    let endpoint = format!("endpoint_url = \"{}\"\ndb_user = \"jane_doe\"\ndatabase = \"postgres\"", aws.endpoint_url());
    for (keys, call, host) in [
        ("instance_identifier = \"mydb\"", "DescribeDBInstances", "localhost"),
        ("cluster_identifier = \"mycluster\"", "DescribeDBClusters", "localhost"),
        ("cluster_identifier = \"mycluster\"\nendpoint = \"reader\"", "DescribeDBClusters", "127.0.0.1"),
    ] {
        let proxy = Proxy::with_config(&aws, &rds_config(&format!("{keys}\n{endpoint}")));
        let before = aws.calls(call);
        assert_eq!(user_of(&proxy), "jane_doe", "{keys}");
        assert_eq!(user_of(&proxy), "jane_doe", "{keys}");
        assert_eq!(aws.calls(call), before + 1, "the answer is remembered");
        proxy.log_line(&["found the endpoint", &format!("upstream={host}:")]);
    }
}

#[test]
fn redshift_cluster_credentials_carry_every_setting_and_the_returned_user_logs_in() {
    let aws = Testbed::shared().aws();
    let keys = "db_user = \"newcomer\"\ndatabase = \"dev\"\nauto_create = true\ndb_groups = [\"bi\", \"ops\"]\nduration_seconds = 1800";
    let proxy = Proxy::with_config(&aws, &redshift_config(&aws, keys));
    assert_eq!(user_of(&proxy), "IAMA:newcomer:bi,ops");
    let request = aws.requests().into_iter().find(|request| request.action == "GetClusterCredentials").unwrap();
    for (name, value) in [
        ("DbUser", "newcomer"),
        ("DbName", "dev"),
        ("ClusterIdentifier", "examplecluster"),
        ("AutoCreate", "true"),
        ("DurationSeconds", "1800"),
        ("DbGroups.DbGroup.1", "bi"),
        ("DbGroups.DbGroup.2", "ops"),
    ] {
        assert_eq!(request.params.get(name).map(String::as_str), Some(value), "{name} in {:?}", request.params);
    }
}

#[test]
fn redshift_custom_domain_names_are_used_in_the_call() {
    let bed = Testbed::shared();
    let aws = bed.aws();
    let keys = format!(
        "custom_domain_name = \"warehouse.example.com\"\nhost = \"localhost\"\nport = {}\ndb_user = \"ana\"\ndatabase = \"dev\"",
        bed.redshift().port()
    );
    let config = redshift_config(&aws, &keys).replace("cluster_identifier = \"examplecluster\"\n", "");
    let proxy = Proxy::with_config(&aws, &config);
    assert_eq!(user_of(&proxy), "IAM:ana");
    let request = aws.requests().into_iter().find(|request| request.action == "GetClusterCredentials").unwrap();
    assert_eq!(request.params.get("CustomDomainName").map(String::as_str), Some("warehouse.example.com"));
    assert_eq!(request.params.get("ClusterIdentifier"), None);
}

#[test]
fn redshift_with_iam_maps_the_aws_user_and_the_assumed_role() {
    let aws = Testbed::shared().aws();
    let keys = "api = \"get-cluster-credentials-with-iam\"\ndatabase = \"dev\"";
    let proxy = Proxy::with_config(&aws, &redshift_config(&aws, keys));
    assert_eq!(user_of(&proxy), format!("IAM:{}", aws.user_name()));
    let role = format!("{keys}\nrole_arn = \"{}\"", aws.add_role("reporting", None));
    let proxy = Proxy::with_config(&aws, &redshift_config(&aws, &role));
    assert_eq!(user_of(&proxy), "IAMR:reporting");
}

#[test]
fn a_jdbc_iam_url_is_taken_as_pasted() {
    let bed = Testbed::shared();
    let aws = bed.aws();
    let url = format!(
        "jdbc:redshift:iam://examplecluster:us-west-2/dev?DbUser=pasted&AutoCreate=true&DbGroups=BI&ForceLowercase=true&ssl=true&\
         IAMDuration=900&EndpointUrl={}&ca_file={}&listen=127.0.0.1:0",
        aws.endpoint_url(),
        bed.ca_file().display()
    );
    let proxy = Proxy::with_urls(&aws, &[&url]);
    assert_eq!(user_of(&proxy), "IAMA:pasted:bi");
    proxy.log_line(&["WARN", "ssl is the JDBC driver's own and is ignored"]);
}

#[test]
fn every_password_challenge_is_answered() {
    let bed = Testbed::shared();
    let aws = bed.aws();
    for challenge in [Challenge::Md5, Challenge::Digest, Challenge::Cleartext] {
        let front = bed.redshift().front(FrontOptions { challenge, certificate: ServerCertificate::Good }).unwrap();
        let keys = format!("host = \"localhost\"\nport = {}\ndb_user = \"ana\"\ndatabase = \"dev\"", front.port());
        let proxy = Proxy::with_config(&aws, &redshift_config(&aws, &keys));
        assert_eq!(user_of(&proxy), "IAM:ana", "{challenge:?}");
    }
}

#[test]
fn scram_with_channel_binding_is_answered() {
    let bed = Testbed::shared();
    let aws = bed.aws();
    aws.set_password_encryption(PasswordEncryption::Scram);
    bed.redshift().create_user("scrammer");
    let keys = format!("host = \"localhost\"\nport = {}\ndb_user = \"scrammer\"\ndatabase = \"dev\"", bed.redshift().direct_port());
    let proxy = Proxy::with_config(&aws, &redshift_config(&aws, &keys));
    assert_eq!(user_of(&proxy), "IAM:scrammer");
}

#[test]
fn authentication_ok_at_once_is_accepted() {
    let bed = Testbed::shared();
    let aws = bed.aws();
    let keys = format!(
        "host = \"localhost\"\nport = {}\nsigning_host = \"mydb.123456789012.us-west-2.rds.amazonaws.com\"\ndb_user = \"trusted\"\ndatabase = \"dev\"",
        bed.redshift().direct_port()
    );
    let proxy = Proxy::with_config(&aws, &rds_config(&keys));
    assert_eq!(user_of(&proxy), "trusted");
}

#[test]
fn unsupported_authentication_is_refused_and_named_in_the_log() {
    let bed = Testbed::shared();
    let aws = bed.aws();
    for (code, text) in
        [(14, "an identity provider token (authentication code 14)"), (7, "authentication code 7"), (99, "authentication code 99")]
    {
        let front = bed.redshift().front(FrontOptions { challenge: Challenge::Code(code), certificate: ServerCertificate::Good }).unwrap();
        let keys = format!("host = \"localhost\"\nport = {}\ndb_user = \"ana\"\ndatabase = \"dev\"", front.port());
        let proxy = Proxy::with_config(&aws, &redshift_config(&aws, &keys));
        let error = Client::log_in(proxy.address(), &[("user", "x")]).err().unwrap();
        assert_eq!(error.sqlstate(), "0A000");
        assert_eq!(error.message(), "the database server asks for an authentication method that is not supported");
        proxy.log_line(&["login refused", text]);
    }
}

#[test]
fn tokens_of_sixty_thousand_bytes_log_in() {
    let bed = Testbed::shared();
    let aws = bed.aws();
    let mut env = aws.env();
    let session_token = "t".repeat(60_000);
    let account = Account {
        secret: "long".into(),
        session_token: Some(session_token.clone()),
        expires: None,
        principal: Principal::User("long".into()),
    };
    bed.accounts().add("ASIALONGSESSIONTOKEN", account);
    env.retain(|(name, _)| !name.contains("KEY"));
    env.push(("AWS_ACCESS_KEY_ID".into(), "ASIALONGSESSIONTOKEN".into()));
    env.push(("AWS_SECRET_ACCESS_KEY".into(), "long".into()));
    env.push(("AWS_SESSION_TOKEN".into(), session_token));
    let proxy = Proxy::with_config_and_env(&rds_config("db_user = \"jane_doe\"\ndatabase = \"postgres\""), env);
    assert_eq!(user_of(&proxy), "jane_doe");
}
