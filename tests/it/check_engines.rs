//! What does `check` say of Redshift Serverless and Aurora DSQL, and does the check of any engine
//! show a secret?

use std::time::Duration;

use serde_json::json;
use testbed::{AccessKey, Aws, Fault, FaultRule, Testbed};

use crate::check::{ANA, assert_fails, run, target, user_arn};
use crate::support::proxy::{
    command, config_file, dsql_config, rds_config, redshift_config, serverless_config,
};

const WORKGROUP: &str = "workgroup_name = \"myworkgroup\"\ndatabase = \"dev\"";
const WORKGROUPS: &str = "arn:aws:redshift-serverless:us-west-2:123456789012:workgroup/*";
const CLUSTER_NAME: &str = "foo0bar1baz2quux3quuux4qux.dsql.us-west-2.on.aws";

/// A DSQL target that is reached through a tunnel and verified by the cluster's own name.
fn dsql(user: &str, aws: &Aws) -> String {
    dsql_config(&format!(
        "host = \"127.0.0.1\"\ncluster_identifier = \"foo0bar1baz2quux3quuux4qux\"\n\
         db_user = \"{user}\"\nendpoint_url = \"{}\"",
        aws.endpoint_url()
    ))
}

#[test]
fn good_targets_say_what_was_made_and_how() {
    let aws = Testbed::shared().aws();
    let serverless = target(aws.env(), &serverless_config(&aws, WORKGROUP), &[], 0);
    assert_eq!(serverless["engine"], "redshift-serverless");
    assert_eq!(
        serverless["steps"][0]["text"],
        "user that of the AWS identity, database \"dev\""
    );
    assert_eq!(
        serverless["steps"][3]["text"],
        format!(
            "IAM:{}, by redshift-serverless:GetCredentials",
            aws.user_name()
        )
    );
    let dsql_target = target(aws.env(), &dsql("admin", &aws), &[], 0);
    assert_eq!(dsql_target["engine"], "dsql");
    assert_eq!(
        dsql_target["steps"][0]["text"],
        "user \"admin\", database \"postgres\""
    );
    assert_eq!(
        dsql_target["steps"][3]["text"],
        format!("admin, token signed for {CLUSTER_NAME} in us-west-2")
    );
    for (config, title) in [
        (
            serverless_config(&aws, WORKGROUP),
            "warehouse (Redshift Serverless, us-west-2)\n",
        ),
        (dsql("admin", &aws), "app (Aurora DSQL, us-west-2)\n"),
    ] {
        assert!(
            String::from_utf8(run(aws.env(), &config, &[]).stdout)
                .unwrap()
                .starts_with(title)
        );
    }
}

#[test]
fn serverless_actions_that_are_missing_are_named_with_where_to_allow_them() {
    let aws = Testbed::shared().aws();
    for (call, step) in [("GetWorkgroup", "endpoint"), ("GetCredentials", "mint")] {
        aws.set_fault(None);
        aws.add_fault(FaultRule::new(Fault::Deny).for_action(call));
        let action = format!("redshift-serverless:{call}");
        let error = format!("{action} is not allowed for the proxy's AWS identity");
        let explanation = format!("{} may not use {action}", user_arn(&aws));
        let remedy = format!("allow {action} on {WORKGROUPS} to {}", user_arn(&aws));
        assert_fails(
            &aws,
            &serverless_config(&aws, WORKGROUP),
            step,
            [&error, &explanation, &remedy],
        );
    }
}

#[test]
fn a_workgroup_that_does_not_exist() {
    let aws = Testbed::shared().aws();
    let remedy = format!(
        "correct the identifier or region, or take an identity of the server's account; this one \
         is {}",
        user_arn(&aws)
    );
    let keys = "workgroup_name = \"nowhere\"\ndatabase = \"dev\"";
    for (keys, step, call) in [
        (keys.to_string(), "endpoint", "GetWorkgroup"),
        (
            format!("{keys}\nhost = \"localhost\""),
            "mint",
            "GetCredentials",
        ),
    ] {
        let error = format!(
            "redshift-serverless:{call}: there is no such cluster, workgroup or instance in this \
             account and region"
        );
        let explanation = "nothing of this name is ready in account 123456789012, region us-west-2";
        assert_fails(
            &aws,
            &serverless_config(&aws, &keys),
            step,
            [&error, explanation, &remedy],
        );
    }
}

