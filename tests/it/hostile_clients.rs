//! Do peers that break off, stall, drip or flood at any point of a login cost the proxy anything
//! for longer than its deadlines?

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use testbed::{Aws, Testbed};

use crate::support::client::{
    Client, Reply, SSL_REQUEST, V3_0, connect, packet, read_reply, startup_packet,
};
use crate::support::proxy::{Proxy, hash_password, rds_config};
use crate::support::server::serve;
use crate::support::wait_for;

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

/// Waits until the proxy has no connection left but those of its listeners and of its own.
fn assert_nothing_is_left(proxy: &Proxy, before: usize) {
    wait_for("all connections to be closed", || {
        (descriptors(proxy) <= before).then_some(())
    });
}

/// How many file descriptors the proxy has open.
fn descriptors(proxy: &Proxy) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", proxy.id()))
        .unwrap()
        .count()
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
    let mut before = descriptors(&proxy);
    // The last descriptors of that session are closed a moment later.
    wait_for("the session to be gone", || {
        let now = descriptors(&proxy);
        std::mem::replace(&mut before, now).eq(&now).then_some(())
    });
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
    let config = format!("{}[limits]\nstartup_timeout = \"2s\"\n", rds_config(TARGET));
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

/// Passes connections on to a server, and breaks each off when so many bytes of the server have
/// passed. Returns its port.
fn relay_that_breaks_off(server: u16, after: Arc<AtomicUsize>, how: End) -> u16 {
    serve(move |client| {
        let after = after.load(Ordering::Relaxed);
        std::thread::spawn(move || {
            let mut server = TcpStream::connect(("127.0.0.1", server)).expect("it accepts");
            let (mut from_client, mut to_server) =
                (client.try_clone().unwrap(), server.try_clone().unwrap());
            let upwards = std::thread::spawn(move || {
                let _ = std::io::copy(&mut from_client, &mut to_server);
                let _ = to_server.shutdown(Shutdown::Write);
            });
            let mut client = client;
            let passed = std::io::copy(&mut (&mut server).take(after as u64), &mut client);
            let _ = server.shutdown(Shutdown::Both);
            if passed.is_ok_and(|passed| passed == after as u64) {
                end(&client, how);
            }
            // The other thread has the same connection, which ends when both have dropped it.
            let _ = client.shutdown(Shutdown::Read);
            let _ = upwards.join();
        });
    })
}

#[test]
fn a_server_may_break_off_behind_any_byte_of_the_login() {
    let bed = Testbed::shared();
    for how in [End::Close, End::Reset] {
        let after = Arc::new(AtomicUsize::new(usize::MAX >> 1));
        let port = relay_that_breaks_off(bed.rds().port(), after.clone(), how);
        let config = rds_config(&format!(
            "host = \"localhost\"\nport = {port}\nsigning_host = \"localhost:{}\"\n{TARGET}",
            bed.rds().port()
        ));
        let (proxy, before, _aws) = warmed_up(&config);
        // Each byte of the answer to the SSLRequest, of records' heads, and of the end; between
        // them, enough to meet every message of the handshake and the login.
        let (mut failed, mut at) = (0, 0);
        loop {
            after.store(at, Ordering::Relaxed);
            let mut stream = connect(proxy.address());
            stream
                .write_all(&startup_packet(V3_0, &[("user", "ana")]))
                .unwrap();
            match read_reply(&mut stream) {
                Reply::Message(b'E', _) => failed += 1,
                Reply::Message(b'R', _) => break,
                other => panic!("{how:?} after {at}: {other:?}"),
            }
            at += if at < 16 { 1 } else { 61 };
        }
        assert!(failed > 20, "{failed} logins failed");
        after.store(usize::MAX >> 1, Ordering::Relaxed);
        assert_serves(&proxy);
        assert_nothing_is_left(&proxy, before);
    }
}
