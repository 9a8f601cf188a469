//! What happens to clients when real parts break: a server that is killed, that restarts or that
//! fails over, a network that cuts and delays, and a machine that runs out of something? Nothing
//! waits longer than the deadline that each test names.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use testbed::{Aws, Stop, Testbed};

use crate::support::client::{
    Client, Reply, ServerError, V3_0, connect, read_refusal, read_reply, startup_packet,
};
use crate::support::proxy::{Proxy, command, config_file, rds_config};
use crate::support::tls_files::TlsFiles;
use crate::support::{PATIENCE, wait_for};

/// The proxy gives up an address that does not answer after eight seconds.
const CONNECT_DEADLINE: Duration = Duration::from_secs(8);

const TARGET: &str = "db_user = \"jane_doe\"\ndatabase = \"postgres\"\n";

fn log_in(proxy: &Proxy) -> Result<Client, ServerError> {
    Client::log_in(proxy.address(), &[("user", "x")])
}

/// A target whose server may be stopped, since no other test uses it.
fn own_server(bed: &Testbed, keys: &str) -> (Aws, Proxy) {
    let aws = bed.aws();
    let host = format!("host = \"localhost\"\nport = {}\n", bed.rds().port());
    let config = rds_config(&format!("{host}{TARGET}{keys}")).replace(
        &Testbed::shared().ca_file().display().to_string(),
        &bed.ca_file().display().to_string(),
    );
    let proxy = Proxy::with_config(&aws, &config);
    (aws, proxy)
}

/// A target behind a relay, on a listener with these keys.
fn behind(relay: SocketAddr, keys: &str) -> Proxy {
    let rds = Testbed::shared().rds();
    let target = format!(
        "host = \"127.0.0.1\"\nport = {}\nsigning_host = \"localhost:{}\"\n{TARGET}",
        relay.port(),
        rds.port()
    );
    let config = rds_config(&target).replacen("auth = ", &format!("{keys}auth = "), 1);
    Proxy::with_config(&Testbed::shared().aws(), &config)
}

#[test]
fn a_server_that_stops_ends_its_sessions_and_logins_work_once_it_is_back() {
    let bed = Testbed::start().unwrap();
    let (_aws, proxy) = own_server(&bed, "reuse_sessions = true\n");
    for (resets, how) in [(1, Stop::Fast), (2, Stop::Immediate), (3, Stop::Kill)] {
        let [mut idle, mut busy, kept] = [(); 3].map(|()| log_in(&proxy).unwrap());
        busy.sleep_on_server(&mut idle);
        let kept_id = kept.process_id();
        leave(kept);
        wait_for_resets(&proxy, resets);
        let stopped = Instant::now();
        bed.rds_server().stop(how).unwrap();
        // Its end is passed on at once, and the client's side is closed within five seconds.
        let error = busy.read_rows().unwrap_err();
        if how == Stop::Fast {
            assert_eq!(error.sqlstate(), "57P01", "the server's own words");
        }
        assert!(
            ended(&mut idle.stream),
            "{how:?}: an idle session ends as well"
        );
        assert!(stopped.elapsed() < PATIENCE, "{:?}", stopped.elapsed());
        let refused = Instant::now();
        let error = log_in(&proxy).err().expect("the server is down");
        assert_eq!(error.sqlstate(), "08001", "{how:?}");
        assert!(refused.elapsed() < CONNECT_DEADLINE, "{how:?}");
        bed.rds_server().start_again().unwrap();
        let mut client = log_in(&proxy).unwrap_or_else(|error| panic!("{how:?}: {error:?}"));
        assert_eq!(client.value("select 1"), "1");
        assert_ne!(client.process_id(), kept_id, "nobody gets a dead session");
    }
}

/// Says goodbye, so that the session may be used again.
fn leave(mut client: Client) {
    client.send(b'X', &[]);
    assert_eq!(read_reply(&mut client.stream), Reply::Closed);
}

/// Waits until this many sessions were reset and wait for their next clients.
fn wait_for_resets(proxy: &Proxy, count: usize) {
    wait_for("resets", || {
        (proxy.log().matches("how=\"reset\"").count() >= count).then_some(())
    });
}

