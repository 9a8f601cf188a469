//! Does Ctrl-C cancel the query of its own session, and no other?

use testbed::Testbed;

use crate::support::client::{Client, V3_0, V3_2, cancel};
use crate::support::proxy::{Proxy, rds_config, redshift_config};

#[test]
fn a_cancel_request_cancels_the_query_of_its_session_in_protocol_3_0_and_3_2() {
    let aws = Testbed::shared().aws();
    for config in [
        rds_config("db_user = \"jane_doe\"\ndatabase = \"postgres\""),
        redshift_config(&aws, "db_user = \"ana\"\ndatabase = \"dev\""),
    ] {
        let proxy = Proxy::with_config(&aws, &config);
        for version in [V3_0, V3_2] {
            let mut client =
                Client::log_in_with(proxy.address(), version, &[("user", "x")]).unwrap();
            let mut observer = Client::log_in(proxy.address(), &[("user", "x")]).unwrap();
            client.sleep_on_server(&mut observer);
            cancel(proxy.address(), &client.key);
            let error = client.read_rows().err().unwrap();
            assert_eq!(
                (error.sqlstate(), error.message()),
                ("57014", "canceling statement due to user request")
            );
            assert_eq!(client.value("select 1"), "1", "the session goes on");
        }
        proxy.log_line(&["cancel request forwarded", "upstream=127.0.0.1:"]);
    }
}

#[test]
fn a_process_id_and_a_key_of_different_sessions_cancel_neither_query() {
    let bed = Testbed::shared();
    let aws = bed.aws();
    let proxy = Proxy::with_config(
        &aws,
        &rds_config("db_user = \"jane_doe\"\ndatabase = \"postgres\""),
    );
    for version in [V3_0, V3_2] {
        let mut client = Client::log_in_with(proxy.address(), version, &[("user", "x")]).unwrap();
        let mut observer = Client::log_in_with(proxy.address(), version, &[("user", "x")]).unwrap();
        client.sleep_on_server(&mut observer);
        cancel(
            proxy.address(),
            &[&client.key[..4], &observer.key[4..]].concat(),
        );
        cancel(
            proxy.address(),
            &[&observer.key[..4], &client.key[4..]].concat(),
        );
        let running = format!(
            "select count(*) from pg_locks where pid = {} and locktype = 'virtualxid'",
            client.process_id()
        );
        assert_eq!(observer.value(&running), "1", "nothing was cancelled");
        cancel(proxy.address(), &client.key);
        assert_eq!(client.read_rows().err().unwrap().sqlstate(), "57014");
    }
}

#[test]
fn a_session_that_has_ended_cannot_be_cancelled() {
    let aws = Testbed::shared().aws();
    let proxy = Proxy::with_config(
        &aws,
        &rds_config("db_user = \"jane_doe\"\ndatabase = \"postgres\""),
    );
    let client = Client::log_in(proxy.address(), &[("user", "x")]).unwrap();
    let (key, pid) = (client.key.clone(), client.process_id());
    drop(client);
    proxy.log_line(&["session ended"]);
    cancel(proxy.address(), &key);
    proxy.log_line(&[
        "cancel request with a key of no session",
        &format!("pid={pid}"),
    ]);
}