#[test]
fn a_region_that_is_not_the_workgroups_dialled_or_through_a_tunnel() {
    let aws = Testbed::shared().aws();
    let host = "other.123456789012.us-east-1.redshift-serverless.amazonaws.com";
    for keys in [
        format!("host = \"{host}\""),
        format!("host = \"127.0.0.1\"\ntls_server_name = \"{host}\""),
    ] {
        assert_fails(
            &aws,
            &serverless_config(
                &aws,
                &format!("workgroup_name = \"other\"\ndatabase = \"dev\"\n{keys}"),
            ),
            "mint",
            [
                "redshift-serverless:GetCredentials: there is no such cluster, workgroup or \
                 instance in this account and region",
                &format!("{host} is in us-east-1, but we sign for us-west-2"),
                "set region = \"us-east-1\"",
            ],
        );
    }
}

#[test]
fn a_serverless_api_that_fails() {
    let aws = Testbed::shared().aws();
    aws.add_fault(FaultRule::new(Fault::Throttle).for_action("GetCredentials"));
    let target = target(aws.env(), &serverless_config(&aws, WORKGROUP), &[], 1);
    let step = &target["steps"][3];
    assert_eq!(
        step["text"],
        "redshift-serverless:GetCredentials: AWS throttles the calls of this account"
    );
    assert!(
        step["explanation"]
            .as_str()
            .unwrap()
            .starts_with("ThrottlingException: Rate exceeded"),
        "{step:#}"
    );
    assert_eq!(
        step["remedy"],
        "try again; if it stays so, see whether this machine reaches AWS in us-west-2 \
         (HTTPS_PROXY, VPC endpoint, endpoint_url)"
    );
}

#[test]
fn a_serverless_password_that_is_refused() {
    let aws = Testbed::shared().aws();
    aws.set_credential_life(Duration::ZERO);
    assert_fails(
        &aws,
        &serverless_config(&aws, WORKGROUP),
        "login",
        [
            &format!(
                "password authentication failed for user \"IAM:{}\"",
                aws.user_name()
            ),
            "the cluster refuses a password that AWS made for it a moment ago",
            "see whether host is this cluster's own; SELECT * FROM sys_connection_log says why",
        ],
    );
}

#[test]
fn a_serverless_database_that_does_not_exist() {
    let aws = Testbed::shared().aws();
    assert_fails(
        &aws,
        &serverless_config(
            &aws,
            "workgroup_name = \"myworkgroup\"\ndatabase = \"nowhere\"",
        ),
        "login",
        [
            "database \"nowhere\" does not exist",
            "the server has no database \"nowhere\"",
            "correct database, or --database",
        ],
    );
}

#[test]
fn a_dsql_token_that_is_refused_for_no_visible_reason_names_the_users_own_action() {
    let bed = Testbed::shared();
    let aws = bed.aws();
    bed.dsql().deny(aws.access_key_id());
    for (user, action) in [
        ("dsql_reader", "dsql:DbConnect"),
        ("admin", "dsql:DbConnectAdmin"),
    ] {
        let explanation = format!(
            "DSQL does not say why; most often {} may not use {action}, or is not granted the \
             role \"{user}\"",
            user_arn(&aws)
        );
        let remedy = format!(
            "allow {action} on arn:aws:dsql:us-west-2:123456789012:cluster/\
             foo0bar1baz2quux3quuux4qux to {0}; for a role of your own, AWS IAM GRANT \"{user}\" \
             TO that identity's ARN",
            user_arn(&aws)
        );
        let error = format!("LDAP authentication failed for user \"{user}\"");
        assert_fails(
            &aws,
            &dsql(user, &aws),
            "login",
            [&error, &explanation, &remedy],
        );
    }
}

#[test]
fn a_dsql_token_that_is_signed_for_another_region_also_through_a_tunnel() {
    let aws = Testbed::shared().aws();
    let keys = format!(
        "host = \"127.0.0.1\"\ntls_server_name = \"{CLUSTER_NAME}\"\ndb_user = \"dsql_reader\"\n\
         endpoint_url = \"{}\"",
        aws.endpoint_url()
    );
    assert_fails(
        &aws,
        &dsql_config(&keys).replace("region = \"us-west-2\"", "region = \"us-east-1\""),
        "login",
        [
            "LDAP authentication failed for user \"dsql_reader\"",
            &format!("{CLUSTER_NAME} is in us-west-2, but we sign for us-east-1"),
            "set region = \"us-west-2\"",
        ],
    );
}

