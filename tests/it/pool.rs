//! Who gets a session that the pool has logged in before its client came, and who never gets one?

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

fn wait_for_pooled_sessions(proxy: &Proxy, count: usize) {
    wait_for("pooled sessions", || {
        (proxy.log().matches("spare session ready").count() >= count).then_some(())
    });
}

/// Waits until this many logins are done, and returns how many of them got a pooled session.
fn logins_from_the_pool(proxy: &Proxy, logins: usize) -> usize {
    let log = wait_for("the logins' lines", || {
        Some(proxy.log()).filter(|log| log.matches("session opened").count() >= logins)
    });
    log.lines()
        .filter(|line| line.contains("session opened") && line.contains(" warm=true "))
        .count()
}

/// The process IDs of all sessions that have this `application_name` at the server, except the
/// observer's own.
fn sessions(observer: &mut Client, name: &str) -> BTreeSet<String> {
    let of_name = format!(
        "select pid from pg_stat_activity where application_name = '{name}' and pid <> \
         pg_backend_pid()"
    );
    observer.query(&of_name).unwrap().into_iter().collect()
}

#[test]
fn a_login_gets_a_pooled_session_and_cannot_tell_it_from_a_new_one() {
    let aws = Testbed::shared().aws();
    let keys = "warm_sessions = 1\n";
    let rds = rds_config(&format!("{TARGET}{keys}"));
    let redshift = redshift_config(
        &aws,
        &format!("db_user = \"ana\"\ndatabase = \"dev\"\n{keys}"),
    );
    for config in [rds, redshift] {
        let proxy = Proxy::with_config(&aws, &config);
        let parameters = [
            ("user", "x"),
            ("application_name", "a tool"),
            ("DateStyle", "SQL, DMY"),
        ];
        let mut fresh = Client::log_in(proxy.address(), &parameters).unwrap();
        for (version, count) in [(V3_0, 1), (V3_2, 2)] {
            wait_for_pooled_sessions(&proxy, count);
            let mut pooled = Client::log_in_with(proxy.address(), version, &parameters).unwrap();
            assert_eq!(logins_from_the_pool(&proxy, 1 + count), count);
            assert_eq!(pooled.settings, fresh.settings);
            assert_eq!(
                pooled.value("select pg_backend_pid()"),
                pooled.process_id().to_string()
            );
            assert_ne!(pooled.process_id(), fresh.process_id());
            pooled.sleep_on_server(&mut fresh);
            cancel(proxy.address(), &pooled.key);
            assert_eq!(pooled.read_rows().err().unwrap().sqlstate(), "57014");
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
fn the_greeting_of_a_pooled_session_arrives_in_one_piece() {
    let proxy = proxy("warm_sessions = 1\n");
    let greeting = || {
        let mut stream = connect(proxy.address());
        std::io::Write::write_all(&mut stream, &startup_packet(V3_0, &[("user", "x")])).unwrap();
        let mut greeting = vec![0; 65_536];
        let length = std::io::Read::read(&mut stream, &mut greeting).unwrap();
        greeting.truncate(length);
        greeting
    };
    let fresh = greeting();
    wait_for_pooled_sessions(&proxy, 1);
    let pooled = greeting();
    assert_eq!(logins_from_the_pool(&proxy, 2), 1);
    // BackendKeyData and ReadyForQuery are the last 13 + 6 bytes. The settings before them are the
    // same in both greetings.
    assert_eq!(pooled[..pooled.len() - 19], fresh[..fresh.len() - 19]);
    assert!(pooled.ends_with(b"Z\0\0\0\x05I"));
}

#[test]
fn a_login_with_other_startup_parameters_gets_a_new_session() {
    let proxy = proxy("warm_sessions = 1\n");
    drop(
        Client::log_in(
            proxy.address(),
            &[("user", "x"), ("application_name", "one")],
        )
        .unwrap(),
    );
    wait_for_pooled_sessions(&proxy, 1);
    let mut other = Client::log_in(
        proxy.address(),
        &[("user", "x"), ("application_name", "two")],
    )
    .unwrap();
    assert_eq!(other.value("show application_name"), "two");
    assert_eq!(logins_from_the_pool(&proxy, 2), 0);
}

#[test]
fn a_session_made_for_one_person_is_never_given_to_another() {
    let aws = Testbed::shared().aws();
    let role = aws.add_role("pooled-people", None);
    let role_keys = format!(
        "warm_sessions = 2\nrole_arn = \"{role}\"\nsession_name = \"{{user}}\"\n\
         endpoint_url = \"{}\"\n",
        aws.endpoint_url()
    );
    for (keys, kind) in [
        (role_keys, "session_name"),
        (
            "warm_sessions = 2\napplication_name_suffix = true\n".to_string(),
            "suffix",
        ),
    ] {
        let proxy = Proxy::with_config(&aws, &rds_config(&format!("{TARGET}{keys}")));
        drop(Client::log_in(proxy.address(), &[("user", "ana")]).unwrap());
        wait_for_pooled_sessions(&proxy, 1);
        drop(Client::log_in(proxy.address(), &[("user", "bob")]).unwrap());
        assert_eq!(logins_from_the_pool(&proxy, 2), 0, "{kind}");
        drop(Client::log_in(proxy.address(), &[("user", "ana")]).unwrap());
        assert_eq!(logins_from_the_pool(&proxy, 3), 1, "{kind}");
    }
}

#[test]
fn a_client_with_a_wrong_password_gets_no_pooled_session() {
    let aws = Testbed::shared().aws();
    let config = rds_config(&format!("{TARGET}warm_sessions = 1\n")).replace(
        "auth = \"trust\"",
        "auth = \"password\"\n[[listener.rule]]\n\
            from = \"127.0.0.1\"\nusers = [\"guest\"]\nauth = \"trust\"",
    ) + &format!(
        "[user.guest]\n[user.ana]\npassword = \"{}\"\n",
        hash_password("right")
    );
    let proxy = Proxy::with_config(&aws, &config);
    drop(Client::log_in(proxy.address(), &[("user", "guest")]).unwrap());
    wait_for_pooled_sessions(&proxy, 1);
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
    assert_eq!(logins_from_the_pool(&proxy, 1), 0);
}

#[test]
fn a_pooled_session_that_the_server_has_closed_is_not_handed_out() {
    let proxy = proxy("warm_sessions = 1\n");
    let name = "closed session";
    let parameters = [("user", "x"), ("application_name", name)];
    let mut first = Client::log_in(proxy.address(), &parameters).unwrap();
    wait_for_pooled_sessions(&proxy, 1);
    let pooled = sessions(&mut first, name)
        .pop_first()
        .expect("the pooled session");
    assert_eq!(
        first.value(&format!("select pg_terminate_backend({pooled})")),
        "t"
    );
    proxy.log_line(&[
        "spare session ended",
        "reason=\"the server closed it, or said something\"",
    ]);
    let mut second = Client::log_in(proxy.address(), &parameters).unwrap();
    assert_eq!(second.value("select 1"), "1");
    assert_eq!(logins_from_the_pool(&proxy, 2), 0);
}

#[test]
fn simultaneous_logins_never_share_a_pooled_session() {
    let proxy = proxy("warm_sessions = 4\n");
    let address = proxy.address();
    let parameters = [("user", "x"), ("application_name", "storm")];
    for _ in 0..4 {
        drop(Client::log_in(address, &parameters).unwrap());
    }
    wait_for_pooled_sessions(&proxy, 4);
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
    assert!(logins_from_the_pool(&proxy, 20) >= 4);
    let pids: BTreeSet<_> = clients
        .iter_mut()
        .map(|client| client.value("select pg_backend_pid()"))
        .collect();
    assert_eq!(pids.len(), 16, "a session each");
    for client in &mut clients {
        assert!(pids.contains(&client.process_id().to_string()));
    }
    wait_for("four pooled sessions again, and no more", || {
        (sessions(&mut clients[0], "storm").len() == 15 + 4).then_some(())
    });
}

#[test]
fn a_pooled_session_is_replaced_when_it_reaches_its_maximum_age() {
    let proxy = proxy("warm_sessions = 1\nspare_max_age = \"1s\"\n");
    let name = "old session";
    let mut observer = Client::log_in(
        proxy.address(),
        &[("user", "x"), ("application_name", name)],
    )
    .unwrap();
    let pooled = wait_for("the pooled session", || {
        sessions(&mut observer, name).pop_first()
    });
    proxy.log_line(&["spare session ended", "reason=\"too old\""]);
    let next = wait_for("its successor", || {
        sessions(&mut observer, name)
            .into_iter()
            .find(|pid| *pid != pooled)
    });
    assert_ne!(next, pooled);
}

#[test]
fn stopping_the_proxy_ends_its_pooled_sessions() {
    let mut proxy = proxy("warm_sessions = 1\n");
    let name = "stopped session";
    drop(
        Client::log_in(
            proxy.address(),
            &[("user", "x"), ("application_name", name)],
        )
        .unwrap(),
    );
    wait_for_pooled_sessions(&proxy, 1);
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
fn pooled_sessions_count_towards_max_sessions_and_make_room_for_clients() {
    let proxy = proxy("warm_sessions = 5\nmax_sessions = 2\n");
    let log_in = |name| {
        Client::log_in(
            proxy.address(),
            &[("user", "x"), ("application_name", name)],
        )
    };
    let mut first = log_in("one kind").unwrap();
    wait_for_pooled_sessions(&proxy, 1);
    assert_eq!(sessions(&mut first, "one kind").len(), 1);
    // The pooled session takes up the rest of `max_sessions`.
    let second = log_in("another kind").unwrap();
    assert_eq!(logins_from_the_pool(&proxy, 2), 0);
    wait_for("the end of the pooled session", || {
        sessions(&mut first, "one kind").is_empty().then_some(())
    });
    let error = log_in("one kind").err().unwrap();
    assert_eq!(
        (error.sqlstate(), error.message()),
        ("53300", "sorry, too many clients already")
    );
    proxy.log_line(&["login refused", "detail=\"target.app.max_sessions = 2\""]);
    drop(second);
    wait_for("a free session", || log_in("one kind").ok());
}

#[test]
fn logins_of_the_pool_count_towards_max_logins_per_second() {
    let proxy = proxy("warm_sessions = 3\nmax_logins_per_second = 2\n");
    let begin = Instant::now();
    for _ in 0..3 {
        drop(Client::log_in(proxy.address(), &[("user", "x")]).unwrap());
    }
    let logins =
        || proxy.log().matches("spare session ready").count() + 3 - logins_from_the_pool(&proxy, 3);
    wait_for("pooled sessions", || (logins() >= 5).then_some(()));
    // The first of at least five logins starts at once, and the proxy may have saved up a tenth of
    // a second.
    assert!(
        begin.elapsed() >= Duration::from_millis(4 * 500 - 100),
        "{:?}",
        begin.elapsed()
    );
}

#[test]
fn a_refused_login_of_the_pool_is_logged_once_and_does_not_stop_clients() {
    let bed = Testbed::shared();
    let aws = bed.aws();
    bed.rds().create_user("warm_refused").unwrap();
    let proxy = Proxy::with_config(
        &aws,
        &rds_config("db_user = \"warm_refused\"\ndatabase = \"postgres\"\nwarm_sessions = 1\n"),
    );
    let log_in = || Client::log_in(proxy.address(), &[("user", "x")]).unwrap();
    let first = log_in();
    wait_for_pooled_sessions(&proxy, 1);
    // A cached credential that is refused is replaced once, so two refusals make one attempt fail.
    bed.rds().refuse_next_of("warm_refused", 2);
    let second = log_in();
    assert_eq!(logins_from_the_pool(&proxy, 2), 1);
    proxy.log_line(&[
        "WARN",
        "spare sessions cannot be made; logins go on without",
        "target=\"app\"",
        "temporary password twice",
    ]);
    let third = log_in();
    proxy.log_line(&["INFO", "spare sessions can be made again"]);
    wait_for_pooled_sessions(&proxy, 2);
    drop((first, second, third));
    drop(log_in());
    assert_eq!(
        proxy.log().matches("spare sessions cannot be made").count(),
        1
    );
}

/// Starts a proxy with three clients of this database user and a pool of two sessions, one of which
/// the pool could not replace, because the server refuses logins once it has run `refuse`.
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
    wait_for_pooled_sessions(&proxy, 1);
    let second = log_in();
    wait_for_pooled_sessions(&proxy, 3);
    bed.rds().administer("postgres", refuse).unwrap();
    // This login takes one of the two pooled sessions, and the pool tries to replace it.
    let third = log_in();
    assert_eq!(logins_from_the_pool(&proxy, 3), 2);
    proxy.log_line(&["WARN", "spare sessions cannot be made"]);
    (proxy, vec![first, second, third])
}

#[test]
fn a_server_with_too_many_connections_does_not_make_the_pool_forget_a_kind_of_login() {
    let rds = Testbed::shared().rds();
    rds.create_user("warm_crowded").unwrap();
    // There are two clients and two pooled sessions when the limit is set.
    let (proxy, clients) =
        pool_with_a_refusal("warm_crowded", "alter role warm_crowded connection limit 4");
    proxy.log_line(&[
        "spare sessions cannot be made",
        "too many connections for role",
    ]);
    let fourth = Client::log_in(proxy.address(), &[("user", "x")]).unwrap();
    assert_eq!(
        logins_from_the_pool(&proxy, 4),
        3,
        "the other session is still there"
    );
    let error = Client::log_in(proxy.address(), &[("user", "x")])
        .err()
        .unwrap();
    assert_eq!(error.sqlstate(), "53300");
    rds.administer("postgres", "alter role warm_crowded connection limit -1")
        .unwrap();
    // Nobody logs in from here on, so the pool has to try again by itself.
    proxy.log_line(&["INFO", "spare sessions can be made again"]);
    wait_for_pooled_sessions(&proxy, 4);
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
