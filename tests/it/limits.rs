//! What happens when the proxy runs out of sessions, file descriptors or ports?

use std::io::Write;
use std::process::Command;

use testbed::Testbed;

use crate::support::client::{Client, V3_0, cancel, connect, startup_packet};
use crate::support::proxy::{Proxy, command, config_file, rds_config};
use crate::support::wait_for;

const TARGET: &str = "db_user = \"jane_doe\"\ndatabase = \"postgres\"";

#[test]
fn clients_over_max_sessions_are_refused_until_another_session_ends() {
    let aws = Testbed::shared().aws();
    let proxy = Proxy::with_config(
        &aws,
        &format!("{}[limits]\nmax_sessions = 1\n", rds_config(TARGET)),
    );
    let mut only = Client::log_in(proxy.address(), &[("user", "x")]).unwrap();
    let error = Client::log_in(proxy.address(), &[("user", "x")])
        .err()
        .unwrap();
    assert_eq!(
        (error.sqlstate(), error.message()),
        ("53300", "sorry, too many clients already")
    );
    proxy.log_line(&["login refused", "detail=\"limits.max_sessions = 1\""]);
    // Cancel requests are not counted as sessions.
    only.send_query("select pg_sleep(60)");
    cancel(proxy.address(), &only.key);
    drop(only);
    wait_for("a free session", || {
        Client::log_in(proxy.address(), &[("user", "x")]).ok()
    });
}

#[test]
fn the_detail_of_a_refusal_names_the_limit_that_was_reached() {
    let aws = Testbed::shared().aws();
    let base = rds_config(TARGET);
    for (config, detail) in [
        (
            format!("{base}[limits]\nmax_sessions = 1\n"),
            "limits.max_sessions = 1",
        ),
        (
            base.replace("auth = \"trust\"\n", "auth = \"trust\"\nmax_sessions = 1\n"),
            "max_sessions of listener 127.0.0.1:0 = 1",
        ),
        (
            base.replace("engine = \"rds\"\n", "engine = \"rds\"\nmax_sessions = 1\n"),
            "target.app.max_sessions = 1",
        ),
        (
            format!("{base}[user.ana]\nmax_sessions = 1\n"),
            "user.ana.max_sessions = 1",
        ),
    ] {
        let proxy = Proxy::with_config(&aws, &config);
        let first = Client::log_in(proxy.address(), &[("user", "ana")]).unwrap();
        let error = Client::log_in(proxy.address(), &[("user", "ana")])
            .err()
            .unwrap();
        assert_eq!(
            (error.sqlstate(), error.message()),
            ("53300", "sorry, too many clients already")
        );
        assert!(
            error
                .detail()
                .starts_with(&format!("{detail}; pg-iam-proxy session ")),
            "{}",
            error.detail()
        );
        drop(first);
        wait_for("a free session", || {
            Client::log_in(proxy.address(), &[("user", "ana")]).ok()
        });
    }
}

#[test]
fn running_out_of_file_descriptors_does_not_stop_the_proxy() {
    let aws = Testbed::shared().aws();
    let file = config_file(&rds_config(TARGET));
    let mut limited = Command::new("sh");
    limited
        .args([
            "-c",
            "ulimit -n 40 && exec \"$@\"",
            "sh",
            env!("CARGO_BIN_EXE_pg-iam-proxy"),
            "run",
            "--config",
        ])
        .arg(&file);
    limited
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .envs(aws.env());
    let proxy = Proxy::start(limited, 1);
    // These prove who they are, so none of them is closed for another.
    let crowd: Vec<_> = (0..60)
        .map(|_| {
            let mut stream = connect(proxy.address());
            stream
                .write_all(&startup_packet(V3_0, &[("user", "x")]))
                .unwrap();
            stream
        })
        .collect();
    proxy.log_line(&[
        "ERROR",
        "cannot accept connections; trying again until it works",
    ]);
    drop(crowd);
    let mut client = wait_for("a login", || {
        Client::log_in(proxy.address(), &[("user", "x")]).ok()
    });
    assert_eq!(client.value("select 1"), "1");
}

#[test]
fn an_address_in_use_is_named_and_means_exit_code_1() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let file = config_file(&rds_config(TARGET).replace("127.0.0.1:0", &address));
    let output = command()
        .args(["run", "--config"])
        .arg(&file)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        text.contains(&format!(
            "cannot listen on {address}: Address already in use"
        )),
        "{text}"
    );
}
