//! What do the metrics and health checks tell operators, what do they never show, and can one
//! client keep others from them?

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;
use testbed::{Aws, Fault, FaultRule, Testbed};

use crate::support::client::{Client, connect};
use crate::support::proxy::{
    Proxy, command, config_file, hash_password, output, rds_config, redshift_config,
};
use crate::support::reports::reports;
use crate::support::{python, wait_for};

const RDS_USER: &str = "db_user = \"jane_doe\"\ndatabase = \"postgres\"";
const REDSHIFT_USER: &str = "db_user = \"ana\"\ndatabase = \"dev\"";

/// A proxy that also listens for operators.
struct Watched {
    proxy: Proxy,
    admin: SocketAddr,
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Watched {
    fn with_config(aws: &Aws, config: &str) -> Self {
        let proxy =
            Proxy::with_config(aws, &format!("{config}\n[admin]\nhttp = \"127.0.0.1:0\"\n"));
        let admin = admin_address(&proxy).expect("it is printed");
        Self { proxy, admin }
    }

    fn get(&self, path: &str) -> Answer {
        request(self.admin, "GET", path)
    }

    /// The current value of a series, or `None` if there is no such series.
    fn value(&self, series: &str) -> Option<f64> {
        value(&self.get("/metrics").body, series)
    }

    fn log_in(&self) -> Result<Client, String> {
        Client::log_in(self.proxy.address(), &[("user", "x")])
            .map_err(|error| error.sqlstate().to_string())
    }
}

pub fn admin_address(proxy: &Proxy) -> Option<SocketAddr> {
    let url = proxy
        .printed
        .split("http://")
        .nth(1)?
        .split("/metrics")
        .next()?;
    url.parse().ok()
}

pub fn scrape(admin: SocketAddr) -> String {
    request(admin, "GET", "/metrics").body
}

fn request(admin: SocketAddr, method: &str, path: &str) -> Answer {
    let mut stream = connect(admin);
    send(&mut stream, method, path);
    answer(stream)
}

fn send(stream: &mut TcpStream, method: &str, path: &str) {
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"
    )
    .unwrap();
}

fn answer(mut stream: TcpStream) -> Answer {
    let mut text = String::new();
    stream
        .read_to_string(&mut text)
        .expect("an answer, and the end of the connection");
    let (head, body) = text.split_once("\r\n\r\n").expect("a head");
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .expect("a status");
    Answer {
        status,
        head: head.to_ascii_lowercase(),
        body: body.to_string(),
    }
}

pub fn value(scrape: &str, series: &str) -> Option<f64> {
    scrape
        .lines()
        .find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
}

/// All series as an independent client and parser see them: type, name, labels and value.
fn parsed(admin: SocketAddr) -> Vec<(String, String, Value, f64)> {
    let output = python::script("parse_metrics.py")
        .arg(format!("http://{admin}/metrics"))
        .output()
        .expect("python starts");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).expect("what the script prints")
}

/// Asserts that the table of metrics in the documentation has every metric that was scraped.
fn assert_documented(series: &[(String, String, Value, f64)]) {
    let page = include_str!("../../docs/operations.md");
    for (_, name, _, _) in series {
        let name = name
            .trim_end_matches("_bucket")
            .trim_end_matches("_count")
            .trim_end_matches("_sum");
        assert!(
            page.contains(&format!("`{name}`")),
            "{name} is not in docs/operations.md"
        );
    }
}