/// Reads to the end of the stream.
fn ended(stream: &mut TcpStream) -> bool {
    stream.read_to_end(&mut Vec::new()).is_ok()
}

#[test]
fn logins_during_a_restart_succeed_or_are_told_that_the_server_is_away() {
    // Connecting and waiting in line take less than twenty seconds together.
    const DEADLINE: Duration = Duration::from_secs(20);
    let bed = Testbed::start().unwrap();
    let (_aws, proxy) = own_server(&bed, "");
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let crowd: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    let mut outcomes: BTreeMap<String, usize> = BTreeMap::new();
                    while !over.load(Ordering::Relaxed) {
                        let begun = Instant::now();
                        let outcome = log_in(&proxy).map_or_else(
                            |error| error.sqlstate().to_string(),
                            |_| "success".to_string(),
                        );
                        assert!(begun.elapsed() < DEADLINE, "{:?}", begun.elapsed());
                        *outcomes.entry(outcome).or_default() += 1;
                    }
                    outcomes
                })
            })
            .collect();
        for how in [Stop::Fast, Stop::Kill, Stop::Immediate] {
            bed.rds_server().stop(how).unwrap();
            bed.rds_server().start_again().unwrap();
        }
        over.store(true, Ordering::Relaxed);
        for outcomes in crowd.into_iter().map(|one| one.join().unwrap()) {
            for outcome in outcomes.keys() {
                // 57P01 to 57P03 are the server's own, when it stops and before it is ready.
                let known = ["success", "08001", "08006", "57P01", "57P02", "57P03"];
                assert!(known.contains(&outcome.as_str()), "{outcomes:?}");
            }
        }
    });
    assert_eq!(log_in(&proxy).unwrap().value("select 1"), "1");
}

/// The path of the library that resolves names from a file.
pub fn nss_wrapper() -> PathBuf {
    let folders = std::fs::read_dir("/usr/lib").unwrap().flatten();
    folders
        .map(|folder| folder.path().join("libnss_wrapper.so"))
        .find(|library| library.exists())
        .expect("on Debian: apt-get install -y --no-install-recommends libnss-wrapper")
}

/// A library that resolves names from a file, which the process reads again when it changes.
struct Names {
    folder: tempfile::TempDir,
    library: PathBuf,
}

impl Names {
    fn new(name: &str, address: Ipv4Addr) -> Self {
        let names = Self {
            folder: tempfile::tempdir().unwrap(),
            library: nss_wrapper(),
        };
        names.point(name, address);
        names
    }

    fn point(&self, name: &str, address: Ipv4Addr) {
        let next = self.folder.path().join("next");
        std::fs::write(&next, format!("{address} {name}\n")).unwrap();
        std::fs::rename(next, self.folder.path().join("hosts")).unwrap();
    }

    fn env(&self) -> Vec<(String, String)> {
        let hosts = self.folder.path().join("hosts");
        [("LD_PRELOAD", &self.library), ("NSS_WRAPPER_HOSTS", &hosts)]
            .map(|(name, path)| (name.to_string(), path.display().to_string()))
            .into()
    }
}

/// A server that goes by a name, behind a relay at each of two addresses. The name leads to the
/// first until it is moved.
struct Moving {
    old: Relay,
    new: Relay,
    new_address: SocketAddr,
    names: Names,
    proxy: Proxy,
}

impl Moving {
    const NAME: &str = "db.failover.test";

    /// Starts a proxy whose target has these keys. The relay at the first address forwards by a
    /// function of the test.
    fn start(
        keys: &str,
        forward: impl Fn(&mut TcpStream, &mut TcpStream) + Clone + Send + 'static,
    ) -> Self {
        let rds = Testbed::shared().rds();
        let server = SocketAddr::from((Ipv4Addr::LOCALHOST, rds.port()));
        let old = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = old.local_addr().unwrap().port();
        let new_address = SocketAddr::from((Ipv4Addr::new(127, 0, 0, 2), port));
        let new = TcpListener::bind(new_address).unwrap();
        let names = Names::new(Self::NAME, Ipv4Addr::LOCALHOST);
        let aws = Testbed::shared().aws();
        let target = format!(
            "host = \"{}\"\nport = {port}\ntls_server_name = \"localhost\"\nsigning_host = \
             \"localhost:{}\"\n{keys}{TARGET}",
            Self::NAME,
            rds.port()
        );
        let env = [aws.env(), names.env()].concat();
        Self {
            old: Relay::listen(old, server, forward),
            new: Relay::listen(new, server, pass),
            new_address,
            proxy: Proxy::with_config_and_env(&rds_config(&target), env),
            names,
        }
    }

