//! What does TLS towards clients encrypt, who may connect without it, and which certificates are
//! shown and accepted?

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime};

use rustls::HandshakeKind;
use rustls::version::{TLS12, TLS13};
use testbed::{Aws, Testbed};

use crate::support::client::{
    Client, GSSENC_REQUEST, Reply, SSL_REQUEST, ServerError, V3_0, V3_2, cancel, connect,
    error_fields, packet, read_refusal, read_reply, startup_packet,
};
use crate::support::pki::{Authority, Identity, Leaf};
use crate::support::proxy::{Proxy, config_file, output, rds_config};
use crate::support::reports::reports;
use crate::support::server::{ResettingRelay, serve};
use crate::support::tls_client::{
    TlsClient, TlsStream, ask, assert_close_notify, close_writing, handshake, read_byte, shown,
};
use crate::support::tls_files::TlsFiles;
use crate::support::{python, wait_for};

/// What the line of a session has whose server has reset the connection.
const RESET: [&str; 3] = ["session ended", "ended_by=upstream", "reset"];
const FAILED: &str = "TLS handshake with the client failed";
const RELOADED: &str = "certificate read again and in use";
const NOT_RELOADED: &str = "certificate cannot be read again; the old one stays in use";

/// A proxy that speaks TLS to its clients, in front of the RDS flavour.
struct Port {
    proxy: Proxy,
    files: TlsFiles,
    // The AWS endpoint stops when this is dropped.
    _aws: Aws,
}

impl Port {
    /// Starts a proxy that lets everybody in.
    fn open(tls: &str) -> Self {
        let files = TlsFiles::new();
        let keys = files.keys(tls);
        Self::with(
            files,
            &format!("auth = \"trust\"\n{keys}"),
            "db_user = \"jane_doe\"\ndatabase = \"postgres\"",
        )
    }

    /// Starts a proxy that lets in whoever has a certificate of this authority. `keys` are further
    /// lines of the listener.
    fn for_certificates(clients: &Authority, keys: &str) -> Self {
        let files = TlsFiles::new();
        let ca = files.write("client-ca.pem", &clients.certificate);
        let tls = files.keys("optional");
        let listener = format!("auth = \"cert\"\n{tls}client_ca = \"{ca}\"\n{keys}\n");
        Self::with(
            files,
            &listener,
            "db_user = \"jane_doe\"\ndatabase = \"postgres\"",
        )
    }

    fn with(files: TlsFiles, listener: &str, target: &str) -> Self {
        let aws = Testbed::shared().aws();
        let proxy = Proxy::with_config(
            &aws,
            &rds_config(target).replace("auth = \"trust\"\n", listener),
        );
        Self {
            proxy,
            files,
            _aws: aws,
        }
    }

    fn address(&self) -> SocketAddr {
        self.proxy.address()
    }

    fn log_in(&self) -> Client<TlsStream> {
        self.files.client().log_in(self.address(), "x").unwrap()
    }

    fn log_in_showing(
        &self,
        identity: &Identity,
        user: &str,
    ) -> Result<Client<TlsStream>, ServerError> {
        TlsClient::showing(&self.files.authority.certificate, identity).log_in(self.address(), user)
    }

    /// Asserts that a client with this certificate fails its handshake, and that the log says why.
    #[track_caller]
    fn assert_not_taken(&self, identity: &Identity, alert: &str, cause: &str) {
        for version in [&TLS12, &TLS13] {
            let client = TlsClient::speaking_and_showing(
                &self.files.authority.certificate,
                version,
                identity,
            );
            // In TLS 1.3 the handshake is over for the client, and it has sent its startup message,
            // before the proxy has seen the certificate.
            let error = client.ssl_request(self.address()).and_then(|mut stream| {
                stream.write_all(&startup_packet(V3_0, &[("user", "x")]))?;
                stream.read(&mut [0])
            });
            assert_eq!(error.expect_err("the handshake fails").to_string(), alert);
        }
        self.proxy.log_line(&["INFO", FAILED, cause]);
        assert!(!self.proxy.log().contains("session opened"));
    }
}

fn assert_served(mut client: Client<impl Read + Write>) {
    assert_eq!(client.value("select current_user"), "jane_doe");
}

/// Skips messages until one of this kind arrives, and returns its body.
fn read_until(stream: &mut TlsStream, kind: u8) -> Vec<u8> {
    loop {
        match read_reply(stream) {
            Reply::Message(tag, body) if tag == kind => return body,
            Reply::Message(..) => {}
            Reply::Closed => panic!("closed before a message {:?}", char::from(kind)),
        }
    }
}

#[test]
fn optional_tls_serves_clients_with_and_without_it() {
    let port = Port::open("optional");
    assert_served(Client::log_in(port.address(), &[("user", "x")]).unwrap());
    assert_served(port.log_in());
}

#[test]
fn tls_1_2_and_1_3_are_spoken() {
    let port = Port::open("required");
    for version in [&TLS12, &TLS13] {
        let client = TlsClient::speaking(&port.files.authority.certificate, version);
        let session = client.log_in(port.address(), "x").unwrap();
        assert_eq!(
            session.stream.conn.protocol_version(),
            Some(version.version)
        );
        assert_served(session);
    }
}

#[test]
fn a_plain_startup_message_to_an_address_that_requires_tls_is_refused_with_28000_and_a_hint() {
    let port = Port::open("required");
    let mut declined = connect(port.address());
    declined.write_all(&GSSENC_REQUEST).unwrap();
    assert_eq!(read_byte(&mut declined), b'N');
    for mut stream in [connect(port.address()), declined] {
        stream
            .write_all(&startup_packet(V3_0, &[("user", "x")]))
            .unwrap();
        let error = read_refusal(&mut stream);
        assert_eq!(
            (error.sqlstate(), error.message()),
            ("28000", "this address takes encrypted connections only")
        );
        assert_eq!(error.0[&'H'], "sslmode=require");
    }
    port.proxy.log_line(&[
        "INFO",
        "login refused",
        "28000",
        "this address takes encrypted connections only",
    ]);
}