#[test]
fn an_independent_parser_reads_a_scrape() {
    let aws = Testbed::shared().aws();
    // The name of this target has to be escaped in labels.
    let watched = Watched::with_config(
        &aws,
        &rds_config(RDS_USER)
            .replace("[\"app\"]", "['a\"\\b']")
            .replace("[target.app]", "[target.'a\"\\b']"),
    );
    assert_eq!(watched.log_in().unwrap().value("select 1"), "1");
    wait_for("the session's end", || {
        (watched.value("pg_iam_proxy_received_bytes_total{target=\"a\\\"\\\\b\"}") > Some(0.0))
            .then_some(())
    });
    let series = parsed(watched.admin);
    let find = |name: &str, labels: Value| {
        let (kind, _, _, value) = series
            .iter()
            .find(|(_, other, others, _)| other == name && *others == labels)
            .unwrap_or_else(|| panic!("no {name} {labels} in {series:?}"));
        (kind.as_str(), *value)
    };
    let target = r#"a"\b"#;
    assert_eq!(
        find(
            "pg_iam_proxy_build_info",
            serde_json::json!({"version": env!("CARGO_PKG_VERSION")})
        ),
        ("info", 1.0)
    );
    assert_eq!(
        find(
            "pg_iam_proxy_sessions_total",
            serde_json::json!({"target": target})
        ),
        ("counter", 1.0)
    );
    assert_eq!(
        find(
            "pg_iam_proxy_sessions_open",
            serde_json::json!({"target": target})
        )
        .0,
        "gauge"
    );
    assert_eq!(
        find(
            "pg_iam_proxy_credentials_renewal_failing",
            serde_json::json!({"target": target})
        ),
        ("gauge", 0.0)
    );
    for phase in ["startup", "credentials", "connect", "login"] {
        let labels = serde_json::json!({"target": target, "phase": phase});
        assert_eq!(
            find("pg_iam_proxy_login_duration_seconds_count", labels.clone()),
            ("histogram", 1.0)
        );
        let (_, seconds) = find("pg_iam_proxy_login_duration_seconds_sum", labels);
        assert!(seconds > 0.0 && seconds < 20.0, "{phase}: {seconds} s");
    }
    assert_documented(&series);
    let outcome = |outcome| {
        find(
            "pg_iam_proxy_credential_requests_total",
            serde_json::json!({"target": target, "outcome": outcome}),
        )
        .1
    };
    assert_eq!(
        (outcome("made"), outcome("denied"), outcome("unavailable")),
        (1.0, 0.0, 0.0)
    );
}

#[test]
fn sessions_and_bytes_are_counted_by_target() {
    let aws = Testbed::shared().aws();
    let watched = Watched::with_config(&aws, &rds_config(RDS_USER));
    let open = "pg_iam_proxy_sessions_open{target=\"app\"}";
    assert_eq!(
        watched.value(open),
        Some(0.0),
        "the series exists before the first session"
    );
    let mut clients = vec![watched.log_in().unwrap(), watched.log_in().unwrap()];
    // A client learns that it is logged in a moment before its session is counted.
    wait_for("both sessions", || {
        (watched.value(open) == Some(2.0)).then_some(())
    });
    assert_eq!(clients[0].value("select repeat('x', 10000)").len(), 10_000);
    clients.clear();
    wait_for("the sessions' end", || {
        (watched.value(open) == Some(0.0)).then_some(())
    });
    assert_eq!(
        watched.value("pg_iam_proxy_sessions_total{target=\"app\"}"),
        Some(2.0)
    );
    let received = watched
        .value("pg_iam_proxy_received_bytes_total{target=\"app\"}")
        .unwrap();
    assert!(received > 10_000.0 && received < 20_000.0, "{received}");
    let sent = watched
        .value("pg_iam_proxy_sent_bytes_total{target=\"app\"}")
        .unwrap();
    assert!(sent > 30.0 && sent < 1_000.0, "{sent}");
    assert_eq!(
        watched.value("pg_iam_proxy_credentials_cached_total{target=\"app\"}"),
        Some(1.0),
        "only the second login used the cache"
    );
}

#[test]
fn a_login_from_the_pool_counts_only_in_the_phases_that_it_went_through() {
    let aws = Testbed::shared().aws();
    let watched =
        Watched::with_config(&aws, &rds_config(&format!("{RDS_USER}\nwarm_sessions = 1")));
    let _fresh = watched.log_in().unwrap();
    watched.proxy.log_line(&["spare session ready"]);
    assert_eq!(
        watched.value("pg_iam_proxy_sessions_open{target=\"app\"}"),
        Some(1.0),
        "a pooled session does not count as a client's"
    );
    let _pooled = watched.log_in().unwrap();
    wait_for("both sessions", || {
        (watched.value("pg_iam_proxy_sessions_open{target=\"app\"}") == Some(2.0)).then_some(())
    });
    let count = |phase| {
        watched.value(&format!(
            "pg_iam_proxy_login_duration_seconds_count{{target=\"app\",phase=\"{phase}\"}}"
        ))
    };
    assert_eq!(
        (count("startup"), count("connect"), count("login")),
        (Some(2.0), Some(1.0), Some(1.0))
    );
}