    fn move_server(&self) {
        let SocketAddr::V4(address) = self.new_address else {
            unreachable!("it is an address of IPv4")
        };
        self.names.point(Self::NAME, *address.ip());
    }

    /// How many connections each address has seen.
    fn connections(&self) -> (usize, usize) {
        (self.old.connections(), self.new.connections())
    }
}

#[test]
fn after_a_failover_by_dns_logins_and_pooled_sessions_move_to_the_new_address() {
    let server = Moving::start("reuse_sessions = true\n", pass);
    let proxy = &server.proxy;
    let mut open = log_in(proxy).unwrap();
    leave(log_in(proxy).unwrap());
    wait_for_resets(proxy, 1);
    assert_eq!(server.connections(), (2, 0));
    server.move_server();
    // The pool looks every five seconds whether the name has moved.
    proxy.log_line(&["spare session ended"]);
    let mut moved = log_in(proxy).unwrap();
    assert_eq!(moved.value("select 1"), "1");
    assert_eq!(server.connections(), (2, 1));
    assert_eq!(
        open.value("select 1"),
        "1",
        "an open session stays where it is"
    );
    let upstream = format!("upstream={}", server.new_address);
    proxy.log_line(&["session opened", &upstream]);
}

#[test]
fn logins_share_an_answer_of_the_dns_and_see_a_failover_within_five_seconds() {
    const LATEST: Duration = Duration::from_secs(5);
    let server = Moving::start("", pass);
    log_in(&server.proxy).unwrap();
    server.move_server();
    let moved = Instant::now();
    log_in(&server.proxy).unwrap();
    assert_eq!(server.connections(), (2, 0), "the name was looked up again");
    loop {
        let begun = moved.elapsed();
        log_in(&server.proxy).unwrap();
        if server.connections().1 > 0 {
            break;
        }
        assert!(begun < LATEST, "{begun:?}: a login goes to the old address");
    }
}

#[test]
fn a_login_that_fails_at_an_old_address_goes_to_the_new_one() {
    let left = Arc::new(AtomicUsize::new(usize::MAX));
    let cutter = left.clone();
    let server = Moving::start("", move |from, to| cut(from, to, &cutter));
    log_in(&server.proxy).unwrap();
    server.move_server();
    left.store(0, Ordering::Relaxed);
    assert_eq!(log_in(&server.proxy).unwrap().value("select 1"), "1");
    assert_eq!(server.connections(), (2, 1));
    log_in(&server.proxy).unwrap();
    assert_eq!(server.connections(), (2, 2), "the old address is forgotten");
}

#[test]
fn a_server_whose_listen_queue_is_full_fails_its_logins_and_no_others() {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket
        .bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())
        .unwrap();
    socket.listen(0).unwrap();
    let full = socket.local_addr().unwrap().as_socket().unwrap();
    // The kernel drops what comes after the first few.
    let waiting: Vec<TcpStream> =
        std::iter::from_fn(|| TcpStream::connect_timeout(&full, Duration::from_millis(300)).ok())
            .take(64)
            .collect();
    assert!(waiting.len() < 64, "the queue is never full");
    let second = format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\ntargets = [\"full\"]\nauth = \"trust\"\n\
         [target.full]\nengine = \"rds\"\nregion = \"us-west-2\"\nhost = \"127.0.0.1\"\n\
         port = {}\n{TARGET}",
        full.port()
    );
    let proxy = Proxy::with_config(&Testbed::shared().aws(), &(rds_config(TARGET) + &second));
    let begun = Instant::now();
    let mut stuck = connect(proxy.addresses[1]);
    stuck
        .write_all(&startup_packet(V3_0, &[("user", "x")]))
        .unwrap();
    assert_eq!(log_in(&proxy).unwrap().value("select 1"), "1");
    assert!(
        begun.elapsed() < CONNECT_DEADLINE,
        "the other target has not waited for this one"
    );
    let error = read_refusal(&mut stuck);
    assert_eq!(
        (error.sqlstate(), error.message()),
        ("08001", "cannot connect to the database server")
    );
    assert!(begun.elapsed() < CONNECT_DEADLINE + PATIENCE / 2);
    drop(waiting);
}

