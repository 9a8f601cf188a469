//! What does a client find in a session that another client has used before, and which sessions are
//! never used again?

use std::collections::BTreeSet;
use std::io::Write;

use testbed::Testbed;

use crate::support::client::{Client, Reply, V3_0, V3_2, cancel, packet, read_reply};
use crate::support::proxy::{Proxy, rds_config};
use crate::support::server::Relay;
use crate::support::tls_client::assert_close_notify;
use crate::support::tls_files::TlsFiles;
use crate::support::wait_for;

const TARGET: &str = "db_user = \"jane_doe\"\ndatabase = \"postgres\"\nreuse_sessions = true\n";

fn proxy(keys: &str) -> Proxy {
    let aws = Testbed::shared().aws();
    Proxy::with_config(&aws, &rds_config(&format!("{TARGET}{keys}")))
}

fn log_in(proxy: &Proxy, name: &str) -> Client {
    Client::log_in(
        proxy.address(),
        &[("user", "x"), ("application_name", name)],
    )
    .unwrap()
}

/// Ends a session as drivers do, with Terminate, and waits until the proxy closes the connection.
fn leave(mut client: Client) {
    client.send(b'X', b"");
    assert_eq!(read_reply(&mut client.stream), Reply::Closed);
}

fn wait_for_resets(proxy: &Proxy, count: usize) {
    wait_for("resets", || {
        (proxy.log().matches("how=\"reset\"").count() >= count).then_some(())
    });
}

/// Asserts that the session ends for this reason and that the next client gets another one.
#[track_caller]
fn assert_not_reused(proxy: &Proxy, name: &str, process_id: u32, reason: &str) {
    proxy.log_line(&["spare session ended", reason]);
    assert_ne!(log_in(proxy, name).process_id(), process_id, "{reason}");
    assert!(!proxy.log().contains("how=\"reset\""), "{reason}");
}

#[test]
fn the_next_client_gets_the_same_session_without_any_state_of_the_previous_one() {
    let proxy = proxy("");
    let parameters = [
        ("user", "x"),
        ("application_name", "first to last"),
        ("TimeZone", "Asia/Tokyo"),
        ("options", "-c work_mem=1234kB -c my.startup=mine"),
    ];
    let connect = || Client::log_in(proxy.address(), &parameters).unwrap();
    let defaults = "select string_agg(name || '=' || setting, ' ' order by name) from pg_settings";
    let mut one = connect();
    let process_id = one.process_id();
    let before = (one.settings.clone(), one.value(defaults));
    for sql in [
        "create temporary table t as select 'secret' as s",
        "create function pg_temp.f() returns text language sql as $$select 'secret'$$",
        "create sequence if not exists public.reused_sequence",
        "select nextval('public.reused_sequence')",
        "set TimeZone = 'Europe/Vienna'; set application_name = 'secret'; set work_mem = '2MB'; \
         set search_path = pg_temp",
        "set session characteristics as transaction read only",
        "set my.secret = 'secret'; set my.startup = 'secret'",
        "set client_encoding = 'LATIN1'",
        "prepare p as select 'secret'",
        "begin; declare c cursor with hold for select 'secret'; commit",
        "select pg_advisory_lock(4711)",
        "listen secret",
        "set role rds_iam",
        "select setseed(0.25)",
    ] {
        one.query(sql)
            .unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }
    // DEALLOCATE ALL does not know the unnamed prepared statement, so it needs a test of its own.
    one.send(b'P', b"\0select 'secret'\0\0\0");
    one.send(b'S', b"");
    one.read_rows().unwrap();
    leave(one);
    wait_for_resets(&proxy, 1);
    let mut two = connect();
    assert_eq!(two.process_id(), process_id);
    proxy.log_line(&["session opened", "warm=true"]);
    two.send(b'B', b"\0\0\0\0\0\0\0\0");
    two.send(b'S', b"");
    assert_eq!(
        two.read_rows().err().unwrap().message(),
        "unnamed prepared statement does not exist"
    );
    // A seed that survived would show, because it determines the next random number.
    let mut other = log_in(&proxy, "seeded");
    assert_ne!(
        two.value("select random()"),
        other
            .query("select setseed(0.25); select random()")
            .unwrap()[1]
    );
    assert_eq!((two.settings.clone(), two.value(defaults)), before);
    for (sql, expected) in [
        (
            "select current_user || ' ' || session_user",
            "jane_doe jane_doe",
        ),
        ("show role", "none"),
        ("show TimeZone", "Asia/Tokyo"),
        ("show work_mem", "1234kB"),
        ("show my.startup", "mine"),
        ("show client_encoding", &before.0["client_encoding"]),
        ("show transaction_read_only", "off"),
        // The name of a custom setting outlives DISCARD ALL, but its value does not.
        (
            "select coalesce(current_setting('my.secret', true), '')",
            "",
        ),
        ("select count(*) from pg_prepared_statements", "0"),
        ("select count(*) from pg_cursors", "0"),
        ("select count(*) from pg_listening_channels()", "0"),
        (
            "select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()",
            "0",
        ),
        (
            "select count(*) from pg_class where relnamespace = pg_my_temp_schema()",
            "0",
        ),
        (
            "select count(*) from pg_proc where pronamespace = pg_my_temp_schema()",
            "0",
        ),
    ] {
        assert_eq!(two.value(sql), expected, "{sql}");
    }
    for (sql, sqlstate) in [
        ("select currval('public.reused_sequence')", "55000"),
        ("select lastval()", "55000"),
        ("select * from t", "42P01"),
    ] {
        assert_eq!(two.query(sql).err().unwrap().sqlstate(), sqlstate, "{sql}");
    }
    two.query("drop sequence public.reused_sequence").unwrap();
}

