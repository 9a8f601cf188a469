//! `check`: every step with its time, and for each thing that can be wrong the words that end the
//! search.

use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::process::Output;

use serde_json::{Value, json};
use testbed::{Aws, Challenge, Fault, FaultRule, FrontOptions, ServerCertificate, Testbed};

use crate::support::proxy::{command, config_file, output, rds_config, redshift_config};
use crate::support::server::{answer_ssl_request, serve};

const STEPS: [&str; 9] = [
    "route", "identity", "endpoint", "mint", "dns", "tcp", "tls", "login", "select",
];

pub fn run(env: Vec<(String, String)>, config: &str, arguments: &[&str]) -> Output {
    let file = config_file(config);
    command()
        .args(["check", "--config"])
        .arg(&file)
        .args(arguments)
        .envs(env)
        .output()
        .expect("the binary starts")
}

/// Runs a check that has one target and must end with this exit code; returns the target's report.
#[track_caller]
pub fn target(env: Vec<(String, String)>, config: &str, arguments: &[&str], code: i32) -> Value {
    let output = run(env, config, &[&["--json"], arguments].concat());
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(
        output.status.code(),
        Some(code),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let report: Value = serde_json::from_str(&text).expect("one JSON object");
    assert_eq!(report["ok"], code == 0);
    report["targets"][0].clone()
}

/// Asserts that the check of one target fails at this step with these words, and does not try the
/// later steps.
#[track_caller]
fn assert_fails_in(
    env: Vec<(String, String)>,
    config: &str,
    step: &str,
    [error, explanation, remedy]: [&str; 3],
) {
    let target = target(env, config, &[], 1);
    let failed = STEPS.iter().position(|name| *name == step).unwrap();
    for (index, found) in target["steps"].as_array().unwrap().iter().enumerate() {
        assert_eq!(found["step"], STEPS[index]);
        match index.cmp(&failed) {
            std::cmp::Ordering::Less => assert_eq!(found["status"], "ok", "{found:#}"),
            std::cmp::Ordering::Greater => {
                assert_eq!(
                    found,
                    &json!({
                        "step": STEPS[index],
                        "status": "not_tried",
                        "ms": null,
                        "text": null,
                        "facts": {},
                        "explanation": null,
                        "remedy": null,
                    })
                );
            }
            std::cmp::Ordering::Equal => {
                assert_eq!(found["status"], "failed", "{found:#}");
                assert_eq!(
                    (&found["text"], &found["explanation"], &found["remedy"]),
                    (&json!(error), &json!(explanation), &json!(remedy))
                );
            }
        }
    }
}

#[track_caller]
pub fn assert_fails(aws: &Aws, config: &str, step: &str, words: [&str; 3]) {
    assert_fails_in(aws.env(), config, step, words);
}

pub fn user_arn(aws: &Aws) -> String {
    format!("arn:aws:iam::123456789012:user/{}", aws.user_name())
}

/// An RDS target at this port. Every step before the TCP connection works.
fn at_port(port: u16, keys: &str) -> String {
    rds_config(&format!(
        "host = \"localhost\"\nport = {port}\ndb_user = \"jane_doe\"\ndatabase = \"postgres\"\n\
         {keys}"
    ))
}

pub const ANA: &str = "db_user = \"ana\"\ndatabase = \"dev\"";
const TUNNEL: &str = "database = \"postgres\"\n\
    signing_host = \"mydb.123456789012.us-west-2.rds.amazonaws.com:5432\"";

#[test]
fn a_good_target_is_a_line_a_step_with_its_time() {
    let aws = Testbed::shared().aws();
    let output = run(aws.env(), &redshift_config(&aws, ANA), &[]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}");
    let port = Testbed::shared().redshift().port();
    let addresses: Vec<String> = ("localhost", port)
        .to_socket_addrs()
        .unwrap()
        .map(|address| address.ip().to_string())
        .collect();
    // The times, which differ from run to run, are taken out.
    let lines: Vec<String> = text.lines().map(without_time).collect();
    assert_eq!(
        lines,
        [
            "warehouse (Redshift, us-west-2)".to_string(),
            "  route     ok  user \"ana\", database \"dev\"".to_string(),
            format!("  identity  ok  {}", user_arn(&aws)),
            format!("  endpoint  ok  localhost:{port}, found by AWS"),
            "  mint      ok  IAM:ana, by redshift:GetClusterCredentials".to_string(),
            format!("  dns       ok  {}", addresses.join(", ")),
            format!("  tcp       ok  127.0.0.1:{port}"),
            format!(
                "  tls       ok  issuer pg-iam-proxy testbed CA, 29 days left, names localhost, \
                 {} and 7 more",
                testbed::pki::AWS_NAMES[0]
            ),
            "  login     ok  as IAM:ana".to_string(),
            "  select    ok  SELECT 1, server version 8.0.2".to_string(),
            "1 of 1 targets good".to_string(),
        ]
    );
    assert!(String::from_utf8(output.stderr).unwrap().is_empty());
}

fn without_time(line: &str) -> String {
    match line.split_once(" ms  ") {
        Some((before, text)) => {
            let (start, time) = before.rsplit_once(' ').unwrap();
            assert!(time.parse::<f64>().is_ok(), "{line}");
            format!("{}  {text}", start.trim_end())
        }
        None => line.to_string(),
    }
}

#[test]
fn a_good_target_as_json() {
    let bed = Testbed::shared();
    let aws = bed.aws();
    let config = rds_config("db_user = \"jane_doe\"\ndatabase = \"postgres\"");
    let target = target(aws.env(), &config, &[], 0);
    assert_eq!(
        (&target["target"], &target["engine"], &target["region"]),
        (&json!("app"), &json!("rds"), &json!("us-west-2"))
    );
    assert_eq!(target["ok"], true);
    let steps = target["steps"].as_array().unwrap();
    assert!(
        steps
            .iter()
            .all(|step| step["status"] == "ok" && step["ms"].is_f64() && step["remedy"].is_null()),
        "{target:#}"
    );
    let facts: Vec<&Value> = steps.iter().map(|step| &step["facts"]).collect();
    let names: Vec<&str> = ["localhost"]
        .into_iter()
        .chain(testbed::pki::AWS_NAMES)
        .collect();
    assert_eq!(
        facts[0],
        &json!({ "db_user": "jane_doe", "database": "postgres" })
    );
    assert_eq!(
        (&facts[1]["arn"], &facts[1]["account"]),
        (&json!(user_arn(&aws)), &json!("123456789012"))
    );
    assert!(facts[1]["clock_ahead_s"].as_i64().unwrap().abs() < 10);
    assert_eq!(
        facts[2],
        &json!({ "host": "localhost", "port": bed.rds().port() })
    );
    assert_eq!(facts[3], &json!({ "db_user": "jane_doe" }));
    assert!(
        facts[4]["addresses"]
            .as_array()
            .unwrap()
            .contains(&json!("127.0.0.1"))
    );
    assert_eq!(
        facts[5],
        &json!({ "address": format!("127.0.0.1:{}", bed.rds().port()) })
    );
    assert_eq!(
        facts[6],
        &json!({ "issuer": "pg-iam-proxy testbed CA", "days_left": 29, "names": names })
    );
    assert_eq!(facts[7], &json!({ "db_user": "jane_doe" }));
    assert!(
        facts[8]["server_version"]
            .as_str()
            .unwrap()
            .starts_with(|c: char| c.is_ascii_digit())
    );
    assert_eq!(
        steps[3]["text"],
        format!(
            "jane_doe, token signed for localhost:{} in us-west-2",
            bed.rds().port()
        )
    );
}

#[test]
fn a_failure_is_explained_on_two_lines_below_its_step() {
    let aws = Testbed::shared().aws();
    let output = run(
        aws.env(),
        &redshift_config(&aws, "db_user = \"nobody_here\"\ndatabase = \"dev\""),
        &[],
    );
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<String> = text.lines().skip(8).map(without_time).collect();
    assert_eq!(
        lines,
        [
            "  login     FAILED  password authentication failed for user \"IAM:nobody_here\"",
            "    why     auto_create is false and user \"nobody_here\" does not exist: AWS gives \
             passwords for such users, too",
            "    remedy  CREATE USER \"nobody_here\" PASSWORD DISABLE; or set auto_create = true \
             and allow redshift:CreateClusterUser on \
             arn:aws:redshift:us-west-2:123456789012:dbuser:examplecluster/nobody_here",
            "  select    not tried",
            "0 of 1 targets good",
        ]
    );
}

#[test]
fn the_clients_own_choice_comes_from_flags_or_the_operating_system_and_is_named() {
    let bed = Testbed::shared();
    let aws = bed.aws();
    bed.rds().create_user("checker").unwrap();
    let config = rds_config("");
    let by_flags = target(
        aws.env(),
        &config,
        &["--user", "checker", "--database", "postgres"],
        0,
    );
    assert_eq!(
        by_flags["steps"][0]["text"],
        "user \"checker\", database \"postgres\""
    );
    let output = std::process::Command::new("id")
        .arg("-un")
        .output()
        .unwrap();
    let own = String::from_utf8(output.stdout)
        .unwrap()
        .trim_end()
        .to_string();
    let by_default = target(aws.env(), &config, &[], 1);
    assert_eq!(
        by_default["steps"][0]["text"],
        format!(
            "user \"{own}\", database \"{own}\" (the client's own: taken from the operating \
             system's user; see --user, --database)"
        )
    );
}

#[test]
fn a_users_own_settings_hold_with_the_flag() {
    let aws = Testbed::shared().aws();
    let config = format!(
        "{}[user.tableau]\ndb_user = \"bi_tableau\"\n",
        redshift_config(&aws, ANA)
    );
    assert_eq!(
        target(aws.env(), &config, &["--user", "tableau"], 0)["steps"][3]["facts"]["db_user"],
        "IAM:bi_tableau"
    );
}

#[test]
fn a_name_that_cannot_be_is_refused_before_anybody_is_asked() {
    let aws = Testbed::shared().aws();
    let target = target(
        aws.env(),
        &redshift_config(&aws, "db_user = \"ana\""),
        &["--database", "select"],
        1,
    );
    let step = &target["steps"][0];
    assert_eq!(
        step["text"],
        "database \"select\" must not be a word that Redshift reserves"
    );
    assert_eq!(
        step["explanation"],
        "the login is refused before AWS or a server is asked"
    );
    assert_eq!(
        step["remedy"],
        "correct the target, or give other names with --user and --database"
    );
    assert!(aws.requests().is_empty());
}

#[test]
fn targets_are_chosen_by_name_and_a_wrong_name_is_a_usage_error_with_the_nearest() {
    let aws = Testbed::shared().aws();
    let good = rds_config("db_user = \"jane_doe\"\ndatabase = \"postgres\"");
    let other = good
        .replace("app", "other")
        .replace("localhost", "no-such-host.invalid");
    let config = format!("{good}{other}");
    assert_eq!(target(aws.env(), &config, &["app"], 0)["target"], "app");
    let both = run(aws.env(), &config, &[]);
    assert_eq!(both.status.code(), Some(1));
    assert!(
        String::from_utf8(both.stdout)
            .unwrap()
            .ends_with("1 of 2 targets good\n")
    );
    for arguments in [&["appp"][..], &["appp", "--offline"]] {
        let output = run(aws.env(), &config, arguments);
        assert_eq!(output.status.code(), Some(64));
        assert_eq!(
            String::from_utf8(output.stderr).unwrap(),
            "pg-iam-proxy: there is no target \"appp\"; did you mean \"app\"?\n"
        );
    }
    let nameless = output(&["check", "app"]);
    assert_eq!(nameless.status.code(), Some(64));
    let text =
        "pg-iam-proxy: names of targets are those of a file: give --config FILE, or target URLs\n";
    assert_eq!(String::from_utf8(nameless.stderr).unwrap(), text);
}

#[test]
fn a_target_url_needs_no_file() {
    let bed = Testbed::shared();
    let aws = bed.aws();
    let (port, ca) = (bed.rds().port(), bed.ca_file().display().to_string());
    let url = format!("rds://jane_doe@localhost:{port}/postgres?region=us-west-2&ca_file={ca}");
    let output = command()
        .args(["check", &url])
        .envs(aws.env())
        .output()
        .unwrap();
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
}

#[test]
fn a_bad_configuration_is_78_and_offline_asks_nobody() {
    let aws = Testbed::shared().aws();
    assert_eq!(
        run(aws.env(), "[[listener]]\n", &[]).status.code(),
        Some(78)
    );
    let output = run(aws.env(), &redshift_config(&aws, ANA), &["--offline"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(
        String::from_utf8(output.stdout)
            .unwrap()
            .ends_with(": good, 1 listener(s)\n")
    );
    assert!(aws.requests().is_empty());
}

#[test]
fn no_aws_credentials_and_where_they_were_looked_for() {
    let aws = Testbed::shared().aws();
    for role in ["", "role_arn = \"arn:aws:iam::123456789012:role/analyst\""] {
        assert_fails_in(
            aws.env_without_key(),
            &redshift_config(&aws, &format!("{ANA}\n{role}")),
            "identity",
            [
                "no AWS credentials",
                "looked at: environment (AWS_ACCESS_KEY_ID is not set, AWS_SECRET_ACCESS_KEY is \
                 not set); profile \"default\" (/nonexistent/config does not exist, \
                 /nonexistent/credentials does not exist); web identity \
                 (AWS_WEB_IDENTITY_TOKEN_FILE is not set, AWS_ROLE_ARN is not set); container \
                 (AWS_CONTAINER_CREDENTIALS_RELATIVE_URI is not set, \
                 AWS_CONTAINER_CREDENTIALS_FULL_URI is not set); instance metadata (turned off by \
                 AWS_EC2_METADATA_DISABLED)",
                "log in (aws sso login), name a profile with profile or AWS_PROFILE, or give this \
                 machine a role",
            ],
        );
    }
}

#[test]
fn a_profile_that_is_missing_is_named_with_the_nearest() {
    let aws = Testbed::shared().aws();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config");
    std::fs::write(&file, "[profile work]\nregion = us-west-2\n").unwrap();
    let mut env = aws.env_without_key();
    env.retain(|(name, _)| name != "AWS_CONFIG_FILE");
    env.push(("AWS_CONFIG_FILE".to_string(), file.display().to_string()));
    let explanation = format!(
        "there is no profile \"wrok\" in {} and /nonexistent/credentials",
        file.display()
    );
    let remedy = |what: &str| {
        format!("correct {what} (did you mean \"work\"?), or add the profile: aws configure sso")
    };
    let of_target = redshift_config(&aws, &format!("{ANA}\nprofile = \"wrok\""));
    let words = [
        "no AWS credentials",
        &explanation,
        &remedy("profile of the target"),
    ];
    assert_fails_in(env.clone(), &of_target, "identity", words);
    let of_environment = [
        env.clone(),
        vec![("AWS_PROFILE".to_string(), "wrok".to_string())],
    ]
    .concat();
    let words = ["no AWS credentials", &explanation, &remedy("AWS_PROFILE")];
    assert_fails_in(
        of_environment,
        &redshift_config(&aws, ANA),
        "identity",
        words,
    );
    let empty = redshift_config(&aws, &format!("{ANA}\nprofile = \"work\""));
    let explanation = format!(
        "looked at: profile \"work\" ({} has none, /nonexistent/credentials does not exist)",
        file.display()
    );
    let remedy = "log in (aws sso login), name a profile with profile or AWS_PROFILE, or give \
                  this machine a role";
    assert_fails_in(
        env,
        &empty,
        "identity",
        ["no AWS credentials", &explanation, remedy],
    );
}

#[test]
fn a_profile_that_cannot_be_used() {
    let aws = Testbed::shared().aws();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config");
    std::fs::write(
        &file,
        "[profile work]\nrole_arn = arn:aws:iam::123456789012:role/analyst\n",
    )
    .unwrap();
    let mut env = aws.env_without_key();
    env.retain(|(name, _)| name != "AWS_CONFIG_FILE");
    env.push(("AWS_CONFIG_FILE".to_string(), file.display().to_string()));
    let target = target(
        env,
        &redshift_config(&aws, &format!("{ANA}\nprofile = \"work\"")),
        &[],
        1,
    );
    let explanation = target["steps"][1]["explanation"].as_str().unwrap();
    assert!(
        explanation.contains(
            "profile must contain `source_profile` or `credential_source` but neither were defined"
        ),
        "{explanation}"
    );
}

#[test]
fn keys_that_aws_does_not_know() {
    let aws = Testbed::shared().aws();
    let mut env = aws.env_without_key();
    env.push(("AWS_ACCESS_KEY_ID".into(), "AKIANOBODY".into()));
    env.push(("AWS_SECRET_ACCESS_KEY".into(), "nothing".into()));
    let target = target(env, &redshift_config(&aws, ANA), &[], 1);
    let step = &target["steps"][1];
    assert_eq!(
        step["text"],
        "sts:GetCallerIdentity: AWS does not accept the proxy's AWS credentials \
         (InvalidClientTokenId)"
    );
    let explanation =
        "InvalidClientTokenId: The security token included in the request is invalid. (request ";
    assert!(
        step["explanation"]
            .as_str()
            .unwrap()
            .starts_with(explanation),
        "{step:#}"
    );
    assert_eq!(
        step["remedy"],
        "correct what is named; an access key must be active, the secret its own, and a temporary \
         one (ASIA…) needs its session token"
    );
}

#[test]
fn a_role_that_may_not_be_assumed() {
    let aws = Testbed::shared().aws();
    let role = aws.add_role("check_guarded", Some("another id"));
    let explanation = format!("{} may not assume {role}", user_arn(&aws));
    let remedy = format!(
        "allow sts:AssumeRole on {role} to {}, and name that in the role's trust policy; where it \
         has a condition on sts:ExternalId, set external_id",
        user_arn(&aws)
    );
    let config = redshift_config(
        &aws,
        &format!("{ANA}\nrole_arn = \"{role}\"\nexternal_id = \"wrong\""),
    );
    assert_fails(
        &aws,
        &config,
        "identity",
        [
            "sts:AssumeRole is not allowed for the proxy's AWS identity",
            &explanation,
            &remedy,
        ],
    );
}

#[test]
fn a_role_is_who_logs_in() {
    let aws = Testbed::shared().aws();
    let role = aws.add_role("check_role", None);
    let config = redshift_config(
        &aws,
        &format!(
            "api = \"get-cluster-credentials-with-iam\"\ndatabase = \"dev\"\nrole_arn = \"{role}\""
        ),
    );
    let target = target(aws.env(), &config, &[], 0);
    assert_eq!(
        target["steps"][0]["text"],
        "user that of the AWS identity, database \"dev\""
    );
    assert_eq!(
        target["steps"][1]["text"],
        "arn:aws:sts::123456789012:assumed-role/check_role/pg-iam-proxy"
    );
    assert_eq!(
        target["steps"][3]["text"],
        "IAMR:check_role, by redshift:GetClusterCredentialsWithIAM"
    );
}

#[test]
fn sts_that_cannot_be_asked_is_unknown_and_no_failure() {
    let aws = Testbed::shared().aws();
    let config = rds_config(
        "db_user = \"jane_doe\"\ndatabase = \"postgres\"\n\
         sts_endpoint_url = \"http://127.0.0.1:1\"",
    );
    let target = target(aws.env(), &config, &[], 0);
    let step = &target["steps"][1];
    assert_eq!(
        (&step["status"], &step["facts"]),
        (&json!("unknown"), &json!({}))
    );
    assert_eq!(
        step["text"],
        "sts:GetCallerIdentity: AWS cannot be reached (logins do not need it)"
    );
}

#[test]
fn a_denied_action_is_named_with_the_arn_to_allow_it_on() {
    let aws = Testbed::shared().aws();
    let arn = |resource: &str| format!("arn:aws:redshift:us-west-2:123456789012:{resource}");
    let create = format!("{ANA}\nauto_create = true\ndb_groups = [\"bi\", \"ops\"]");
    let with_iam = "api = \"get-cluster-credentials-with-iam\"\ndatabase = \"dev\"";
    let user_and_database = [
        arn("dbuser:examplecluster/ana"),
        arn("dbname:examplecluster/dev"),
    ]
    .join(" and ");
    let groups = [
        arn("dbgroup:examplecluster/bi"),
        arn("dbgroup:examplecluster/ops"),
    ]
    .join(" and ");
    for (call, action, keys, step, resources) in [
        (
            "DescribeClusters",
            "redshift:DescribeClusters",
            ANA,
            "endpoint",
            arn("cluster:examplecluster"),
        ),
        (
            "GetClusterCredentials",
            "redshift:GetClusterCredentials",
            ANA,
            "mint",
            user_and_database,
        ),
        (
            "GetClusterCredentials",
            "redshift:CreateClusterUser",
            &create,
            "mint",
            arn("dbuser:examplecluster/ana"),
        ),
        (
            "GetClusterCredentials",
            "redshift:JoinGroup",
            &create,
            "mint",
            groups,
        ),
        (
            "GetClusterCredentialsWithIAM",
            "redshift:GetClusterCredentialsWithIAM",
            with_iam,
            "mint",
            arn("dbname:examplecluster/dev"),
        ),
    ] {
        aws.set_fault(None);
        aws.add_fault(FaultRule::new(Fault::DenyAction(action)).for_action(call));
        let error = format!("{action} is not allowed for the proxy's AWS identity");
        let explanation = format!("{} may not use {action}", user_arn(&aws));
        let remedy = format!("allow {action} on {resources} to {}", user_arn(&aws));
        assert_fails(
            &aws,
            &redshift_config(&aws, keys),
            step,
            [&error, &explanation, &remedy],
        );
    }
    let endpoint = format!(
        "db_user = \"jane_doe\"\nendpoint_url = \"{}\"",
        aws.endpoint_url()
    );
    for (call, keys, resource) in [
        (
            "DescribeDBInstances",
            "instance_identifier = \"mydb\"",
            "db:mydb",
        ),
        (
            "DescribeDBClusters",
            "cluster_identifier = \"mycluster\"",
            "cluster:mycluster",
        ),
    ] {
        aws.set_fault(None);
        aws.add_fault(FaultRule::new(Fault::Deny).for_action(call));
        let error = format!("rds:{call} is not allowed for the proxy's AWS identity");
        let explanation = format!("{} may not use rds:{call}", user_arn(&aws));
        let remedy = format!(
            "allow rds:{call} on arn:aws:rds:us-west-2:123456789012:{resource} to {}",
            user_arn(&aws)
        );
        assert_fails(
            &aws,
            &rds_config(&format!("{keys}\n{endpoint}")),
            "endpoint",
            [&error, &explanation, &remedy],
        );
    }
}

#[test]
fn an_aws_that_fails() {
    let aws = Testbed::shared().aws();
    aws.add_fault(FaultRule::new(Fault::Throttle).for_action("GetClusterCredentials"));
    let target = target(aws.env(), &redshift_config(&aws, ANA), &[], 1);
    let step = &target["steps"][3];
    assert_eq!(
        step["text"],
        "redshift:GetClusterCredentials: AWS throttles the calls of this account"
    );
    assert!(
        step["explanation"]
            .as_str()
            .unwrap()
            .starts_with("Throttling: Rate exceeded (request "),
        "{step:#}"
    );
    assert_eq!(
        step["remedy"],
        "try again; if it stays so, see whether this machine reaches AWS in us-west-2 \
         (HTTPS_PROXY, VPC endpoint, endpoint_url)"
    );
}

#[test]
fn a_cluster_that_does_not_exist() {
    let aws = Testbed::shared().aws();
    let remedy = format!(
        "correct the identifier or region, or take an identity of the server's account; this one \
         is {}",
        user_arn(&aws)
    );
    assert_fails(
        &aws,
        &redshift_config(&aws, &format!("{ANA}\ncluster_identifier = \"nowhere\"")),
        "endpoint",
        [
            "redshift:DescribeClusters: there is no such cluster, workgroup or instance in this \
             account and region",
            "nothing of this name is ready in account 123456789012, region us-west-2",
            &remedy,
        ],
    );
}

#[test]
fn a_region_that_is_not_the_hosts() {
    let aws = Testbed::shared().aws();
    let elsewhere = format!(
        "{ANA}\ncluster_identifier = \"other\"\n\
         host = \"other.abc123xyz789.us-east-1.redshift.amazonaws.com\""
    );
    assert_fails(
        &aws,
        &redshift_config(&aws, &elsewhere),
        "mint",
        [
            "redshift:GetClusterCredentials: there is no such cluster, workgroup or instance in \
             this account and region",
            "other.abc123xyz789.us-east-1.redshift.amazonaws.com is in us-east-1, but we sign for \
             us-west-2",
            "set region = \"us-east-1\"",
        ],
    );
    let config = rds_config(&format!("db_user = \"jane_doe\"\n{TUNNEL}"))
        .replace("region = \"us-west-2\"", "region = \"us-east-1\"");
    assert_fails(
        &aws,
        &config,
        "login",
        [
            "LDAP authentication failed for user \"jane_doe\"",
            "mydb.123456789012.us-west-2.rds.amazonaws.com is in us-west-2, but we sign for \
             us-east-1",
            "set region = \"us-west-2\"",
        ],
    );
}

#[test]
fn a_clock_that_is_off() {
    let bed = Testbed::shared();
    let aws = bed.aws();
    let remedy = "set the clock, and have chrony or systemd-timesyncd keep it";
    for (user, ahead, words) in [
        ("early", -3600, "3600 s ahead of"),
        ("late", 3600, "3600 s behind"),
    ] {
        bed.rds().create_user(user).unwrap();
        bed.rds().set_clock_ahead_of(user, ahead);
        aws.set_clock_ahead(ahead);
        let target = target(
            aws.env(),
            &rds_config(&format!("db_user = \"{user}\"\n{TUNNEL}")),
            &[],
            1,
        );
        let (identity, login) = (&target["steps"][1], &target["steps"][7]);
        let found = identity["facts"]["clock_ahead_s"].as_i64().unwrap();
        assert!((found + ahead).abs() < 10, "{found}");
        // The Date of an answer has whole seconds, and the answer took some time.
        let words = words.replace("3600", &found.abs().to_string());
        assert_eq!(
            identity["text"],
            format!("{}; this machine's clock is {words} AWS's", user_arn(&aws))
        );
        assert_eq!(
            login["text"],
            format!("LDAP authentication failed for user \"{user}\"")
        );
        let explanation = format!(
            "this machine's clock is {words} AWS's, and a token is good for 15 minutes from the \
             time it is signed"
        );
        assert_eq!(
            (&login["explanation"], &login["remedy"]),
            (&json!(explanation), &json!(remedy))
        );
    }
    aws.set_clock_ahead(-3600);
    assert_eq!(
        target(aws.env(), &redshift_config(&aws, ANA), &[], 0)["ok"],
        true,
        "the SDK signs calls by AWS's clock"
    );
}

#[test]
fn a_clock_that_is_off_explains_a_certificate_that_has_expired() {
    let bed = Testbed::shared();
    let aws = bed.aws();
    aws.set_clock_ahead(-86_400);
    let front = bed
        .redshift()
        .front(FrontOptions {
            challenge: Challenge::Md5,
            certificate: ServerCertificate::Expired,
        })
        .unwrap();
    let target = target(aws.env(), &at_port(front.port(), ""), &[], 1);
    let step = &target["steps"][6];
    assert_eq!(step["text"], "the server's certificate has expired");
    assert!(
        step["explanation"]
            .as_str()
            .unwrap()
            .starts_with("this machine's clock is 864"),
        "{step:#}"
    );
}

#[test]
fn a_token_that_is_refused_for_no_visible_reason_names_rds_db_connect() {
    let bed = Testbed::shared();
    let aws = bed.aws();
    bed.rds().create_user("forbidden").unwrap();
    bed.rds().refuse_next_of("forbidden", 1);
    let remedy = format!(
        "allow rds-db:connect on arn:aws:rds-db:us-west-2:123456789012:dbuser:*/forbidden to {} \
         (the * may be narrowed to the resource id, db-… or cluster-…)",
        user_arn(&aws)
    );
    let explanation = format!(
        "RDS does not say why; most often {} may not use rds-db:connect",
        user_arn(&aws)
    );
    assert_fails(
        &aws,
        &rds_config(&format!("db_user = \"forbidden\"\n{TUNNEL}")),
        "login",
        [
            "LDAP authentication failed for user \"forbidden\"",
            &explanation,
            &remedy,
        ],
    );
}

#[test]
fn the_arn_to_allow_an_action_on_is_in_the_partition_of_the_region() {
    let aws = Testbed::shared().aws();
    for (region, partition, suffix) in [
        ("cn-north-1", "aws-cn", "amazonaws.com.cn"),
        ("us-gov-west-1", "aws-us-gov", "amazonaws.com"),
        ("us-iso-east-1", "aws-iso", "amazonaws.com"),
        ("us-isob-east-1", "aws-iso-b", "amazonaws.com"),
        ("eusc-de-east-1", "aws-eusc", "amazonaws.com"),
    ] {
        let remedy = format!(
            "allow rds-db:connect on \
             arn:{partition}:rds-db:{region}:123456789012:dbuser:*/jane_doe to {} (the * may be \
             narrowed to the resource id, db-… or cluster-…)",
            user_arn(&aws)
        );
        // The server is in us-west-2, so it refuses the token.
        let config = rds_config(&format!(
            "db_user = \"jane_doe\"\ndatabase = \"postgres\"\n\
             signing_host = \"mydb.123456789012.{region}.rds.{suffix}:5432\""
        ))
        .replace("region = \"us-west-2\"", &format!("region = \"{region}\""));
        let target = target(aws.env(), &config, &[], 1);
        assert_eq!(target["steps"][7]["remedy"], remedy, "{target:#}");
    }
}

#[test]
fn a_token_that_is_signed_for_another_name() {
    let bed = Testbed::shared();
    let aws = bed.aws();
    bed.rds().create_user("misnamed").unwrap();
    bed.rds().refuse_next_of("misnamed", 1);
    let explanation = format!(
        "the token is signed for localhost:{}, which is no name of an RDS endpoint",
        bed.rds().port()
    );
    assert_fails(
        &aws,
        &rds_config("db_user = \"misnamed\"\ndatabase = \"postgres\""),
        "login",
        [
            "LDAP authentication failed for user \"misnamed\"",
            &explanation,
            "set signing_host to the name and port that RDS gives the endpoint",
        ],
    );
}

#[test]
fn a_user_without_rds_iam_and_one_that_does_not_exist() {
    let aws = Testbed::shared().aws();
    for user in ["master", "nobody here"] {
        let error = format!("password authentication failed for user \"{user}\"");
        let explanation = format!(
            "user \"{user}\" does not exist, or does not have rds_iam: the server asked for a \
             password and not for a token"
        );
        let remedy = format!(
            "GRANT rds_iam TO \"{user}\"; before it CREATE USER \"{user}\"; where the user is \
             missing; and see that IAM database authentication is enabled"
        );
        let config = rds_config(&format!("db_user = \"{user}\"\ndatabase = \"postgres\""));
        assert_fails(&aws, &config, "login", [&error, &explanation, &remedy]);
    }
}

#[test]
fn a_redshift_password_that_is_refused_although_the_user_exists() {
    let bed = Testbed::shared();
    let aws = bed.aws();
    // The password has expired when it is made.
    aws.set_credential_life(std::time::Duration::ZERO);
    assert_fails(
        &aws,
        &redshift_config(
            &aws,
            "db_user = \"check_over\"\ndatabase = \"dev\"\nauto_create = true",
        ),
        "login",
        [
            "password authentication failed for user \"IAMA:check_over\"",
            "the cluster refuses a password that AWS made for it a moment ago",
            "see whether host is this cluster's own; SELECT * FROM sys_connection_log says why",
        ],
    );
}

#[test]
fn a_database_that_does_not_exist() {
    let aws = Testbed::shared().aws();
    assert_fails(
        &aws,
        &rds_config("db_user = \"jane_doe\"\ndatabase = \"nowhere\""),
        "login",
        [
            "database \"nowhere\" does not exist",
            "the server has no database \"nowhere\"",
            "correct database, or --database",
        ],
    );
}

#[test]
fn an_authentication_that_is_not_supported() {
    let bed = Testbed::shared();
    let aws = bed.aws();
    let front = bed
        .redshift()
        .front(FrontOptions {
            challenge: Challenge::Code(14),
            certificate: ServerCertificate::Good,
        })
        .unwrap();
    assert_fails(
        &aws,
        &redshift_config(
            &aws,
            &format!("{ANA}\nhost = \"localhost\"\nport = {}", front.port()),
        ),
        "login",
        [
            "the server asks for an identity provider token (authentication code 14)",
            "IAM users are asked for a cleartext password, MD5 or Redshift's digest",
            "see whether engine, host and port are right, and the user is one that logs in with \
             IAM",
        ],
    );
}

#[test]
fn a_name_that_does_not_resolve() {
    let aws = Testbed::shared().aws();
    let target = target(
        aws.env(),
        &rds_config("db_user = \"jane_doe\"\nhost = \"no-such-host.invalid\""),
        &[],
        1,
    );
    let step = &target["steps"][4];
    assert!(
        step["text"]
            .as_str()
            .unwrap()
            .starts_with("cannot resolve no-such-host.invalid: "),
        "{step:#}"
    );
    assert_eq!(
        step["explanation"],
        "the DNS of this machine has no address for no-such-host.invalid"
    );
    assert_eq!(
        step["remedy"],
        "see whether host is spelt right; names of a private zone are known inside its VPC only, \
         or through its resolver"
    );
}

#[test]
fn a_port_where_nobody_listens() {
    let aws = Testbed::shared().aws();
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let error = format!("cannot connect to 127.0.0.1:{port}: Connection refused (os error 111)");
    let explanation = format!("127.0.0.1 is there, and nothing listens on port {port}");
    let remedy = "see whether host and port are right, the server is running and not paused, and \
                  the tunnel, if there is one, is open";
    assert_fails(
        &aws,
        &at_port(port, "").replace("localhost", "127.0.0.1"),
        "tcp",
        [&error, &explanation, remedy],
    );
}

#[test]
fn a_firewall_that_drops_everything() {
    let aws = Testbed::shared().aws();
    // The listener's queue has one place, which is taken, so the kernel drops further connections.
    let listener =
        socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    listener
        .bind(
            &"127.0.0.1:0"
                .parse::<std::net::SocketAddr>()
                .unwrap()
                .into(),
        )
        .unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap().as_socket().unwrap();
    let _queued = TcpStream::connect(address).unwrap();
    let error = format!("cannot connect to {address}: timed out");
    let explanation =
        format!("nothing comes back from {address}: something on the way drops what we send");
    let remedy = format!(
        "allow TCP port {} from this machine in the server's security group, and see whether a \
         route leads there (VPN, peering, public access)",
        address.port()
    );
    assert_fails(
        &aws,
        &at_port(address.port(), "").replace("localhost", "127.0.0.1"),
        "tcp",
        [&error, &explanation, &remedy],
    );
}

#[test]
fn a_server_that_accepts_and_says_nothing() {
    let aws = Testbed::shared().aws();
    let port = answer_ssl_request(b"");
    let address = format!("127.0.0.1:{port}");
    assert_fails(
        &aws,
        &at_port(port, "").replace("localhost", "127.0.0.1"),
        "tls",
        [
            &format!("{address} did not answer the SSLRequest within 8 s"),
            &format!("{address} accepts connections, and then nothing comes back"),
            "see whether the server hangs or is overloaded, and whether what is between is a \
             tunnel or a load balancer without a server behind it",
        ],
    );
}

#[test]
fn a_server_without_tls() {
    let aws = Testbed::shared().aws();
    let port = answer_ssl_request(b"N");
    let error = format!("127.0.0.1:{port} does not offer TLS, and there is no login without");
    let words = [
        error.as_str(),
        "no password goes over a connection without TLS",
        "turn TLS on in the server, or in what stands before it",
    ];
    assert_fails(
        &aws,
        &at_port(port, "").replace("localhost", "127.0.0.1"),
        "tls",
        words,
    );
}

#[test]
fn a_server_that_is_no_postgresql() {
    let aws = Testbed::shared().aws();
    let explanation = "what answers there does not do so as a PostgreSQL server does";
    let remedy = "see whether host and port are the server's own, and what stands between (load \
                  balancer, tunnel, pooler)";
    let port = answer_ssl_request(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    let error = format!("127.0.0.1:{port} answered the SSLRequest with byte 0x48");
    assert_fails(
        &aws,
        &at_port(port, "").replace("localhost", "127.0.0.1"),
        "tls",
        [&error, explanation, remedy],
    );
    let port = serve(drop);
    let target = target(
        aws.env(),
        &at_port(port, "").replace("localhost", "127.0.0.1"),
        &[],
        1,
    );
    assert_eq!(target["steps"][6]["explanation"], explanation);
}

/// Asserts that the check of a server with this certificate fails with these words.
#[track_caller]
fn assert_certificate_fails(certificate: ServerCertificate, keys: &str, words: [&str; 3]) {
    let bed = Testbed::shared();
    let front = bed
        .redshift()
        .front(FrontOptions {
            challenge: Challenge::Md5,
            certificate,
        })
        .unwrap();
    assert_fails(&bed.aws(), &at_port(front.port(), keys), "tls", words);
}

#[test]
fn a_certificate_for_another_name() {
    let error = "the server's certificate is for another host name";
    let explanation = "the certificate names other.example.com, you dial localhost";
    let remedy = "if that is the server you mean, behind a tunnel, load balancer or CNAME: set \
                  tls_server_name = \"other.example.com\"";
    assert_certificate_fails(
        ServerCertificate::WrongName,
        "",
        [error, explanation, remedy],
    );
    let explanation =
        "the certificate names other.example.com, tls_server_name is nobody.example.com";
    assert_certificate_fails(
        ServerCertificate::WrongName,
        "tls_server_name = \"nobody.example.com\"",
        [error, explanation, remedy],
    );
}

#[test]
fn a_certificate_of_an_unknown_authority() {
    assert_certificate_fails(
        ServerCertificate::UnknownCa,
        "",
        [
            "the server's certificate is signed by no known authority",
            "neither Amazon Trust Services, nor RDS as built in, nor an authority of ca_file has \
             signed the certificate",
            "if the authority is your own, or RDS has it in a region that is newer than this \
             program: set ca_file to its PEM file \
             (https://truststore.pki.rds.amazonaws.com/global/global-bundle.pem)",
        ],
    );
}

#[test]
fn a_certificate_that_has_expired() {
    assert_certificate_fails(
        ServerCertificate::Expired,
        "",
        [
            "the server's certificate has expired",
            "the certificate's time is over",
            "renew it in the server; RDS does when the instance's CA is rotated",
        ],
    );
}