#[test]
fn open_sessions_go_on_while_there_is_no_file_descriptor_for_the_server() {
    // The limit on open sockets is reached at once, so nobody waits for it.
    const DEADLINE: Duration = Duration::from_secs(5);
    let proxy = Proxy::with_config(&Testbed::shared().aws(), &rds_config(TARGET));
    let mut open = log_in(&proxy).unwrap();
    let process = format!("/proc/{}/fd", proxy.id());
    let limit = |files: usize| {
        let status = Command::new("prlimit")
            .args(["--pid", &proxy.id().to_string()])
            .arg(format!("--nofile={files}:"))
            .status()
            .unwrap();
        assert!(status.success());
    };
    // New descriptors take the lowest free numbers, so one more fits: the client's.
    let numbers = std::fs::read_dir(&process).unwrap().flatten();
    let taken: Vec<usize> = numbers
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    let lowest = (0..1_024).find(|number| !taken.contains(number)).unwrap();
    limit(lowest + 1);
    let begun = Instant::now();
    let error = log_in(&proxy).err().expect("no descriptor is left");
    assert_eq!(error.sqlstate(), "08001");
    assert!(begun.elapsed() < DEADLINE, "{:?}", begun.elapsed());
    assert_eq!(open.value("select 1"), "1");
    limit(1024);
    assert_eq!(log_in(&proxy).unwrap().value("select 1"), "1");
}

#[test]
fn a_full_disk_for_the_log_stops_nobody() {
    // Five seconds are far more than logins and a stop take, and no line is waited for.
    const DEADLINE: Duration = Duration::from_secs(5);
    let file = config_file(&rds_config(TARGET));
    let mut full = Command::new("sh");
    full.args(["-c", "exec \"$@\" 2>/dev/full", "sh"])
        .arg(command().get_program())
        .args(["run", "--log-level", "debug", "--config"])
        .arg(&file)
        .envs(Testbed::shared().aws().env())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    let mut proxy = Proxy::start(full, 1);
    let begun = Instant::now();
    for _ in 0..3 {
        assert_eq!(log_in(&proxy).unwrap().value("select 1"), "1");
    }
    proxy.signal("-TERM");
    assert!(proxy.wait().success());
    assert!(begun.elapsed() < DEADLINE, "{:?}", begun.elapsed());
    assert_eq!(proxy.log(), "");
}

#[test]
fn bytes_arrive_unchanged_over_networks_that_split_and_delay_them_anywhere() {
    // 16 KiB a direction go byte by byte or nearly so, which takes a few seconds on a busy machine.
    const DEADLINE: Duration = Duration::from_mins(1);
    let begun = Instant::now();
    let rds = SocketAddr::from((Ipv4Addr::LOCALHOST, Testbed::shared().rds().port()));
    let files = TlsFiles::new();
    for seed in 1..=3 {
        let far = Relay::start(rds, move |from, to| shred(from, to, seed));
        let proxy = behind(far.address, &files.keys("optional"));
        let near = Relay::start(proxy.address(), move |from, to| shred(from, to, 10 + seed));
        echo(&mut Client::log_in(near.address, &[("user", "x")]).unwrap());
        echo(&mut files.client().log_in(near.address, "x").unwrap());
    }
    assert!(begun.elapsed() < DEADLINE, "{:?}", begun.elapsed());
}

/// Sends values of many lengths there and back.
fn echo<S: Read + Write>(client: &mut Client<S>) {
    for length in [0, 1, 100, 5_000, 40_000] {
        let value: String = ('a'..='z').cycle().take(length).collect();
        assert_eq!(client.value(&format!("select '{value}'")), value);
    }
}

