//! Does the proxy refuse to log in to a server without TLS, or with a certificate that it cannot
//! verify?

use testbed::{Challenge, FrontOptions, ServerCertificate, Testbed};

use crate::support::client::Client;
use crate::support::proxy::{Proxy, rds_config, redshift_config};
use crate::support::server::{answer_ssl_request, serve};

/// Asserts that a login to this server fails with 08001, that the client reads `message` and that
/// the log gives `cause`.
#[track_caller]
fn assert_login_refused(port: u16, keys: &str, message: &str, cause: &str) {
    let aws = Testbed::shared().aws();
    let config = rds_config(&format!(
        "host = \"localhost\"\nport = {port}\ndb_user = \"jane_doe\"\n{keys}"
    ));
    let proxy = Proxy::with_config(&aws, &config);
    let error = Client::log_in(proxy.address(), &[("user", "x")])
        .err()
        .expect("there is no login");
    assert_eq!((error.sqlstate(), error.message()), ("08001", message));
    proxy.log_line(&["WARN", "login refused", "08001", cause]);
}

fn port_with(certificate: ServerCertificate) -> (testbed::Front, u16) {
    let front = Testbed::shared()
        .redshift()
        .front(FrontOptions {
            challenge: Challenge::Md5,
            certificate,
        })
        .unwrap();
    let port = front.port();
    (front, port)
}

#[test]
fn a_server_without_tls_is_refused() {
    assert_login_refused(
        answer_ssl_request(b"N"),
        "",
        "the database server does not offer TLS",
        "does not offer TLS, and there is no login without",
    );
}

#[test]
fn a_server_that_answers_with_an_error_is_refused_and_its_text_is_not_shown() {
    let port = answer_ssl_request(b"E\0\0\0\x0fSFATAL\0\0");
    let message = "the database server sent an error response during SSL exchange";
    assert_login_refused(
        port,
        "",
        message,
        "sent an error response during SSL exchange",
    );
}

#[test]
fn a_server_that_answers_with_an_unknown_byte_is_refused() {
    let message = "the database server does not answer SSLRequest as PostgreSQL does";
    assert_login_refused(
        answer_ssl_request(b"H"),
        "",
        message,
        "answered the SSLRequest with byte 0x48",
    );
}

#[test]
fn a_server_that_sends_an_extra_byte_after_its_answer_is_refused() {
    let message = "received unencrypted data after SSL response from the database server";
    assert_login_refused(
        answer_ssl_request(b"SX"),
        "",
        message,
        "received unencrypted data after SSL response",
    );
}

#[test]
fn a_server_that_agrees_to_tls_and_then_speaks_plaintext_is_refused() {
    let port = serve(|mut stream| {
        use std::io::{Read, Write};
        // The server answers the ClientHello with an AuthenticationOk in plaintext.
        let _ = stream
            .read_exact(&mut [0; 8])
            .and_then(|()| stream.write_all(b"S"));
        let _ = stream
            .read(&mut [0; 4096])
            .and_then(|_| stream.write_all(b"R\0\0\0\x08\0\0\0\0"));
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let message = "received unencrypted or corrupt data in the TLS handshake";
    assert_login_refused(
        port,
        "",
        message,
        "received unencrypted or corrupt data in the TLS handshake",
    );
}

#[test]
fn a_server_that_closes_the_connection_fails_the_login() {
    let port = serve(drop);
    assert_login_refused(
        port,
        "",
        "the database server closed the connection during SSL exchange",
        "closed or failed during SSL exchange",
    );
}

#[test]
fn a_server_that_accepts_and_says_nothing_is_said_to_have_timed_out() {
    assert_login_refused(
        answer_ssl_request(b""),
        "",
        "the database server did not answer the SSLRequest in time",
        "did not answer the SSLRequest within 8 s",
    );
}

#[test]
fn a_certificate_for_another_name_is_refused() {
    let (_front, port) = port_with(ServerCertificate::WrongName);
    let cause = "the server's certificate is not for localhost; it names other.example.com";
    assert_login_refused(
        port,
        "",
        "the server's certificate is for another host name",
        cause,
    );
}

#[test]
fn tls_server_name_is_the_name_that_is_verified() {
    let bed = Testbed::shared();
    let aws = bed.aws();
    let (_front, port) = port_with(ServerCertificate::WrongName);
    let keys = format!(
        "host = \"localhost\"\nport = {port}\ntls_server_name = \"other.example.com\"\n\
         db_user = \"ana\"\ndatabase = \"dev\""
    );
    let proxy = Proxy::with_config(&aws, &redshift_config(&aws, &keys));
    assert_eq!(
        Client::log_in(proxy.address(), &[("user", "x")])
            .unwrap()
            .value("select 1"),
        "1"
    );
    let (_front, port) = port_with(ServerCertificate::Good);
    let message = "the server's certificate is for another host name";
    assert_login_refused(
        port,
        "tls_server_name = \"nobody.example.com\"",
        message,
        "is not for nobody.example.com",
    );
}

#[test]
fn an_expired_certificate_is_refused() {
    let (_front, port) = port_with(ServerCertificate::Expired);
    assert_login_refused(
        port,
        "",
        "the server's certificate has expired",
        "the server's certificate has expired",
    );
}

#[test]
fn a_certificate_of_an_unknown_authority_is_refused() {
    let (_front, port) = port_with(ServerCertificate::UnknownCa);
    let message = "the server's certificate is signed by no known authority";
    assert_login_refused(
        port,
        "",
        message,
        "signed by no known authority (if it is your own, set ca_file)",
    );
}

#[test]
fn without_ca_file_only_the_built_in_roots_are_trusted() {
    let bed = Testbed::shared();
    let aws = bed.aws();
    let config = rds_config("db_user = \"jane_doe\"");
    let without: String = config
        .lines()
        .filter(|line| !line.starts_with("ca_file"))
        .map(|line| format!("{line}\n"))
        .collect();
    let proxy = Proxy::with_config(&aws, &without);
    let error = Client::log_in(proxy.address(), &[("user", "x")])
        .err()
        .unwrap();
    assert_eq!(
        error.message(),
        "the server's certificate is signed by no known authority"
    );
}

#[test]
fn a_closed_port_and_an_unknown_host_name_are_reported_differently() {
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    assert_login_refused(
        port,
        "",
        "cannot connect to the database server",
        "Connection refused",
    );
    let aws = Testbed::shared().aws();
    let proxy = Proxy::with_config(
        &aws,
        &rds_config("host = \"no-such-host.invalid\"\ndb_user = \"jane_doe\""),
    );
    let error = Client::log_in(proxy.address(), &[("user", "x")])
        .err()
        .unwrap();
    assert_eq!(
        (error.sqlstate(), error.message()),
        ("08001", "cannot resolve the database server's name")
    );
    proxy.log_line(&["cannot resolve no-such-host.invalid"]);
}
