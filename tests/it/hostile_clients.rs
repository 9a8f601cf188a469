//! Do clients that break off, stall, drip or flood at any point of a login cost the proxy anything for
//! longer than its deadlines?

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

use testbed::{Aws, Testbed};

use crate::support::client::{
    Client, Reply, SSL_REQUEST, V3_0, connect, packet, read_refusal, read_reply, startup_packet,
};
use crate::support::holdings::{assert_nothing_is_left, descriptors_at_rest};
use crate::support::proxy::{Proxy, hash_password, md5_verifier, rds_config};
use crate::support::tls_client::ask;
use crate::support::tls_files::TlsFiles;

const TARGET: &str = "db_user = \"jane_doe\"\ndatabase = \"postgres\"";

/// How a peer breaks off.
#[derive(Debug, Clone, Copy)]
enum End {
    /// With a FIN.
    Close,
    /// With an RST.
    Reset,
}

fn end(stream: &TcpStream, end: End) {
    if let End::Reset = end {
        // A close with nothing to linger for is an RST.
        socket2::SockRef::from(stream)
            .set_linger(Some(std::time::Duration::ZERO))
            .unwrap();
    }
}

fn assert_serves(proxy: &Proxy) {
    let mut client = Client::log_in(proxy.address(), &[("user", "ana")]).unwrap();
    assert_eq!(client.value("select 1"), "1");
}

/// A proxy that has served a session, so that it has opened whatever it keeps open, and how many
/// file descriptors it has.
fn warmed_up(config: &str) -> (Proxy, usize, Aws) {
    let aws = Testbed::shared().aws();
    let proxy = Proxy::with_config(&aws, config);
    assert_serves(&proxy);
    proxy.log_line(&["session ended"]);
    let before = descriptors_at_rest(&proxy);
    (proxy, before, aws)
}

/// Breaks a login off behind each of its bytes.
fn break_off_everywhere(address: SocketAddr, bytes: &[u8], how: End) {
    for length in 0..=bytes.len() {
        let mut stream = connect(address);
        stream.write_all(&bytes[..length]).unwrap();
        end(&stream, how);
    }
}

#[test]
fn a_client_may_break_off_behind_every_byte_of_its_login() {
    let config = rds_config(TARGET).replace(
        "auth = \"trust\"\n",
        "auth = \"trust\"\n[[listener.rule]]\nusers = [\"bob\"]\nauth = \"password\"\n",
    );
    let config = format!(
        "{config}[user.bob]\npassword = \"{}\"\n",
        hash_password("x")
    );
    let (proxy, before, _aws) = warmed_up(&config);
    let login = [
        &SSL_REQUEST[..],
        &startup_packet(V3_0, &[("user", "bob"), ("database", "postgres")]),
        b"p",
        &packet(b"x\0"),
        b"X\0\0\0\x04",
    ]
    .concat();
    // Everything is sent at once, so the SSLRequest has to be answered first.
    let login = &login[SSL_REQUEST.len()..];
    for how in [End::Close, End::Reset] {
        break_off_everywhere(proxy.address(), &SSL_REQUEST, how);
        break_off_everywhere(proxy.address(), login, how);
    }
    assert_nothing_is_left(&proxy, before);
    assert_serves(&proxy);
}

#[test]
fn a_client_that_drips_is_served_and_ones_that_stall_are_cut_off() {
    let config = format!("{}[limits]\nstartup_timeout = \"3s\"\n", rds_config(TARGET));
    let (proxy, before, _aws) = warmed_up(&config);
    let startup = startup_packet(V3_0, &[("user", "ana")]);
    let mut dripping = connect(proxy.address());
    dripping.set_nodelay(true).unwrap();
    for byte in &startup {
        dripping.write_all(&[*byte]).unwrap();
    }
    assert!(matches!(read_reply(&mut dripping), Reply::Message(b'R', _)));
    drop(dripping);
    let mut stalled: Vec<_> = (0..startup.len())
        .map(|length| {
            let mut stream = connect(proxy.address());
            stream.write_all(&startup[..length]).unwrap();
            stream
        })
        .collect();
    for stream in &mut stalled {
        assert_eq!(read_reply(stream), Reply::Closed);
    }
    assert_nothing_is_left(&proxy, before);
    assert_serves(&proxy);
}

#[test]
fn a_client_that_floods_before_it_is_let_in_is_cut_off() {
    let config = rds_config(TARGET).replace("\"trust\"", "\"password\"");
    let config = format!(
        "{config}[user.ana]\npassword = \"{}\"\n",
        hash_password("x")
    );
    let proxy = Proxy::with_config(&Testbed::shared().aws(), &config);
    for begin in [&b""[..], &startup_packet(V3_0, &[("user", "ana")])] {
        let mut stream = connect(proxy.address());
        stream.write_all(begin).unwrap();
        let flood = vec![b'p'; 1 << 20];
        let sent = (0..1_000)
            .take_while(|_| stream.write_all(&flood).is_ok())
            .count();
        assert!(sent < 100, "{sent} MB were taken");
    }
}

