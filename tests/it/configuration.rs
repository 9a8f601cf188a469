//! A wrong configuration: exit 78, file and line, and what to write instead.

use std::path::Path;

use crate::support::pki::Authority;
use crate::support::proxy::{Proxy, command, config_file, output};
use crate::support::python;
use crate::support::reports::{complaint, reports};

const LISTENER: &str =
    "[[listener]]\naddress = \"127.0.0.1:5439\"\ntargets = [\"warehouse\"]\nauth = \"trust\"\n";
const TARGET: &str = "[target.warehouse]\nengine = \"redshift\"\n\
    cluster_identifier = \"examplecluster\"\nregion = \"us-west-2\"\n";

/// The only problem of this configuration, without the file's name.
fn problem(text: &str) -> String {
    let mut reports = reports(&config_file(text));
    assert_eq!(reports.len(), 1, "{reports:?}");
    reports.remove(0).head
}

#[track_caller]
fn assert_problem(text: &str, expected: &str) {
    assert_eq!(problem(text), expected);
}

#[test]
fn a_good_file_is_called_good() {
    let file = config_file(&format!("{LISTENER}{TARGET}"));
    let output = output(&[
        "check",
        "--offline",
        "--config",
        &file.display().to_string(),
    ]);
    assert_eq!(output.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&output.stdout).contains("good, 1 listener"));
}

#[test]
fn an_unknown_key_is_named_with_its_line_and_the_nearest_known_name() {
    assert_problem(
        &format!("{LISTENER}{TARGET}duration_second = 900\n"),
        "9:1: unknown key `duration_second`: did you mean `duration_seconds`?",
    );
    assert_problem(
        &format!("{LISTENER}adress = \"x\"\n{TARGET}"),
        "5:1: unknown key `adress`: did you mean `address`?",
    );
    assert_problem(
        &format!("{LISTENER}{TARGET}[limit]\n"),
        "9:2: unknown key `limit`: did you mean `limits`?",
    );
    assert_problem(
        &format!("{LISTENER}{TARGET}[log]\nlevel = \"loud\"\n"),
        "10:1: unknown value `loud`, expected one of `error`, `warn`, `info`, `debug`, `trace`",
    );
}

#[test]
fn what_is_not_toml_is_named_with_its_line() {
    assert!(problem(&format!("{LISTENER}{TARGET}port = = 1\n")).starts_with("9:8: "));
    assert!(
        problem(&format!("{LISTENER}{TARGET}port = \"a\"\n"))
            .starts_with("9:1: invalid type: string \"a\", expected i64")
    );
}

#[test]
fn a_duplicate_listener_is_refused() {
    assert_problem(
        &format!("{LISTENER}{LISTENER}{TARGET}"),
        "6:1: listener.address = \"127.0.0.1:5439\": another listener has it",
    );
}

#[test]
fn a_target_that_no_listener_uses_is_refused() {
    assert_problem(
        &format!("{LISTENER}{TARGET}{}", TARGET.replace("warehouse", "spare")),
        "9:1: target \"spare\" is used by no listener: add it to a listener's targets, or delete \
         it",
    );
}

#[test]
fn a_target_that_does_not_exist_is_refused_with_the_nearest_name() {
    assert_problem(
        &format!(
            "{}{TARGET}",
            LISTENER.replace("[\"warehouse\"]", "[\"warehouse\", \"warehuose\"]")
        ),
        "3:25: listener.targets: there is no target \"warehuose\"; did you mean \"warehouse\"?",
    );
}

#[test]
fn no_listener_is_refused() {
    let file = config_file(TARGET);
    let output = output(&["run", "--config", &file.display().to_string()]);
    assert_eq!(output.status.code(), Some(78));
    assert!(
        String::from_utf8_lossy(&output.stderr)
            .contains("no [[listener]]: add one with address = \"127.0.0.1:5439\"")
    );
}

#[test]
fn trust_on_an_address_that_others_can_reach_is_refused() {
    for address in ["0.0.0.0:5439", "192.0.2.1:5439", "[::]:5439"] {
        assert_problem(
            &format!("{}{TARGET}", LISTENER.replace("127.0.0.1:5439", address)),
            &format!(
                "2:1: listener.address = \"{address}\": auth = \"trust\" is for loopback only, \
                 since it lets in whoever reaches the address: use 127.0.0.1 or [::1], or another \
                 method"
            ),
        );
    }
    assert_problem(
        &format!("{}{TARGET}", LISTENER.replace("auth = \"trust\"\n", "")),
        "1:1: listener.auth: say what a client must prove: \"scram-sha-256\", \"md5\", \
         \"password\", \"cert\", \"peer\", or \"trust\" (whoever reaches this address is let in)",
    );
    assert_problem(
        &format!("{}{TARGET}", LISTENER.replace("trust", "oauth")),
        "4:1: listener.auth = \"oauth\": must be \"trust\", \"scram-sha-256\", \"md5\", \
         \"password\", \"cert\" or \"peer\"",
    );
    assert_problem(
        &format!(
            "{}{TARGET}",
            LISTENER.replace("127.0.0.1:5439", "localhost")
        ),
        "2:1: listener.address = \"localhost\": must be an IP address and a port, as in \
         \"127.0.0.1:5439\", or the path of a unix socket",
    );
}

