//! A wrong configuration: exit 78, file and line, and what to write instead.

use crate::support::proxy::{Proxy, command, config_file, output};

const LISTENER: &str =
    "[[listener]]\naddress = \"127.0.0.1:5439\"\ntargets = [\"warehouse\"]\nauth = \"trust\"\n";
const TARGET: &str = "[target.warehouse]\nengine = \"redshift\"\ncluster_identifier = \"examplecluster\"\nregion = \"us-west-2\"\n";

/// The only problem of this configuration, without the file's name.
fn problem(text: &str) -> String {
    let file = config_file(text);
    let path = file.display().to_string();
    let run = output(&["run", "--config", &path]);
    let check = output(&["check", "--offline", "--config", &path]);
    assert_eq!(
        (run.status.code(), check.status.code()),
        (Some(78), Some(78)),
        "{text}"
    );
    assert_eq!(run.stderr, check.stderr);
    let text = String::from_utf8(run.stderr).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 1, "{text}");
    lines[0]
        .strip_prefix(&format!("{path}:"))
        .unwrap_or_else(|| panic!("file and line in {text}"))
        .to_string()
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
        "9: unknown key `duration_second`: did you mean `duration_seconds`?",
    );
    assert_problem(
        &format!("{LISTENER}adress = \"x\"\n{TARGET}"),
        "5: unknown key `adress`: did you mean `address`?",
    );
    assert_problem(
        &format!("{LISTENER}{TARGET}[limit]\n"),
        "9: unknown key `limit`: did you mean `limits`?",
    );
    assert_problem(
        &format!("{LISTENER}{TARGET}[log]\nlevel = \"loud\"\n"),
        "10: unknown value `loud`, expected one of `error`, `warn`, `info`, `debug`, `trace`",
    );
}

#[test]
fn what_is_not_toml_is_named_with_its_line() {
    assert!(problem(&format!("{LISTENER}{TARGET}port = = 1\n")).starts_with("9: "));
    assert!(
        problem(&format!("{LISTENER}{TARGET}port = \"a\"\n"))
            .starts_with("9: invalid type: string \"a\", expected i64")
    );
}

#[test]
fn a_duplicate_listener_is_refused() {
    assert_problem(
        &format!("{LISTENER}{LISTENER}{TARGET}"),
        "5: listener.address = \"127.0.0.1:5439\": another listener has it",
    );
}

#[test]
fn a_target_that_no_listener_uses_is_refused() {
    assert_problem(
        &format!("{LISTENER}{TARGET}{}", TARGET.replace("warehouse", "spare")),
        "9: target \"spare\" is used by no listener: add it to a listener's targets, or delete it",
    );
}

#[test]
fn a_target_that_does_not_exist_is_refused_with_the_nearest_name() {
    assert_problem(
        &format!(
            "{}{TARGET}",
            LISTENER.replace("[\"warehouse\"]", "[\"warehouse\", \"warehuose\"]")
        ),
        "3: listener.targets: there is no target \"warehuose\"; did you mean \"warehouse\"?",
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
                "2: listener.address = \"{address}\": auth = \"trust\" is for loopback only, since it lets in whoever reaches the address: \
                 use 127.0.0.1 or [::1], or another method"
            ),
        );
    }
    assert_problem(
        &format!("{}{TARGET}", LISTENER.replace("auth = \"trust\"\n", "")),
        "1: listener.auth: say what a client must prove: \"scram-sha-256\", \"md5\", \"password\", \"cert\", \"peer\", or \"trust\" (whoever reaches this address is let in)",
    );
    assert_problem(
        &format!("{}{TARGET}", LISTENER.replace("trust", "oauth")),
        "4: listener.auth = \"oauth\": must be \"trust\", \"scram-sha-256\", \"md5\", \"password\", \"cert\" or \"peer\"",
    );
    assert_problem(
        &format!(
            "{}{TARGET}",
            LISTENER.replace("127.0.0.1:5439", "localhost")
        ),
        "2: listener.address = \"localhost\": must be an IP address and a port, as in \"127.0.0.1:5439\", or the path of a unix socket",
    );
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
            &format!("9: {line}: {rule}"),
        );
    }
    assert_problem(
        &format!("{LISTENER}{TARGET}db_groups = [\"ok\", \"BI\"]\n"),
        "9: db_groups = \"BI\": must be in lower case: the API knows no other groups",
    );
    let text = "get-cluster-credentials-with-iam maps the AWS identity to the database user and takes none of this: delete it";
    assert_problem(
        &format!(
            "{LISTENER}{TARGET}api = \"get-cluster-credentials-with-iam\"\ndb_user = \"ana\"\n"
        ),
        &format!("10: db_user: {text}"),
    );
}