#[test]
fn a_plain_cancel_request_cancels_a_query_of_a_tls_session() {
    let port = Port::open("required");
    let mut observer = port.log_in();
    for version in [V3_0, V3_2] {
        let stream = port.files.client().ssl_request(port.address()).unwrap();
        let mut session = Client::log_in_over(stream, version, &[("user", "x")]).unwrap();
        session.sleep_on_server(&mut observer);
        cancel(port.address(), &session.key);
        assert_eq!(session.read_rows().err().unwrap().sqlstate(), "57014");
    }
}

#[test]
fn a_cancel_request_over_tls_is_answered_by_close_notify_only() {
    let port = Port::open("required");
    let (mut session, mut observer) = (port.log_in(), port.log_in());
    for stream in [
        port.files.client().ssl_request(port.address()),
        port.files.client().direct(port.address()),
    ] {
        session.sleep_on_server(&mut observer);
        let mut stream = stream.unwrap();
        stream
            .write_all(&packet(
                &[&80_877_102u32.to_be_bytes()[..], &session.key].concat(),
            ))
            .unwrap();
        assert_close_notify(&mut stream);
        assert_eq!(session.read_rows().err().unwrap().sqlstate(), "57014");
    }
}

#[test]
fn gssenc_request_may_come_before_ssl_request() {
    let port = Port::open("required");
    let mut tcp = connect(port.address());
    tcp.write_all(&GSSENC_REQUEST).unwrap();
    assert_eq!(read_byte(&mut tcp), b'N');
    tcp.write_all(&SSL_REQUEST).unwrap();
    assert_eq!(read_byte(&mut tcp), b'S');
    let stream = handshake(port.files.client().connection(), tcp).unwrap();
    assert_served(Client::log_in_over(stream, V3_0, &[("user", "x")]).unwrap());
}

#[test]
fn direct_tls_needs_no_ssl_request() {
    let port = Port::open("required");
    let stream = port.files.client().direct(port.address()).unwrap();
    assert_eq!(stream.conn.alpn_protocol(), Some(&b"postgresql"[..]));
    assert_served(Client::log_in_over(stream, V3_2, &[("user", "x")]).unwrap());
}

#[test]
fn an_ssl_request_inside_direct_tls_is_declined() {
    let port = Port::open("required");
    let mut stream = port.files.client().direct(port.address()).unwrap();
    stream.write_all(&SSL_REQUEST).unwrap();
    assert_eq!(read_byte(&mut stream), b'N');
    assert_served(Client::log_in_over(stream, V3_0, &[("user", "x")]).unwrap());
}

#[test]
fn a_second_ssl_request_inside_tls_is_refused() {
    let port = Port::open("required");
    let mut direct = port.files.client().direct(port.address()).unwrap();
    direct.write_all(&SSL_REQUEST).unwrap();
    assert_eq!(read_byte(&mut direct), b'N');
    for mut stream in [
        direct,
        port.files.client().ssl_request(port.address()).unwrap(),
    ] {
        stream.write_all(&SSL_REQUEST).unwrap();
        let error = read_refusal(&mut stream);
        assert_eq!(
            (error.sqlstate(), error.message()),
            ("08P01", "received a second SSLRequest")
        );
    }
}

#[test]
fn direct_tls_without_alpn_is_dropped() {
    let port = Port::open("required");
    let mut stream = port
        .files
        .client()
        .naming(&[])
        .direct(port.address())
        .unwrap();
    // The proxy may have closed the connection before this write is done.
    let _ = stream.write_all(&startup_packet(V3_0, &[("user", "x")]));
    assert!(
        stream.read(&mut [0]).is_err(),
        "the proxy sends nothing, not even close_notify"
    );
    port.proxy.log_line(&[
        "INFO",
        FAILED,
        "direct TLS without ALPN protocol postgresql",
    ]);
    assert!(!port.proxy.log().contains("session opened"));
}

#[test]
fn an_unknown_alpn_protocol_fails_the_handshake_in_both_modes_and_is_logged() {
    let port = Port::open("required");
    let client = port.files.client().naming(&["http/1.1", "h2"]);
    for stream in [
        client.direct(port.address()),
        client.ssl_request(port.address()),
    ] {
        assert_eq!(
            stream.err().unwrap().to_string(),
            "received fatal alert: NoApplicationProtocol"
        );
    }
    port.proxy
        .log_line(&["INFO", FAILED, "peer doesn't support any known protocol"]);
}

#[test]
fn alpn_may_be_left_out_after_ssl_request_and_postgresql_may_be_one_of_several() {
    let port = Port::open("required");
    let stream = port
        .files
        .client()
        .naming(&[])
        .ssl_request(port.address())
        .unwrap();
    assert_eq!(stream.conn.alpn_protocol(), None);
    assert_served(Client::log_in_over(stream, V3_0, &[("user", "x")]).unwrap());
    let stream = port
        .files
        .client()
        .naming(&["h2", "postgresql"])
        .direct(port.address())
        .unwrap();
    assert_eq!(stream.conn.alpn_protocol(), Some(&b"postgresql"[..]));
    assert_served(Client::log_in_over(stream, V3_0, &[("user", "x")]).unwrap());
}

#[test]
fn a_client_hello_in_the_same_segment_as_its_ssl_request_is_served() {
    let port = Port::open("required");
    for version in [&TLS12, &TLS13] {
        let mut connection =
            TlsClient::speaking(&port.files.authority.certificate, version).connection();
        let mut segment = SSL_REQUEST.to_vec();
        connection.write_tls(&mut segment).unwrap();
        let mut tcp = connect(port.address());
        tcp.write_all(&segment).unwrap();
        assert_eq!(read_byte(&mut tcp), b'S');
        let stream = handshake(connection, tcp).unwrap();
        assert_served(Client::log_in_over(stream, V3_0, &[("user", "x")]).unwrap());
    }
}

