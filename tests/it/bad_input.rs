//! How does the proxy answer attackers, scanners and broken clients?

use std::io::{Read, Write};
use std::net::TcpStream;

use testbed::{Aws, Fault, Testbed};

use crate::support::client::{
    Client, GSSENC_REQUEST, Reply, SSL_REQUEST, V3_0, cancel, connect, packet, read_refusal,
    read_reply, startup_packet,
};
use crate::support::proxy::{Proxy, rds_config, redshift_config};

/// A proxy in front of the RDS flavour.
struct Port {
    proxy: Proxy,
    // The AWS endpoint stops when this is dropped.
    _aws: Aws,
}

impl Port {
    fn open() -> Self {
        let aws = Testbed::shared().aws();
        let proxy = Proxy::with_config(
            &aws,
            &rds_config("db_user = \"jane_doe\"\ndatabase = \"postgres\""),
        );
        Self { proxy, _aws: aws }
    }

    fn connect(&self) -> TcpStream {
        connect(self.proxy.address())
    }

    fn log_in(&self) -> Client {
        Client::log_in(self.proxy.address(), &[("user", "x")]).unwrap()
    }

    /// Asserts that these bytes are refused in this way, and that the next client is served all the
    /// same.
    #[track_caller]
    fn refuses(&self, bytes: &[u8], sqlstate: &str, message: &str) {
        let mut stream = self.connect();
        stream.write_all(bytes).unwrap();
        let error = read_refusal(&mut stream);
        assert_eq!((error.sqlstate(), error.message()), (sqlstate, message));
        assert_eq!(error.0[&'S'], "FATAL");
        let session = error
            .detail()
            .strip_prefix("pg-iam-proxy session ")
            .expect("DETAIL has the session id");
        self.proxy.log_line(&["login refused", session, sqlstate]);
        assert_eq!(self.log_in().value("select 1"), "1");
    }

    /// Asserts that the connection is closed without an answer, for this reason, and that the next
    /// client is served all the same.
    #[track_caller]
    fn closes(&self, bytes: &[u8], error: &str) {
        let mut stream = self.connect();
        stream.write_all(bytes).unwrap();
        assert_eq!(read_reply(&mut stream), Reply::Closed);
        let error = format!("error=\"{error}\"");
        self.proxy
            .log_line(&["INFO", "connection closed without an answer", &error]);
        assert_eq!(self.log_in().value("select 1"), "1");
    }
}

#[track_caller]
fn assert_refused(bytes: &[u8], sqlstate: &str, message: &str) {
    Port::open().refuses(bytes, sqlstate, message);
}

#[test]
fn encryption_requests_are_declined_in_either_order() {
    let port = Port::open();
    for requests in [[SSL_REQUEST, GSSENC_REQUEST], [GSSENC_REQUEST, SSL_REQUEST]] {
        let mut stream = port.connect();
        for request in requests {
            stream.write_all(&request).unwrap();
            let mut answer = [0];
            stream.read_exact(&mut answer).unwrap();
            assert_eq!(&answer, b"N");
        }
        stream
            .write_all(&startup_packet(V3_0, &[("user", "x")]))
            .unwrap();
        assert!(matches!(read_reply(&mut stream), Reply::Message(b'R', _)));
    }
}

#[test]
fn plaintext_after_an_ssl_request_is_refused() {
    let stuffed = [&SSL_REQUEST[..], &startup_packet(V3_0, &[("user", "x")])].concat();
    assert_refused(
        &stuffed,
        "08P01",
        "received unencrypted data after SSL request",
    );
    let stuffed = [&GSSENC_REQUEST[..], b"x"].concat();
    assert_refused(
        &stuffed,
        "08P01",
        "received unencrypted data after GSSAPI encryption request",
    );
}