#[test]
fn sessions_of_the_pool_are_counted_by_target_and_state() {
    let aws = Testbed::shared().aws();
    let watched =
        Watched::with_config(&aws, &rds_config(&format!("{RDS_USER}\nwarm_sessions = 1")));
    let ready = "pg_iam_proxy_pool_sessions{target=\"app\",state=\"ready\"}";
    let starting = "pg_iam_proxy_pool_sessions{target=\"app\",state=\"starting\"}";
    assert_eq!(
        (watched.value(ready), watched.value(starting)),
        (Some(0.0), Some(0.0)),
        "the pool is empty until somebody logs in"
    );
    let _client = watched.log_in().unwrap();
    let scrape = wait_for("the pooled session", || {
        let scrape = watched.get("/metrics").body;
        (value(&scrape, ready) == Some(1.0)).then_some(scrape)
    });
    assert_eq!(value(&scrape, starting), Some(0.0), "{scrape}");
    let series = parsed(watched.admin);
    let find = |(kind, name, labels, value): &(String, String, Value, f64)| {
        let is_ready = name == "pg_iam_proxy_pool_sessions"
            && *labels == serde_json::json!({"target": "app", "state": "ready"});
        is_ready.then(|| (kind.clone(), *value))
    };
    assert_eq!(
        series.iter().find_map(find),
        Some(("gauge".to_string(), 1.0))
    );
    assert_documented(&series);
}

#[test]
fn failed_logins_are_counted_by_sqlstate_and_metrics_show_no_names_and_no_secrets() {
    let aws = Testbed::shared().aws();
    let verifier = hash_password("correct horse");
    let config = redshift_config(&aws, REDSHIFT_USER).replace("\"trust\"", "\"scram-sha-256\"");
    let watched = Watched::with_config(
        &aws,
        &format!("{config}[user.grace]\npassword = \"{verifier}\"\n"),
    );
    let psql = |user: &str, password: &str| {
        let uri = format!(
            "postgresql://{user}@{}/payroll?application_name=quarterly",
            watched.proxy.address()
        );
        Command::new("psql")
            .args(["-XAtw", &uri, "-c", "select 'hello'"])
            .env("PGPASSWORD", password)
            .output()
            .expect("psql")
            .status
            .success()
    };
    assert!(psql("grace", "correct horse"));
    assert!(!psql("grace", "battery staple"));
    assert!(!psql("hedy", "correct horse"));
    // The first of these does not speak PostgreSQL, and the second says nothing at all.
    connect(watched.proxy.address())
        .write_all(b"GET / HTTP/1.1\r\n\r\n")
        .unwrap();
    drop(connect(watched.proxy.address()));
    wait_for("the violation", || {
        watched.value("pg_iam_proxy_login_failures_total{target=\"\",sqlstate=\"08P01\"}")
    });
    let scrape = watched.get("/metrics").body;
    assert_eq!(
        value(
            &scrape,
            "pg_iam_proxy_login_failures_total{target=\"\",sqlstate=\"28P01\"}"
        ),
        Some(2.0)
    );
    assert_eq!(
        scrape.matches("pg_iam_proxy_login_failures_total{").count(),
        2,
        "{scrape}"
    );
    assert_eq!(
        value(&scrape, "pg_iam_proxy_sessions_total{target=\"warehouse\"}"),
        Some(1.0)
    );
    let keys = verifier.rsplit('$').next().unwrap();
    for secret in [
        "grace",
        "hedy",
        "ana",
        "payroll",
        "quarterly",
        "hello",
        "horse",
        "127.0.0.1",
        keys,
        aws.secret_access_key(),
        aws.access_key_id(),
    ] {
        assert!(!scrape.contains(secret), "{secret} in {scrape}");
    }
}

#[test]
fn logins_that_the_server_refuses_are_counted_by_target() {
    let aws = Testbed::shared().aws();
    let watched = Watched::with_config(
        &aws,
        &rds_config("db_user = \"jane_doe\"\ndatabase = \"no_such_database\""),
    );
    assert_eq!(watched.log_in().err().as_deref(), Some("3D000"));
    assert_eq!(
        watched.value("pg_iam_proxy_login_failures_total{target=\"app\",sqlstate=\"3D000\"}"),
        Some(1.0)
    );
    assert_eq!(
        watched.value("pg_iam_proxy_sessions_open{target=\"app\"}"),
        Some(0.0)
    );
    assert_eq!(
        watched.value("pg_iam_proxy_sessions_total{target=\"app\"}"),
        Some(0.0)
    );
}