#[test]
fn a_plain_startup_message_after_an_ssl_request_is_never_used() {
    let port = Port::open("optional");
    let startup = startup_packet(V3_0, &[("user", "x")]);
    let mut hello = Vec::new();
    port.files
        .client()
        .connection()
        .write_tls(&mut hello)
        .unwrap();
    for stuffed in [
        [&SSL_REQUEST[..], &startup].concat(),
        [&SSL_REQUEST[..], &startup, &hello].concat(),
    ] {
        let mut stream = connect(port.address());
        stream.write_all(&stuffed).unwrap();
        assert_eq!(read_byte(&mut stream), b'S');
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
        assert!(
            answer.is_empty() || answer[0] == 0x15,
            "a TLS alert at most: {answer:?}"
        );
    }
    port.proxy.log_line(&[
        "INFO",
        FAILED,
        "received corrupt message of type InvalidContentType",
    ]);
    assert!(!port.proxy.log().contains("session opened"));
    assert_served(port.log_in());
}

#[test]
fn the_alert_of_a_failed_handshake_arrives_even_if_the_client_sends_more_than_is_read() {
    let port = Port::open("required");
    let mut stream = ask(port.address());
    stream.write_all(&vec![b'x'; 200_000]).unwrap();
    let mut answer = Vec::new();
    stream.shutdown(Shutdown::Write).unwrap();
    stream
        .read_to_end(&mut answer)
        .expect("a close, not a reset");
    assert_eq!(answer[..2], [0x15, 0x03], "a TLS alert");
}

#[test]
fn a_query_pipelined_after_the_startup_message_is_answered() {
    let port = Port::open("required");
    let mut stream = port.files.client().direct(port.address()).unwrap();
    let query = [&b"Q"[..], &packet(b"select 'pipelined'\0")].concat();
    stream
        .write_all(&[startup_packet(V3_0, &[("user", "x")]), query].concat())
        .unwrap();
    assert!(read_until(&mut stream, b'D').ends_with(b"pipelined"));
}

#[test]
fn a_stalled_handshake_is_cut_off_at_startup_timeout() {
    let files = TlsFiles::new();
    let listener = format!("auth = \"trust\"\n{}", files.keys("required"));
    let port = Port::with(
        files,
        &listener,
        "db_user = \"jane_doe\"\n[limits]\nstartup_timeout = \"300ms\"\n",
    );
    let mut hello = Vec::new();
    port.files
        .client()
        .connection()
        .write_tls(&mut hello)
        .unwrap();
    let mut direct = connect(port.address());
    direct.write_all(&hello[..hello.len() / 2]).unwrap();
    for mut stream in [ask(port.address()), direct] {
        assert_eq!(read_reply(&mut stream), Reply::Closed);
    }
    port.proxy
        .log_line(&["client did not finish its startup in time"]);
    // The timeout also applies to a client that is silent after its handshake.
    let mut stream = port.files.client().ssl_request(port.address()).unwrap();
    assert!(stream.read(&mut [0]).is_err());
}

#[test]
fn tls_sessions_are_never_resumed() {
    let port = Port::open("required");
    for version in [&TLS12, &TLS13] {
        let client = TlsClient::speaking(&port.files.authority.certificate, version).resuming();
        for _ in 0..2 {
            let session = client.log_in(port.address(), "x").unwrap();
            assert_eq!(
                session.stream.conn.handshake_kind(),
                Some(HandshakeKind::Full)
            );
            assert_served(session);
        }
    }
}

#[test]
fn a_replaced_certificate_is_shown_to_new_connections_and_open_sessions_go_on() {
    let port = Port::open("required");
    let mut session = port.log_in();
    let old = shown(&session.stream);
    port.files.write_pair(&port.files.authority.server());
    port.proxy
        .log_line(&["INFO", RELOADED, &port.files.path("server.pem")]);
    let new = port.log_in();
    assert_ne!(shown(&new.stream), old);
    assert_eq!(session.value("select 1"), "1");
    assert_served(new);
}

#[test]
fn the_old_certificate_stays_in_use_until_both_files_are_replaced() {
    let port = Port::open("required");
    let old = shown(&port.log_in().stream);
    let next = port.files.authority.server();
    port.files.write("server.key", &next.key);
    port.proxy.log_line(&[
        "ERROR",
        NOT_RELOADED,
        &port.files.path("server.pem"),
        &port.files.path("server.key"),
    ]);
    assert_eq!(shown(&port.log_in().stream), old);
    port.files.write("server.pem", &next.certificate);
    port.proxy.log_line(&["INFO", RELOADED]);
    assert_ne!(shown(&port.log_in().stream), old);
    assert_eq!(
        port.proxy.log().matches(NOT_RELOADED).count(),
        1,
        "the error is logged once, not every second"
    );
}

#[test]
fn the_old_certificate_stays_in_use_when_files_disappear_or_break() {
    let port = Port::open("required");
    let old = shown(&port.log_in().stream);
    std::fs::remove_file(port.files.path("server.pem")).unwrap();
    port.proxy
        .log_line(&["ERROR", NOT_RELOADED, "No such file or directory"]);
    assert_eq!(shown(&port.log_in().stream), old);
    port.files.write("server.pem", "half a fi");
    port.proxy
        .log_line(&["ERROR", NOT_RELOADED, "it has no PEM certificate"]);
    assert_eq!(shown(&port.log_in().stream), old);
    port.files.write_pair(&port.files.authority.server());
    port.proxy.log_line(&["INFO", RELOADED]);
    assert_ne!(shown(&port.log_in().stream), old);
}

#[test]
fn sighup_reads_certificates_again_even_if_nothing_has_changed() {
    let port = Port::open("required");
    let mut session = port.log_in();
    port.proxy.signal("-HUP");
    port.proxy.log_line(&["INFO", RELOADED]);
    assert_eq!(session.value("select 1"), "1");
    port.files.write("server.pem", "");
    port.proxy.log_line(&["ERROR", NOT_RELOADED]);
    port.proxy.signal("-HUP");
    wait_for("the second report", || {
        (port.proxy.log().matches(NOT_RELOADED).count() == 2).then_some(())
    });
}