#[test]
fn a_region_is_never_guessed() {
    assert_problem(
        &format!(
            "{LISTENER}{}",
            TARGET.replace("region = \"us-west-2\"\n", "")
        ),
        "5: region: say which, as in region = \"us-west-2\"; it is taken from a host that ends in .amazonaws.com or .on.aws, never guessed",
    );
    assert_problem(
        &format!("{LISTENER}[target.warehouse]\nengine = \"rds\"\nhost = \"db.example.com\"\n"),
        "5: region: say which, as in region = \"us-west-2\"; it is taken from a host that ends in .amazonaws.com or .on.aws, never guessed",
    );
}

#[test]
fn keys_of_the_other_engine_are_refused() {
    assert_problem(
        &format!("{LISTENER}{TARGET}signing_host = \"x\"\n"),
        "9: signing_host: is for engine = \"rds\": delete it",
    );
    assert_problem(
        &format!(
            "{LISTENER}[target.warehouse]\nengine = \"rds\"\nhost = \"h\"\nregion = \"us-west-2\"\nauto_create = true\n"
        ),
        "9: auto_create: is for engine = \"redshift\": delete it",
    );
}

#[test]
fn a_workgroup_has_a_name_and_no_settings_of_a_database_user() {
    let serverless =
        "[target.warehouse]\nengine = \"redshift-serverless\"\nregion = \"us-west-2\"\n";
    assert_problem(
        &format!("{LISTENER}{serverless}"),
        "5: workgroup_name: say which workgroup, as in workgroup_name = \"myworkgroup\" (or custom_domain_name, or a host that ends in \
         .redshift-serverless.amazonaws.com)",
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
                "9: {key}: Redshift Serverless maps the AWS identity to the database user and takes none of this: delete it"
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
            &format!("9: {problem}"),
        );
    }
    assert_problem(
        &format!("{LISTENER}{}", serverless.replace("myworkgroup", "My")),
        "8: workgroup_name = \"My\": must have 3 to 64 characters",
    );
    assert_problem(
        &format!("{LISTENER}{TARGET}workgroup_name = \"w\"\n"),
        "9: workgroup_name: is for engine = \"redshift-serverless\": delete it",
    );
}

