//! Which policies does `policy` print for a configuration, and does an independent linter accept
//! them?

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use testbed::{Aws, Fault, FaultRule, Testbed};

use crate::support::proxy::{command, config_file};
use crate::support::python;

const SCRAM: &str = "SCRAM-SHA-256$4096:AAAAAAAAAAAAAAAAAAAAAA==$\
    AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
const EVERYTHING: &str = r#"
[[listener]]
address = "127.0.0.1:5439"
targets = ["warehouse", "mapped", "china"]
[[listener.rule]]
users = ["gone"]
auth = "reject"
[[listener.rule]]
auth = "scram-sha-256"

[[listener]]
address = "127.0.0.1:5432"
targets = ["app", "instance"]
[[listener.rule]]
users = ["a*b", "ana"]
auth = "trust"

[user.ana]
password = "VERIFIER"
[user.bob]
password = "VERIFIER"
targets = ["warehouse"]
db_user = "robert"
db_groups = ["writers", "readers"]
role_arn = "arn:aws:iam::222222222222:role/only_bob"
[user.gone]
password = "VERIFIER"
[user.nobody]
targets = ["warehouse"]

[target.warehouse]
engine = "redshift"
cluster_identifier = "examplecluster"
region = "us-west-2"
auto_create = true
db_groups = ["bi"]
role_arn = "arn:aws:iam::222222222222:role/warehouse"
external_id = "id-7"
session_name = "{user}"

[target.mapped]
engine = "redshift"
custom_domain_name = "warehouse.example.com"
region = "us-gov-west-1"
api = "get-cluster-credentials-with-iam"
database = "dev"
profile = "work"

[target.china]
engine = "redshift"
host = "other.abc.cn-north-1.redshift.amazonaws.com.cn"
db_user = "report"

[target.app]
engine = "rds"
host = "app.abc.us-west-2.rds.amazonaws.com"

[target.instance]
engine = "rds"
instance_identifier = "mydb"
region = "us-west-2"
db_user = "jane_doe"
role_arn = "arn:aws:iam::333333333333:role/app"
"#;
const NO_ID: &str = "the server's id is not in the configuration, so that every server of the \
    account and region is allowed: run with --discover, or put the id";

/// What is printed for a configuration, which the linter must accept, and the notes on standard
/// error.
fn policy(config: &str, arguments: &[&str]) -> (Value, Vec<String>) {
    run(command(), config, arguments)
}

/// The same with `--discover` and the AWS of the testbed.
fn discovered(aws: &Aws, config: &str) -> (Value, Vec<String>) {
    let mut command = command();
    command.envs(aws.env());
    run(command, config, &["--discover"])
}

fn run(mut command: Command, config: &str, arguments: &[&str]) -> (Value, Vec<String>) {
    let file = config_file(config);
    let output = command
        .arg("policy")
        .args(arguments)
        .arg("--config")
        .arg(&file)
        .output()
        .unwrap();
    let notes = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{notes}");
    let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(lint(&printed), None, "{printed:#}");
    let note = |line: &str| {
        line.strip_prefix("pg-iam-proxy: ")
            .unwrap_or_else(|| panic!("{line}"))
            .to_string()
    };
    (printed, notes.lines().map(note).collect())
}

/// What the linter finds wrong; `None` when it finds nothing.
fn lint(printed: &Value) -> Option<String> {
    let mut command = python::script("lint_policies.py");
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut linter = command.spawn().unwrap();
    write!(linter.stdin.take().unwrap(), "{printed}").unwrap();
    let output = linter.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    (!output.status.success()).then_some(text)
}

fn allow(sid: &str, action: &str, resources: &[&str]) -> Value {
    json!({"Sid": sid, "Effect": "Allow", "Action": [action], "Resource": resources})
}

fn document(statements: &[Value]) -> Value {
    json!({"Version": "2012-10-17", "Statement": statements})
}

