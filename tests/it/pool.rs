//! Sessions that are logged in before their client comes: who gets one, and who never does.

use std::collections::BTreeSet;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use testbed::Testbed;

use crate::support::client::{
    Client, Reply, V3_0, V3_2, cancel, connect, read_reply, startup_packet,
};
use crate::support::proxy::{Proxy, hash_password, rds_config, redshift_config};
use crate::support::wait_for;

const TARGET: &str = "db_user = \"jane_doe\"\ndatabase = \"postgres\"\n";

fn proxy(keys: &str) -> Proxy {
    let aws = Testbed::shared().aws();
    Proxy::with_config(&aws, &rds_config(&format!("{TARGET}{keys}")))
}

fn wait_for_spares(proxy: &Proxy, count: usize) {
    wait_for("spares", || {
        (proxy.log().matches("spare session ready").count() >= count).then_some(())
    });
}

/// How many of this many logins took a spare.
fn warm_logins(proxy: &Proxy, logins: usize) -> usize {
    let log = wait_for("the logins' lines", || {
        Some(proxy.log()).filter(|log| log.matches("session opened").count() >= logins)
    });
    log.lines()
        .filter(|line| line.contains("session opened") && line.contains(" warm=true "))
        .count()
}

/// Sessions that the server has for this `application_name`, besides the one that asks.
fn sessions(observer: &mut Client, name: &str) -> BTreeSet<String> {
    let of_name = format!(
        "select pid from pg_stat_activity where application_name = '{name}' and pid <> pg_backend_pid()"
    );
    observer.query(&of_name).unwrap().into_iter().collect()
}

#[test]
fn the_second_login_of_a_kind_takes_a_spare_and_cannot_tell() {
    let aws = Testbed::shared().aws();
    let warm = "warm_sessions = 1\n";
    let rds = rds_config(&format!("{TARGET}{warm}"));
    let redshift = redshift_config(
        &aws,
        &format!("db_user = \"ana\"\ndatabase = \"dev\"\n{warm}"),
    );
    for config in [rds, redshift] {
        let proxy = Proxy::with_config(&aws, &config);
        let parameters = [
            ("user", "x"),
            ("application_name", "a tool"),
            ("DateStyle", "SQL, DMY"),
        ];
        let mut cold = Client::log_in(proxy.address(), &parameters).unwrap();
        for (version, spares) in [(V3_0, 1), (V3_2, 2)] {
            wait_for_spares(&proxy, spares);
            let mut warm = Client::log_in_with(proxy.address(), version, &parameters).unwrap();
            assert_eq!(warm_logins(&proxy, 1 + spares), spares);
            assert_eq!(warm.settings, cold.settings);
            assert_eq!(
                warm.value("select pg_backend_pid()"),
                warm.process_id().to_string()
            );
            assert_ne!(warm.process_id(), cold.process_id());
            warm.sleep_on_server(&mut cold);
            cancel(proxy.address(), &warm.key);
            assert_eq!(warm.read_rows().err().unwrap().sqlstate(), "57014");
        }
        let line = proxy.log_line(&["session opened", " warm=true "]);
        assert!(
            line.contains(" credentials_ms=0.0 connect_ms=0.0 login_ms=0.0")
                && line.contains(" upstream=127.0.0.1:"),
            "{line}"
        );
    }
}

#[test]
fn the_greeting_of_a_warm_login_arrives_in_one_piece() {
    let proxy = proxy("warm_sessions = 1\n");
    let greeting = || {
        let mut stream = connect(proxy.address());
        std::io::Write::write_all(&mut stream, &startup_packet(V3_0, &[("user", "x")])).unwrap();
        let mut greeting = vec![0; 65_536];
        let length = std::io::Read::read(&mut stream, &mut greeting).unwrap();
        greeting.truncate(length);
        greeting
    };
    let cold = greeting();
    wait_for_spares(&proxy, 1);
    let warm = greeting();
    assert_eq!(warm_logins(&proxy, 2), 1);
    // BackendKeyData and ReadyForQuery are the last 13 + 6 bytes; the settings before them are the
    // same.
    assert_eq!(warm[..warm.len() - 19], cold[..cold.len() - 19]);
    assert!(warm.ends_with(b"Z\0\0\0\x05I"));
}