#[test]
fn a_dsql_cluster_has_a_name_and_one_database() {
    let dsql = format!("{LISTENER}[target.warehouse]\nengine = \"dsql\"\n");
    let host = "host = \"foo0bar1baz2quux3quuux4qux.dsql.us-east-1.on.aws\"\n";
    let no_address = "Aurora DSQL finds the cluster by the name in the TLS handshake (SNI), where no address can be: give the cluster's own \
                      name as tls_server_name";
    assert_problem(
        &format!("{dsql}region = \"us-east-1\"\n"),
        "5: host: say where the cluster is, as in host = \"foo0bar1baz2quux3quuux4qux.dsql.us-east-1.on.aws\" (or cluster_identifier and \
         region)",
    );
    assert_problem(
        &format!("{dsql}{host}database = \"dev\"\n"),
        "8: database = \"dev\": must be \"postgres\": a cluster of Aurora DSQL has no other database",
    );
    assert_problem(
        &format!("{dsql}region = \"us-east-1\"\ncluster_identifier = \"short\"\n"),
        "8: cluster_identifier = \"short\": must have 26 lower-case letters and digits",
    );
    assert_problem(
        &format!("{dsql}region = \"us-east-1\"\nhost = \"10.0.0.5\"\n"),
        &format!("8: host = \"10.0.0.5\": {no_address}"),
    );
    assert_problem(
        &format!("{dsql}{host}tls_server_name = \"::1\"\n"),
        &format!("8: tls_server_name = \"::1\": {no_address}"),
    );
    assert_problem(
        &format!("{dsql}{host}signing_host = \"x\"\n"),
        "8: signing_host: is for engine = \"rds\": delete it",
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
                "{LISTENER}[target.warehouse]\nregion = \"us-west-2\"\n{engine}reuse_sessions = true\n"
            ),
            "9: reuse_sessions: is for engine = \"rds\": delete it",
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
            &format!("9: warm_sessions = {number}: must be 1 to 1000, or 0 for none"),
        );
    }
    for age in ["0s", "61min", "old"] {
        assert_problem(
            &format!("{LISTENER}{TARGET}spare_max_age = \"{age}\"\n"),
            &format!("9: spare_max_age = \"{age}\": must be a time up to 1h, as in \"15min\""),
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
        "engine = \"redshift-serverless\"\nhost = \"myworkgroup.123456789012.us-west-2.redshift-serverless.amazonaws.com\"",
        "engine = \"dsql\"\nhost = \"foo0bar1baz2quux3quuux4qux.dsql.us-east-1.on.aws\"",
        "engine = \"dsql\"\nhost = \"127.0.0.1\"\ntls_server_name = \"foo0bar1baz2quux3quuux4qux.dsql-fnh4.us-east-1.on.aws\"",
        "engine = \"dsql\"\ncluster_identifier = \"foo0bar1baz2quux3quuux4qux\"\nregion = \"us-east-1\"",
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
        missing.starts_with("9: ca_file = \"/nonexistent/ca.pem\": cannot read it: "),
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
            "9: ca_file = \"{path}\": it has no PEM certificate: it must hold the PEM certificates of the authorities"
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
    let output = output(&["run", "--config", &file.display().to_string()]);
    assert_eq!(String::from_utf8_lossy(&output.stderr).lines().count(), 3);
}

#[test]
fn target_urls_are_checked_as_files_are_and_never_echo_their_parameters() {
    for (url, expected) in [
        (
            "redshift://ana@examplecluster.us-west-2/dev?duration_seconds=899",
            "target URL redshift://examplecluster.us-west-2/dev: duration_seconds = 899: must be 900 to 3600 (DurationSeconds of the API)",
        ),
        (
            "redshift://ana@examplecluster.us-west-2/dev?db_grups=x",
            "target URL redshift://examplecluster.us-west-2/dev: unknown key `db_grups`: did you mean `db_groups`?",
        ),
        (
            "rds://jane:hunter2@mydb.us-west-2/dev",
            "target URL rds://mydb.us-west-2/dev: delete the password: the proxy gets a temporary one from AWS",
        ),
        (
            "rds://jane@db.example.com/dev",
            "target URL rds://db.example.com/dev: region: say which, as in region = \"us-west-2\"; it is taken from a host that ends in .amazonaws.com or .on.aws, never guessed",
        ),
        (
            "mysql://x@y/z",
            "target URL mysql://y/z: unknown scheme mysql: must be redshift, redshift-serverless, rds, dsql or jdbc:redshift:iam",
        ),
        (
            "jdbc:redshift:iam://examplecluster:us-west-2/dev?DbUser=a&SecretAccessKey=hunter2",
            "target URL jdbc:redshift:iam://examplecluster:us-west-2/dev: delete secretaccesskey: AWS credentials come from the environment, a profile, SSO, a role or the instance, never from a URL",
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

fn readme() -> String {
    std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap()
}

#[test]
fn the_readmes_file_is_good_as_printed() {
    let readme = readme();
    let text = readme
        .split("```toml\n")
        .nth(1)
        .unwrap()
        .split("```")
        .next()
        .unwrap();
    let file = config_file(text);
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
    let readme = readme();
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
