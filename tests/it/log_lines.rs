//! What does the log say, and what does it never say?

use testbed::Testbed;

use std::io::Write;

use crate::support::client::{
    Client, Reply, V3_0, connect, error_fields, read_reply, startup_packet,
};
use crate::support::proxy::{
    Proxy, command, config_file, dsql_config, hash_password, rds_config, redshift_config,
    serverless_config,
};

#[test]
fn a_session_is_logged_once_when_it_opens_and_once_when_it_ends_as_text_and_as_json() {
    let aws = Testbed::shared().aws();
    let config = rds_config("db_user = \"jane_doe\"\ndatabase = \"postgres\"");
    let fields = ["session", "client", "target", "db_user", "upstream"];
    for format in ["text", "json"] {
        let file = config_file(&format!("{config}[log]\nformat = \"{format}\"\n"));
        let mut command = command();
        command.args(["run", "--config"]).arg(&file).envs(aws.env());
        let proxy = Proxy::start(command, 1);
        drop(Client::log_in(proxy.address(), &[("user", "x")]).unwrap());
        let opened = proxy.log_line(&["session opened"]);
        let ended = proxy.log_line(&["session ended"]);
        let phases = ["startup_ms", "credentials_ms", "connect_ms", "login_ms"];
        let totals = ["bytes_sent", "bytes_received", "duration_ms", "ended_by"];
        for (line, names) in [(opened, phases), (ended, totals)] {
            let json = serde_json::from_str::<serde_json::Value>(&line);
            assert_eq!(json.is_ok(), format == "json", "{line}");
            for name in fields.iter().chain(&names) {
                match &json {
                    Ok(json) => assert!(json.get(name).is_some(), "{name} in {line}"),
                    Err(_) => assert!(line.contains(&format!(" {name}=")), "{name} in {line}"),
                }
            }
        }
        let expected = if format == "json" {
            "\"target\":\"app\""
        } else {
            "target=\"app\""
        };
        assert!(proxy.log().contains(expected));
    }
}

#[test]
fn flags_and_environment_override_the_file() {
    let aws = Testbed::shared().aws();
    let file = config_file(&format!(
        "{}[log]\nformat = \"text\"\nlevel = \"error\"\n",
        rds_config("db_user = \"jane_doe\"")
    ));
    let mut command = command();
    command.args(["run", "--log-level", "info"]).envs(aws.env());
    command
        .env("PG_IAM_PROXY_CONFIG", &*file)
        .env("PG_IAM_PROXY_LOG_FORMAT", "json")
        .env("PG_IAM_PROXY_LOG_LEVEL", "error");
    let proxy = Proxy::start(command, 1);
    drop(Client::log_in(proxy.address(), &[("user", "x"), ("database", "postgres")]).unwrap());
    assert!(proxy.log_line(&["session opened"]).starts_with('{'));
}

#[test]
fn no_secret_no_sql_and_no_startup_parameter_value_is_ever_logged() {
    let bed = Testbed::shared();
    let aws = bed.aws();
    let role = format!("role_arn = \"{}\"\n", aws.add_role("quiet", None));
    for config in [
        rds_config(&format!(
            "db_user = \"jane_doe\"\ndatabase = \"postgres\"\nendpoint_url = \"{}\"\n{role}",
            aws.endpoint_url()
        )),
        redshift_config(
            &aws,
            &format!("db_user = \"ana\"\ndatabase = \"dev\"\n{role}"),
        ),
        serverless_config(
            &aws,
            &format!("workgroup_name = \"myworkgroup\"\ndatabase = \"dev\"\n{role}"),
        ),
        dsql_config(&format!(
            "db_user = \"dsql_reader\"\nendpoint_url = \"{}\"\n{role}",
            aws.endpoint_url()
        )),
    ] {
        let file = config_file(&config);
        let mut command = command();
        command
            .args(["run", "--log-level", "trace", "--config"])
            .arg(&file)
            .envs(aws.env());
        let proxy = Proxy::start(command, 1);
        let mut client = Client::log_in(
            proxy.address(),
            &[("user", "x"), ("application_name", "payroll-export")],
        )
        .unwrap();
        client.value("select 'the text of a query'");
        drop(client);
        proxy.log_line(&["session ended"]);
        let log = proxy.log();
        for secret in [
            "X-Amz-Signature",
            "X-Amz-Security-Token",
            "DbPassword",
            "the text of a query",
            "payroll-export",
            aws.secret_access_key(),
        ] {
            assert!(!log.contains(secret), "{secret} in:\n{log}");
        }
        for secret in [bed.accounts().secrets(), bed.redshift().passwords()].concat() {
            assert!(!log.contains(&secret), "{secret} in:\n{log}");
        }
        for request in aws.requests() {
            assert!(
                request.access_key_id.is_none_or(|id| !log.contains(&id)),
                "an access key id in:\n{log}"
            );
        }
    }
}

#[test]
fn a_client_cannot_forge_a_log_line() {
    let aws = Testbed::shared().aws();
    let config = redshift_config(&aws, "db_user = \"ana\"");
    let proxy = Proxy::with_config(&aws, &config);
    let database = "x\n2026-01-01T00:00:00.000000Z  INFO session opened";
    let error = Client::log_in(proxy.address(), &[("user", "x"), ("database", database)])
        .err()
        .unwrap();
    assert_eq!(error.sqlstate(), "28000");
    proxy.log_line(&["login refused", "28000"]);
    assert!(
        proxy
            .log()
            .lines()
            .all(|line| !line.starts_with("2026-01-01")),
        "{}",
        proxy.log()
    );
}

#[test]
fn a_long_name_is_cut_off_in_the_log_and_in_messages() {
    let aws = Testbed::shared().aws();
    let user = format!("[user.ana]\npassword = \"{}\"", hash_password("secret"));
    let asking = redshift_config(&aws, &user).replace("auth = \"trust\"", "auth = \"password\"");
    let trusting = redshift_config(&aws, "");
    for (config, parameter, sqlstate) in [
        (&asking, "user", "28P01"),
        (&trusting, "user", "28000"),
        (&trusting, "database", "28000"),
    ] {
        let proxy = Proxy::with_config(&aws, config);
        let long = "\u{1}".repeat(9_000);
        let mut parameters = vec![("user", "ana"), ("database", "dev")];
        parameters.retain(|(name, _)| *name != parameter);
        parameters.push((parameter, &long));
        let mut stream = connect(proxy.address());
        let packet = startup_packet(V3_0, &parameters);
        stream.write_all(&packet).unwrap();
        let error = loop {
            match read_reply(&mut stream) {
                Reply::Message(b'E', body) => break error_fields(&body),
                // It does not matter what is answered to the question for a password.
                Reply::Message(..) => stream.write_all(b"p\0\0\0\x0awrong\0").unwrap(),
                Reply::Closed => panic!("the client is told"),
            }
        };
        assert_eq!(error.sqlstate(), sqlstate);
        assert!(error.message().len() < 300, "{}", error.message());
        assert!(error.message().contains("\u{1}…\""), "{}", error.message());
        proxy.log_line(&["login refused", "…"]);
        for line in proxy.log().lines() {
            assert!(line.len() < 3_000, "{} bytes: {line}", line.len());
        }
    }
}