/// The problems of a listener that has these lines after its first four, without the name of the
/// file.
fn problems(keys: &str) -> String {
    let file = config_file(&format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\ntargets = [\"app\"]\nauth = \"trust\"\n{keys}\n\
         [target.app]\nengine = \"rds\"\nhost = \"localhost\"\nregion = \"us-west-2\"\n"
    ));
    let heads: Vec<_> = reports(&file)
        .into_iter()
        .map(|report| report.head)
        .collect();
    heads.join("\n")
}

#[test]
fn an_unusable_certificate_is_reported_with_its_line_and_exit_code_78() {
    let files = TlsFiles::new();
    let keys = files.keys("required");
    let (pem, key) = (files.path("server.pem"), files.path("server.key"));
    files.write("server.key", &files.authority.server().key);
    assert_eq!(
        problems(&keys),
        format!("7:1: listener.key: {key}: it is not the key of the certificate")
    );
    files.write("server.key", &files.authority.certificate);
    assert_eq!(
        problems(&keys),
        format!("7:1: listener.key: {key}: it has no PEM private key without a passphrase")
    );
    files.write(
        "server.pem",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    );
    files.write("server.key", &files.authority.server().key);
    assert_eq!(
        problems(&keys),
        format!("6:1: listener.certificate: {pem}: invalid peer certificate: BadEncoding")
    );
    files.write("server.pem", "nothing in here\n");
    assert_eq!(
        problems(&keys),
        format!("6:1: listener.certificate: {pem}: it has no PEM certificate")
    );
    std::fs::remove_file(&pem).unwrap();
    let missing = problems(&keys);
    assert!(
        missing.starts_with(&format!(
            "6:1: listener.certificate: {pem}: cannot read it: "
        )),
        "{missing}"
    );
    assert!(missing.contains("No such file or directory"), "{missing}");
}

#[test]
fn an_unusable_authority_or_revocation_list_means_exit_code_78() {
    let files = TlsFiles::new();
    let keys = files.keys("required");
    let empty = files.write("empty.pem", "");
    let ca = files.path("server-ca.pem");
    assert_eq!(
        problems(&format!("{keys}client_ca = \"{empty}\"")),
        format!("8:1: listener.client_ca: {empty}: it has no PEM certificate")
    );
    assert_eq!(
        problems(&format!(
            "{keys}client_ca = \"{ca}\"\nclient_crl = \"{empty}\""
        )),
        format!("9:1: listener.client_crl: {empty}: it has no PEM certificate revocation list")
    );
    assert_eq!(
        problems(&format!("{keys}client_crl = \"{ca}\"")),
        "8:1: listener.client_crl: goes with client_ca: add that, or delete it"
    );
}

#[test]
fn tls_without_a_certificate_or_a_key_means_exit_code_78() {
    let certificate =
        "1:1: listener.certificate: say which, as in certificate = \"server.crt\" (PEM)";
    let key = "1:1: listener.key: say which, as in key = \"server.key\" (PEM)";
    assert_eq!(
        problems("tls = \"required\""),
        format!("{certificate}\n{key}")
    );
    assert_eq!(problems("tls = \"optional\"\nkey = \"x\""), certificate);
    assert_eq!(problems("tls = \"optional\"\ncertificate = \"x\""), key);
}

#[test]
fn certificates_without_tls_and_unknown_values_of_tls_mean_exit_code_78() {
    let goes_with = "goes with tls = \"optional\" or tls = \"required\": add that, or delete it";
    assert_eq!(
        problems("certificate = \"x\"\nkey = \"x\"\nclient_ca = \"x\"\ntls = \"off\""),
        format!(
            "5:1: listener.certificate: {goes_with}\n6:1: listener.key: {goes_with}\n\
             7:1: listener.client_ca: {goes_with}"
        )
    );
    assert_eq!(
        problems("tls = \"on\""),
        "5:1: listener.tls = \"on\": must be \"off\", \"optional\" or \"required\""
    );
}

#[test]
fn a_client_certificates_names_are_user_names() {
    let clients = Authority::new("client CA");
    let port = Port::for_certificates(&clients, "");
    assert_served(port.log_in_showing(&clients.client("ana"), "ana").unwrap());
    let several = clients.sign(&Leaf {
        common_name: "ana",
        alternative_names: &["tableau.example.com", "bo@example.com"],
        ..Leaf::default()
    });
    for user in ["ana", "tableau.example.com", "bo@example.com"] {
        assert_served(port.log_in_showing(&several, user).unwrap());
    }
    let nameless = clients.sign(&Leaf {
        alternative_names: &["etl"],
        ..Leaf::default()
    });
    assert_served(port.log_in_showing(&nameless, "etl").unwrap());
}

#[test]
fn a_client_certificate_of_somebody_else_is_refused_with_28000() {
    let clients = Authority::new("client CA");
    let port = Port::for_certificates(&clients, "");
    let ana = clients.client("ana");
    for user in ["root", "an", "ANA"] {
        let error = port.log_in_showing(&ana, user).err().unwrap();
        assert_eq!(
            (error.sqlstate(), error.message()),
            (
                "28000",
                &*format!("certificate authentication failed for user \"{user}\"")
            )
        );
        port.proxy.log_line(&[
            "login refused",
            &format!("certificate authentication failed for user \\\"{user}\\\""),
            "the certificate names ana",
        ]);
    }
    assert!(!port.proxy.log().contains("session opened"));
}