#[test]
fn sessions_of_tls_clients_are_reused_too() {
    let files = TlsFiles::new();
    let listener = format!("auth = \"trust\"\n{}", files.keys("required"));
    let config = rds_config(TARGET).replace("auth = \"trust\"\n", &listener);
    let proxy = Proxy::with_config(&Testbed::shared().aws(), &config);
    let tls = files.client();
    let mut one = tls.log_in(proxy.address(), "x").unwrap();
    assert_eq!(
        one.query("select repeat('x', 100000) from generate_series(1, 20)")
            .unwrap()
            .len(),
        20
    );
    let process_id = one.process_id();
    // The two parts of Terminate arrive in TLS records of their own.
    one.stream.write_all(b"X").unwrap();
    one.stream.write_all(b"\0\0\0\x04").unwrap();
    assert_close_notify(&mut one.stream);
    drop(one);
    wait_for_resets(&proxy, 1);
    let mut two = tls.log_in(proxy.address(), "x").unwrap();
    assert_eq!(
        (two.process_id(), two.value("select 1")),
        (process_id, "1".to_string())
    );
}

#[test]
fn a_reused_session_can_move_to_another_thread() {
    let proxy = proxy("");
    let names: Vec<String> = (0..8).map(|index| format!("client {index}")).collect();
    let mut clients: Vec<_> = names.iter().map(|name| log_in(&proxy, name)).collect();
    let process_ids: Vec<_> = clients.iter().map(Client::process_id).collect();
    // The proxy hands connections to its threads in turn, so clients that return in reverse order
    // get to other threads than before.
    clients.drain(..).for_each(leave);
    wait_for_resets(&proxy, names.len());
    for (name, process_id) in names.iter().zip(process_ids).rev() {
        let mut client = log_in(&proxy, name);
        assert_eq!(client.process_id(), process_id, "{name}");
        assert_eq!(client.value("select 1"), "1", "{name}");
        clients.push(client);
    }
}