#[test]
fn a_login_with_other_parameters_takes_none() {
    let proxy = proxy("warm_sessions = 1\n");
    drop(
        Client::log_in(
            proxy.address(),
            &[("user", "x"), ("application_name", "one")],
        )
        .unwrap(),
    );
    wait_for_spares(&proxy, 1);
    let mut other = Client::log_in(
        proxy.address(),
        &[("user", "x"), ("application_name", "two")],
    )
    .unwrap();
    assert_eq!(other.value("show application_name"), "two");
    assert_eq!(warm_logins(&proxy, 2), 0);
}

#[test]
fn nobody_gets_what_was_made_for_another_person() {
    let aws = Testbed::shared().aws();
    let role = aws.add_role("warm-people", None);
    let travels = format!(
        "warm_sessions = 2\nrole_arn = \"{role}\"\nsession_name = \"{{user}}\"\nendpoint_url = \"{}\"\n",
        aws.endpoint_url()
    );
    for (keys, kind) in [
        (travels, "session_name"),
        (
            "warm_sessions = 2\napplication_name_suffix = true\n".to_string(),
            "suffix",
        ),
    ] {
        let proxy = Proxy::with_config(&aws, &rds_config(&format!("{TARGET}{keys}")));
        drop(Client::log_in(proxy.address(), &[("user", "ana")]).unwrap());
        wait_for_spares(&proxy, 1);
        drop(Client::log_in(proxy.address(), &[("user", "bob")]).unwrap());
        assert_eq!(warm_logins(&proxy, 2), 0, "{kind}");
        drop(Client::log_in(proxy.address(), &[("user", "ana")]).unwrap());
        assert_eq!(warm_logins(&proxy, 3), 1, "{kind}");
    }
}

#[test]
fn a_spare_is_for_clients_that_have_proved_who_they_are() {
    let aws = Testbed::shared().aws();
    let config = rds_config(&format!("{TARGET}warm_sessions = 1\n"))
        .replace("auth = \"trust\"", "auth = \"password\"\n[[listener.rule]]\nfrom = \"127.0.0.1\"\nusers = [\"guest\"]\nauth = \"trust\"")
        + &format!("[user.guest]\n[user.ana]\npassword = \"{}\"\n", hash_password("right"));
    let proxy = Proxy::with_config(&aws, &config);
    drop(Client::log_in(proxy.address(), &[("user", "guest")]).unwrap());
    wait_for_spares(&proxy, 1);
    let mut stream = connect(proxy.address());
    std::io::Write::write_all(&mut stream, &startup_packet(V3_0, &[("user", "ana")])).unwrap();
    assert!(matches!(read_reply(&mut stream), Reply::Message(b'R', body) if body == [0, 0, 0, 3]));
    std::io::Write::write_all(&mut stream, b"p\0\0\0\x0awrong\0").unwrap();
    let Reply::Message(b'E', body) = read_reply(&mut stream) else {
        panic!("a refusal")
    };
    assert_eq!(
        crate::support::client::error_fields(&body).sqlstate(),
        "28P01"
    );
    assert_eq!(warm_logins(&proxy, 1), 0);
}

#[test]
fn a_spare_that_the_server_has_closed_is_not_handed_out() {
    let proxy = proxy("warm_sessions = 1\n");
    let name = "closed spare";
    let parameters = [("user", "x"), ("application_name", name)];
    let mut first = Client::log_in(proxy.address(), &parameters).unwrap();
    wait_for_spares(&proxy, 1);
    let spare = sessions(&mut first, name).pop_first().expect("the spare");
    assert_eq!(
        first.value(&format!("select pg_terminate_backend({spare})")),
        "t"
    );
    proxy.log_line(&[
        "spare session ended",
        "reason=\"the server closed it, or said something\"",
    ]);
    let mut second = Client::log_in(proxy.address(), &parameters).unwrap();
    assert_eq!(second.value("select 1"), "1");
    assert_eq!(warm_logins(&proxy, 2), 0);
}

