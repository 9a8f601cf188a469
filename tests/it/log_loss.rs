//! Do sessions go on when nobody reads the log or the disk is full, and what becomes of the lines?

use std::fs::File;
use std::io::{BufRead, BufReader, PipeReader, Write};
use std::net::TcpListener;
use std::process::{Command, Stdio};

use testbed::{Aws, Testbed};

use crate::admin::{admin_address, scrape, value};
use crate::support::client::{Client, V3_0, connect, read_refusal, startup_packet};
use crate::support::proxy::{Proxy, command, config_file, rds_config, redshift_config};
use crate::support::wait_for;

const LOST: &str = "pg_iam_proxy_log_lines_lost_total";
/// What a pipe holds before its writer has to wait.
const PIPE_SIZE: usize = 64 << 10;

/// A proxy at level trace, which also listens for operators, and whose log goes here.
fn with_log(aws: &Aws, config: &str, log: impl Into<Stdio>) -> Proxy {
    let file = config_file(&format!("{config}\n[admin]\nhttp = \"127.0.0.1:0\"\n"));
    let mut command = command();
    command
        .args(["run", "--log-level", "trace", "--config"])
        .arg(&file)
        .envs(aws.env())
        .stderr(log);
    Proxy::start(command, 1)
}

/// A proxy whose first log line has to wait already.
fn with_stalled_log(aws: &Aws, config: &str) -> (Proxy, PipeReader) {
    let (reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(&vec![b'\n'; PIPE_SIZE]).unwrap();
    (with_log(aws, config, writer), reader)
}

fn lost(proxy: &Proxy) -> f64 {
    value(&scrape(admin_address(proxy).unwrap()), LOST).expect("the metric is there")
}

fn query(proxy: &Proxy) {
    let mut client = Client::log_in(proxy.address(), &[("user", "x")]).expect("the login goes on");
    assert_eq!(client.value("select 1"), "1");
}

#[test]
fn sessions_go_on_while_nobody_reads_the_log_and_a_line_tells_what_was_lost() {
    let aws = Testbed::shared().aws();
    let config = redshift_config(&aws, "database = \"dev\"\n[user.x]\ndb_user = \"ana\"");
    let (mut proxy, reader) = with_stalled_log(&aws, &config);
    query(&proxy);
    assert!(lost(&proxy).abs() < 0.5, "lines can wait");
    // Each of these is refused, with a line that is as long as a client can make it.
    let name = "\u{10ffff}".repeat(200);
    let mut refused = 0;
    while lost(&proxy) < 10.0 {
        let mut stream = connect(proxy.address());
        let packet = startup_packet(V3_0, &[("user", &name)]);
        stream.write_all(&packet).unwrap();
        assert_eq!(read_refusal(&mut stream).sqlstate(), "28000");
        refused += 1;
        assert!(refused < 5_000, "the queue has no end");
    }
    query(&proxy);

    let mut lines = BufReader::new(reader).lines().map(Result::unwrap);
    let (mut seen, mut reported) = (0, 0);
    while reported == 0 {
        let line = lines.next().expect("the proxy runs");
        seen += usize::from(line.contains("login refused"));
        if line.contains("log lines were lost") {
            let number = line.rsplit_once("lines=").unwrap().1;
            reported = number.parse::<u32>().unwrap();
        }
    }
    assert!(seen > 100, "what could wait was written: {seen}");
    assert!((lost(&proxy) - f64::from(reported)).abs() < 0.5);
    query(&proxy);
    proxy.signal("-TERM");
    assert!(lines.any(|line| line.contains("session ended")));
    assert!(proxy.wait().success());
}

#[test]
fn a_proxy_whose_log_nobody_reads_can_be_stopped() {
    let aws = Testbed::shared().aws();
    let config = rds_config("db_user = \"jane_doe\"\ndatabase = \"postgres\"");
    let (mut proxy, _reader) = with_stalled_log(&aws, &config);
    query(&proxy);
    proxy.signal("-TERM");
    assert!(proxy.wait().success());
}

#[test]
fn sessions_go_on_while_the_disk_is_full_and_the_lines_are_counted() {
    let aws = Testbed::shared().aws();
    let config = rds_config("db_user = \"jane_doe\"\ndatabase = \"postgres\"");
    let full = File::options().write(true).open("/dev/full").unwrap();
    let proxy = with_log(&aws, &config, full);
    query(&proxy);
    query(&proxy);
    wait_for("lost lines", || (lost(&proxy) >= 2.0).then_some(()));
}

#[test]
fn a_start_that_fails_says_why_behind_all_its_log_lines() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!(
        "jdbc:redshift:iam://examplecluster:us-west-2/dev?DbUser=ana&listen={}&loglevel=1",
        taken.local_addr().unwrap()
    );
    let mut command: Command = command();
    let output = command.args(["run", &url]).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert!(lines[0].contains("WARN"), "{text}");
    assert!(
        lines[1].starts_with("pg-iam-proxy: cannot listen on"),
        "{text}"
    );
}