#[test]
fn a_reset_restores_the_default_role_of_the_session() {
    let bed = Testbed::shared();
    let roles = "create role reuse_default login in role rds_iam; create role reuse_other; grant \
        reuse_other to reuse_default; alter role reuse_default set role = 'reuse_other'";
    bed.rds().administer("postgres", roles).unwrap();
    let config = rds_config(&TARGET.replace("jane_doe", "reuse_default"));
    let proxy = Proxy::with_config(&bed.aws(), &config);
    let mut one = log_in(&proxy, "role");
    assert_eq!(one.value("select current_user"), "reuse_other");
    one.query("set role none").unwrap();
    let process_id = one.process_id();
    leave(one);
    wait_for_resets(&proxy, 1);
    let mut two = log_in(&proxy, "role");
    assert_eq!(
        (two.process_id(), two.value("select current_user")),
        (process_id, "reuse_other".to_string())
    );
}

#[test]
fn a_session_left_in_a_transaction_or_in_copy_is_closed() {
    for (name, begin) in [
        ("open transaction", "begin"),
        ("failed transaction", "begin; select 1/0"),
        (
            "copy in progress",
            "copy (select 1) to stdout; copy pg_temp.t from stdin",
        ),
    ] {
        let proxy = proxy("");
        let mut client = log_in(&proxy, name);
        client.query("create temporary table t (n int)").unwrap();
        client.send_query(begin);
        loop {
            match read_reply(&mut client.stream) {
                Reply::Message(b'Z' | b'G', _) => break,
                Reply::Message(..) => {}
                Reply::Closed => panic!("closed"),
            }
        }
        let process_id = client.process_id();
        // The proxy passes Terminate on to the server and keeps nothing of the session.
        client.send(b'X', b"");
        while read_reply(&mut client.stream) != Reply::Closed {}
        proxy.log_line(&["session ended", "ended_by="]);
        assert_ne!(log_in(&proxy, name).process_id(), process_id, "{name}");
        assert!(!proxy.log().contains("how=\"reset\""), "{name}");
    }
}

#[test]
fn a_session_whose_client_disconnects_without_terminate_is_closed() {
    let proxy = proxy("");
    let client = log_in(&proxy, "dropped");
    let process_id = client.process_id();
    drop(client);
    proxy.log_line(&["session ended"]);
    assert_ne!(log_in(&proxy, "dropped").process_id(), process_id);
    assert!(!proxy.log().contains("spare session"));
}

#[test]
fn a_session_is_closed_when_anything_follows_terminate() {
    let proxy = proxy("");
    let mut client = log_in(&proxy, "chatty");
    let process_id = client.process_id();
    let query = [&b"Q"[..], &packet(b"select 1\0")].concat();
    client
        .stream
        .write_all(&[&b"X\0\0\0\x04"[..], &query].concat())
        .unwrap();
    assert_eq!(read_reply(&mut client.stream), Reply::Closed);
    drop(client);
    assert_not_reused(
        &proxy,
        "chatty",
        process_id,
        "more than Terminate came from the client",
    );
}

#[test]
fn a_session_that_received_a_notification_is_closed() {
    let proxy = proxy("");
    let mut client = log_in(&proxy, "listener");
    client
        .query("listen reuse_channel; notify reuse_channel")
        .unwrap();
    let process_id = client.process_id();
    client.send(b'X', b"");
    while read_reply(&mut client.stream) != Reply::Closed {}
    proxy.log_line(&["session ended"]);
    assert_ne!(log_in(&proxy, "listener").process_id(), process_id);
    assert!(!proxy.log().contains("how=\"reset\""));
}

#[test]
fn a_session_whose_reset_fails_is_closed() {
    let proxy = proxy("");
    let mut client = log_in(&proxy, "slow");
    client
        .query(
            "do $$begin for n in 1..1000 loop execute format('create temporary table t%s \
        ()', n); end loop; end$$",
        )
        .unwrap();
    // DISCARD ALL takes longer than this, because it has to drop all the tables.
    client.query("set statement_timeout = '10ms'").unwrap();
    let process_id = client.process_id();
    leave(client);
    assert_not_reused(
        &proxy,
        "slow",
        process_id,
        "the server refuses: canceling statement due to statement timeout",
    );
}

