//! Do clients get in with every engine and every API, however the server asks for the password?

use std::time::Duration;

use testbed::accounts::{Account, Principal};
use testbed::redshift::{CUSTOM_DOMAIN, STALE_CUSTOM_DOMAIN, WORKGROUP_DOMAIN};
use testbed::{
    Aws, Challenge, Fault, FaultRule, FrontOptions, LoggedRequest, PasswordEncryption,
    ServerCertificate, Testbed,
};

use crate::support::client::{Client, V3_0};
use crate::support::proxy::{Proxy, dsql_config, rds_config, redshift_config, serverless_config};
use crate::support::wait_for;

fn user_of(proxy: &Proxy) -> String {
    Client::log_in(proxy.address(), &[("user", "client_user")])
        .unwrap()
        .value("select current_user")
}

#[test]
fn rds_user_names_that_need_escaping_are_signed_as_they_are() {
    let aws = Testbed::shared().aws();
    let proxy = Proxy::with_config(
        &aws,
        &rds_config("db_user = \"a+b@c d\"\ndatabase = \"postgres\""),
    );
    assert_eq!(user_of(&proxy), "a+b@c d");
}

#[test]
fn rds_without_db_user_uses_the_clients_own_name() {
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
    let keys = "db_user = \"tunnelled\"\ndatabase = \"postgres\"\n\
        signing_host = \"mydb.123456789012.us-west-2.rds.amazonaws.com:5432\"\n\
        tls_server_name = \"mydb.123456789012.us-west-2.rds.amazonaws.com\"";
    let proxy = Proxy::with_config(
        &aws,
        &rds_config(keys).replace("region = \"us-west-2\"\n", ""),
    );
    assert_eq!(user_of(&proxy), "tunnelled");
}

#[test]
fn an_rds_proxy_is_verified_and_its_tokens_are_signed_under_its_own_name() {
    let bed = Testbed::shared();
    bed.rds().create_user("behind_a_proxy").unwrap();
    let host = "myproxy.proxy-123456789012.us-west-2.rds.amazonaws.com";
    let keys = format!(
        "db_user = \"behind_a_proxy\"\ndatabase = \"postgres\"\nsigning_host = \"{host}:5432\"\n\
         tls_server_name = \"{host}\""
    );
    let proxy = Proxy::with_config(
        &bed.aws(),
        &rds_config(&keys).replace("region = \"us-west-2\"\n", ""),
    );
    assert_eq!(user_of(&proxy), "behind_a_proxy");
}