#[test]
fn every_wait_for_a_client_that_has_not_begun_a_login_ends_at_startup_timeout() {
    let tls = TlsFiles::new();
    let (proxy, before, _aws) = warmed_up(&with_every_method(&tls));
    let [listener, behind_balancer] = proxy.addresses[..] else {
        panic!("there are two listeners")
    };
    let say = |address, bytes: &[u8]| {
        let mut stream = connect(address);
        stream.write_all(bytes).unwrap();
        stream
    };
    let mut hello = Vec::new();
    tls.client().connection().write_tls(&mut hello).unwrap();
    let half_a_hello = &hello[..hello.len() / 2];
    let mut asked = ask(listener);
    asked.write_all(half_a_hello).unwrap();
    let encrypted = || tls.client().ssl_request(listener).unwrap();
    let startup = startup_packet(V3_0, &[("user", "ana")]);
    let mut half_a_packet = encrypted();
    half_a_packet
        .write_all(&startup[..startup.len() / 2])
        .unwrap();
    let header = b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 5439\r\n";
    let waits = [
        ("before the first byte", say(listener, b"")),
        ("in the startup packet", say(listener, &startup[..10])),
        ("after the SSLRequest", ask(listener)),
        ("in the TLS handshake", asked),
        (
            "in a handshake without SSLRequest",
            say(listener, half_a_hello),
        ),
        ("after the TLS handshake", encrypted().sock),
        ("in the startup packet over TLS", half_a_packet.sock),
        ("before the PROXY header", say(behind_balancer, b"")),
        ("in the PROXY header", say(behind_balancer, &header[..20])),
        ("after the PROXY header", say(behind_balancer, header)),
    ];
    for (wait, mut stream) in waits {
        let mut answer = Vec::new();
        if let Err(error) = stream.read_to_end(&mut answer) {
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{wait}");
        }
        assert_ne!(answer.first(), Some(&b'E'), "{wait}: nothing is said");
    }
    assert_nothing_is_left(&proxy, before);
    assert_serves(&proxy);
}

#[test]
fn every_wait_for_a_clients_proof_ends_with_57014_at_startup_timeout() {
    let tls = TlsFiles::new();
    let (proxy, before, _aws) = warmed_up(&with_every_method(&tls));
    let address = proxy.address();
    let first = b"n,,n=,r=rOprNGfwEbeRWgbNEkqO";
    let length = u32::try_from(first.len()).unwrap().to_be_bytes();
    let first = packet(&[&b"SCRAM-SHA-256\0"[..], &length, first].concat());
    let scram = [b"p", &first[..]].concat();
    let waits: [(&str, &str, &[&[u8]]); 6] = [
        ("for a password", "plain", &[]),
        ("for the rest of a password", "plain", &[b"p\0\0\0\x06x"]),
        ("for an MD5 answer", "md5", &[]),
        ("for the first message of SCRAM", "scram", &[]),
        ("for the rest of it", "scram", &[&scram[..20]]),
        ("for the last message of SCRAM", "scram", &[&scram]),
    ];
    let mut waiting: Vec<_> = waits
        .iter()
        .map(|(wait, user, answers)| {
            let mut stream = connect(address);
            stream
                .write_all(&startup_packet(V3_0, &[("user", user)]))
                .unwrap();
            assert!(matches!(read_reply(&mut stream), Reply::Message(b'R', _)));
            for answer in *answers {
                stream.write_all(answer).unwrap();
            }
            (wait, stream)
        })
        .collect();
    // What is left of the exchange is answered before the timeout.
    let (_, last) = waiting.last_mut().unwrap();
    assert!(matches!(read_reply(last), Reply::Message(b'R', _)));
    let mut encrypted = tls.client().ssl_request(address).unwrap();
    encrypted
        .write_all(&startup_packet(V3_0, &[("user", "scram")]))
        .unwrap();
    assert!(matches!(
        read_reply(&mut encrypted),
        Reply::Message(b'R', _)
    ));
    for (wait, stream) in &mut waiting {
        assert_eq!(read_refusal(stream).sqlstate(), "57014", "{wait}");
    }
    assert_eq!(read_refusal(&mut encrypted).sqlstate(), "57014");
    drop((waiting, encrypted));
    assert_nothing_is_left(&proxy, before);
    assert_serves(&proxy);
}

/// A listener where user `plain` has to give a password, `md5` and `scram` to prove theirs, and
/// others nothing; and another one behind a load balancer.
fn with_every_method(tls: &TlsFiles) -> String {
    let rule = |user: &str, method| {
        format!("[[listener.rule]]\nusers = [\"{user}\"]\nauth = \"{method}\"\n")
    };
    let rules = [
        rule("plain", "password"),
        rule("md5", "md5"),
        rule("scram", "scram-sha-256"),
        "[[listener.rule]]\nauth = \"trust\"\n".to_string(),
        "[[listener]]\naddress = \"127.0.0.1:0\"\ntargets = [\"app\"]\nauth = \"md5\"\n\
         proxy_protocol = true\nproxy_protocol_from = [\"127.0.0.1\"]\n"
            .to_string(),
    ];
    let listener = format!("{}{}", tls.keys("optional"), rules.concat());
    let verifier = hash_password("x");
    let users = format!(
        "[user.plain]\npassword = \"{verifier}\"\n[user.scram]\npassword = \"{verifier}\"\n\
         [user.md5]\npassword = \"{}\"\n[limits]\nstartup_timeout = \"3s\"\n",
        md5_verifier("md5", "x")
    );
    let config = rds_config(TARGET).replace("auth = \"trust\"\n", &listener);
    format!("{config}{users}")
}