#[test]
fn a_client_without_a_certificate_is_refused_with_28000_with_and_without_tls() {
    let port = Port::for_certificates(&Authority::new("client CA"), "");
    let over_tls = port
        .files
        .client()
        .log_in(port.address(), "ana")
        .err()
        .unwrap();
    let in_clear = Client::log_in(port.address(), &[("user", "ana")])
        .err()
        .unwrap();
    for error in [over_tls, in_clear] {
        assert_eq!(
            (error.sqlstate(), error.message()),
            ("28000", "connection requires a valid client certificate")
        );
    }
}

#[test]
fn a_certificate_map_maps_exact_names_and_patterns_to_users() {
    let clients = Authority::new("client CA");
    let map = r"certificate_map = [
        { certificate = 'tableau.example.com', user = 'tableau' },
        { certificate = '/(.*)@example\.com', user = '\1' },
    ]";
    let port = Port::for_certificates(&clients, map);
    let tableau = clients.sign(&Leaf {
        alternative_names: &["tableau.example.com"],
        ..Leaf::default()
    });
    assert_served(port.log_in_showing(&tableau, "tableau").unwrap());
    let bo = clients.sign(&Leaf {
        common_name: "bo",
        alternative_names: &["bo.b@example.com"],
        ..Leaf::default()
    });
    assert_served(port.log_in_showing(&bo, "bo.b").unwrap());
    let evil = clients.sign(&Leaf {
        alternative_names: &["root@example.com.evil.example"],
        ..Leaf::default()
    });
    // A name that no line of the map matches is not a user name.
    for (identity, user) in [(&bo, "bo"), (&bo, "bo.b@example.com"), (&evil, "root")] {
        let error = port.log_in_showing(identity, user).err().unwrap();
        assert_eq!(
            (error.sqlstate(), error.message()),
            (
                "28000",
                &*format!("certificate authentication failed for user \"{user}\"")
            )
        );
    }
}

#[test]
fn a_client_certificate_of_an_intermediate_authority_is_accepted_with_its_chain() {
    let clients = Authority::new("client CA");
    let intermediate = clients.intermediate("department CA");
    let port = Port::for_certificates(&clients, "");
    let mut ana = intermediate.client("ana");
    ana.certificate += &intermediate.certificate;
    assert_served(port.log_in_showing(&ana, "ana").unwrap());
}

#[test]
fn a_client_certificate_of_an_unknown_authority_fails_the_handshake() {
    let port = Port::for_certificates(&Authority::new("client CA"), "");
    let stranger = Authority::new("another CA").client("ana");
    port.assert_not_taken(
        &stranger,
        "received fatal alert: UnknownCA",
        "UnknownIssuer",
    );
    let impostor = Authority::new("client CA").client("ana");
    port.assert_not_taken(
        &impostor,
        "received fatal alert: DecryptError",
        "BadSignature",
    );
}

#[test]
fn an_expired_client_certificate_fails_the_handshake() {
    let clients = Authority::new("client CA");
    let port = Port::for_certificates(&clients, "");
    let expired = clients.sign(&Leaf {
        common_name: "ana",
        expired: true,
        ..Leaf::default()
    });
    port.assert_not_taken(
        &expired,
        "received fatal alert: CertificateExpired",
        "certificate expired",
    );
}

#[test]
fn a_revoked_client_certificate_fails_the_handshake_and_others_do_not() {
    let clients = Authority::new("client CA");
    let revocations = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(revocations.path(), clients.revoke(&[7])).unwrap();
    let port = Port::for_certificates(
        &clients,
        &format!("client_crl = \"{}\"", revocations.path().display()),
    );
    let identity = |serial| {
        clients.sign(&Leaf {
            common_name: "ana",
            serial,
            ..Leaf::default()
        })
    };
    let (revoked, good) = (identity(7), identity(8));
    port.assert_not_taken(
        &revoked,
        "received fatal alert: CertificateRevoked",
        "Revoked",
    );
    assert_served(port.log_in_showing(&good, "ana").unwrap());
    // The proxy rereads the revocation list when it changes, as it does with certificates.
    std::fs::write(revocations.path(), clients.revoke(&[7, 8])).unwrap();
    port.proxy.log_line(&["INFO", RELOADED]);
    assert!(
        TlsClient::speaking_and_showing(&port.files.authority.certificate, &TLS12, &good)
            .ssl_request(port.address())
            .is_err()
    );
}

#[test]
fn an_expired_revocation_list_lets_nobody_in_until_it_is_replaced() {
    let clients = Authority::new("client CA");
    let list = tempfile::NamedTempFile::new().unwrap();
    let path = list.path().display().to_string();
    std::fs::write(&path, clients.revoke_until(&[7], "2025-02-01")).unwrap();
    let port = Port::for_certificates(&clients, &format!("client_crl = \"{path}\""));
    let expired = format!("{path}: a revocation list has expired at 2025-02-01T00:00:00Z");
    port.proxy.log_line(&["WARN", &expired]);
    let identity = clients.client("ana");
    port.assert_not_taken(&identity, "received fatal alert: UnknownCA", &path);
    port.proxy
        .log_line(&["INFO", FAILED, &path, "certificate revocation list expired"]);
    std::fs::write(&path, clients.revoke(&[7])).unwrap();
    port.proxy.log_line(&["INFO", RELOADED]);
    assert_served(port.log_in_showing(&identity, "ana").unwrap());
}

#[test]
fn check_tells_of_a_revocation_list_before_it_expires() {
    let (clients, files) = (Authority::new("client CA"), TlsFiles::new());
    let ca = files.write("client-ca.pem", &clients.certificate);
    let day = Duration::from_hours(24);
    let warning = |left: Duration| {
        let end = humantime::format_rfc3339(SystemTime::now() + left).to_string();
        let crl = files.write("clients.crl", &clients.revoke_until(&[7], &end[..10]));
        let listener = format!(
            "auth = \"cert\"\n{}client_ca = \"{ca}\"\nclient_crl = \"{crl}\"\n",
            files.keys("optional")
        );
        let config = rds_config("db_user = \"jane_doe\"").replace("auth = \"trust\"\n", &listener);
        let output = output(&[
            "check",
            "--offline",
            "--config",
            &config_file(&config).to_string_lossy(),
        ]);
        assert!(output.status.success());
        let text = String::from_utf8(output.stderr).unwrap();
        text.contains(&format!(
            "{crl}: a revocation list expires at {}",
            &end[..10]
        ))
    };
    assert!(warning(3 * day));
    assert!(!warning(30 * day));
}