/// A proxy for a database of its own, which has been prepared with these statements.
fn proxy_of_database(database: &str, prepare: &[&str], keys: &str) -> Proxy {
    let bed = Testbed::shared();
    let administer = |database: &str, sql: &str| bed.rds().administer(database, sql).unwrap();
    administer("postgres", &format!("create database {database}"));
    for sql in prepare {
        administer(database, sql);
    }
    let target = TARGET.replace("\"postgres\"", &format!("\"{database}\""));
    Proxy::with_config(&bed.aws(), &rds_config(&format!("{target}{keys}")))
}

#[test]
fn sessions_are_not_reused_where_an_extension_or_a_language_may_keep_something() {
    for (database, create, reason) in [
        (
            "keepers",
            "create language keeper handler plpgsql_call_handler",
            "may keep: language keeper",
        ),
        // isn_weak(true) would let the next client store wrong check digits.
        (
            "weak_numbers",
            "create extension isn",
            "may keep: extension isn",
        ),
        (
            "linked",
            "create extension dblink",
            "may keep: extension dblink",
        ),
        (
            "foreigners",
            "create extension postgres_fdw",
            "may keep: extension postgres_fdw",
        ),
    ] {
        let proxy = proxy_of_database(database, &[create], "");
        let client = log_in(&proxy, database);
        let process_id = client.process_id();
        leave(client);
        assert_not_reused(&proxy, database, process_id, reason);
    }
}

#[test]
fn sessions_are_reused_where_extensions_keep_nothing() {
    let harmless = [
        "create extension pgcrypto",
        "create extension hstore",
        "create extension pg_trgm",
        "create extension \"uuid-ossp\"",
    ];
    let proxy = proxy_of_database("harmless", &harmless, "");
    let mut one = log_in(&proxy, "harmless");
    one.query("select set_limit(0.9)").unwrap();
    let process_id = one.process_id();
    leave(one);
    wait_for_resets(&proxy, 1);
    let mut two = log_in(&proxy, "harmless");
    assert_eq!(
        (two.process_id(), two.value("select show_limit()")),
        (process_id, "0.3".to_string())
    );
}

#[test]
fn sessions_are_reused_where_the_configuration_vouches_for_the_extension() {
    let keys = "reuse_extensions = [\"postgres_fdw\", \"isn\"]\n";
    let proxy = proxy_of_database("vouched_for", &["create extension isn"], keys);
    let client = log_in(&proxy, "vouched");
    let process_id = client.process_id();
    leave(client);
    wait_for_resets(&proxy, 1);
    assert_eq!(log_in(&proxy, "vouched").process_id(), process_id);
}

#[test]
fn a_session_with_a_replication_origin_is_closed() {
    let bed = Testbed::shared();
    let roles = "create role origin_keeper login in role rds_iam; create role origins noinherit; \
        grant origins to origin_keeper; \
        grant execute on function pg_replication_origin_session_setup(text) to origins; \
        grant execute on function pg_replication_origin_session_is_setup() to origin_keeper; \
        select pg_replication_origin_create('kept_origin')";
    bed.rds().administer("postgres", roles).unwrap();
    let config = rds_config(&TARGET.replace("jane_doe", "origin_keeper"));
    let proxy = Proxy::with_config(&bed.aws(), &config);
    let one = log_in(&proxy, "origin");
    let process_id = one.process_id();
    leave(one);
    wait_for_resets(&proxy, 1);
    let mut two = log_in(&proxy, "origin");
    assert_eq!(two.process_id(), process_id, "it named no origin");
    two.query("set role origins").unwrap();
    two.query("select pg_replication_origin_session_setup('kept_origin')")
        .unwrap();
    leave(two);
    proxy.log_line(&["spare session ended", "may keep: replication origin"]);
    assert_ne!(log_in(&proxy, "origin").process_id(), process_id);
}

#[test]
fn a_session_that_is_too_old_is_closed() {
    let proxy = proxy("spare_max_age = \"1ms\"\n");
    let mut client = log_in(&proxy, "aged");
    client.query("select pg_sleep(0.01)").unwrap();
    let process_id = client.process_id();
    leave(client);
    assert_not_reused(&proxy, "aged", process_id, "too old");
}