#[test]
fn a_storm_of_logins_gets_each_spare_once() {
    let proxy = proxy("warm_sessions = 4\n");
    let address = proxy.address();
    let parameters = [("user", "x"), ("application_name", "storm")];
    for _ in 0..4 {
        drop(Client::log_in(address, &parameters).unwrap());
    }
    wait_for_spares(&proxy, 4);
    let start = Arc::new(Barrier::new(16));
    let storm: Vec<_> = (0..16)
        .map(|_| {
            let start = start.clone();
            std::thread::spawn(move || {
                start.wait();
                Client::log_in(address, &parameters).unwrap()
            })
        })
        .collect();
    let mut clients: Vec<_> = storm
        .into_iter()
        .map(|client| client.join().unwrap())
        .collect();
    assert!(warm_logins(&proxy, 20) >= 4);
    let pids: BTreeSet<_> = clients
        .iter_mut()
        .map(|client| client.value("select pg_backend_pid()"))
        .collect();
    assert_eq!(pids.len(), 16, "a session each");
    for client in &mut clients {
        assert!(pids.contains(&client.process_id().to_string()));
    }
    wait_for("spares again, and no more than four", || {
        (sessions(&mut clients[0], "storm").len() == 15 + 4).then_some(())
    });
}

#[test]
fn a_spare_ends_at_its_greatest_age() {
    let proxy = proxy("warm_sessions = 1\nspare_max_age = \"1s\"\n");
    let name = "old spare";
    let mut observer = Client::log_in(
        proxy.address(),
        &[("user", "x"), ("application_name", name)],
    )
    .unwrap();
    let spare = wait_for("the spare", || sessions(&mut observer, name).pop_first());
    proxy.log_line(&["spare session ended", "reason=\"too old\""]);
    let next = wait_for("its successor", || {
        sessions(&mut observer, name)
            .into_iter()
            .find(|pid| *pid != spare)
    });
    assert_ne!(next, spare);
}

#[test]
fn a_stop_ends_the_spares() {
    let mut proxy = proxy("warm_sessions = 1\n");
    let name = "stopped spare";
    drop(
        Client::log_in(
            proxy.address(),
            &[("user", "x"), ("application_name", name)],
        )
        .unwrap(),
    );
    wait_for_spares(&proxy, 1);
    proxy.signal("-TERM");
    assert!(proxy.wait().success());
    proxy.log_line(&["spare session ended", "reason=\"not needed\""]);
    let other = self::proxy("");
    let mut observer = Client::log_in(other.address(), &[("user", "x")]).unwrap();
    wait_for("the end of the server's session", || {
        sessions(&mut observer, name).is_empty().then_some(())
    });
}

#[test]
fn spares_are_among_the_targets_sessions_and_make_room_for_clients() {
    let proxy = proxy("warm_sessions = 5\nmax_sessions = 2\n");
    let log_in = |name| {
        Client::log_in(
            proxy.address(),
            &[("user", "x"), ("application_name", name)],
        )
    };
    let mut first = log_in("few places").unwrap();
    wait_for_spares(&proxy, 1);
    assert_eq!(sessions(&mut first, "few places").len(), 1);
    // The only free place is the spare's.
    let second = log_in("another kind").unwrap();
    assert_eq!(warm_logins(&proxy, 2), 0);
    wait_for("the end of the spare", || {
        sessions(&mut first, "few places").is_empty().then_some(())
    });
    let error = log_in("few places").err().unwrap();
    assert_eq!(
        (error.sqlstate(), error.message()),
        ("53300", "sorry, too many clients already")
    );
    proxy.log_line(&["login refused", "detail=\"target.app.max_sessions = 2\""]);
    drop(second);
    wait_for("the free place", || log_in("few places").ok());
}

#[test]
fn spares_stand_in_line_with_all_logins() {
    let proxy = proxy("warm_sessions = 3\nmax_logins_per_second = 2\n");
    let begin = Instant::now();
    for _ in 0..3 {
        drop(Client::log_in(proxy.address(), &[("user", "x")]).unwrap());
    }
    let logins = || proxy.log().matches("spare session ready").count() + 3 - warm_logins(&proxy, 3);
    wait_for("spares", || (logins() >= 5).then_some(()));
    // Of at least five logins the first is at once, and what has been saved is worth a tenth of a
    // second.
    assert!(
        begin.elapsed() >= Duration::from_millis(4 * 500 - 100),
        "{:?}",
        begin.elapsed()
    );
}