#[test]
fn the_proxy_notices_a_client_that_vanishes_during_its_login() {
    let (reached, login) = mpsc::channel();
    let (left, end) = mpsc::channel();
    // This server never answers, and reports when the proxy has connected and when it has given up.
    let server = serve(move |mut stream| {
        let mut request = [0; 8];
        stream.read_exact(&mut request).unwrap();
        reached.send(()).unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
        left.send(()).unwrap();
    });
    let files = TlsFiles::new();
    let listener = format!("auth = \"trust\"\n{}", files.keys("required"));
    let port = Port::with(
        files,
        &listener,
        &format!("host = \"localhost\"\nport = {server}\ndb_user = \"jane_doe\""),
    );
    let leave: [fn(TlsStream); 3] = [
        drop,
        |mut stream| close_writing(&mut stream),
        |mut stream| {
            stream.write_all(b"early").unwrap();
            close_writing(&mut stream);
        },
    ];
    for (n, leave) in leave.into_iter().enumerate() {
        let mut stream = port.files.client().ssl_request(port.address()).unwrap();
        stream
            .write_all(&startup_packet(V3_0, &[("user", "x")]))
            .unwrap();
        login.recv().unwrap();
        leave(stream);
        wait_for("the log line", || {
            (port
                .proxy
                .log()
                .matches("client left before its login was done")
                .count()
                == n + 1)
                .then_some(())
        });
        end.recv().expect("the server is left too");
    }
}

#[test]
fn the_servers_last_error_arrives_before_close_notify() {
    let port = Port::open("required");
    let mut other = port.log_in();
    for version in [&TLS12, &TLS13] {
        let client = TlsClient::speaking(&port.files.authority.certificate, version);
        let mut victim = client.log_in(port.address(), "x").unwrap();
        assert_eq!(
            other.value(&format!(
                "select pg_terminate_backend({})",
                victim.process_id()
            )),
            "t"
        );
        // No server will read these queries.
        for _ in 0..50 {
            victim.send_query("select 1");
        }
        let error = error_fields(&read_until(&mut victim.stream, b'E'));
        assert_eq!(error.sqlstate(), "57P01");
        assert_close_notify(&mut victim.stream);
        drop(victim);
        port.proxy.log_line(&["session ended", "ended_by=upstream"]);
    }
}

/// Runs a session, once with TLS and once without it, to a server behind a relay, and asserts that
/// the client reads these bytes and the end soon after the session has been broken.
fn assert_ends_at_once(
    break_tls: impl Fn(&mut Client<TlsStream>, &ResettingRelay) -> Vec<u8>,
    break_plain: impl Fn(&mut Client, &ResettingRelay) -> Vec<u8>,
    assert_read: impl Fn(&[u8]),
    logged: &[&str],
) {
    // A client that has been told may stay for five seconds.
    let at_once = Duration::from_secs(4);
    let server = Testbed::shared().rds();
    for tls in ["required", "off"] {
        let relay = ResettingRelay::to(server.port());
        server.register_endpoint("localhost", relay.port);
        let files = TlsFiles::new();
        let keys = if tls == "off" {
            String::new()
        } else {
            files.keys(tls)
        };
        let port = Port::with(
            files,
            &format!("auth = \"trust\"\n{keys}"),
            &format!(
                "host = \"localhost\"\nport = {}\ndb_user = \"jane_doe\"\ndatabase = \"postgres\"",
                relay.port
            ),
        );
        let (mut all, begin);
        // Only close_notify makes reading to the end over TLS a success.
        if tls == "off" {
            let mut session = Client::log_in(port.address(), &[("user", "x")]).unwrap();
            all = break_plain(&mut session, &relay);
            begin = Instant::now();
            session.stream.read_to_end(&mut all).expect("a proper end");
        } else {
            let mut session = port.log_in();
            all = break_tls(&mut session, &relay);
            begin = Instant::now();
            session.stream.read_to_end(&mut all).expect("close_notify");
        }
        assert!(begin.elapsed() < at_once, "{:?}", begin.elapsed());
        assert_read(&all);
        port.proxy.log_line(logged);
    }
}

#[test]
fn a_client_learns_at_once_that_its_server_has_reset_the_connection() {
    fn break_it<S: Read + Write>(session: &mut Client<S>, relay: &ResettingRelay) -> Vec<u8> {
        session.value("select 1");
        relay.reset();
        Vec::new()
    }
    assert_ends_at_once(break_it, break_it, |all| assert_eq!(all, b""), &RESET);
}

#[test]
fn a_client_reads_the_servers_last_error_even_if_a_reset_comes_behind_it() {
    fn break_it<S: Read + Write>(session: &mut Client<S>, relay: &ResettingRelay) -> Vec<u8> {
        relay.reset_at_end();
        session.send_query("select pg_terminate_backend(pg_backend_pid())");
        Vec::new()
    }
    let assert_last = |mut all: &[u8]| {
        loop {
            match read_reply(&mut all) {
                Reply::Message(b'E', body) => {
                    break assert_eq!(error_fields(&body).sqlstate(), "57P01");
                }
                Reply::Message(..) => {}
                Reply::Closed => panic!("no error"),
            }
        }
        assert_eq!(all, b"");
    };
    // The server's close_notify may be read before the reset comes.
    let ended = ["session ended", "ended_by=upstream"];
    assert_ends_at_once(break_it, break_it, assert_last, &ended);
}