#[test]
fn a_second_ssl_request_is_refused() {
    let port = Port::open();
    for (request, message) in [
        (SSL_REQUEST, "received a second SSLRequest"),
        (
            GSSENC_REQUEST,
            "received a GSSENCRequest that cannot be granted any more",
        ),
    ] {
        let mut stream = port.connect();
        stream.write_all(&request).unwrap();
        let mut answer = [0];
        stream.read_exact(&mut answer).unwrap();
        stream.write_all(&request).unwrap();
        let error = read_refusal(&mut stream);
        assert_eq!((error.sqlstate(), error.message()), ("08P01", message));
    }
}

#[test]
fn lengths_of_0_3_and_2_to_the_31_are_closed_without_an_answer_as_by_postgresql() {
    let port = Port::open();
    for length in [0, 3, 7, 0x7fff_ffff, u32::MAX] {
        port.closes(&length.to_be_bytes(), "invalid length of startup packet");
    }
}

#[test]
fn a_terminate_before_the_startup_message_is_closed_without_an_answer() {
    // This is what node-postgres sends at connect() and end().
    Port::open().closes(b"X\0\0\0\x04", "invalid length of startup packet");
}

#[test]
fn a_startup_packet_over_10000_bytes_is_closed_without_an_answer() {
    let long = "x".repeat(10_000);
    Port::open().closes(
        &startup_packet(V3_0, &[("user", &long)]),
        "invalid length of startup packet",
    );
}

#[test]
fn a_startup_packet_without_terminator_is_refused() {
    let body = [&V3_0.to_be_bytes()[..], b"user\0x\0"].concat();
    assert_refused(
        &packet(&body),
        "08P01",
        "invalid startup packet layout: expected terminator as last byte",
    );
}

#[test]
fn a_user_name_that_is_not_utf8_is_refused() {
    let body = [&V3_0.to_be_bytes()[..], b"user\0\xff\xfe\0\0"].concat();
    assert_refused(&packet(&body), "28000", "user name is not valid UTF-8");
}

#[test]
fn two_values_for_user_are_refused() {
    let packet = startup_packet(V3_0, &[("user", "x"), ("database", "y"), ("user", "root")]);
    assert_refused(
        &packet,
        "08P01",
        "startup packet has two values for \"user\"",
    );
}

#[test]
fn a_startup_packet_without_user_is_refused() {
    let port = Port::open();
    for parameters in [&[][..], &[("database", "postgres")], &[("user", "")]] {
        port.refuses(
            &startup_packet(V3_0, parameters),
            "28000",
            "no PostgreSQL user name specified in startup packet",
        );
    }
}

#[test]
fn unknown_request_codes_and_protocol_versions_are_refused() {
    assert_refused(
        &startup_packet(0x04d2_163a, &[]),
        "08P01",
        "unknown request code 80877114",
    );
    assert_refused(
        &startup_packet(0x0004_0000, &[("user", "x")]),
        "0A000",
        "unsupported frontend protocol 4.0: server supports 3.0 to 3.2",
    );
}

#[test]
fn protocol_version_2_is_refused_in_its_own_form() {
    let port = Port::open();
    let mut stream = port.connect();
    let startup = startup_packet(0x0002_0000, &[("user", "x")]);
    stream.write_all(&startup).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert_eq!(
        String::from_utf8(answer).unwrap(),
        "EFATAL:  unsupported frontend protocol 2.0: server supports 3.0 to 3.2\n\0"
    );
    port.proxy.log_line(&["login refused", "0A000"]);
}

#[test]
fn the_log_names_http_where_a_request_of_that_was_closed() {
    let request = b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nbody";
    Port::open().closes(
        request,
        "invalid length of startup packet: this looks like HTTP, and this port speaks PostgreSQL",
    );
}

#[test]
fn the_log_names_tls_where_it_came_without_ssl_request() {
    let hello = [0x16, 3, 1, 0, 200, 1, 0, 0, 196];
    let message = "invalid length of startup packet: this looks like TLS without an SSLRequest \
        (sslnegotiation=direct), which this port does not speak";
    Port::open().closes(&hello, message);
}