#[test]
fn a_client_with_other_startup_parameters_gets_another_session() {
    let proxy = proxy("");
    let client = log_in(&proxy, "one kind");
    let process_id = client.process_id();
    leave(client);
    wait_for_resets(&proxy, 1);
    assert_ne!(log_in(&proxy, "another kind").process_id(), process_id);
    assert_eq!(log_in(&proxy, "one kind").process_id(), process_id);
}

#[test]
fn a_client_cannot_cancel_queries_of_the_next_client_of_its_session() {
    let proxy = proxy("");
    for version in [V3_0, V3_2] {
        let connect = || {
            Client::log_in_with(
                proxy.address(),
                version,
                &[("user", "x"), ("application_name", "next client")],
            )
            .unwrap()
        };
        let one = connect();
        let (process_id, old_key) = (one.process_id(), one.key.clone());
        let resets = proxy.log().matches("how=\"reset\"").count();
        leave(one);
        wait_for_resets(&proxy, resets + 1);
        let mut two = connect();
        assert_eq!(two.process_id(), process_id);
        assert_eq!(two.key.len(), old_key.len());
        assert_ne!(two.key, old_key);
        let mut observer = log_in(&proxy, "observer");
        two.sleep_on_server(&mut observer);
        let refused = || {
            proxy
                .log()
                .matches("cancel request with a key of no session")
                .count()
        };
        let before = refused();
        cancel(proxy.address(), &old_key);
        wait_for("the refusal", || (refused() == before + 1).then_some(()));
        let running = format!(
            "select count(*) from pg_locks where pid = {process_id} and locktype = 'virtualxid'"
        );
        assert_eq!(observer.value(&running), "1", "nothing was cancelled");
        cancel(proxy.address(), &two.key);
        assert_eq!(two.read_rows().err().unwrap().sqlstate(), "57014");
        leave(two);
        wait_for_resets(&proxy, resets + 2);
    }
}

#[test]
fn a_cancel_request_of_a_leaving_client_never_hits_the_next_client() {
    let proxy = proxy("");
    let address = proxy.address();
    let mut process_ids = BTreeSet::new();
    for round in 0..60 {
        let mut client = log_in(&proxy, "hasty");
        process_ids.insert(client.process_id());
        for _ in 0..3 {
            let result = client.query("select pg_sleep(0.002)");
            assert!(result.is_ok(), "cancelled in round {round}: {result:?}");
        }
        let key = client.key.clone();
        let canceller = std::thread::spawn(move || cancel(address, &key));
        if round % 3 > 0 {
            // The request is on its way to the server, or has already reached it, when the client
            // leaves.
            canceller.join().unwrap();
            leave(client);
        } else {
            leave(client);
            canceller.join().unwrap();
        }
    }
    assert!(
        process_ids.len() < 45,
        "sessions are used again: {process_ids:?}"
    );
}

#[test]
fn a_session_is_closed_when_its_client_leaves_during_a_cancel_request() {
    let bed = Testbed::shared();
    let relay = Relay::to(bed.rds().port());
    bed.rds().register_endpoint("localhost", relay.port);
    let proxy = proxy(&format!("host = \"localhost\"\nport = {}\n", relay.port));
    let address = proxy.address();
    let client = log_in(&proxy, "held up");
    let (process_id, key) = (client.process_id(), client.key.clone());
    relay.hold();
    let canceller = std::thread::spawn(move || cancel(address, &key));
    wait_for("the request", || relay.is_holding_one().then_some(()));
    leave(client);
    proxy.log_line(&["spare session ended", "a cancel request was under way"]);
    relay.release();
    canceller.join().unwrap();
    assert_not_reused(
        &proxy,
        "held up",
        process_id,
        "a cancel request was under way",
    );
}

