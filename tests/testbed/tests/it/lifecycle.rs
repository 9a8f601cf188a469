//! Does anything outlive its owner?

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

fn serve() -> (Child, Value) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_testbed"));
    let mut serve = command
        .arg("serve")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(serve.stdout.as_mut().unwrap())
        .read_line(&mut line)
        .unwrap();
    (serve, serde_json::from_str(&line).unwrap())
}

#[allow(
    clippy::disallowed_methods,
    reason = "the pause between two looks at the condition"
)]
fn assert_gone(description: &Value) {
    let pki_dir = Path::new(description["ca_file"].as_str().unwrap())
        .parent()
        .unwrap();
    let pids: Vec<String> = description["pids"]
        .as_array()
        .unwrap()
        .iter()
        .map(Value::to_string)
        .collect();
    assert_eq!(pids.len(), 2);
    let alive = || {
        pids.iter().any(|pid| {
            Command::new("kill")
                .args(["-0", pid])
                .stderr(Stdio::null())
                .status()
                .unwrap()
                .success()
        })
    };
    let deadline = Instant::now() + Duration::from_secs(20);
    while alive() || pki_dir.exists() {
        assert!(
            Instant::now() < deadline,
            "{pids:?} or {} are still there",
            pki_dir.display()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn servers_end_when_their_owner_is_killed() {
    let (mut serve, description) = serve();
    serve.kill().unwrap();
    serve.wait().unwrap();
    assert_gone(&description);
}

/// Starting, asking and ending block the thread, and a thread of a runtime must survive that.
#[tokio::test]
async fn a_testbed_starts_and_ends_inside_a_runtime() {
    let testbed = testbed::Testbed::start().unwrap();
    testbed.redshift().create_user("anybody");
    let _aws = testbed.aws();
    let description =
        serde_json::json!({ "ca_file": testbed.ca_file(), "pids": testbed.process_ids() });
    drop(testbed);
    assert_gone(&description);
}

#[test]
fn serve_ends_when_its_stdin_is_closed() {
    let (mut serve, description) = serve();
    drop(serve.stdin.take());
    assert!(serve.wait().unwrap().success());
    assert_gone(&description);
}

#[test]
fn serve_ends_on_sigterm() {
    let (mut serve, description) = serve();
    let pid = serve.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-TERM", &pid])
            .status()
            .unwrap()
            .success()
    );
    assert!(serve.wait().unwrap().success());
    assert_gone(&description);
}

#[test]
fn the_error_for_a_missing_server_says_how_to_install_it() {
    let output = Command::new(env!("CARGO_BIN_EXE_testbed"))
        .arg("serve")
        .env("PG_BIN", "/nonexistent")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("PG_BIN=/nonexistent has no initdb"));
}

#[test]
fn a_server_can_be_stopped_in_every_way_and_serves_again_on_its_port() {
    let bed = testbed::Testbed::start().unwrap();
    let server = bed.rds_server();
    for how in [
        testbed::Stop::Fast,
        testbed::Stop::Immediate,
        testbed::Stop::Kill,
    ] {
        let before = server.process_id().unwrap();
        server.stop(how).unwrap();
        let refused = std::net::TcpStream::connect(("127.0.0.1", server.port())).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        server.start_again().unwrap();
        assert_ne!(server.process_id().unwrap(), before);
        bed.rds().administer("exampledb", "select 1").unwrap();
    }
    server.stop(testbed::Stop::Fast).unwrap();
    let dir = server.dir().to_owned();
    drop(bed);
    assert!(!dir.exists(), "a stopped server is removed too");
}