#[test]
fn a_listener_that_believes_proxy_headers_is_not_on_loopback() {
    let behind = |auth: &str| {
        let keys = "proxy_protocol = true\nproxy_protocol_from = [\"127.0.0.1\"]\n";
        let listener = LISTENER.replace("auth = \"trust\"\n", &format!("{auth}\n{keys}"));
        let user = format!("[user.ana]\npassword = \"md5{}\"\n", "0".repeat(32));
        format!("{listener}{TARGET}{user}")
    };
    assert_problem(
        &behind("auth = \"trust\""),
        "4:1: auth = \"trust\" is for loopback only, and with proxy_protocol clients may be \
         anywhere: use another method",
    );
    assert_problem(
        &behind("auth = \"password\""),
        "4:1: auth = \"password\" sends the password itself: set tls = \"required\", or use \
         loopback",
    );
}

#[test]
fn an_extension_to_vouch_for_has_a_name_that_postgresql_can_know() {
    let rds = "[target.warehouse]\nengine = \"rds\"\nregion = \"us-west-2\"\nhost = \"h\"\n\
               reuse_sessions = true\n";
    for extension in [String::new(), "x".repeat(64)] {
        assert_problem(
            &format!("{LISTENER}{rds}reuse_extensions = [\"postgis\", \"{extension}\"]\n"),
            &format!(
                "10:32: reuse_extensions = \"{extension}\": must have 1 to 63 bytes and no NUL"
            ),
        );
    }
}

#[test]
fn redshift_settings_are_held_against_the_apis_constraints() {
    for (line, rule) in [
        (
            "duration_seconds = 899",
            "must be 900 to 3600 (DurationSeconds of the API)",
        ),
        (
            "duration_seconds = 3601",
            "must be 900 to 3600 (DurationSeconds of the API)",
        ),
        ("db_user = \"1ana\"", "must begin with a letter"),
        (
            "db_user = \"ana:x\"",
            "may have letters, digits and _ + . @ - only",
        ),
        ("db_user = \"public\"", "must not be PUBLIC"),
        (
            "db_user = \"select\"",
            "must not be a word that Redshift reserves",
        ),
        (
            "database = \"a/b\"",
            "may have letters, digits and _ + . @ - only",
        ),
    ] {
        assert_problem(
            &format!("{LISTENER}{TARGET}{line}\n"),
            &format!("9:1: {line}: {rule}"),
        );
    }
    assert_problem(
        &format!("{LISTENER}{TARGET}db_groups = [\"ok\", \"BI\"]\n"),
        "9:20: db_groups = \"BI\": must be in lower case: the API knows no other groups",
    );
    let text = "get-cluster-credentials-with-iam maps the AWS identity to the database user and \
                takes none of this: delete it";
    assert_problem(
        &format!(
            "{LISTENER}{TARGET}api = \"get-cluster-credentials-with-iam\"\ndb_user = \"ana\"\n"
        ),
        &format!("10:1: db_user: {text}"),
    );
}

#[test]
fn a_region_is_never_guessed() {
    assert_problem(
        &format!(
            "{LISTENER}{}",
            TARGET.replace("region = \"us-west-2\"\n", "")
        ),
        "5:1: region: say which, as in region = \"us-west-2\"; it is taken from a host that ends \
         in .amazonaws.com or .on.aws, never guessed",
    );
    assert_problem(
        &format!("{LISTENER}[target.warehouse]\nengine = \"rds\"\nhost = \"db.example.com\"\n"),
        "5:1: region: say which, as in region = \"us-west-2\"; it is taken from a host that ends \
         in .amazonaws.com or .on.aws, never guessed",
    );
}

#[test]
fn keys_of_the_other_engine_are_refused() {
    assert_problem(
        &format!("{LISTENER}{TARGET}signing_host = \"x\"\n"),
        "9:1: signing_host: is for engine = \"rds\": delete it",
    );
    assert_problem(
        &format!(
            "{LISTENER}[target.warehouse]\nengine = \"rds\"\nhost = \"h\"\n\
             region = \"us-west-2\"\nauto_create = true\n"
        ),
        "9:1: auto_create: is for engine = \"redshift\": delete it",
    );
}