#[test]
fn requests_that_aws_refuses_are_counted_by_target_and_outcome() {
    let aws = Testbed::shared().aws();
    aws.add_fault(
        FaultRule::new(Fault::Deny)
            .for_action("DescribeClusters")
            .times(1),
    );
    let watched = Watched::with_config(&aws, &redshift_config(&aws, REDSHIFT_USER));
    assert_eq!(watched.log_in().err().as_deref(), Some("28000"));
    assert_eq!(
        watched.value(
            "pg_iam_proxy_endpoint_discovery_failures_total{target=\"warehouse\",\
        outcome=\"denied\"}"
        ),
        Some(1.0)
    );
    aws.add_fault(
        FaultRule::new(Fault::Deny)
            .for_action("GetClusterCredentials")
            .times(1),
    );
    let denied = "pg_iam_proxy_credential_requests_total{target=\"warehouse\",outcome=\"denied\"}";
    wait_for("the next call", || {
        assert_eq!(watched.log_in().err().as_deref(), Some("28000"));
        (watched.value(denied) == Some(1.0)).then_some(())
    });
    assert_eq!(
        watched.value("pg_iam_proxy_credentials_renewal_failing{target=\"warehouse\"}"),
        Some(0.0),
        "no cached credential is served"
    );
    assert_eq!(
        watched
            .value("pg_iam_proxy_credentials_usable_until_timestamp_seconds{target=\"warehouse\"}"),
        None
    );
}

#[test]
fn metrics_show_when_renewals_fail_and_when_they_succeed_again() {
    let aws = Testbed::shared().aws();
    let watched = Watched::with_config(&aws, &redshift_config(&aws, REDSHIFT_USER));
    // The proxy uses this credential for 18 s and renews it after 12.6 s at the earliest and 16.8 s
    // at the latest.
    aws.set_credential_life(Duration::from_secs(24));
    drop(watched.log_in().unwrap());
    aws.set_fault(Fault::Malformed);
    let failing = "pg_iam_proxy_credentials_renewal_failing{target=\"warehouse\"}";
    let request = |outcome| {
        format!(
            "pg_iam_proxy_credential_requests_total{{target=\"warehouse\",outcome=\"{outcome}\"}}"
        )
    };
    assert_eq!(watched.value(failing), Some(0.0));
    let (now, scrape) = wait_for("a renewal that fails", || {
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap()
            .as_secs_f64();
        let scrape = watched.get("/metrics").body;
        (value(&scrape, failing) == Some(1.0)).then_some((now, scrape))
    });
    drop(
        watched
            .log_in()
            .expect("the cached credential is still served"),
    );
    assert!(
        value(&scrape, &request("unavailable")) >= Some(1.0),
        "{scrape}"
    );
    assert_eq!(value(&scrape, &request("made")), Some(1.0), "{scrape}");
    let until = "pg_iam_proxy_credentials_usable_until_timestamp_seconds{target=\"warehouse\"}";
    let first = value(&scrape, until).unwrap();
    assert!(
        first >= now.floor() && first < now + 18.0,
        "{first} at {now}"
    );
    aws.set_credential_life(Duration::from_mins(15));
    aws.set_fault(None);
    let scrape = wait_for("the recovery", || {
        let scrape = watched.get("/metrics").body;
        (value(&scrape, failing) == Some(0.0)).then_some(scrape)
    });
    assert_eq!(value(&scrape, &request("made")), Some(2.0), "{scrape}");
    assert!(value(&scrape, until).unwrap() > first + 600.0, "{scrape}");
}

#[test]
fn health_checks_are_answered_and_other_requests_are_refused() {
    let aws = Testbed::shared().aws();
    let mut watched = Watched::with_config(&aws, &rds_config(RDS_USER));
    for (method, path, status) in [
        ("GET", "/livez", 200),
        ("GET", "/readyz", 200),
        ("GET", "/metrics?x=1", 200),
        ("GET", "/", 404),
        ("GET", "/metrics/", 404),
        ("POST", "/", 404),
        ("POST", "/metrics", 405),
        ("DELETE", "/livez", 405),
        ("PUT", "/readyz", 405),
    ] {
        let answer = request(watched.admin, method, path);
        assert_eq!(answer.status, status, "{method} {path}");
        assert_eq!(
            answer.head.contains("allow: get, head"),
            status == 405,
            "{}",
            answer.head
        );
    }
    let head = request(watched.admin, "HEAD", "/metrics");
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    assert!(
        head.head.contains("content-length: ") && !head.head.contains("content-length: 0"),
        "{}",
        head.head
    );
    let mut session = watched.log_in().unwrap();
    watched.proxy.signal("-TERM");
    watched
        .proxy
        .log_line(&["stopping: waiting for sessions to end"]);
    let ready = watched.get("/readyz");
    assert_eq!((ready.status, ready.body.as_str()), (503, "stopping\n"));
    assert_eq!(watched.get("/livez").status, 200);
    assert_eq!(
        watched.value("pg_iam_proxy_sessions_open{target=\"app\"}"),
        Some(1.0)
    );
    session.send(b'X', b"");
    assert!(watched.proxy.wait().success());
}

