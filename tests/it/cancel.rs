//! Does Ctrl-C cancel the query of its own session, and no other?

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use testbed::Testbed;

use crate::support::client::{Client, V3_0, V3_2, cancel, connect, packet};
use crate::support::proxy::{Proxy, rds_config, redshift_config};
use crate::support::server::Relay;
use crate::support::wait_for;

/// Sends a `CancelRequest` and does not wait for what becomes of it.
fn send_cancel(address: SocketAddr, key: &[u8]) -> TcpStream {
    let mut stream = connect(address);
    stream
        .write_all(&packet(&[&80_877_102u32.to_be_bytes()[..], key].concat()))
        .unwrap();
    stream
}

/// Whether the proxy has closed this connection, which it never writes to.
fn is_closed(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    match (&*stream).read(&mut [0]) {
        Err(error) => error.kind() != ErrorKind::WouldBlock,
        Ok(read) => read == 0,
    }
}

/// A target whose server is behind this relay.
fn behind(relay: &Relay) -> String {
    format!(
        "host = \"localhost\"\nport = {}\nsigning_host = \"localhost:{}\"\n\
         db_user = \"jane_doe\"\ndatabase = \"postgres\"",
        relay.port,
        Testbed::shared().rds().port(),
    )
}

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

#[test]
fn a_sealed_key_of_a_session_that_has_ended_connects_to_no_server() {
    let aws = Testbed::shared().aws();
    let proxy = Proxy::with_config(
        &aws,
        &rds_config("db_user = \"jane_doe\"\ndatabase = \"postgres\""),
    );
    let client = Client::log_in_with(proxy.address(), V3_2, &[("user", "x")]).unwrap();
    let key = client.key.clone();
    drop(client);
    proxy.log_line(&["session ended"]);
    cancel(proxy.address(), &key);
    proxy.log_line(&["cancel request for a session that has ended"]);
    assert!(!proxy.log().contains("cancel request forwarded"));
}

#[test]
fn a_client_may_close_before_its_request_has_arrived() {
    let bed = Testbed::shared();
    let aws = bed.aws();
    let relay = Relay::to(bed.rds().port());
    let proxy = Proxy::with_config(&aws, &rds_config(&behind(&relay)));
    let mut client = Client::log_in(proxy.address(), &[("user", "x")]).unwrap();
    let mut observer = Client::log_in(proxy.address(), &[("user", "x")]).unwrap();
    client.sleep_on_server(&mut observer);
    relay.hold();
    drop(send_cancel(proxy.address(), &client.key));
    wait_for("the request", || (relay.held() == 1).then_some(()));
    wait_for("the client's connection to be closed", || {
        (half_closed(&proxy) == 0).then_some(())
    });
    relay.release();
    assert_eq!(client.read_rows().err().unwrap().sqlstate(), "57014");
}

/// How many connections of the proxy's clients have been closed by the client alone.
fn half_closed(proxy: &Proxy) -> usize {
    const CLOSE_WAIT: &str = "08";
    let table = std::fs::read_to_string(format!("/proc/{}/net/tcp", proxy.id())).unwrap();
    let port = format!(":{:04X}", proxy.address().port());
    table
        .lines()
        .filter(|line| {
            let mut fields = line.split_whitespace().skip(1);
            fields.next().is_some_and(|local| local.ends_with(&port))
                && fields.nth(1) == Some(CLOSE_WAIT)
        })
        .count()
}

#[test]
fn a_request_that_is_under_way_is_not_sent_again() {
    let bed = Testbed::shared();
    let aws = bed.aws();
    let relay = Relay::to(bed.rds().port());
    let proxy = Proxy::with_config(&aws, &rds_config(&behind(&relay)));
    let mut client = Client::log_in(proxy.address(), &[("user", "x")]).unwrap();
    let mut observer = Client::log_in(proxy.address(), &[("user", "x")]).unwrap();
    client.sleep_on_server(&mut observer);
    relay.hold();
    let first = send_cancel(proxy.address(), &client.key);
    wait_for("the request", || (relay.held() == 1).then_some(()));
    for _ in 0..3 {
        cancel(proxy.address(), &client.key);
    }
    assert_eq!((relay.held(), is_closed(&first)), (1, false));
    relay.release();
    assert_eq!(client.read_rows().err().unwrap().sqlstate(), "57014");
    wait_for("the answer", || is_closed(&first).then_some(()));
}

#[test]
fn a_server_that_hangs_holds_up_a_bounded_number_of_cancel_requests() {
    const REQUESTS: usize = 90;
    let bed = Testbed::shared();
    let aws = bed.aws();
    let relay = Relay::to(bed.rds().port());
    let key = crate::replicas::key_file();
    let hanging = rds_config(&behind(&relay));
    let healthy = redshift_config(&aws, "db_user = \"ana\"\ndatabase = \"dev\"");
    let config = format!(
        "cancel_key_file = \"{}\"\n{hanging}{healthy}",
        key.display()
    );
    let (one, two) = (
        Proxy::with_config(&aws, &config),
        Proxy::with_config(&aws, &config),
    );
    let keys: Vec<_> = (0..REQUESTS)
        .map(|_| {
            Client::log_in_with(one.address(), V3_2, &[("user", "x")])
                .unwrap()
                .key
        })
        .collect();
    relay.hold();
    let requests: Vec<_> = keys
        .iter()
        .map(|key| send_cancel(two.address(), key))
        .collect();
    wait_for("what is over the bound to be closed", || {
        let closed = requests.iter().filter(|stream| is_closed(stream)).count();
        (closed >= REQUESTS - 16 - 64).then_some(())
    });
    assert!(relay.held() <= 16, "{} in flight", relay.held());
    two.log_line(&["too many cancel requests for one server"]);
    Client::log_in(two.addresses[1], &[("user", "x")]).expect("the other server is well");
    relay.release();
    for mut request in requests {
        request.set_nonblocking(false).unwrap();
        request
            .set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        assert_eq!(request.read(&mut [0]).unwrap(), 0);
    }
}

#[test]
fn wrong_keys_are_limited_by_source_and_sealed_ones_are_not() {
    let aws = Testbed::shared().aws();
    let proxy = Proxy::with_config(
        &aws,
        &rds_config("db_user = \"jane_doe\"\ndatabase = \"postgres\""),
    );
    let mut client = Client::log_in_with(proxy.address(), V3_2, &[("user", "x")]).unwrap();
    let mut observer = Client::log_in(proxy.address(), &[("user", "x")]).unwrap();
    let mut guess = 0u32;
    while !proxy
        .log()
        .contains("too many wrong cancel keys from this address")
    {
        cancel(
            proxy.address(),
            &[observer.process_id().to_be_bytes(), guess.to_be_bytes()].concat(),
        );
        guess += 1;
        assert!(guess < 1_000);
    }
    client.sleep_on_server(&mut observer);
    cancel(proxy.address(), &client.key);
    assert_eq!(client.read_rows().err().unwrap().sqlstate(), "57014");
}