#[test]
fn a_workgroup_has_a_name_and_no_settings_of_a_database_user() {
    let serverless =
        "[target.warehouse]\nengine = \"redshift-serverless\"\nregion = \"us-west-2\"\n";
    assert_problem(
        &format!("{LISTENER}{serverless}"),
        "5:1: workgroup_name: say which workgroup, as in workgroup_name = \"myworkgroup\" (or \
         custom_domain_name, or a host that ends in .redshift-serverless.amazonaws.com)",
    );
    let serverless = format!("{serverless}workgroup_name = \"myworkgroup\"\n");
    for (key, value) in [
        ("db_user", "\"ana\""),
        ("api", "\"get-cluster-credentials\""),
        ("auto_create", "true"),
        ("db_groups", "[\"bi\"]"),
    ] {
        assert_problem(
            &format!("{LISTENER}{serverless}{key} = {value}\n"),
            &format!(
                "9:1: {key}: Redshift Serverless maps the AWS identity to the database user and \
                 takes none of this: delete it"
            ),
        );
    }
    for (line, problem) in [
        (
            "cluster_identifier = \"c\"",
            "cluster_identifier: is for engine = \"redshift\" or \"rds\" or \"dsql\": delete it",
        ),
        (
            "duration_seconds = 899",
            "duration_seconds = 899: must be 900 to 3600 (DurationSeconds of the API)",
        ),
        (
            "database = \"select\"",
            "database = \"select\": must not be a word that Redshift reserves",
        ),
    ] {
        assert_problem(
            &format!("{LISTENER}{serverless}{line}\n"),
            &format!("9:1: {problem}"),
        );
    }
    assert_problem(
        &format!("{LISTENER}{}", serverless.replace("myworkgroup", "My")),
        "8:1: workgroup_name = \"My\": must have 3 to 64 characters",
    );
    assert_problem(
        &format!("{LISTENER}{TARGET}workgroup_name = \"w\"\n"),
        "9:1: workgroup_name: is for engine = \"redshift-serverless\": delete it",
    );
}

#[test]
fn a_dsql_cluster_has_a_name_and_one_database() {
    let dsql = format!("{LISTENER}[target.warehouse]\nengine = \"dsql\"\n");
    let host = "host = \"foo0bar1baz2quux3quuux4qux.dsql.us-east-1.on.aws\"\n";
    let no_address = "Aurora DSQL finds the cluster by the name in the TLS handshake (SNI), where \
        no address can be: give the cluster's own name as tls_server_name";
    assert_problem(
        &format!("{dsql}region = \"us-east-1\"\n"),
        "5:1: host: say where the cluster is, as in host = \
         \"foo0bar1baz2quux3quuux4qux.dsql.us-east-1.on.aws\" (or cluster_identifier and region)",
    );
    assert_problem(
        &format!("{dsql}{host}database = \"dev\"\n"),
        "8:1: database = \"dev\": must be \"postgres\": a cluster of Aurora DSQL has no other \
         database",
    );
    assert_problem(
        &format!("{dsql}region = \"us-east-1\"\ncluster_identifier = \"short\"\n"),
        "8:1: cluster_identifier = \"short\": must have 26 lower-case letters and digits",
    );
    assert_problem(
        &format!("{dsql}region = \"us-east-1\"\nhost = \"10.0.0.5\"\n"),
        &format!("8:1: host = \"10.0.0.5\": {no_address}"),
    );
    assert_problem(
        &format!("{dsql}{host}tls_server_name = \"::1\"\n"),
        &format!("8:1: tls_server_name = \"::1\": {no_address}"),
    );
    assert_problem(
        &format!("{dsql}{host}signing_host = \"x\"\n"),
        "8:1: signing_host: is for engine = \"rds\": delete it",
    );
}

#[test]
fn sessions_are_reused_where_they_can_be_reset() {
    let others = [
        "engine = \"redshift\"\ncluster_identifier = \"examplecluster\"\n",
        "engine = \"redshift-serverless\"\nworkgroup_name = \"myworkgroup\"\n",
        "engine = \"dsql\"\ncluster_identifier = \"foo0bar1baz2quux3quuux4qux\"\n",
    ];
    for engine in others {
        assert_problem(
            &format!(
                "{LISTENER}[target.warehouse]\nregion = \"us-west-2\"\n\
                 {engine}reuse_sessions = true\n"
            ),
            "9:1: reuse_sessions: is for engine = \"rds\": delete it",
        );
    }
    let good = output(&[
        "check",
        "--offline",
        "rds://jane_doe@localhost/postgres?region=us-west-2&reuse_sessions=true",
    ]);
    assert_eq!(
        good.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&good.stderr)
    );
}

#[test]
fn spare_sessions_have_bounds() {
    for number in [-1, 1001] {
        assert_problem(
            &format!("{LISTENER}{TARGET}warm_sessions = {number}\n"),
            &format!("9:1: warm_sessions = {number}: must be 1 to 1000, or 0 for none"),
        );
    }
    for age in ["0s", "61min", "old"] {
        assert_problem(
            &format!("{LISTENER}{TARGET}spare_max_age = \"{age}\"\n"),
            &format!("9:1: spare_max_age = \"{age}\": must be a time up to 1h, as in \"15min\""),
        );
    }
    let url = "redshift://ana@examplecluster.us-west-2/dev?warm_sessions=5&spare_max_age=5min";
    let good = output(&["check", "--offline", url]);
    assert_eq!(
        good.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&good.stderr)
    );
}