#[test]
fn rds_endpoints_are_discovered_for_an_instance_and_for_a_clusters_writer_and_reader() {
    let aws = Testbed::shared().aws();
    let endpoint = format!(
        "endpoint_url = \"{}\"\ndb_user = \"jane_doe\"\ndatabase = \"postgres\"",
        aws.endpoint_url()
    );
    for (keys, call, host) in [
        (
            "instance_identifier = \"mydb\"",
            "DescribeDBInstances",
            "localhost",
        ),
        (
            "cluster_identifier = \"mycluster\"",
            "DescribeDBClusters",
            "localhost",
        ),
        (
            "cluster_identifier = \"mycluster\"\nendpoint = \"reader\"",
            "DescribeDBClusters",
            "127.0.0.1",
        ),
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
    let keys = "db_user = \"newcomer\"\ndatabase = \"dev\"\nauto_create = true\n\
        db_groups = [\"bi\", \"ops\"]\nduration_seconds = 1800";
    let proxy = Proxy::with_config(&aws, &redshift_config(&aws, keys));
    assert_eq!(user_of(&proxy), "IAMA:newcomer:bi,ops");
    let request = aws
        .requests()
        .into_iter()
        .find(|request| request.action == "GetClusterCredentials")
        .unwrap();
    for (name, value) in [
        ("DbUser", "newcomer"),
        ("DbName", "dev"),
        ("ClusterIdentifier", "examplecluster"),
        ("AutoCreate", "true"),
        ("DurationSeconds", "1800"),
        ("DbGroups.DbGroup.1", "bi"),
        ("DbGroups.DbGroup.2", "ops"),
    ] {
        assert_eq!(
            request.params.get(name).map(String::as_str),
            Some(value),
            "{name} in {:?}",
            request.params
        );
    }
}

/// A Redshift target with a custom domain name, and with `identifier` too unless that is empty.
fn custom_domain_config(aws: &Aws, domain: &str, identifier: &str) -> String {
    let port = Testbed::shared().redshift().port();
    let keys = format!(
        "{identifier}custom_domain_name = \"{domain}\"\nhost = \"localhost\"\nport = {port}\n\
         db_user = \"ana\"\ndatabase = \"dev\""
    );
    let config = redshift_config(aws, &keys);
    if identifier.is_empty() {
        config.replace("cluster_identifier = \"examplecluster\"\n", "")
    } else {
        config
    }
}

const IDENTIFIER: &str = "cluster_identifier = \"examplecluster\"\n";

/// Each call with the name that it gave the cluster, including `DescribeCustomDomainAssociations`.
fn names_in_calls(aws: &Aws) -> Vec<String> {
    let named = |request: &LoggedRequest| {
        let name = request
            .params
            .get("ClusterIdentifier")
            .or(request.params.get("CustomDomainName"));
        format!(
            "{} {}",
            request.action,
            name.map(String::as_str).unwrap_or_default()
        )
    };
    aws.requests().iter().map(named).collect()
}

#[test]
fn redshift_custom_domain_names_are_used_in_the_call() {
    for identifier in ["", IDENTIFIER] {
        let aws = Testbed::shared().aws();
        let proxy =
            Proxy::with_config(&aws, &custom_domain_config(&aws, CUSTOM_DOMAIN, identifier));
        assert_eq!(user_of(&proxy), "IAM:ana");
        assert_eq!(
            names_in_calls(&aws),
            ["GetClusterCredentials warehouse.example.com"]
        );
    }
}

#[test]
fn redshift_clusters_are_called_by_their_identifier_when_the_custom_domain_name_is_refused() {
    let aws = Testbed::shared().aws();
    let proxy = Proxy::with_config(
        &aws,
        &custom_domain_config(&aws, "unheard-of.example.com", IDENTIFIER),
    );
    assert_eq!(user_of(&proxy), "IAM:ana");
    assert_eq!(
        names_in_calls(&aws),
        [
            "GetClusterCredentials unheard-of.example.com",
            "GetClusterCredentials examplecluster"
        ]
    );
    proxy.log_line(&[
        "WARN",
        "AWS refuses the custom domain name",
        "unheard-of.example.com",
        "identifier=\"examplecluster\"",
    ]);
}

#[test]
fn redshift_asks_for_the_identifier_behind_a_custom_domain_name_when_it_is_not_configured() {
    let aws = Testbed::shared().aws();
    let proxy = Proxy::with_config(&aws, &custom_domain_config(&aws, STALE_CUSTOM_DOMAIN, ""));
    assert_eq!(user_of(&proxy), "IAM:ana");
    let expected = [
        "GetClusterCredentials old-warehouse.example.com",
        "DescribeCustomDomainAssociations old-warehouse.example.com",
        "GetClusterCredentials examplecluster",
    ];
    assert_eq!(names_in_calls(&aws), expected);
}

#[test]
fn redshift_reports_the_error_of_the_first_call_when_there_is_no_second() {
    let aws = Testbed::shared().aws();
    aws.add_fault(FaultRule::new(Fault::Deny).for_action("GetClusterCredentials"));
    aws.add_fault(FaultRule::new(Fault::Deny).for_action("DescribeCustomDomainAssociations"));
    let proxy = Proxy::with_config(&aws, &custom_domain_config(&aws, CUSTOM_DOMAIN, ""));
    let error = Client::log_in(proxy.address(), &[("user", "x")])
        .err()
        .unwrap();
    assert_eq!(
        (error.sqlstate(), error.message()),
        (
            "28000",
            "redshift:GetClusterCredentials is not allowed for the proxy's AWS identity"
        )
    );
    proxy.log_line(&[
        "AWS refuses the custom domain name",
        "lookup=\"redshift:DescribeCustomDomainAssociations is not allowed",
    ]);
}

#[test]
fn redshift_does_not_try_another_name_when_aws_throttles() {
    let aws = Testbed::shared().aws();
    aws.set_fault(Fault::Throttle);
    let proxy = Proxy::with_config(&aws, &custom_domain_config(&aws, CUSTOM_DOMAIN, IDENTIFIER));
    let error = Client::log_in(proxy.address(), &[("user", "x")])
        .err()
        .unwrap();
    assert_eq!(error.sqlstate(), "57P03");
    assert!(
        names_in_calls(&aws)
            .iter()
            .all(|call| call == "GetClusterCredentials warehouse.example.com")
    );
}

#[test]
fn serverless_workgroups_are_discovered_and_the_aws_identity_is_the_user() {
    let aws = Testbed::shared().aws();
    let keys = "workgroup_name = \"myworkgroup\"\nduration_seconds = 1800";
    let proxy = Proxy::with_config(&aws, &serverless_config(&aws, keys));
    let log_in = || {
        Client::log_in(
            proxy.address(),
            &[
                ("user", "whoever"),
                ("database", "dev"),
                ("IntervalStyle", "iso_8601"),
            ],
        )
        .unwrap()
    };
    assert_eq!(
        log_in().value("select current_user"),
        format!("IAM:{}", aws.user_name())
    );
    assert_eq!(log_in().value("select current_database()"), "dev");
    assert_eq!(
        (aws.calls("GetCredentials"), aws.calls("GetWorkgroup")),
        (1, 1),
        "both answers are cached"
    );
    let request = aws
        .requests()
        .into_iter()
        .find(|request| request.action == "GetCredentials")
        .unwrap();
    for (name, value) in [
        ("workgroupName", "myworkgroup"),
        ("dbName", "dev"),
        ("durationSeconds", "1800"),
    ] {
        assert_eq!(
            request.params.get(name).map(String::as_str),
            Some(value),
            "{name} in {:?}",
            request.params
        );
    }
    let role = format!(
        "{keys}\ndatabase = \"dev\"\nrole_arn = \"{}\"",
        aws.add_role("serverless", None)
    );
    assert_eq!(
        user_of(&Proxy::with_config(&aws, &serverless_config(&aws, &role))),
        "IAMR:serverless"
    );
}

#[test]
fn serverless_custom_domain_names_are_used_where_the_workgroup_is_not_known() {
    let bed = Testbed::shared();
    let keys = format!(
        "custom_domain_name = \"{WORKGROUP_DOMAIN}\"\nhost = \"localhost\"\nport = {}\n\
         database = \"dev\"",
        bed.redshift().port()
    );
    for (more, parameter, value) in [
        ("", "customDomainName", WORKGROUP_DOMAIN),
        (
            "\nworkgroup_name = \"myworkgroup\"",
            "workgroupName",
            "myworkgroup",
        ),
    ] {
        let aws = bed.aws();
        let proxy = Proxy::with_config(&aws, &serverless_config(&aws, &format!("{keys}{more}")));
        assert_eq!(user_of(&proxy), format!("IAM:{}", aws.user_name()));
        let names = |request: &LoggedRequest| {
            ["workgroupName", "customDomainName"].map(|name| request.params.get(name).cloned())
        };
        let expected = ["workgroupName", "customDomainName"]
            .map(|name| (name == parameter).then(|| value.to_string()));
        assert_eq!(
            aws.requests().iter().map(names).collect::<Vec<_>>(),
            [expected]
        );
    }
}

#[test]
fn serverless_failures_are_reported_by_their_cause() {
    for (fault, sqlstate, message) in [
        (
            Fault::Deny,
            "28000",
            "redshift-serverless:GetCredentials is not allowed for the proxy's AWS identity",
        ),
        (
            Fault::Throttle,
            "57P03",
            "redshift-serverless:GetCredentials: AWS throttles the calls of this account",
        ),
        (
            Fault::InternalError,
            "57P03",
            "redshift-serverless:GetCredentials: AWS fails",
        ),
        (
            Fault::Malformed,
            "57P03",
            "redshift-serverless:GetCredentials: AWS gave an answer that cannot be read",
        ),
    ] {
        let aws = Testbed::shared().aws();
        aws.add_fault(FaultRule::new(fault).for_action("GetCredentials"));
        let proxy = Proxy::with_config(
            &aws,
            &serverless_config(&aws, "workgroup_name = \"myworkgroup\"\ndatabase = \"dev\""),
        );
        let error = Client::log_in(proxy.address(), &[("user", "x")])
            .err()
            .unwrap();
        assert_eq!(
            (error.sqlstate(), error.message()),
            (sqlstate, message),
            "{fault:?}"
        );
    }
    let aws = Testbed::shared().aws();
    let unknown = "workgroup_name = \"another\"\ndatabase = \"dev\"";
    let text = "there is no such cluster, workgroup or instance in this account and region";
    for (keys, action) in [
        (unknown.to_string(), "GetWorkgroup"),
        (format!("{unknown}\nhost = \"localhost\""), "GetCredentials"),
    ] {
        let proxy = Proxy::with_config(&aws, &serverless_config(&aws, &keys));
        let error = Client::log_in(proxy.address(), &[("user", "x")])
            .err()
            .unwrap();
        assert_eq!(
            (error.sqlstate(), error.message()),
            ("58000", &*format!("redshift-serverless:{action}: {text}"))
        );
    }
}

#[test]
fn serverless_urls_name_the_workgroup() {
    let bed = Testbed::shared();
    let aws = bed.aws();
    let port = bed.redshift().port();
    let common = format!(
        "listen=127.0.0.1:0&endpoint_url={}&ca_file={}",
        aws.endpoint_url(),
        bed.ca_file().display()
    );
    for url in [
        format!("redshift-serverless://myworkgroup.us-west-2/dev?{common}"),
        format!(
            "jdbc:redshift:iam://localhost:{port}/dev?isServerless=true&\
             ServerlessWorkGroup=myworkgroup&Region=us-west-2&{common}"
        ),
    ] {
        let proxy = Proxy::with_urls(&aws, &[&url]);
        assert_eq!(user_of(&proxy), format!("IAM:{}", aws.user_name()), "{url}");
    }
}

#[test]
fn a_jdbc_iam_url_with_the_host_of_a_workgroup_can_be_pasted_unchanged() {
    let aws = Testbed::shared().aws();
    let url = "jdbc:redshift:iam://\
        myworkgroup.123456789012.us-west-2.redshift-serverless.amazonaws.com:5439/dev?\
        DbUser=pasted&AutoCreate=true&listen=127.0.0.1:0";
    let proxy = Proxy::with_urls(&aws, &[url]);
    assert!(
        proxy
            .printed
            .starts_with("myworkgroup (Redshift Serverless, us-west-2) on "),
        "{}",
        proxy.printed
    );
    proxy.log_line(&[
        "WARN",
        "db_user is ignored: Redshift Serverless maps the AWS identity to the database user",
    ]);
    proxy.log_line(&["WARN", "auto_create is ignored"]);
}

#[test]
fn dsql_users_log_in_with_tokens_and_admin_with_tokens_for_another_action() {
    let bed = Testbed::shared();
    let aws = bed.aws();
    for (user, action) in [("dsql_reader", "DbConnect"), ("admin", "DbConnectAdmin")] {
        let proxy = Proxy::with_config(
            &aws,
            &dsql_config(&format!("db_user = \"{user}\"\ndatabase = \"postgres\"")),
        );
        let mut client = Client::log_in(
            proxy.address(),
            &[("user", "whoever"), ("database", "mine")],
        )
        .unwrap();
        assert_eq!(
            client.value("select current_user || ' ' || current_database()"),
            format!("{user} postgres")
        );
        assert!(
            bed.dsql()
                .accepted()
                .contains(&(user.to_string(), action.to_string()))
        );
    }
    assert_eq!(aws.requests().len(), 0, "tokens are signed without a call");
}

#[test]
fn dsql_logins_to_another_database_are_refused_before_the_server_does() {
    let aws = Testbed::shared().aws();
    let proxy = Proxy::with_config(&aws, &dsql_config("db_user = \"dsql_reader\""));
    assert!(proxy.printed.contains("/postgres\n"), "{}", proxy.printed);
    assert_eq!(
        Client::log_in(proxy.address(), &[("user", "x")])
            .unwrap()
            .value("select current_database()"),
        "postgres"
    );
    assert!(Client::log_in(proxy.address(), &[("user", "x"), ("database", "postgres")]).is_ok());
    let error = Client::log_in(proxy.address(), &[("user", "x"), ("database", "dev")])
        .err()
        .unwrap();
    assert_eq!(
        (error.sqlstate(), error.message()),
        (
            "3D000",
            "database \"dev\" does not exist; \"app\" has postgres only"
        )
    );
}

#[test]
fn dsql_gets_only_the_startup_parameters_that_it_is_known_to_accept() {
    let bed = Testbed::shared();
    let aws = bed.aws();
    let proxy = Proxy::with_config(
        &aws,
        &dsql_config("db_user = \"dsql_reader\"\nignore_startup_parameters = [\"timezone\"]"),
    );
    let parameters = [
        ("user", "x"),
        ("application_name", "parameters of dsql"),
        ("statement_timeout", "1000"),
        ("DateStyle", "ISO"),
        ("TimeZone", "UTC"),
        ("client_protocol_version", "3"),
        ("options", "-c search_path=public"),
    ];
    let mut client = Client::log_in_with(proxy.address(), V3_0, &parameters).unwrap();
    assert_eq!(client.value("show search_path"), "public");
    proxy.log_line(&[
        "startup parameters not forwarded",
        "statement_timeout, TimeZone, client_protocol_version",
    ]);
    let startups = bed.dsql().startups();
    let seen = startups
        .iter()
        .find(|seen| seen.iter().any(|(_, value)| value == "parameters of dsql"))
        .unwrap();
    let names: Vec<&str> = seen.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        [
            "user",
            "application_name",
            "DateStyle",
            "options",
            "database"
        ]
    );
}