fn trust(account: &str) -> Value {
    document(&[json!({
        "Sid": "AssumeRole",
        "Effect": "Allow",
        "Principal": {"AWS": [format!("arn:aws:iam::{account}:root")]},
        "Action": ["sts:AssumeRole"],
    })])
}

/// A configuration with one target, and a listener that trusts everybody.
fn one_target(keys: &str) -> String {
    format!(
        "[[listener]]\naddress = \"127.0.0.1:5432\"\ntargets = [\"app\"]\nauth = \"trust\"\n\
         [target.app]\nregion = \"us-west-2\"\n{keys}\n"
    )
}

fn rds_target(keys: &str) -> String {
    one_target(&format!("engine = \"rds\"\ndb_user = \"jane_doe\"\n{keys}"))
}

/// The resources of the first statement.
fn resources(policy: &Value) -> Vec<&str> {
    policy["Statement"][0]["Resource"]
        .as_array()
        .unwrap()
        .iter()
        .map(|resource| resource.as_str().unwrap())
        .collect()
}

#[test]
fn the_linter_finds_what_is_wrong() {
    let of = |action: &str, resource: &str| lint(&document(&[allow("Sid", action, &[resource])]));
    assert!(
        of("redshift:GetClusterPassword", "*")
            .unwrap()
            .contains("UNKNOWN_ACTION")
    );
    assert!(
        of(
            "redshift:JoinGroup",
            "arn:aws:redshift:us-west-2:123456789012:dbuser:c/bi"
        )
        .unwrap()
        .contains("RESOURCE_MISMATCH")
    );
    let roles = document(&[allow(
        "Sid",
        "sts:AssumeRole",
        &["arn:aws:iam::123456789012:role/reports"],
    )]);
    let trust = json!({
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": "Allow", "Principal": {"AWS": "nobody"}, "Action": "sts:AssumeRole"},
        ],
    });
    let printed = json!({
        "Roles": [{
            "RoleArn": "arn:aws:iam::123456789012:role/reports",
            "Policy": roles,
            "TrustPolicy": trust,
        }],
    });
    assert!(lint(&printed).unwrap().contains("UNKNOWN_PRINCIPAL"));
}

#[test]
fn the_readmes_file() {
    let readme =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let config = readme
        .split("```toml\n")
        .nth(1)
        .unwrap()
        .split("```")
        .next()
        .unwrap();
    let (printed, notes) = policy(config, &["--account", "123456789012"]);
    let own = document(&[
        allow(
            "RdsConnect",
            "rds-db:connect",
            &["arn:aws:rds-db:us-west-2:123456789012:dbuser:*/jane_doe"],
        ),
        allow(
            "RedshiftCredentials",
            "redshift:GetClusterCredentials",
            &[
                "arn:aws:redshift:us-west-2:123456789012:dbname:examplecluster/exampledb",
                "arn:aws:redshift:us-west-2:123456789012:dbuser:examplecluster/temp_creds_user",
            ],
        ),
        allow(
            "RedshiftCreateUser",
            "redshift:CreateClusterUser",
            &["arn:aws:redshift:us-west-2:123456789012:dbuser:examplecluster/temp_creds_user"],
        ),
        allow(
            "RedshiftJoinGroup",
            "redshift:JoinGroup",
            &["arn:aws:redshift:us-west-2:123456789012:dbgroup:examplecluster/bi"],
        ),
        allow("RedshiftEndpoints", "redshift:DescribeClusters", &["*"]),
        allow(
            "AssumeRoles",
            "sts:AssumeRole",
            &["arn:aws:iam::123456789012:role/reports"],
        ),
    ]);
    let of_role = document(&[
        allow(
            "RdsConnect",
            "rds-db:connect",
            &["arn:aws:rds-db:us-west-2:123456789012:dbuser:*/*"],
        ),
        allow(
            "RdsClusterEndpoints",
            "rds:DescribeDBClusters",
            &["arn:aws:rds:us-west-2:123456789012:cluster:mycluster"],
        ),
    ]);
    let role = json!({
        "RoleArn": "arn:aws:iam::123456789012:role/reports",
        "Policy": of_role,
        "TrustPolicy": trust("123456789012"),
    });
    assert_eq!(printed, json!({"ProxyPolicy": own, "Roles": [role]}));
    let no_id = |target| {
        format!(
            "{target}: {NO_ID} (DbiResourceId, DbClusterResourceId or prx-…) in place of dbuser:*"
        )
    };
    let any_user = "reports: the client chooses the database user, so that every one is allowed: \
        set db_user, or say in a rule who the users are";
    let trusted = "trust policies name the proxy's account: put its own role or user in that \
        place where it is known";
    assert_eq!(
        notes,
        [
            no_id("app"),
            any_user.to_string(),
            no_id("reports"),
            trusted.to_string()
        ]
    );
}