#[test]
fn a_client_keeps_what_came_of_a_copy_whose_server_resets_the_connection() {
    const ENOUGH: usize = 1 << 20;
    fn break_it<S: Read + Write>(session: &mut Client<S>, relay: &ResettingRelay) -> Vec<u8> {
        session
            .send_query("copy (select generate_series(1, 100000000), repeat('x', 1000)) to stdout");
        let mut begin = vec![0; ENOUGH];
        session.stream.read_exact(&mut begin).unwrap();
        relay.reset();
        begin
    }
    let assert_rows = |mut all: &[u8]| {
        assert!(all.len() >= ENOUGH);
        let Reply::Message(b'H', _) = read_reply(&mut all) else {
            panic!("no CopyOutResponse");
        };
        for number in 1.. {
            let row = format!("{number}\t{}\n", "x".repeat(1000));
            let message = [&b"d"[..], &packet(row.as_bytes())].concat();
            let whole = message.len() <= all.len();
            let expected = &message[..message.len().min(all.len())];
            assert!(all.starts_with(expected), "row {number} is another one");
            if !whole {
                break;
            }
            all = &all[message.len()..];
        }
    };
    assert_ends_at_once(break_it, break_it, assert_rows, &RESET);
}

#[test]
fn a_client_that_asks_for_a_key_update_with_every_record_it_reads_keeps_its_session() {
    let port = Port::open("required");
    let client = TlsClient::speaking(&port.files.authority.certificate, &TLS13);
    let mut session = client.log_in(port.address(), "x").unwrap();
    // While it is idle. rustls does not take more answers in a row.
    for _ in 0..20 {
        session.stream.conn.refresh_traffic_keys().unwrap();
        session.stream.flush().unwrap();
        session
            .stream
            .conn
            .complete_io(&mut session.stream.sock)
            .unwrap();
    }
    assert_eq!(session.value("select 1"), "1");
    // In the middle of a stream, as Java does it from the limit of its key until the answer comes.
    session.send_query("copy (select repeat('x', 8000) from generate_series(1, 4000)) to stdout");
    let mut rows = 0;
    loop {
        match read_reply(&mut session.stream) {
            Reply::Message(b'd', _) => {
                rows += 1;
                if rows < 200 {
                    session.stream.conn.refresh_traffic_keys().unwrap();
                    session.stream.flush().unwrap();
                }
            }
            Reply::Message(b'Z', _) => break,
            Reply::Message(..) => {}
            Reply::Closed => panic!("closed in the middle of COPY"),
        }
    }
    assert_eq!(rows, 4000);
    assert_eq!(session.value("select 2"), "2");
}

#[test]
fn a_client_hello_without_end_is_refused_after_16_kib() {
    let port = Port::open("required");
    let mut tcp = ask(port.address());
    // A ClientHello that says that it has 60,000 bytes, in records of 1,000.
    let mut hello = vec![1, 0, 0xea, 0x60];
    hello.resize(4 + 60_000, 0);
    for record in hello[..17_000].chunks(1000) {
        let length = u16::try_from(record.len()).unwrap().to_be_bytes();
        let _ = tcp.write_all(&[&[22, 3, 1][..], &length, record].concat());
    }
    // The rest never comes. This is the alert illegal_parameter, in the clear.
    let mut answer = Vec::new();
    tcp.read_to_end(&mut answer).unwrap();
    assert_eq!(answer, [21, 3, 3, 0, 2, 2, 47]);
    port.proxy.log_line(&[FAILED, "too long"]);
}

#[test]
fn a_client_certificate_of_more_than_16_kib_is_taken_where_one_is_wanted() {
    let clients = Authority::new("clients");
    let port = Port::for_certificates(&clients, "");
    let mut identity = clients.client("x");
    // The chain may have certificates that nobody needs.
    while identity.certificate.len() < 40_000 {
        identity.certificate += &Authority::new("another").certificate;
    }
    assert_served(port.log_in_showing(&identity, "x").unwrap());
}

#[test]
fn a_client_that_half_closes_still_gets_its_answer_and_close_notify() {
    let port = Port::open("required");
    for version in [&TLS12, &TLS13] {
        let mut session = TlsClient::speaking(&port.files.authority.certificate, version)
            .log_in(port.address(), "x")
            .unwrap();
        session.send_query("select sum(n) from generate_series(1, 200000) n");
        close_writing(&mut session.stream);
        assert_eq!(session.read_rows().unwrap(), ["20000100000"]);
        assert_close_notify(&mut session.stream);
    }
    let line = port.proxy.log_line(&["session ended", "ended_by=client"]);
    assert!(!line.contains("error="), "{line}");
}

#[test]
fn a_client_that_ends_properly_gets_close_notify() {
    let port = Port::open("required");
    let mut session = port.log_in();
    session.value("select 1");
    session.send(b'X', b"");
    assert_close_notify(&mut session.stream);
    // The query has 14 bytes and Terminate has 5.
    drop(session);
    let line = port.proxy.log_line(&["session ended", "bytes_sent=19 "]);
    assert!(!line.contains("error="), "{line}");
}

#[test]
fn a_client_that_closes_without_close_notify_has_ended_normally() {
    let port = Port::open("required");
    let mut session = port.log_in();
    let pid = session.process_id();
    session.value("select 1");
    drop(session);
    let line = port.proxy.log_line(&["session ended", "ended_by=client"]);
    assert!(!line.contains("error="), "{line}");
    let mut other = port.log_in();
    wait_for("the end of the server's session", || {
        (other.value(&format!(
            "select count(*) from pg_stat_activity where pid = {pid}"
        )) == "0")
            .then_some(())
    });
}

