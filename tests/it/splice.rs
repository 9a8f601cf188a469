//! Do bytes pass unchanged in both directions after the login, until the very end?

use std::io::{Read, Write};

use testbed::Testbed;

use crate::support::client::{Client, Reply, read_reply};
use crate::support::proxy::{Proxy, rds_config};

fn proxy() -> Proxy {
    let aws = Testbed::shared().aws();
    Proxy::with_config(
        &aws,
        &rds_config("db_user = \"jane_doe\"\ndatabase = \"postgres\""),
    )
}

#[test]
fn the_servers_last_error_arrives_before_the_close() {
    let proxy = proxy();
    let mut victim = Client::log_in(proxy.address(), &[("user", "x")]).unwrap();
    let mut other = Client::log_in(proxy.address(), &[("user", "x")]).unwrap();
    assert_eq!(
        other.value(&format!(
            "select pg_terminate_backend({})",
            victim.process_id()
        )),
        "t"
    );
    let Reply::Message(b'E', body) = read_reply(&mut victim.stream) else {
        panic!("the server's error")
    };
    assert_eq!(
        crate::support::client::error_fields(&body).sqlstate(),
        "57P01"
    );
    assert_eq!(read_reply(&mut victim.stream), Reply::Closed);
    drop(victim);
    let line = proxy.log_line(&["session ended", "ended_by=upstream"]);
    assert!(
        !line.contains("error="),
        "a close without close_notify is a close: {line}"
    );
}

#[test]
fn the_servers_last_error_arrives_while_the_client_keeps_sending() {
    let proxy = proxy();
    let mut victim = Client::log_in(proxy.address(), &[("user", "x")]).unwrap();
    let mut other = Client::log_in(proxy.address(), &[("user", "x")]).unwrap();
    victim.value("select 1");
    other.value(&format!(
        "select pg_terminate_backend({})",
        victim.process_id()
    ));
    // No server will read these queries. If the proxy closed its socket with them unread, the
    // kernel would discard the error that is still on its way to the client.
    for _ in 0..100 {
        victim.send_query("select 1");
    }
    let Reply::Message(b'E', body) = read_reply(&mut victim.stream) else {
        panic!("the server's error")
    };
    assert_eq!(
        crate::support::client::error_fields(&body).sqlstate(),
        "57P01"
    );
}

#[test]
fn a_client_that_half_closes_still_gets_its_answer() {
    let proxy = proxy();
    let mut client = Client::log_in(proxy.address(), &[("user", "x")]).unwrap();
    client.send_query("select sum(n) from generate_series(1, 200000) n");
    client.close_writing();
    assert_eq!(client.read_rows().unwrap(), ["20000100000"]);
    assert_eq!(read_reply(&mut client.stream), Reply::Closed);
    proxy.log_line(&["session ended", "ended_by=client"]);
}

#[test]
fn the_log_counts_the_bytes_of_a_client_that_ends_properly() {
    let proxy = proxy();
    let mut client = Client::log_in(proxy.address(), &[("user", "x")]).unwrap();
    client.value("select 1");
    client.send(b'X', b"");
    drop(client);
    // The query has 14 bytes and Terminate has 5.
    proxy.log_line(&["session ended", "bytes_sent=19 "]);
}

#[test]
fn copy_moves_megabytes_unchanged_in_both_directions() {
    let proxy = proxy();
    let mut client = Client::log_in(proxy.address(), &[("user", "x")]).unwrap();
    client
        .query("create temporary table t (n int, v text)")
        .unwrap();
    client.send_query("copy t from stdin");
    assert!(matches!(
        read_reply(&mut client.stream),
        Reply::Message(b'G', _)
    ));
    let rows = 200_000;
    for first in (0..rows).step_by(1_000) {
        let chunk: String = (first..first + 1_000)
            .map(|n| format!("{n}\t{:0>60}\n", n * 7))
            .collect();
        client.send(b'd', chunk.as_bytes());
    }
    client.send(b'c', b"");
    client.read_rows().unwrap();
    assert_eq!(
        client.value("select count(*) from t where v::bigint = n * 7::bigint"),
        rows.to_string()
    );
    // The table is larger than all the buffers on the way together, so the server has to wait until
    // the client reads.
    client.send_query("copy t to stdout");
    let (mut lines, mut bytes) = (0, 0);
    loop {
        match read_reply(&mut client.stream) {
            Reply::Message(b'd', body) => {
                lines += 1;
                bytes += body.len();
            }
            Reply::Message(b'Z', _) => break,
            Reply::Message(..) => {}
            Reply::Closed => panic!("closed in the middle of COPY"),
        }
    }
    assert_eq!(lines, rows);
    assert!(bytes > 13_000_000);
}

#[test]
fn the_servers_session_ends_when_its_client_vanishes() {
    let proxy = proxy();
    let client = Client::log_in(proxy.address(), &[("user", "x")]).unwrap();
    let pid = client.process_id();
    drop(client);
    let mut other = Client::log_in(proxy.address(), &[("user", "x")]).unwrap();
    crate::support::wait_for("the end of the server's session", || {
        (other.value(&format!(
            "select count(*) from pg_stat_activity where pid = {pid}"
        )) == "0")
            .then_some(())
    });
}

#[test]
fn a_query_sent_byte_by_byte_passes_through() {
    let proxy = proxy();
    let mut client = Client::log_in(proxy.address(), &[("user", "x")]).unwrap();
    client.stream.set_nodelay(true).unwrap();
    // The client sends one query a byte at a time.
    let sql = b"select md5(string_agg(chr(1 + n), '')) from generate_series(0, 126) n\0";
    let query = [&b"Q"[..], &crate::support::client::packet(sql)].concat();
    for byte in query {
        client.stream.write_all(&[byte]).unwrap();
    }
    assert_eq!(client.read_rows().unwrap().len(), 1);
    client.send(b'X', b"");
    assert_eq!(client.stream.read(&mut [0]).unwrap(), 0);
}