#[test]
fn everything_that_there_is() {
    let (printed, notes) = policy(
        &EVERYTHING.replace("VERIFIER", SCRAM),
        &["--account", "111111111111"],
    );
    let warehouse = |kind: &str| format!("arn:aws:redshift:us-west-2:222222222222:{kind}");
    let credentials = |db_user: &str| {
        let resources = [
            &*warehouse("dbname:examplecluster/*"),
            &*warehouse(&format!("dbuser:examplecluster/{db_user}")),
        ];
        allow(
            "RedshiftCredentials",
            "redshift:GetClusterCredentials",
            &resources,
        )
    };
    let create = |user: &str| {
        allow(
            "RedshiftCreateUser",
            "redshift:CreateClusterUser",
            &[&warehouse(&format!("dbuser:examplecluster/{user}"))],
        )
    };
    let (bob, team) = (
        "arn:aws:iam::222222222222:role/only_bob",
        "arn:aws:iam::222222222222:role/warehouse",
    );
    let proxy = json!({"AWS": ["arn:aws:iam::111111111111:root"]});
    let people = document(&[
        json!({
            "Sid": "AssumeRole",
            "Effect": "Allow",
            "Principal": proxy,
            "Action": ["sts:AssumeRole"],
            "Condition": {"StringEquals": {"sts:ExternalId": ["id-7"]}},
        }),
        json!({
            "Sid": "SetSourceIdentity",
            "Effect": "Allow",
            "Principal": proxy,
            "Action": ["sts:SetSourceIdentity"],
        }),
        json!({
            "Sid": "TagSession",
            "Effect": "Allow",
            "Principal": proxy,
            "Action": ["sts:TagSession"],
            "Condition": {"ForAllValues:StringEquals": {"aws:TagKeys": ["pg-iam-proxy:user"]}},
        }),
    ]);
    let expected = json!({
        "ProxyPolicy": document(&[
            allow("RdsConnect", "rds-db:connect", &[
                "arn:aws:rds-db:us-west-2:111111111111:dbuser:*/a${*}b",
                "arn:aws:rds-db:us-west-2:111111111111:dbuser:*/ana",
            ]),
            allow("RedshiftCredentials", "redshift:GetClusterCredentials", &[
                "arn:aws-cn:redshift:cn-north-1:111111111111:dbname:other/*",
                "arn:aws-cn:redshift:cn-north-1:111111111111:dbuser:other/report",
            ]),
            allow("AssumeRoles", "sts:AssumeRole", &[
                bob,
                team,
                "arn:aws:iam::333333333333:role/app",
            ]),
            json!({
                "Sid": "NamePeople",
                "Effect": "Allow",
                "Action": ["sts:SetSourceIdentity", "sts:TagSession"],
                "Resource": [bob, team],
            }),
        ]),
        "Profiles": [{
            "Profile": "work",
            "Policy": document(&[
                allow(
                    "RedshiftCredentialsWithIam",
                    "redshift:GetClusterCredentialsWithIAM",
                    &["arn:aws-us-gov:redshift:us-gov-west-1:111111111111:dbname:*/dev"],
                ),
                allow("RedshiftDomains", "redshift:DescribeCustomDomainAssociations", &["*"]),
            ]),
        }],
        "Roles": [
            {
                "RoleArn": bob,
                "Policy": document(&[
                    credentials("robert"),
                    create("robert"),
                    allow("RedshiftJoinGroup", "redshift:JoinGroup", &[
                        &warehouse("dbgroup:examplecluster/readers"),
                        &warehouse("dbgroup:examplecluster/writers"),
                    ]),
                ]),
                "TrustPolicy": people,
            },
            {
                "RoleArn": team,
                "Policy": document(&[
                    credentials("ana"),
                    create("ana"),
                    allow("RedshiftJoinGroup", "redshift:JoinGroup", &[
                        &warehouse("dbgroup:examplecluster/bi"),
                    ]),
                    allow("RedshiftEndpoints", "redshift:DescribeClusters", &["*"]),
                ]),
                "TrustPolicy": people,
            },
            {
                "RoleArn": "arn:aws:iam::333333333333:role/app",
                "Policy": document(&[
                    allow("RdsConnect", "rds-db:connect", &[
                        "arn:aws:rds-db:us-west-2:333333333333:dbuser:*/jane_doe",
                    ]),
                    allow("RdsInstanceEndpoints", "rds:DescribeDBInstances", &[
                        "arn:aws:rds:us-west-2:333333333333:db:mydb",
                    ]),
                ]),
                "TrustPolicy": trust("111111111111"),
            },
        ],
    });
    assert_eq!(printed, expected);
    let wide: Vec<&str> = notes
        .iter()
        .filter_map(|note| note.split_once(": the server's id"))
        .map(|(target, _)| target)
        .collect();
    assert_eq!(wide, ["mapped", "app", "instance"]);
}