#[test]
fn copy_moves_megabytes_unchanged_in_both_directions() {
    let port = Port::open("required");
    for version in [&TLS12, &TLS13] {
        let mut session = TlsClient::speaking(&port.files.authority.certificate, version)
            .log_in(port.address(), "x")
            .unwrap();
        session
            .query("create temporary table t (n int, v text)")
            .unwrap();
        session.send_query("copy t from stdin");
        assert!(matches!(
            read_reply(&mut session.stream),
            Reply::Message(b'G', _)
        ));
        let rows: Vec<String> = (0..60_000u64)
            .map(|n| format!("{n}\t{:0>60}\n", n * 7_919 % 65_537))
            .collect();
        for chunk in rows.chunks(700) {
            session.send(b'd', chunk.concat().as_bytes());
        }
        session.send(b'c', b"");
        session.read_rows().unwrap();
        session.send_query("copy (select * from t order by n) to stdout");
        let mut copied = Vec::new();
        loop {
            match read_reply(&mut session.stream) {
                Reply::Message(b'd', body) => copied.push(String::from_utf8(body).unwrap()),
                Reply::Message(b'Z', _) => break,
                Reply::Message(..) => {}
                Reply::Closed => panic!("closed in the middle of COPY"),
            }
        }
        assert!(copied == rows, "{} of {} rows", copied.len(), rows.len());
    }
}

#[test]
fn openssl_verifies_the_chain_with_and_without_ssl_request() {
    let files = TlsFiles::new();
    let intermediate = files.authority.intermediate("issuing CA");
    let mut server = intermediate.server();
    server.certificate += &intermediate.certificate;
    files.write_pair(&server);
    let listener = format!("auth = \"trust\"\n{}", files.keys("required"));
    let port = Port::with(files, &listener, "db_user = \"jane_doe\"");
    for mode in [
        &["-starttls", "postgres"][..],
        &["-alpn", "postgresql", "-tls1_3"],
        &["-alpn", "postgresql", "-tls1_2"],
    ] {
        let output = Command::new("openssl")
            .args([
                "s_client",
                "-connect",
                &port.address().to_string(),
                "-CAfile",
                &port.files.path("server-ca.pem"),
            ])
            .args([
                "-verify_return_error",
                "-verify_hostname",
                "localhost",
                "-servername",
                "localhost",
            ])
            .args(mode)
            .stdin(Stdio::null())
            .output()
            .expect("openssl starts");
        let text = String::from_utf8_lossy(&output.stdout);
        for part in [
            "0 s:CN = localhost\n   i:CN = issuing CA",
            "1 s:CN = issuing CA\n   i:CN = server CA",
            "Verify return code: 0 (ok)",
        ] {
            assert!(
                text.contains(part),
                "no {part} in {text}{}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        assert_eq!(
            text.contains("ALPN protocol: postgresql"),
            mode.contains(&"-alpn"),
            "{text}"
        );
    }
}

/// Connects with libpq 18, which verifies the proxy, and returns what the script printed or its
/// error.
fn psycopg(port: &Port, more: &str, arguments: &[&str]) -> Result<String, String> {
    let conninfo = format!(
        "host=localhost hostaddr=127.0.0.1 port={} user=ana dbname=postgres sslmode=verify-full \
         sslrootcert={} {more}",
        port.address().port(),
        port.files.path("server-ca.pem"),
    );
    python::psycopg(&conninfo, arguments)
}

#[test]
fn libpq_18_verifies_the_proxy_in_both_modes_and_speaks_its_latest_protocol() {
    let port = Port::open("required");
    for (more, expected) in [
        ("", "jane_doe tls=True protocol=30000"),
        ("sslnegotiation=direct", "jane_doe tls=True protocol=30000"),
        (
            "max_protocol_version=latest",
            "jane_doe tls=True protocol=30002",
        ),
        (
            "sslnegotiation=direct max_protocol_version=latest ssl_max_protocol_version=TLSv1.2",
            "jane_doe tls=True protocol=30002",
        ),
    ] {
        assert_eq!(psycopg(&port, more, &[]).as_deref(), Ok(expected), "{more}");
    }
    let error = psycopg(&port, "host=db.example.com", &[]).unwrap_err();
    assert!(
        error.contains("does not match host name \"db.example.com\""),
        "{error}"
    );
    let error = psycopg(&port, "sslmode=disable", &[]).unwrap_err();
    assert!(
        error.contains("this address takes encrypted connections only"),
        "{error}"
    );
}

#[test]
fn libpq_18_cancels_with_and_without_tls() {
    let port = Port::open("required");
    for more in [
        "max_protocol_version=3.0",
        "max_protocol_version=latest",
        "sslnegotiation=direct",
    ] {
        let printed = psycopg(&port, more, &["cancel"]);
        assert_eq!(printed.as_deref(), Ok("57014 57014"), "{more}");
    }
}

#[test]
fn libpq_18_logs_in_with_a_client_certificate() {
    let clients = Authority::new("client CA");
    let port = Port::for_certificates(&clients, "");
    let shows = |name: &str, identity: &Identity| {
        let certificate = port
            .files
            .write(&format!("{name}.pem"), &identity.certificate);
        let key = port.files.write(&format!("{name}.key"), &identity.key);
        // libpq refuses a key that other users could read.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&key, mode).unwrap();
        format!("sslcertmode=require sslcert={certificate} sslkey={key}")
    };
    let ana = shows("ana", &clients.client("ana"));
    for more in ["", " sslnegotiation=direct"] {
        assert_eq!(
            psycopg(&port, &format!("{ana}{more}"), &[]).as_deref(),
            Ok("jane_doe tls=True protocol=30000")
        );
    }
    for (more, expected) in [
        (
            "sslcertmode=disable",
            "connection requires a valid client certificate",
        ),
        (
            shows("bo", &clients.client("bo")).as_str(),
            "certificate authentication failed for user \"ana\"",
        ),
        (
            shows("stranger", &Authority::new("another CA").client("ana")).as_str(),
            "alert unknown ca",
        ),
    ] {
        let error = psycopg(&port, more, &[]).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_scanner_that_leaves_during_the_handshake_disturbs_nobody() {
    let port = Port::open("required");
    drop(ask(port.address()));
    let mut garbage: TcpStream = ask(port.address());
    garbage.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    drop(garbage);
    port.proxy.log_line(&["INFO", FAILED, "tls handshake eof"]);
    assert_served(port.log_in());
}