#[test]
fn a_refused_spare_is_reported_once_and_no_obstacle() {
    let bed = Testbed::shared();
    let aws = bed.aws();
    bed.rds().create_user("warm_refused").unwrap();
    let proxy = Proxy::with_config(
        &aws,
        &rds_config("db_user = \"warm_refused\"\ndatabase = \"postgres\"\nwarm_sessions = 1\n"),
    );
    let log_in = || Client::log_in(proxy.address(), &[("user", "x")]).unwrap();
    let first = log_in();
    wait_for_spares(&proxy, 1);
    // A cached credential that is refused is replaced once: two refusals are one attempt.
    bed.rds().refuse_next_of("warm_refused", 2);
    let second = log_in();
    assert_eq!(warm_logins(&proxy, 2), 1);
    proxy.log_line(&[
        "WARN",
        "spare sessions cannot be made; logins go on without",
        "target=\"app\"",
        "temporary password twice",
    ]);
    let third = log_in();
    proxy.log_line(&["INFO", "spare sessions can be made again"]);
    wait_for_spares(&proxy, 2);
    drop((first, second, third));
    drop(log_in());
    assert_eq!(
        proxy.log().matches("spare sessions cannot be made").count(),
        1
    );
}

/// A proxy with three clients of this database user and a pool of two sessions, one of which could
/// not be replaced: the server refuses further logins since it has run the SQL in `refuse`.
fn pool_with_a_refusal(user: &str, refuse: &str) -> (Proxy, Vec<Client>) {
    let bed = Testbed::shared();
    let proxy = Proxy::with_config(
        &bed.aws(),
        &rds_config(&format!(
            "db_user = \"{user}\"\ndatabase = \"postgres\"\nwarm_sessions = 2\n"
        )),
    );
    let log_in = || Client::log_in(proxy.address(), &[("user", "x")]).unwrap();
    let first = log_in();
    wait_for_spares(&proxy, 1);
    let second = log_in();
    wait_for_spares(&proxy, 3);
    bed.rds().administer("postgres", refuse).unwrap();
    // It takes one of two pooled sessions, which the pool then tries to replace.
    let third = log_in();
    assert_eq!(warm_logins(&proxy, 3), 2);
    proxy.log_line(&["WARN", "spare sessions cannot be made"]);
    (proxy, vec![first, second, third])
}

#[test]
fn a_server_with_too_many_connections_does_not_make_the_pool_forget_a_kind_of_login() {
    let rds = Testbed::shared().rds();
    rds.create_user("warm_crowded").unwrap();
    // Two clients and two pooled sessions are there when the limit is set.
    let (proxy, clients) =
        pool_with_a_refusal("warm_crowded", "alter role warm_crowded connection limit 4");
    proxy.log_line(&[
        "spare sessions cannot be made",
        "too many connections for role",
    ]);
    let fourth = Client::log_in(proxy.address(), &[("user", "x")]).unwrap();
    assert_eq!(
        warm_logins(&proxy, 4),
        3,
        "the other session is still there"
    );
    let error = Client::log_in(proxy.address(), &[("user", "x")])
        .err()
        .unwrap();
    assert_eq!(error.sqlstate(), "53300");
    rds.administer("postgres", "alter role warm_crowded connection limit -1")
        .unwrap();
    // Nobody logs in from here on: the pool tries again by itself.
    proxy.log_line(&["INFO", "spare sessions can be made again"]);
    wait_for_spares(&proxy, 4);
    drop((clients, fourth));
}

#[test]
fn a_server_that_refuses_the_role_makes_the_pool_forget_its_logins() {
    let rds = Testbed::shared().rds();
    rds.create_user("warm_dismissed").unwrap();
    let (proxy, clients) =
        pool_with_a_refusal("warm_dismissed", "alter role warm_dismissed nologin");
    proxy.log_line(&[
        "spare sessions cannot be made",
        "is not permitted to log in",
    ]);
    proxy.log_line(&["spare session ended", "reason=\"not needed\""]);
    let error = Client::log_in(proxy.address(), &[("user", "x")])
        .err()
        .unwrap();
    assert_eq!(error.sqlstate(), "28000");
    drop(clients);
}