#[test]
fn serverless_and_dsql() {
    let serverless = "engine = \"redshift-serverless\"\nworkgroup_name = \"analytics\"\n";
    let (printed, notes) = policy(&one_target(serverless), &["--account", "111111111111"]);
    let workgroup = "arn:aws:redshift-serverless:us-west-2:111111111111:workgroup/*";
    let expected = document(&[
        allow(
            "ServerlessCredentials",
            "redshift-serverless:GetCredentials",
            &[workgroup],
        ),
        allow(
            "ServerlessEndpoints",
            "redshift-serverless:GetWorkgroup",
            &[workgroup],
        ),
    ]);
    assert_eq!(printed, expected);
    assert!(
        notes
            .iter()
            .any(|note| note.contains("put the id (workgroupId) in place of workgroup/*")),
        "{notes:?}"
    );
    let cluster = "arn:aws:dsql:us-west-2:111111111111:cluster/aaaaaaaaaaaaaaaaaaaaaaaaaa";
    for (db_user, statement) in [
        (
            "admin",
            allow("DsqlConnectAdmin", "dsql:DbConnectAdmin", &[cluster]),
        ),
        ("reader", allow("DsqlConnect", "dsql:DbConnect", &[cluster])),
    ] {
        let dsql = format!(
            "engine = \"dsql\"\nhost = \"aaaaaaaaaaaaaaaaaaaaaaaaaa.dsql.us-west-2.on.aws\"\n\
             db_user = \"{db_user}\"\ndatabase = \"postgres\"\n"
        );
        let (printed, notes) = policy(&one_target(&dsql), &["--account", "111111111111"]);
        assert_eq!(printed, document(&[statement]));
        assert_eq!(notes, [""; 0]);
    }
}

#[test]
fn without_an_account_every_one_is_allowed_and_it_is_said() {
    let (printed, notes) = policy(
        &one_target(
            "engine = \"redshift\"\nhost = \"h\"\ncluster_identifier = \"c\"\ndb_user = \"ana\"",
        ),
        &[],
    );
    let resources = [
        "arn:aws:redshift:us-west-2:*:dbname:c/*",
        "arn:aws:redshift:us-west-2:*:dbuser:c/ana",
    ];
    assert_eq!(
        printed,
        document(&[allow(
            "RedshiftCredentials",
            "redshift:GetClusterCredentials",
            &resources
        )])
    );
    assert_eq!(
        notes,
        [
            "app: the account is not known and every one is allowed: run with --account or \
             --discover"
        ]
    );
}