#[test]
fn dsql_behind_a_tunnel_is_addressed_by_its_own_name() {
    let bed = Testbed::shared();
    let aws = bed.aws();
    for keys in [
        "host = \"127.0.0.1\"\ntls_server_name = \
         \"foo0bar1baz2quux3quuux4qux.dsql.us-west-2.on.aws\"",
        "host = \"127.0.0.1\"\ncluster_identifier = \"foo0bar1baz2quux3quuux4qux\"",
    ] {
        let proxy = Proxy::with_config(
            &aws,
            &dsql_config(&format!("{keys}\ndb_user = \"dsql_reader\"")),
        );
        assert_eq!(user_of(&proxy), "dsql_reader", "{keys}");
    }
    let url = format!(
        "dsql://dsql_reader@foo0bar1baz2quux3quuux4qux.us-west-2/postgres?host=localhost&port={}&\
         ca_file={}&listen=127.0.0.1:0",
        bed.dsql().port(),
        bed.ca_file().display()
    );
    assert_eq!(user_of(&Proxy::with_urls(&aws, &[&url])), "dsql_reader");
}

#[test]
fn dsql_tokens_end_with_their_role_session_and_tokens_of_strangers_are_refused() {
    let bed = Testbed::shared();
    let aws = bed.aws();
    let keys = format!(
        "db_user = \"dsql_reader\"\nendpoint_url = \"{}\"\nrole_arn = \"{}\"",
        aws.endpoint_url(),
        aws.add_role("dsql", None)
    );
    aws.set_role_life(Duration::from_secs(2));
    let proxy = Proxy::with_config(&aws, &dsql_config(&keys));
    wait_for("the third role session", || {
        assert_eq!(user_of(&proxy), "dsql_reader");
        (aws.calls("AssumeRole") >= 3).then_some(())
    });
    assert!(
        !bed.dsql()
            .refusals()
            .contains(&"the access key has expired".to_string()),
        "no token was used after its role session had ended"
    );
    let mut env = aws.env();
    env.iter_mut()
        .filter(|(name, _)| name == "AWS_SECRET_ACCESS_KEY")
        .for_each(|(_, secret)| *secret = "another".to_string());
    let proxy = Proxy::with_config_and_env(&dsql_config("db_user = \"dsql_reader\""), env);
    let error = Client::log_in(proxy.address(), &[("user", "x")])
        .err()
        .unwrap();
    assert_eq!(error.sqlstate(), "28000");
    assert!(
        bed.dsql()
            .refusals()
            .contains(&"the signature does not match".to_string())
    );
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
fn a_jdbc_iam_url_can_be_pasted_unchanged() {
    let bed = Testbed::shared();
    let aws = bed.aws();
    let url = format!(
        "jdbc:redshift:iam://examplecluster:us-west-2/dev?DbUser=pasted&AutoCreate=true&\
         DbGroups=BI&ForceLowercase=true&ssl=true&IAMDuration=900&EndpointUrl={}&ca_file={}&\
         listen=127.0.0.1:0",
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
        let front = bed
            .redshift()
            .front(FrontOptions {
                challenge,
                certificate: ServerCertificate::Good,
            })
            .unwrap();
        let keys = format!(
            "host = \"localhost\"\nport = {}\ndb_user = \"ana\"\ndatabase = \"dev\"",
            front.port()
        );
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
    let keys = format!(
        "host = \"localhost\"\nport = {}\ndb_user = \"scrammer\"\ndatabase = \"dev\"",
        bed.redshift().direct_port()
    );
    let proxy = Proxy::with_config(&aws, &redshift_config(&aws, &keys));
    assert_eq!(user_of(&proxy), "IAM:scrammer");
}

#[test]
fn authentication_ok_at_once_is_accepted() {
    let bed = Testbed::shared();
    let aws = bed.aws();
    let keys = format!(
        "host = \"localhost\"\nport = {}\nsigning_host = \
         \"mydb.123456789012.us-west-2.rds.amazonaws.com\"\ndb_user = \"trusted\"\n\
         database = \"dev\"",
        bed.redshift().direct_port()
    );
    let proxy = Proxy::with_config(&aws, &rds_config(&keys));
    assert_eq!(user_of(&proxy), "trusted");
}

#[test]
fn unsupported_authentication_is_refused_and_named_in_the_log() {
    let bed = Testbed::shared();
    let aws = bed.aws();
    for (code, text) in [
        (14, "an identity provider token (authentication code 14)"),
        (7, "authentication code 7"),
        (99, "authentication code 99"),
    ] {
        let front = bed
            .redshift()
            .front(FrontOptions {
                challenge: Challenge::Code(code),
                certificate: ServerCertificate::Good,
            })
            .unwrap();
        let keys = format!(
            "host = \"localhost\"\nport = {}\ndb_user = \"ana\"\ndatabase = \"dev\"",
            front.port()
        );
        let proxy = Proxy::with_config(&aws, &redshift_config(&aws, &keys));
        let error = Client::log_in(proxy.address(), &[("user", "x")])
            .err()
            .unwrap();
        assert_eq!(error.sqlstate(), "0A000");
        assert_eq!(
            error.message(),
            "the database server asks for an authentication method that is not supported"
        );
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
    let proxy = Proxy::with_config_and_env(
        &rds_config("db_user = \"jane_doe\"\ndatabase = \"postgres\""),
        env,
    );
    assert_eq!(user_of(&proxy), "jane_doe");
}