#[test]
fn a_startup_packet_sent_byte_by_byte_is_cut_off_at_startup_timeout() {
    let aws = Testbed::shared().aws();
    let config = format!(
        "{}[limits]\nstartup_timeout = \"300ms\"\n",
        rds_config("db_user = \"jane_doe\"")
    );
    let proxy = Proxy::with_config(&aws, &config);
    let mut stream = connect(proxy.address());
    stream.set_nodelay(true).unwrap();
    // Each byte arrives well within the timeout after the last one, but all of them together take
    // longer.
    let dripping = std::time::Instant::now();
    for byte in startup_packet(V3_0, &[("user", &"x".repeat(9_000))]) {
        if stream.write_all(&[byte]).is_err() {
            break;
        }
        std::thread::park_timeout(std::time::Duration::from_millis(5));
    }
    assert!(
        dripping.elapsed() < std::time::Duration::from_secs(10),
        "the client is cut off long before the end of its packet"
    );
    assert_eq!(
        read_reply(&mut stream),
        Reply::Closed,
        "before the StartupMessage there is nothing to say"
    );
    proxy.log_line(&["client did not finish its startup in time"]);
}

#[test]
fn the_proxy_goes_on_serving_when_clients_leave_at_any_phase() {
    let bed = Testbed::shared();
    let aws = bed.aws();
    let proxy = Proxy::with_config(
        &aws,
        &redshift_config(&aws, "db_user = \"ana\"\ndatabase = \"dev\""),
    );
    let startup = startup_packet(V3_0, &[("user", "x")]);
    // These clients leave before their first byte, in the middle of a length, in the middle of a
    // packet, and after an SSLRequest.
    for sent in [&[][..], &startup[..2], &startup[..10], &SSL_REQUEST[..]] {
        let mut stream = connect(proxy.address());
        stream.write_all(sent).unwrap();
    }
    // This client leaves while the proxy waits for AWS.
    aws.set_fault(Fault::Hang);
    let mut stream = connect(proxy.address());
    stream.write_all(&startup).unwrap();
    crate::support::wait_for("the call to AWS", || {
        (aws.calls("DescribeClusters") > 0).then_some(())
    });
    drop(stream);
    proxy.log_line(&["client left before its login was done", "warehouse"]);
    aws.set_fault(None);
    // This client leaves right after its login.
    let mut client = Client::log_in(proxy.address(), &[("user", "x")]).unwrap();
    assert_eq!(client.value("select 1"), "1");
    drop(client);
    proxy.log_line(&["session ended", "ended_by=client"]);
    assert_eq!(
        Client::log_in(proxy.address(), &[("user", "x")])
            .unwrap()
            .value("select 1"),
        "1"
    );
}

#[test]
fn the_proxy_notices_a_client_that_leaves_while_the_server_is_silent() {
    let port = crate::support::server::answer_ssl_request(b"");
    let aws = Testbed::shared().aws();
    let proxy = Proxy::with_config(
        &aws,
        &rds_config(&format!(
            "host = \"127.0.0.1\"\nport = {port}\ndb_user = \"jane_doe\""
        )),
    );
    let mut stream = TcpStream::connect(proxy.address()).unwrap();
    stream
        .write_all(&startup_packet(V3_0, &[("user", "x")]))
        .unwrap();
    drop(stream);
    proxy.log_line(&["client left before its login was done", "app"]);
}

#[test]
fn a_cancel_request_with_a_wrong_key_is_closed_without_an_answer() {
    let port = Port::open();
    let mut client = port.log_in();
    let mut wrong = client.key.clone();
    *wrong.last_mut().unwrap() ^= 1;
    cancel(port.proxy.address(), &wrong);
    cancel(port.proxy.address(), &[0, 0, 0, 0, 1]);
    port.proxy.log_line(&[
        "cancel request with a key of no session",
        &format!("pid={}", client.process_id()),
    ]);
    assert_eq!(client.value("select 1"), "1");
    port.closes(
        &packet(&80_877_102u32.to_be_bytes()),
        "invalid length of cancel request packet",
    );
}