#[test]
fn a_connection_to_the_server_that_is_cut_at_any_byte_of_the_login_fails_it_at_once() {
    // Nobody waits for a connection that has been cut. The deadlines of each step are far longer.
    const DEADLINE: Duration = Duration::from_secs(5);
    let rds = SocketAddr::from((Ipv4Addr::LOCALHOST, Testbed::shared().rds().port()));
    let left = Arc::new(AtomicUsize::new(usize::MAX));
    let cutter = left.clone();
    let relay = Relay::start(rds, move |from, to| cut(from, to, &cutter));
    let proxy = behind(relay.address, "");
    let mut failed = 0;
    for bytes in (0..).step_by(61) {
        left.store(bytes, Ordering::Relaxed);
        let begun = Instant::now();
        let outcome = log_in(&proxy);
        assert!(begun.elapsed() < DEADLINE, "{bytes}: {:?}", begun.elapsed());
        match outcome {
            Err(error) => {
                assert!(["08001", "08006"].contains(&error.sqlstate()), "{error:?}");
                failed += 1;
            }
            Ok(_) => break,
        }
    }
    assert!(failed > 20, "a login is longer than this: {failed}");
    left.store(usize::MAX, Ordering::Relaxed);
    assert_eq!(log_in(&proxy).unwrap().value("select 1"), "1");
}

/// Forwards connections to a server, each direction by a function of the test.
struct Relay {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
}

impl Relay {
    fn start(
        server: SocketAddr,
        forward: impl Fn(&mut TcpStream, &mut TcpStream) + Clone + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        Self::listen(listener, server, forward)
    }

    fn listen(
        listener: TcpListener,
        server: SocketAddr,
        forward: impl Fn(&mut TcpStream, &mut TcpStream) + Clone + Send + 'static,
    ) -> Self {
        let relay = Self {
            address: listener.local_addr().unwrap(),
            connections: Arc::default(),
        };
        let connections = relay.connections.clone();
        std::thread::spawn(move || {
            for near in listener.incoming().flatten() {
                connections.fetch_add(1, Ordering::Relaxed);
                let far = TcpStream::connect(server).expect("the server accepts");
                for stream in [&near, &far] {
                    stream.set_nodelay(true).unwrap();
                }
                let there = (near.try_clone().unwrap(), far.try_clone().unwrap());
                for (mut from, mut to) in [there, (far, near)] {
                    let forward = forward.clone();
                    std::thread::spawn(move || {
                        forward(&mut from, &mut to);
                        let _ = to.shutdown(Shutdown::Write);
                    });
                }
            }
        });
        relay
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

fn pass(from: &mut TcpStream, to: &mut TcpStream) {
    let _ = std::io::copy(from, to);
}

/// Passes the first bytes in pieces of one to sixteen, and then in pieces of any length, each in a
/// packet of its own. Some of them are late.
fn shred(from: &mut TcpStream, to: &mut TcpStream, seed: usize) {
    let (mut random, mut passed, mut bytes) = (seed, 0, [0; 8_192]);
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        let mut rest = &bytes[..count];
        while !rest.is_empty() {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let longest = if passed < 16_384 { 16 } else { 8_192 };
            let length = (1 + (random >> 33) % longest).min(rest.len());
            let (piece, after) = rest.split_at(length);
            if to.write_all(piece).is_err() {
                return;
            }
            if random >> 60 == 0 {
                std::thread::park_timeout(Duration::from_millis(1));
            }
            (rest, passed) = (after, passed + length);
        }
    }
}

/// Passes as many bytes in this direction as `left` says, and then cuts the connection.
fn cut(from: &mut TcpStream, to: &mut TcpStream, left: &AtomicUsize) {
    let mut left = left.load(Ordering::Relaxed);
    let mut bytes = [0; 8_192];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        let passed = count.min(left);
        if to.write_all(&bytes[..passed]).is_err() {
            return;
        }
        left -= passed;
        if left == 0 {
            let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
            return;
        }
    }
}