#[test]
fn a_dsql_token_of_a_clock_that_is_off() {
    let bed = Testbed::shared();
    let aws = bed.aws();
    aws.set_clock_ahead(-3600);
    bed.dsql().set_clock_ahead_for(aws.access_key_id(), -3600);
    let target = target(aws.env(), &dsql("dsql_reader", &aws), &[], 1);
    let ahead = target["steps"][1]["facts"]["clock_ahead_s"]
        .as_i64()
        .unwrap();
    let login = &target["steps"][7];
    let explanation = format!(
        "this machine's clock is {ahead} s ahead of AWS's, and a token is good for 15 minutes \
         from the time it is signed"
    );
    assert_eq!(login["explanation"], json!(explanation), "{login:#}");
    assert_eq!(
        login["remedy"],
        "set the clock, and have chrony or systemd-timesyncd keep it"
    );
}

#[test]
fn a_dsql_cluster_that_does_not_exist_and_a_database_that_cannot() {
    let aws = Testbed::shared().aws();
    let elsewhere = "host = \"127.0.0.1\"\ntls_server_name = \"ec2.us-west-2.amazonaws.com\"\n\
        db_user = \"dsql_reader\"";
    let target_elsewhere = target(aws.env(), &dsql_config(elsewhere), &[], 1);
    assert_eq!(
        target_elsewhere["steps"][6]["status"], "failed",
        "no certificate for that name"
    );
    let step = &target(
        aws.env(),
        &dsql("dsql_reader", &aws),
        &["--database", "dev"],
        1,
    )["steps"][0];
    assert_eq!(
        step["text"],
        "database \"dev\" does not exist; \"app\" has postgres only"
    );
    assert_eq!(
        step["explanation"],
        "the login is refused before AWS or a server is asked"
    );
}

#[test]
fn a_check_shows_no_secret() {
    let bed = Testbed::shared();
    let aws = bed.aws();
    let session = bed
        .accounts()
        .add_role_session("checker", "check", Duration::from_hours(1));
    let role = format!("role_arn = \"{}\"", aws.add_role("check_secrets", None));
    bed.rds().create_user("check_secrets").unwrap();
    let rds = format!(
        "db_user = \"check_secrets\"\ndatabase = \"postgres\"\nendpoint_url = \"{}\"",
        aws.endpoint_url()
    );
    let configs = [
        redshift_config(&aws, &format!("{ANA}\n{role}")),
        // The server refuses the first of these, and AWS the second.
        redshift_config(&aws, "db_user = \"nobody_here\"\ndatabase = \"dev\""),
        redshift_config(&aws, &format!("{ANA}\ncluster_identifier = \"nowhere\"")),
        serverless_config(&aws, WORKGROUP),
        rds_config(&format!("{rds}\n{role}")),
        rds_config("db_user = \"master\"\ndatabase = \"postgres\""),
        dsql("dsql_reader", &aws),
        dsql("nobody_here", &aws),
    ];
    let mut shown = String::new();
    for config in &configs {
        for arguments in [&[][..], &["--json"]] {
            let file = config_file(config);
            let mut command = command();
            command
                .args(["check", "--config"])
                .arg(&file)
                .args(arguments)
                .envs(with_key(&aws, &session))
                .env("RUST_LOG", "trace");
            let output = command.output().unwrap();
            assert!(
                output.stderr.is_empty(),
                "{}",
                String::from_utf8_lossy(&output.stderr)
            );
            shown += &String::from_utf8(output.stdout).unwrap();
        }
    }
    assert_eq!(
        shown.matches("password authentication failed").count(),
        4,
        "the refusals are among it: {shown}"
    );
    assert_eq!(
        shown.matches("SELECT 1, server version").count(),
        8,
        "and so are the good ones: {shown}"
    );
    for secret in [
        bed.accounts().secrets(),
        bed.redshift().passwords(),
        vec!["X-Amz-Signature".to_string()],
    ]
    .concat()
    {
        assert!(!shown.contains(&secret), "{secret} in:\n{shown}");
    }
}

/// The environment of this endpoint, with an access key that has a session token.
fn with_key(aws: &Aws, key: &AccessKey) -> Vec<(String, String)> {
    let mut env = aws.env_without_key();
    env.push(("AWS_ACCESS_KEY_ID".to_string(), key.id.clone()));
    env.push(("AWS_SECRET_ACCESS_KEY".to_string(), key.secret.clone()));
    env.push((
        "AWS_SESSION_TOKEN".to_string(),
        key.session_token.clone().unwrap(),
    ));
    env
}
