//! How does a storm of logins wait in line for a server, and what is left of it afterwards?

use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use testbed::Testbed;

use crate::support::client::{Client, V3_0, connect, startup_packet};
use crate::support::proxy::{Proxy, rds_config};
use crate::support::wait_for;

const TARGET: &str = "db_user = \"jane_doe\"\ndatabase = \"postgres\"\n";

#[test]
fn clients_that_leave_before_their_login_leave_nothing_in_line_behind() {
    const CLIENTS: usize = 300;
    let aws = Testbed::shared().aws();
    let proxy = Proxy::with_config(
        &aws,
        &rds_config(&format!("{TARGET}max_logins_per_second = 5")),
    );
    for _ in 0..CLIENTS {
        connect(proxy.address())
            .write_all(&startup_packet(V3_0, &[("user", "x")]))
            .unwrap();
    }
    let ends = [
        "client left before its login was done",
        "login refused",
        "session opened",
    ];
    wait_for("the end of the storm", || {
        let log = proxy.log();
        let ended: usize = ends.iter().map(|end| log.matches(end).count()).sum();
        (ended >= CLIENTS).then_some(())
    });
    Client::log_in(proxy.address(), &[("user", "x")]).expect("nobody else is in line");
}

#[test]
fn logins_keep_their_pace_while_ten_times_as_many_are_tried() {
    const CLIENTS: usize = 60;
    let aws = Testbed::shared().aws();
    let proxy = Proxy::with_config(
        &aws,
        &rds_config(&format!("{TARGET}max_logins_per_second = 5")),
    );
    let (stop, logins) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    match Client::log_in(proxy.address(), &[("user", "x")]) {
                        Ok(_) => {
                            logins.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(error) => assert_eq!(error.sqlstate(), "57P03"),
                    }
                    thread::park_timeout(Duration::from_millis(100));
                }
            });
        }
        // Those who are refused within the first ten seconds must not take the place of others
        // later.
        for _ in 0..2 {
            let target = logins.load(Ordering::Relaxed) + 40;
            let reached = std::panic::catch_unwind(|| {
                wait_for("more logins", || {
                    (logins.load(Ordering::Relaxed) >= target).then_some(())
                });
            });
            if reached.is_err() {
                stop.store(true, Ordering::Relaxed);
                panic!("the server is idle while clients wait");
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    Client::log_in(proxy.address(), &[("user", "x")]).expect("the storm is over");
}

#[test]
fn targets_of_one_server_keep_its_pace_together() {
    let aws = Testbed::shared().aws();
    let one = rds_config(&format!("{TARGET}max_logins_per_second = 2"));
    let (_, target) = one.split_once("[target.app]").unwrap();
    let other = target.replace("max_logins_per_second = 2", "max_logins_per_second = 100");
    let config = format!(
        "{}[target.other]{other}",
        one.replace("[\"app\"]", "[\"app\", \"other\"]")
    );
    let proxy = Proxy::with_config(&aws, &config);
    let started = Instant::now();
    thread::scope(|scope| {
        for login in 0..8 {
            let target = ["app/postgres", "other/postgres"][login % 2];
            let proxy = &proxy;
            scope.spawn(move || {
                Client::log_in(proxy.address(), &[("user", "x"), ("database", target)])
                    .expect("it waits its turn");
            });
        }
    });
    assert!(
        started.elapsed() > Duration::from_secs(3),
        "eight logins at two per second take more than three seconds"
    );
}