#[test]
fn simultaneous_clients_share_no_session_and_see_no_state_of_each_other() {
    let proxy = proxy("warm_sessions = 2\n");
    let address = proxy.address();
    let clients: Vec<_> = (0..8)
        .map(|number| {
            std::thread::spawn(move || {
                let mut process_ids = BTreeSet::new();
                for round in 0..15 {
                    let mut client =
                        Client::log_in(address, &[("user", "x"), ("application_name", "stormy")])
                            .unwrap();
                    assert_eq!(
                        client.value("select pg_backend_pid()"),
                        client.process_id().to_string()
                    );
                    process_ids.insert(client.process_id());
                    client
                        .query(&format!(
                            "create temporary table mine as select {number} as n"
                        ))
                        .expect("no table of others is there");
                    client.query("set application_name = 'changed'").unwrap();
                    assert_eq!(client.value("select n from mine"), number.to_string());
                    if (number + round) % 4 == 0 {
                        client.query("begin").unwrap();
                    }
                    client.send(b'X', b"");
                    while read_reply(&mut client.stream) != Reply::Closed {}
                }
                process_ids.len()
            })
        })
        .collect();
    let sessions: usize = clients
        .into_iter()
        .map(|client| client.join().unwrap())
        .sum();
    assert!(
        proxy.log().matches("how=\"reset\"").count() > 20,
        "{sessions}"
    );
    let mut observer = log_in(&proxy, "observer");
    let open = "select count(*) from pg_stat_activity where application_name = 'stormy'";
    wait_for("at most ten pooled sessions", || {
        (observer.value(open).parse::<u32>().unwrap() <= 10).then_some(())
    });
}

#[test]
fn clients_that_leave_and_come_back_at_once_get_the_sessions_that_there_are() {
    const CLIENTS: usize = 8;
    const ROUNDS: usize = 30;
    let proxy = proxy("");
    let address = proxy.address();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            std::thread::spawn(move || {
                (0..ROUNDS)
                    .map(|_| {
                        let parameters = [("user", "x"), ("application_name", "back to back")];
                        let mut client = Client::log_in(address, &parameters).unwrap();
                        let process_id = client.process_id();
                        client.send(b'X', b"");
                        process_id
                    })
                    .collect::<BTreeSet<u32>>()
            })
        })
        .collect();
    let process_ids: BTreeSet<u32> = clients
        .into_iter()
        .flat_map(|client| client.join().unwrap())
        .collect();
    // Each of them has one in use, and as many wait as the pool holds.
    assert!(
        process_ids.len() <= CLIENTS + 10,
        "{} of {} logins were made at the server",
        process_ids.len(),
        CLIENTS * ROUNDS
    );
}

#[test]
fn a_session_waiting_for_reuse_makes_room_for_another_login() {
    let proxy = proxy("max_sessions = 1\n");
    leave(log_in(&proxy, "tenant"));
    wait_for_resets(&proxy, 1);
    let other = wait_for("the end of the pooled session", || {
        Client::log_in(
            proxy.address(),
            &[("user", "x"), ("application_name", "other tenant")],
        )
        .ok()
    });
    proxy.log_line(&["spare session ended", "not needed"]);
    let error = Client::log_in(proxy.address(), &[("user", "x")])
        .err()
        .unwrap();
    assert_eq!(error.sqlstate(), "53300");
    leave(other);
}

#[test]
fn stopping_the_proxy_ends_sessions_that_wait_for_reuse() {
    let mut proxy = proxy("");
    let name = "stopped session";
    leave(log_in(&proxy, name));
    wait_for_resets(&proxy, 1);
    let last = log_in(&proxy, name);
    proxy.signal("-TERM");
    proxy.log_line(&["stopping: waiting for sessions to end"]);
    leave(last);
    assert!(proxy.wait().success());
    proxy.log_line(&["spare session ended", "not needed"]);
    let other = self::proxy("");
    let mut observer = log_in(&other, "observer");
    let open = format!("select count(*) from pg_stat_activity where application_name = '{name}'");
    wait_for("the end of the server's session", || {
        (observer.value(&open) == "0").then_some(())
    });
}