#[test]
fn a_region_is_taken_from_the_names_that_have_one() {
    for target in [
        "engine = \"rds\"\nhost = \"myproxy.proxy-abcdefghijkl.eu-central-1.rds.amazonaws.com\"",
        "engine = \"redshift-serverless\"\n\
         host = \"myworkgroup.123456789012.us-west-2.redshift-serverless.amazonaws.com\"",
        "engine = \"dsql\"\nhost = \"foo0bar1baz2quux3quuux4qux.dsql.us-east-1.on.aws\"",
        "engine = \"dsql\"\nhost = \"127.0.0.1\"\n\
         tls_server_name = \"foo0bar1baz2quux3quuux4qux.dsql-fnh4.us-east-1.on.aws\"",
        "engine = \"dsql\"\ncluster_identifier = \"foo0bar1baz2quux3quuux4qux\"\n\
         region = \"us-east-1\"",
    ] {
        let file = config_file(&format!("{LISTENER}[target.warehouse]\n{target}\n"));
        let output = output(&[
            "check",
            "--offline",
            "--config",
            &file.display().to_string(),
        ]);
        assert_eq!(
            output.status.code(),
            Some(0),
            "{target}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

#[test]
fn an_unreadable_ca_file_is_refused() {
    let missing = problem(&format!(
        "{LISTENER}{TARGET}ca_file = \"/nonexistent/ca.pem\"\n"
    ));
    assert!(
        missing.starts_with("9:1: ca_file = \"/nonexistent/ca.pem\": cannot read it: "),
        "{missing}"
    );
    assert!(
        missing.ends_with("; it must be a readable PEM file"),
        "{missing}"
    );
    let empty = config_file("no certificate in here\n");
    let path = empty.display();
    assert_problem(
        &format!("{LISTENER}{TARGET}ca_file = \"{path}\"\n"),
        &format!(
            "9:1: ca_file = \"{path}\": it has no PEM certificate: it must hold the PEM \
             certificates of the authorities"
        ),
    );
}

#[test]
fn a_file_that_cannot_be_read_is_78() {
    let output = output(&["run", "--config", "/nonexistent/pg-iam-proxy.toml"]);
    assert_eq!(output.status.code(), Some(78));
    assert!(
        String::from_utf8_lossy(&output.stderr)
            .starts_with("/nonexistent/pg-iam-proxy.toml: cannot read it: ")
    );
}

#[test]
fn every_problem_is_reported_at_once() {
    let file = config_file(&format!(
        "{LISTENER}{TARGET}duration_seconds = 899\nport = 0\nca_file = \"/nonexistent\"\n"
    ));
    assert_eq!(reports(&file).len(), 3);
}

/// A mistake of nearly every kind.
const FULL_OF_MISTAKES: &str = r#"users_fil = "/nonexistent/users"
cancel_key_file = "/nonexistent/key"

[[listener]]
adress = "127.0.0.1:5439"
targets = ["warehouse", "warehuose"]
auth = "trst"
max_sessions = -1

[[listener]]
address = "0.0.0.0:5440"
targets = ["app"]
auth = "trust"
tls = "required"
certificate = "/nonexistent/server.crt"
key = "/nonexistent/server.key"
client_ca = "/nonexistent/ca.pem"
proxy_protocol = "yes"

[[listener.rule]]
from = "10.0.0.0/99"
auth = "scram-sha-256"

[user.ana]
password = "hunter2"
db_groups = ["ok", "BI"]
role_arn = "reader"

[target.warehouse]
engine = "redshift"
cluster_identifier = "example_cluster"
db_user = "1ana"
duration_seconds = 899
signing_host = "x"
warm_session = 3

[target.app]
engine = "postgres"
port = 0
region = "Oregon"
host = "db.example.com:5432"
endpoint_url = "ftp://example.com"
spare_max_age = "2h"
ca_file = "/nonexistent/ca.pem"

[limits]
startup_timeout = 10

[log]
level = "loud"
colour = true

[admin]
http = "localhost"
"#;

#[test]
fn every_mistake_is_told_in_one_run_in_the_order_of_lines_with_its_key() {
    let reports = reports(&config_file(FULL_OF_MISTAKES));
    let told: Vec<_> = reports
        .iter()
        .map(|report| {
            let place = report.head.split(": ").next().unwrap();
            (place, report.marked.as_str())
        })
        .collect();
    assert_eq!(
        told,
        [
            ("1:1", "users_fil"),
            ("1:1", "users_fil"),
            ("2:1", "cancel_key_file"),
            ("5:1", "adress"),
            ("6:25", "\"warehuose\""),
            ("7:1", "auth"),
            ("8:1", "max_sessions"),
            ("11:1", "address"),
            ("15:1", "certificate"),
            ("16:1", "key"),
            ("17:1", "client_ca"),
            ("18:1", "proxy_protocol"),
            ("21:1", "from"),
            ("25:1", "password"),
            ("26:20", "\"BI\""),
            ("27:1", "role_arn"),
            ("29:1", "[target.warehouse]"),
            ("31:1", "cluster_identifier"),
            ("32:1", "db_user"),
            ("33:1", "duration_seconds"),
            ("34:1", "signing_host"),
            ("35:1", "warm_session"),
            ("38:1", "engine"),
            ("39:1", "port"),
            ("40:1", "region"),
            ("41:1", "host"),
            ("42:1", "endpoint_url"),
            ("43:1", "spare_max_age"),
            ("44:1", "ca_file"),
            ("47:1", "startup_timeout"),
            ("50:1", "level"),
            ("51:1", "colour"),
            ("54:1", "http"),
        ],
        "{reports:#?}"
    );
    let shown: Vec<_> = FULL_OF_MISTAKES.lines().collect();
    for report in &reports {
        let number: usize = report.head.split(':').next().unwrap().parse().unwrap();
        let expected = match report.marked.as_str() {
            "password" => "password = …",
            // Nobody knows what a key is for that is like no other.
            "colour" => "colour = …",
            _ => shown[number - 1],
        };
        assert_eq!(report.line, expected);
    }
}

#[test]
fn unknown_keys_of_every_table_are_told_in_one_run() {
    let mut text = "zzz = 1\n".to_string();
    text.push_str(LISTENER);
    text.push_str("zzz = 1\n");
    text.push_str("[[listener.rule]]\nauth = \"trust\"\nzzz = 1\n");
    text.push_str("[[listener.certificate_map]]\ncertificate = \"a\"\nuser = \"b\"\nzzz = 1\n");
    text.push_str(&format!("{TARGET}zzz = 1\n"));
    for table in ["user.ana", "limits", "log", "admin"] {
        text.push_str(&format!("[{table}]\nzzz = 1\n"));
    }
    let reports = reports(&config_file(&text));
    assert_eq!(reports.len(), 9, "{reports:#?}");
    for report in reports {
        assert_eq!(report.message(), "unknown key `zzz`");
        assert_eq!(report.marked, "zzz");
    }
}

#[test]
fn every_bad_line_of_the_users_file_is_told_and_none_is_shown() {
    let folder = tempfile::tempdir().unwrap();
    let users = folder.path().join("userlist.txt");
    let lines = [
        "; from pgbouncer",
        "\"ana\" \"hunter2\"",
        "\"bo\" \"md5d41d8cd98f00b204e9800998ecf8427e\"",
        "cy hunter2",
        "  \"di\" \"SCRAM-SHA-256$hunter2\"",
    ];
    std::fs::write(&users, lines.join("\n")).unwrap();
    let users = users.display().to_string();
    let text = format!(
        "users_file = \"{users}\"\n{}{TARGET}port = 0\n",
        LISTENER.replace("trust", "md5")
    );
    let file = config_file(&text);
    let complaint = complaint(&file);
    let places: Vec<_> = complaint
        .lines()
        .filter_map(|line| line.strip_prefix(&format!("{users}:")))
        .map(|line| line.split(": ").next().unwrap())
        .collect();
    assert_eq!(places, ["2:7", "4:1", "5:8"], "{complaint}");
    let port = format!("{}:10:1: port = 0: must be 1 to 65535", file.display());
    assert!(complaint.contains(&port), "{complaint}");
    assert!(!complaint.contains("hunter2"), "{complaint}");
    assert!(!complaint.contains("no user has one"), "{complaint}");
}

#[test]
fn a_file_above_one_mebibyte_is_refused_unread() {
    let good = format!("{LISTENER}{TARGET}");
    let comment = |length: usize| format!("{good}#{}", "x".repeat(length - good.len() - 1));
    let file = config_file(&comment(1 << 20));
    let output = output(&[
        "check",
        "--offline",
        "--config",
        &file.display().to_string(),
    ]);
    assert_eq!(output.status.code(), Some(0));
    let file = config_file(&comment((1 << 20) + 1));
    assert_eq!(
        complaint(&file),
        format!(
            "{}: it is longer than 1 MiB: is it the right file?\n",
            file.display()
        )
    );
}

#[test]
fn what_is_not_utf8_is_named_with_its_place() {
    let file = config_file("");
    std::fs::write(&file, b"[log]\nformat = \"\xff\"\n").unwrap();
    let expected = format!("{}:2:11: this is not UTF-8\n", file.display());
    assert_eq!(complaint(&file), expected);
}

#[test]
fn a_mistake_is_told_once_and_what_follows_from_it_is_not() {
    for (text, expected) in [
        // The target has a mistake: naming it is none.
        (
            format!("{LISTENER}{TARGET}port = \"a\"\n"),
            "9:1: invalid type: string \"a\", expected i64",
        ),
        (
            format!("{LISTENER}{}", TARGET.replace("engine", "engin")),
            "6:1: unknown key `engin`: did you mean `engine`?",
        ),
        (
            format!("{LISTENER}{}", TARGET.replace("[target", "[targets")),
            "5:2: unknown key `targets`: did you mean `target`?",
        ),
        (
            format!("{LISTENER}{}", TARGET.replace("\"redshift\"", "5")),
            "6:1: invalid type: integer `5`, expected a string",
        ),
        (
            format!(
                "{LISTENER}{}",
                TARGET.replace("[target.warehouse]", "[target]")
            ),
            "6:1: must be in a table that has a name: write [target.NAME]",
        ),
        (
            format!("{}{TARGET}", LISTENER.replace("address", "adress")),
            "2:1: unknown key `adress`: did you mean `address`?",
        ),
        (
            format!(
                "{}{TARGET}",
                LISTENER.replace("[[listener]]", "[[listner]]")
            ),
            "1:3: unknown key `listner`: did you mean `listener`?",
        ),
        (
            format!("{}{TARGET}", LISTENER.replace("[[listener]]", "[listener]")),
            "1:1: there may be several of these: write [[listener]]",
        ),
        (
            format!(
                "{}{TARGET}",
                LISTENER.replace("[\"warehouse\"]", "\"warehouse\"")
            ),
            "3:1: invalid type: string \"warehouse\", expected a sequence",
        ),
        // The one that is nearly named is not unused.
        (
            format!(
                "{}{TARGET}",
                LISTENER.replace("[\"warehouse\"]", "[\"warehose\"]")
            ),
            "3:12: listener.targets: there is no target \"warehose\"; did you mean \"warehouse\"?",
        ),
        // The password is wrong, and not missing.
        (
            format!(
                "{}{TARGET}[user.ana]\npassword = \"x\"\n",
                LISTENER.replace("trust", "md5")
            ),
            "10:1: user.password: is not a verifier: plain passwords are not accepted; write what \
             `pg-iam-proxy hash-password` prints",
        ),
        // A host with a port may have the region in it.
        (
            format!(
                "{LISTENER}[target.warehouse]\nengine = \"rds\"\n\
                 host = \"mydb.123456789012.us-west-2.rds.amazonaws.com:5432\"\n"
            ),
            "7:1: host = \"mydb.123456789012.us-west-2.rds.amazonaws.com:5432\": must be a host \
             name or an IP address, without port: that is the key port",
        ),
        // A key that is given twice has a value.
        (
            format!("{LISTENER}{TARGET}engine = \"rds\"\n"),
            "9:1: duplicate key",
        ),
    ] {
        assert_problem(&text, expected);
    }
}

#[test]
fn a_line_that_is_not_toml_hides_no_other_mistake() {
    let text = format!(
        "{LISTENER}adress = 1\n{TARGET}port = = 1\nduration_seconds = 899\n[log]\nlevel = \"info\n"
    );
    let heads: Vec<_> = reports(&config_file(&text))
        .into_iter()
        .map(|report| report.head)
        .collect();
    assert_eq!(heads.len(), 4, "{heads:#?}");
    assert_eq!(
        heads[0],
        "5:1: unknown key `adress`: did you mean `address`?"
    );
    assert!(heads[1].starts_with("10:8: "), "{}", heads[1]);
    assert!(
        heads[2].starts_with("11:1: duration_seconds = 899: "),
        "{}",
        heads[2]
    );
    assert!(heads[3].starts_with("13:14: "), "{}", heads[3]);
}

#[test]
fn no_secret_is_shown_whatever_is_wrong_with_it() {
    let user = |line: &str| format!("{LISTENER}{TARGET}[user.ana]\n{line}\n");
    let target = |line: &str| format!("{LISTENER}{TARGET}{line}\n");
    for text in [
        user("password = \"hunter2\""),
        user("password = \"SCRAM-SHA-256$4096:hunter2\""),
        user("password = [\"hunter2\"]"),
        user("password = hunter2"),
        user("password = \"hunter2"),
        user("password \"hunter2\""),
        user("password = \"hunter2\" # was hunter2"),
        user("password = \"\"\"\nhunter2\n\"\"\""),
        user("password = \"\"\"\nhunter2"),
        user("pasword = \"hunter2\""),
        user("secret = \"hunter2\""),
        user("pass.ord = \"hunter2\""),
        user("password.x = \"hunter2\""),
        format!("{LISTENER}{TARGET}[user]\nana.password.x = \"hunter2\"\n"),
        user("secret = { key = \"hunter2\" }"),
        user("password = \"md5d41d8cd98f00b204e9800998ecf8427e\"\npassword = \"hunter2\""),
        target("password = \"hunter2\""),
        target("db_user = \"\"\"\npassword = hunter2\n\"\"\""),
        target("api = \"\"\"\npassword = hunter2\n\"\"\""),
        target("port = \"\"\"\npassword = hunter2\n\"\"\""),
        target("spare_max_age = \"\"\"\npassword = hunter2\n\"\"\""),
        target("ca_file = \"\"\"\npassword = hunter2\n\"\"\""),
        target("[user.bo]\ntargets = [\"\"\"\npassword = hunter2\n\"\"\"]"),
        target("[user.bo]\ntargets = [\"\"\"\npassword = hunter2\n\"\"\", 5]"),
        target("secret_access_key = \"hunter2\""),
        target("endpoint_url = \"ftp://ana:hunter2@example.com\""),
        target("endpoint_url = \"ftp://example.com/?token=hunter2\""),
        target("endpoint_url = [\"https://ana:hunter2@example.com\"]"),
        target("endpoint_ur = \"https://ana:hunter2@example.com\""),
        format!("{LISTENER}{TARGET}[user]\nana = \"hunter2\"\n"),
        format!("{LISTENER}{TARGET}[user]\nana = {{ password = \"hunter2\", targts = [] }}\n"),
        format!("user = \"hunter2\"\n{LISTENER}{TARGET}"),
        format!("{LISTENER}{TARGET}[usr.ana]\npassword = \"hunter2\"\n"),
    ] {
        let complaint = complaint(&config_file(&text));
        assert!(!complaint.contains("hunter2"), "{complaint}");
    }
}

#[test]
fn a_key_is_suggested_only_where_it_is_similar() {
    assert_problem(
        &format!("{LISTENER}{TARGET}[admin]\nconsole = \"x\"\n"),
        "10:1: unknown key `console`",
    );
    assert_problem(
        &format!(
            "{}[target.w]\nengine = \"rds\"\nhost = \"h\"\nregion = \"us-west-2\"\n",
            LISTENER.replace("warehouse", "nosuch")
        ),
        "3:12: listener.targets: there is no target \"nosuch\": add [target.nosuch]",
    );
}

#[test]
fn colours_are_for_terminals_only() {
    let file = config_file(&format!("{LISTENER}{TARGET}port = 0\n"));
    assert!(!complaint(&file).contains('\x1b'));
    let mut coloured = command();
    coloured.args(["check", "--offline", "--config"]).arg(&file);
    let output = coloured.env("CLICOLOR_FORCE", "1").output().unwrap();
    assert!(String::from_utf8(output.stderr).unwrap().contains('\x1b'));
}

#[test]
fn target_urls_are_checked_as_files_are_and_never_echo_their_parameters() {
    for (url, expected) in [
        (
            "redshift://ana@examplecluster.us-west-2/dev?duration_seconds=899",
            "target URL redshift://examplecluster.us-west-2/dev: duration_seconds = 899: must be \
             900 to 3600 (DurationSeconds of the API)",
        ),
        (
            "redshift://ana@examplecluster.us-west-2/dev?db_grups=x",
            "target URL redshift://examplecluster.us-west-2/dev: unknown key `db_grups`: did you \
             mean `db_groups`?",
        ),
        (
            "rds://ana@mydb.us-west-2/dev?lisen=127.0.0.1:5439",
            "target URL rds://mydb.us-west-2/dev: unknown key `lisen`: did you mean `listen`?",
        ),
        (
            "rds://jane:hunter2@mydb.us-west-2/dev",
            "target URL rds://mydb.us-west-2/dev: delete the password: the proxy gets a temporary \
             one from AWS",
        ),
        (
            "rds://jane@db.example.com/dev",
            "target URL rds://db.example.com/dev: region: say which, as in region = \
             \"us-west-2\"; it is taken from a host that ends in .amazonaws.com or .on.aws, never \
             guessed",
        ),
        (
            "mysql://x@y/z",
            "target URL mysql://y/z: unknown scheme mysql: must be redshift, redshift-serverless, \
             rds, dsql or jdbc:redshift:iam",
        ),
        (
            "jdbc:redshift:iam://examplecluster:us-west-2/dev?DbUser=a&SecretAccessKey=hunter2",
            "target URL jdbc:redshift:iam://examplecluster:us-west-2/dev: delete secretaccesskey: \
             AWS credentials come from the environment, a profile, SSO, a role or the instance, \
             never from a URL",
        ),
    ] {
        let output = output(&["run", url]);
        assert_eq!(output.status.code(), Some(78));
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(text.trim_end(), expected);
        assert!(!text.contains("hunter2"));
    }
}

#[test]
fn a_wrong_command_line_is_64_and_help_is_0() {
    assert_eq!(output(&["run"]).status.code(), Some(64));
    assert_eq!(output(&["serve"]).status.code(), Some(64));
    assert_eq!(output(&["--help"]).status.code(), Some(0));
    let version = output(&["--version"]);
    assert_eq!(
        String::from_utf8_lossy(&version.stdout).trim(),
        format!("pg-iam-proxy {}", env!("CARGO_PKG_VERSION"))
    );
}

fn page(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    std::fs::read_to_string(path).unwrap()
}

/// The TOML that a page shows.
fn examples(page: &str) -> Vec<&str> {
    let blocks = page.split("```toml\n").skip(1);
    blocks
        .map(|block| block.split("```").next().unwrap())
        .collect()
}

fn schema() -> serde_json::Value {
    let output = output(&["schema"]);
    assert_eq!(output.status.code(), Some(0));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// What a validator that is not ours finds wrong with each of these configurations.
fn validated(configurations: &[&str]) -> Vec<Vec<String>> {
    let instances: Vec<serde_json::Value> = configurations
        .iter()
        .map(|text| toml::from_str(text).unwrap())
        .collect();
    let input =
        config_file(&serde_json::json!({"schema": schema(), "instances": instances}).to_string());
    let output = python::script("validate_schema.py")
        .arg(&*input)
        .output()
        .expect("Python starts");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn the_schema_accepts_every_configuration_that_is_shown() {
    let pages = [
        "README.md",
        "docs/configuration.md",
        "deploy/laptop.md",
        "deploy/bi-server.md",
        "deploy/bastion.md",
    ]
    .map(page);
    let shown: Vec<_> = pages.iter().flat_map(|page| examples(page)).collect();
    assert!(shown.len() >= 5);
    for (mistakes, text) in validated(&shown).iter().zip(&shown) {
        assert_eq!(mistakes, &Vec::<String>::new(), "{text}");
    }
}

#[test]
fn the_schema_refuses_what_the_program_refuses() {
    let good = format!("{LISTENER}{TARGET}");
    let rds = "[target.app]\nengine = \"rds\"\nhost = \"h\"\nregion = \"us-west-2\"\n";
    let bad = [
        format!("zzz = 1\n{good}"),
        format!("{good}zzz = 1\n"),
        format!("{LISTENER}zzz = 1\n{TARGET}"),
        format!("{good}[user.ana]\nzzz = 1\n"),
        format!("{good}[limits]\nzzz = 1\n"),
        format!("{good}[log]\nlevel = \"loud\"\n"),
        format!("{good}[log]\nlevel = 5\n"),
        format!("{good}port = 0\n"),
        format!("{good}port = \"5439\"\n"),
        format!("{good}duration_seconds = 899\n"),
        format!("{good}signing_host = \"x\"\n"),
        format!("{good}workgroup_name = \"x\"\n"),
        format!("{good}{rds}auto_create = true\n"),
        format!("{LISTENER}[target.warehouse]\nregion = \"us-west-2\"\n"),
        LISTENER.to_string(),
        TARGET.to_string(),
    ];
    let bad: Vec<&str> = bad.iter().map(String::as_str).collect();
    assert_eq!(validated(&[&good]), [Vec::<String>::new()]);
    for (mistakes, text) in validated(&bad).iter().zip(&bad) {
        assert_eq!(mistakes.len(), 1, "{text}: {mistakes:?}");
        complaint(&config_file(text));
    }
}

#[test]
fn the_reference_page_is_the_one_that_the_program_makes() {
    let made = output(&["schema", "--format", "markdown"]);
    assert!(
        page("docs/configuration.md").as_bytes() == made.stdout,
        "docs/configuration.md is stale: pg-iam-proxy schema --format markdown \
         >docs/configuration.md"
    );
}

#[test]
fn the_reference_pages_example_is_good_as_printed() {
    let folder = tempfile::tempdir().unwrap();
    let server = Authority::new("authority").server();
    std::fs::write(folder.path().join("server.crt"), &server.certificate).unwrap();
    std::fs::write(folder.path().join("server.key"), &server.key).unwrap();
    let file = folder.path().join("pg-iam-proxy.toml");
    let page = page("docs/configuration.md");
    std::fs::write(&file, examples(&page)[0]).unwrap();
    let output = output(&[
        "check",
        "--offline",
        "--config",
        &file.display().to_string(),
    ]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{error}");
}

#[test]
fn the_readmes_file_is_good_as_printed() {
    let readme = page("README.md");
    let file = config_file(examples(&readme)[0]);
    let output = output(&[
        "check",
        "--offline",
        "--config",
        &file.display().to_string(),
    ]);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn the_readmes_urls_are_taken_as_printed_and_print_what_it_shows() {
    let readme = page("README.md");
    let urls: Vec<&str> = readme
        .lines()
        .filter_map(|line| line.strip_prefix("pg-iam-proxy run '")?.strip_suffix('\''))
        .collect();
    assert_eq!(urls.len(), 5);
    for url in urls {
        let separator = if url.contains('?') { '&' } else { '?' };
        let mut command = command();
        command.args(["run", &format!("{url}{separator}listen=127.0.0.1:0")]);
        let proxy = Proxy::start(command, 1);
        let printed = proxy
            .printed
            .replace(&proxy.address().to_string(), "127.0.0.1:5439");
        assert!(
            !url.contains("temp_creds_user") || readme.contains(&printed),
            "{printed}"
        );
    }
}

#[test]
fn a_file_full_of_mistakes_is_told_about_in_a_bounded_time_and_space() {
    let many = |line: &str| line.repeat(60_000);
    let one_line = format!("log = {{ {} }}\n", many("k=1,"));
    let users = config_file(&many("\"ana\" \"plain\"\n"));
    let with_users = format!("users_file = \"{}\"\n", users.display());
    for text in [many("x\n"), many("[[listener]]\n"), one_line, with_users] {
        let file = config_file(&text);
        let output = output(&[
            "check",
            "--offline",
            "--config",
            &file.display().to_string(),
        ]);
        assert_eq!(output.status.code(), Some(78));
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(error.len() < 1 << 20, "{} bytes", error.len());
    }
}