#[test]
fn where_nobody_says_the_proxy_is_in_the_account_of_its_roles() {
    let role = "role_arn = \"arn:aws:iam::123456789012:role/app\"";
    let (printed, notes) = policy(&rds_target(&format!("host = \"h\"\n{role}")), &[]);
    assert_eq!(printed["Roles"][0]["TrustPolicy"], trust("123456789012"));
    assert!(
        notes.contains(
            &"the proxy is taken to be in account 123456789012, as its roles are: \
        --account says otherwise"
                .to_string()
        )
    );
    // The trust policy never has a wildcard, which would let in every account of AWS.
    let (printed, _) = policy(
        &rds_target(&format!(
            "host = \"h\"\n{role}\n[user.ana]\n{}",
            role.replace("1234", "4321")
        )),
        &[],
    );
    assert_eq!(printed["Roles"][0]["TrustPolicy"], trust("123456789012"));
    assert_eq!(printed["Roles"][1]["TrustPolicy"], trust("432156789012"));
}

#[test]
fn a_listener_that_lets_nobody_in_needs_nothing() {
    let config =
        rds_target("host = \"h\"").replace("auth = \"trust\"", "rule = [{ auth = \"reject\" }]");
    let file = config_file(&config);
    let output = command()
        .args(["policy", "--config"])
        .arg(&file)
        .output()
        .unwrap();
    assert_eq!(
        serde_json::from_slice::<Value>(&output.stdout).unwrap(),
        document(&[])
    );
    assert!(String::from_utf8_lossy(&output.stderr).contains("nobody can log in"));
}

#[test]
fn discovery_finds_the_account_and_the_ids_of_servers() {
    let aws = Testbed::shared().aws();
    let (cluster, instance) = (
        "cluster-ABCDEFGHIJKLMNOPQRSTUVWXYZ",
        "db-ABCDEFGHIJKLMNOPQRSTUVWXYZ",
    );
    let finds = |keys: &str, id: &str| {
        let (printed, notes) = discovered(&aws, &rds_target(keys));
        assert_eq!(
            resources(&printed),
            [format!(
                "arn:aws:rds-db:us-west-2:123456789012:dbuser:{id}/jane_doe"
            )],
            "{keys}"
        );
        assert_eq!(notes, Vec::<String>::new());
    };
    finds("instance_identifier = \"mydb\"", instance);
    finds("cluster_identifier = \"mycluster\"", cluster);
    for (name, id) in [
        ("mydb.abc", instance),
        // The ARN of an instance that belongs to an Aurora cluster contains the cluster's id.
        ("mycluster-1.abc", cluster),
        ("mycluster.cluster-abc", cluster),
        ("analysts.cluster-custom-abc", cluster),
        ("myproxy.proxy-abc", "prx-0123456789abcdef0"),
    ] {
        let host = format!("{name}.us-west-2.rds.amazonaws.com");
        aws.set_rds_address(&host);
        finds(&format!("host = \"{host}\""), id);
        finds(
            &format!("host = \"127.0.0.1\"\nsigning_host = \"{host}\""),
            id,
        );
    }
    let keys = "engine = \"redshift\"\ncustom_domain_name = \"warehouse.example.com\"\n\
                api = \"get-cluster-credentials-with-iam\"";
    let (printed, _) = discovered(&aws, &one_target(keys));
    assert_eq!(
        resources(&printed),
        ["arn:aws:redshift:us-west-2:123456789012:dbname:examplecluster/*"]
    );
}