#[test]
fn a_slow_client_delays_nobody_and_is_cut_off() {
    let aws = Testbed::shared().aws();
    let watched = Watched::with_config(&aws, &rds_config(RDS_USER));
    let mut slow = connect(watched.admin);
    slow.write_all(b"GET /metrics HTTP/1.1\r\nHost: loc")
        .unwrap();
    assert_eq!(watched.get("/metrics").status, 200);
    assert_eq!(slow.read(&mut [0]).expect("the connection is closed"), 0);
}

#[test]
fn silent_clients_keep_no_probe_out() {
    let aws = Testbed::shared().aws();
    let watched = Watched::with_config(&aws, &rds_config(RDS_USER));
    // If each of them had its five seconds, the probe would wait for half a minute.
    let mut crowd: Vec<_> = (0..200).map(|_| connect(watched.admin)).collect();
    let began = Instant::now();
    assert_eq!(watched.get("/livez").status, 200);
    assert!(began.elapsed() < Duration::from_secs(10));
    assert!(
        watched.log_in().is_ok(),
        "logins do not depend on the operators' address"
    );
    assert_eq!(crowd[0].read(&mut [0]).expect("the oldest is closed"), 0);
}

#[test]
fn the_address_is_off_by_default_and_flag_and_environment_override_the_file() {
    let aws = Testbed::shared().aws();
    let start = |file: &str, environment: Option<&str>, flag: Option<&str>| {
        let file = config_file(&format!("{}{file}", rds_config(RDS_USER)));
        let mut command = command();
        command.args(["run", "--config"]).arg(&file).envs(aws.env());
        command.envs(environment.map(|address| ("PG_IAM_PROXY_ADMIN", address)));
        command.args(flag.into_iter().flat_map(|address| ["--admin", address]));
        admin_address(&Proxy::start(command, 1)).map(|address| address.ip().to_string())
    };
    let file = "[admin]\nhttp = \"127.0.0.2:0\"\n";
    assert_eq!(start("", None, None), None);
    assert_eq!(start("[admin]\n", None, None), None);
    assert_eq!(start(file, None, None).as_deref(), Some("127.0.0.2"));
    assert_eq!(
        start(file, Some("127.0.0.3:0"), None).as_deref(),
        Some("127.0.0.3")
    );
    assert_eq!(
        start(file, Some("127.0.0.3:0"), Some("127.0.0.4:0")).as_deref(),
        Some("127.0.0.4")
    );
    assert_eq!(
        start("", None, Some("0.0.0.0:0")).as_deref(),
        Some("0.0.0.0")
    );
}

#[test]
fn the_error_for_an_unusable_address_names_it() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let run = |arguments: &[&str], config: &str| {
        let file = config_file(config);
        let path = file.display().to_string();
        let output = output(&[&["run", "--config", &path], arguments].concat());
        (
            output.status.code(),
            String::from_utf8(output.stderr)
                .unwrap()
                .replace(&path, "FILE"),
        )
    };
    let config = rds_config(RDS_USER);
    let (code, error) = run(&["--admin", &address], &config);
    assert_eq!(code, Some(1));
    assert!(
        error.contains(&format!(
            "pg-iam-proxy: cannot listen on {address} for metrics and \
        health: Address already in use"
        )),
        "{error}"
    );
    let (code, error) = run(&["--admin", "localhost"], &config);
    assert_eq!(code, Some(64));
    assert!(
        error.contains("invalid value 'localhost' for '--admin <ADDRESS>'"),
        "{error}"
    );
    let lines = config.lines().count();
    for (admin, expected) in [
        (
            "http = \"localhost:9439\"",
            "admin.http = \"localhost:9439\": must be an IP address and a port, as in \
             \"127.0.0.1:9439\"",
        ),
        ("console = \"127.0.0.1:6439\"", "unknown key `console`"),
        (
            "http = \"127.0.0.1:5439\"",
            "admin.http = \"127.0.0.1:5439\": a listener has it",
        ),
    ] {
        let config = config.replace("127.0.0.1:0", "127.0.0.1:5439");
        let reports = reports(&config_file(&format!("{config}[admin]\n{admin}\n")));
        let heads: Vec<_> = reports.iter().map(|report| &report.head).collect();
        assert_eq!(heads, [&format!("{}:1: {expected}", lines + 2)]);
    }
}