#[test]
fn what_aws_does_not_say_is_a_wildcard_and_it_is_said_why() {
    let aws = Testbed::shared().aws();
    let host = "host = \"mydb.abc.us-west-2.rds.amazonaws.com\"";
    let wide = "arn:aws:rds-db:us-west-2:123456789012:dbuser:*/jane_doe";
    let why = |config: &str| {
        let (printed, notes) = discovered(&aws, config);
        assert_eq!(resources(&printed), [wide]);
        assert!(notes.iter().any(|note| note.contains(NO_ID)), "{notes:?}");
        notes[0].clone()
    };
    // The account has an instance of the same name at another address.
    aws.set_rds_address("mydb.other.us-west-2.rds.amazonaws.com");
    let nowhere = "rds:DescribeDBInstances: there is no such server in the account that was asked";
    assert_eq!(
        why(&rds_target(host)),
        format!("app: the server's id is not known: {nowhere}")
    );
    assert_eq!(
        why(&rds_target("host = \"h\"")),
        "app: the server's id is not known: \"h\" is not a name that RDS gives"
    );
    aws.add_fault(FaultRule::new(Fault::Deny).for_action("DescribeDBInstances"));
    let denied = "rds:DescribeDBInstances is not allowed for the proxy's AWS identity";
    assert_eq!(
        why(&rds_target(host)),
        format!("app: the server's id is not known: {denied}")
    );
    let (printed, notes) = run(
        command(),
        &rds_target("host = \"h\"\nprofile = \"none\""),
        &["--discover"],
    );
    assert_eq!(
        resources(&printed),
        ["arn:aws:rds-db:us-west-2:*:dbuser:*/jane_doe"]
    );
    assert!(
        notes[0].starts_with("the account is not known: "),
        "{notes:?}"
    );
}

#[test]
fn a_role_of_our_own_account_is_not_assumed_to_look_since_it_may_not_exist_yet() {
    let aws = Testbed::shared().aws();
    let config = |account: &str| {
        rds_target(&format!(
            "instance_identifier = \"mydb\"\nrole_arn = \"arn:aws:iam::{account}:role/future\""
        ))
    };
    let (printed, _) = discovered(&aws, &config("123456789012"));
    let id = "arn:aws:rds-db:us-west-2:123456789012:dbuser:db-ABCDEFGHIJKLMNOPQRSTUVWXYZ/jane_doe";
    assert_eq!(resources(&printed["Roles"][0]["Policy"]), [id]);
    assert_eq!(aws.calls("AssumeRole"), 0);
    let (_, notes) = discovered(&aws, &config("210987654321"));
    assert_eq!(
        notes[0],
        "app: the server's id is not known: sts:AssumeRole is not allowed for the proxy's AWS \
         identity"
    );
}

#[test]
fn a_policy_that_iam_would_not_take_is_written_with_wildcards() {
    let users: String = (0..300)
        .map(|number| format!("[user.bi_{number:03}]\npassword = \"{SCRAM}\"\n"))
        .collect();
    let config = one_target(&format!("engine = \"rds\"\nhost = \"h\"\n{users}"))
        .replace("\"trust\"", "\"scram-sha-256\"");
    let (printed, notes) = policy(&config, &["--account", "123456789012"]);
    let wildcard = "arn:aws:rds-db:us-west-2:123456789012:dbuser:*/bi_*";
    assert_eq!(resources(&printed), [wildcard]);
    assert!(notes[1].starts_with("the proxy's policy had "), "{notes:?}");
    assert!(
        notes[1].ends_with(&format!(
            " characters where IAM takes 6144, so that names became wildcards: {wildcard}"
        )),
        "{notes:?}"
    );
}

#[test]
fn a_wrong_account_is_64_and_a_wrong_file_78() {
    let file = config_file(&rds_target("host = \"h\""));
    let code = |arguments: &[&str], file: &Path| {
        let output = command()
            .arg("policy")
            .args(arguments)
            .arg("--config")
            .arg(file)
            .output()
            .unwrap();
        output.status.code()
    };
    assert_eq!(code(&["--account", "1234"], &file), Some(64));
    assert_eq!(code(&[], &config_file("nonsense")), Some(78));
}
