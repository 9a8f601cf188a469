//! Do servers that stall, drip or flood at any point of a login cost the proxy anything for longer
//! than its deadlines, or keep logins to other servers waiting?

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use testbed::{Aws, Testbed};

use crate::faults::nss_wrapper;
use crate::support::client::{
    Client, Reply, V3_0, connect, packet, read_refusal, read_reply, startup_packet,
};
use crate::support::holdings::{
    assert_no_session_is_counted, assert_nothing_is_left, descriptors_at_rest, forget_peak_memory,
    memory, peak_memory,
};
use crate::support::pki::{Authority, Identity};
use crate::support::proxy::{Proxy, config_file, rds_config};
use crate::support::server::{TlsServerStream, serve, serve_tls, server_config};
use crate::support::wait_for;
use crate::support::wall_clock::WallClock;

/// A proxy in front of servers that misbehave, and of one that does not.
struct Setup {
    proxy: Proxy,
    /// The user at the server that behaves, where it is as late as for the proxy.
    user: String,
    /// How many descriptors the proxy has when nothing is going on.
    descriptors: usize,
    /// How many servers misbehave.
    hostile: usize,
    _aws: Aws,
}

impl Setup {
    /// `ports` are those of the servers, whose certificates are signed by this authority.
    fn new(authority: &str, ports: &[u16], env: Vec<(String, String)>) -> Self {
        static USERS: AtomicUsize = AtomicUsize::new(0);
        let bed = Testbed::shared();
        // The clock at the server is one user's own.
        let user = format!("punctual{}", USERS.fetch_add(1, Ordering::Relaxed));
        bed.rds().create_user(&user).unwrap();
        let names: String = (0..ports.len())
            .map(|number| format!(", \"hostile{number}\""))
            .collect();
        let mut config = rds_config(&format!("db_user = \"{user}\"\ndatabase = \"postgres\"\n"))
            .replace("targets = [\"app\"", &format!("targets = [\"app\"{names}"));
        let ca_file = config_file(authority);
        for (number, port) in ports.iter().enumerate() {
            config += &format!(
                "[target.hostile{number}]\nengine = \"rds\"\nregion = \"us-west-2\"\n\
                 host = \"127.0.0.1\"\nport = {port}\nsigning_host = \"localhost:{}\"\n\
                 ca_file = \"{}\"\ndb_user = \"jane_doe\"\ndatabase = \"postgres\"\n",
                bed.rds().port(),
                ca_file.display()
            );
        }
        config += "[admin]\nhttp = \"127.0.0.1:0\"\n";
        let aws = bed.aws();
        let proxy = Proxy::with_config_and_env(&config, [aws.env(), env].concat());
        let mut setup = Self {
            proxy,
            user,
            descriptors: 0,
            hostile: ports.len(),
            _aws: aws,
        };
        setup.assert_serves();
        assert_no_session_is_counted(&setup.proxy);
        setup.descriptors = descriptors_at_rest(&setup.proxy);
        setup
    }

    /// Asserts that logins to the server that behaves go on.
    fn assert_serves(&self) {
        let mut client = Client::log_in(
            self.proxy.address(),
            &[("user", "ana"), ("database", "app")],
        )
        .unwrap();
        assert_eq!(client.value("select 1"), "1");
    }

    /// Begins a login to one of the servers that misbehave.
    fn begin(&self, number: usize) -> TcpStream {
        let mut stream = connect(self.proxy.address());
        let database = format!("hostile{number}");
        stream
            .write_all(&startup_packet(
                V3_0,
                &[("user", "ana"), ("database", &database)],
            ))
            .unwrap();
        stream
    }

    /// Sets all clocks of the proxy ahead by this many seconds.
    fn set_ahead(&self, clock: &WallClock, seconds: i64) {
        clock.set_ahead(seconds);
        Testbed::shared()
            .rds()
            .set_clock_ahead_of(&self.user, seconds);
    }

    /// Waits until this login has been answered, while every thread of the proxy looks at its clock:
    /// each of them is given clients, which are shared out evenly.
    fn wait_for_end(&self, login: &TcpStream, what: &str) {
        let threads = std::thread::available_parallelism().unwrap().get();
        wait_for(what, || {
            drop::<Vec<_>>(
                (0..self.hostile + threads)
                    .map(|_| connect(self.proxy.address()))
                    .collect(),
            );
            is_over(login).then_some(())
        });
    }

    fn assert_nothing_is_left(&self) {
        assert_no_session_is_counted(&self.proxy);
        assert_nothing_is_left(&self.proxy, self.descriptors);
        self.assert_serves();
    }
}

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    [&[tag], &packet(body)[..]].concat()
}

/// Reads a message of the proxy.
fn read_message(stream: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut head = [0; 5];
    stream.read_exact(&mut head)?;
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    let mut body = vec![0; length - 4];
    stream.read_exact(&mut body)?;
    Ok(body)
}

const CLEARTEXT_PASSWORD: [u8; 4] = [0, 0, 0, 3];
const SASL: &[u8] = b"\0\0\0\x0aSCRAM-SHA-256\0\0";
const AUTHENTICATION_OK: [u8; 4] = [0; 4];

/// How long a server may be silent at this point of a login, and what its client reads then.
struct Stall {
    phase: &'static str,
    port: u16,
    deadline: Deadline,
    message: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deadline {
    /// Eight seconds for each step up to a verified connection; then it is 08001.
    Connect,
    /// A minute for the login itself; then it is 08006.
    Login,
}

impl Deadline {
    fn sqlstate(self) -> &'static str {
        match self {
            Self::Connect => "08001",
            Self::Login => "08006",
        }
    }
}

/// How many servers have reached the point at which they stall.
type Stalled = Arc<AtomicUsize>;

fn stall(stream: &mut impl Read, stalled: &Stalled) -> io::Result<()> {
    stalled.fetch_add(1, Ordering::SeqCst);
    stream.read_to_end(&mut Vec::new()).map(drop)
}

/// Servers that stall, one for each phase of a login.
fn stalling(identity: &Identity, stalled: &Stalled) -> Vec<Stall> {
    let mut stalls = Vec::new();
    let mut add = |phase, deadline, message, port| {
        stalls.push(Stall {
            phase,
            port,
            deadline,
            message,
        });
    };
    let ssl_exchange = "the database server did not answer the SSLRequest in time";
    let handshake = "the connection failed in the TLS handshake";
    let login = "the database server did not finish the login in time";
    // These read what comes first, so it is known when they stall.
    let first_bytes = |answer: &'static [u8]| {
        let stalled = stalled.clone();
        serve(move |mut tcp| {
            let _ = tcp
                .read_exact(&mut [0; 8])
                .and_then(|()| tcp.write_all(answer))
                .and_then(|()| stall(&mut tcp, &stalled));
        })
    };
    add(
        "after TCP",
        Deadline::Connect,
        ssl_exchange,
        first_bytes(b""),
    );
    add(
        "before TLS",
        Deadline::Connect,
        handshake,
        first_bytes(b"S"),
    );
    add(
        "in the TLS handshake",
        Deadline::Connect,
        handshake,
        half_a_handshake(identity, stalled.clone(), |tcp, half, _| {
            tcp.write_all(half)
        }),
    );
    let tls = |script: fn(&mut TlsServerStream) -> io::Result<()>| {
        let stalled = stalled.clone();
        serve_tls(identity, move |stream| {
            script(stream)?;
            stream.flush()?;
            stall(stream, &stalled)
        })
    };
    add(
        "before authentication",
        Deadline::Login,
        login,
        tls(|_| Ok(())),
    );
    let half_a_message = tls(|stream| stream.write_all(b"R\0\0"));
    add("in a message", Deadline::Login, login, half_a_message);
    let password = tls(|stream| {
        stream.write_all(&message(b'R', &CLEARTEXT_PASSWORD))?;
        read_message(stream).map(drop)
    });
    add("after the password", Deadline::Login, login, password);
    let sasl = tls(|stream| {
        stream.write_all(&message(b'R', SASL))?;
        read_message(stream).map(drop)
    });
    add("at the beginning of SCRAM", Deadline::Login, login, sasl);
    let scram = tls(|stream| {
        stream.write_all(&message(b'R', SASL))?;
        let first = String::from_utf8_lossy(&read_message(stream)?).into_owned();
        let (_, nonce) = first.split_once(",r=").expect("a client's first message");
        let answer = format!("\0\0\0\x0br={nonce}server,s=c2FsdA==,i=4096");
        stream.write_all(&message(b'R', answer.as_bytes()))?;
        read_message(stream).map(drop)
    });
    add("at the end of SCRAM", Deadline::Login, login, scram);
    let authenticated = tls(|stream| stream.write_all(&message(b'R', &AUTHENTICATION_OK)));
    add(
        "after authentication",
        Deadline::Login,
        login,
        authenticated,
    );
    let not_ready = tls(|stream| {
        stream.write_all(&message(b'R', &AUTHENTICATION_OK))?;
        stream.write_all(&message(b'S', b"server_version\x0015.8\0"))?;
        stream.write_all(&message(b'K', &[0, 0, 0, 7, 0, 0, 0, 8]))?;
        stream.write_all(b"Z\0\0")
    });
    add("before ReadyForQuery", Deadline::Login, login, not_ready);
    stalls
}

/// Servers that send a byte now and then, and never finish.
fn dripping(identity: &Identity, stalled: &Stalled) -> Vec<Stall> {
    let handshake = half_a_handshake(identity, stalled.clone(), |tcp, half, stalled| {
        drip(tcp, half, stalled)
    });
    let shared = stalled.clone();
    let login = serve_tls(identity, move |stream| {
        let notice = message(b'N', &vec![b'x'; 20_000]);
        drip(stream, &notice, &shared)
    });
    [
        Stall {
            phase: "in the TLS handshake, byte by byte",
            port: handshake,
            deadline: Deadline::Connect,
            message: "the connection failed in the TLS handshake",
        },
        Stall {
            phase: "in a message, byte by byte",
            port: login,
            deadline: Deadline::Login,
            message: "the database server did not finish the login in time",
        },
    ]
    .into()
}

/// Sends a byte a moment until the proxy closes the connection.
fn drip(stream: &mut impl Write, bytes: &[u8], stalled: &Stalled) -> io::Result<()> {
    stalled.fetch_add(1, Ordering::SeqCst);
    for byte in bytes {
        stream.write_all(&[*byte])?;
        stream.flush()?;
        std::thread::park_timeout(Duration::from_millis(20));
    }
    panic!("there are more bytes than the test is long");
}

/// Agrees to TLS, hands the first half of the server's flight to `script`, and stalls.
fn half_a_handshake(
    identity: &Identity,
    stalled: Stalled,
    script: impl Fn(&mut TcpStream, &[u8], &Stalled) -> io::Result<()> + Send + 'static,
) -> u16 {
    let config = server_config(identity);
    serve(move |mut tcp| {
        let mut talk = || {
            tcp.read_exact(&mut [0; 8])?;
            tcp.write_all(b"S")?;
            let mut connection = rustls::ServerConnection::new(config.clone()).unwrap();
            let mut flight = Vec::new();
            while flight.is_empty() {
                connection.read_tls(&mut tcp)?;
                connection.process_new_packets().unwrap();
                while connection.wants_write() {
                    connection.write_tls(&mut flight)?;
                }
            }
            script(&mut tcp, &flight[..flight.len() / 2], &stalled)?;
            stall(&mut tcp, &stalled)
        };
        // The proxy may close the connection at any moment.
        let _: io::Result<()> = talk();
    })
}

/// Whether this login has been answered, or closed.
fn is_over(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let peeked = stream.peek(&mut [0]);
    stream.set_nonblocking(false).unwrap();
    !peeked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

#[test]
fn servers_that_stall_or_drip_in_any_phase_of_a_login_fail_it_at_its_deadline_and_no_other_login() {
    let authority = Authority::new("hostile");
    let identity = authority.server();
    let stalled = Stalled::default();
    let mut stalls = stalling(&identity, &stalled);
    stalls.extend(dripping(&identity, &stalled));
    let ports: Vec<_> = stalls.iter().map(|stall| stall.port).collect();
    let clock = WallClock::new();
    let setup = Setup::new(&authority.certificate, &ports, clock.env_of_all_clocks());
    let mut logins: Vec<_> = (0..ports.len()).map(|number| setup.begin(number)).collect();
    wait_for("all servers to stall", || {
        (stalled.load(Ordering::SeqCst) == ports.len()).then_some(())
    });
    let assert_over = |expected: fn(Deadline) -> bool| {
        for (stall, login) in stalls.iter().zip(&logins) {
            if expected(stall.deadline) {
                setup.wait_for_end(login, stall.phase);
            } else {
                assert!(!is_over(login), "{}: too early", stall.phase);
            }
        }
        setup.assert_serves();
    };
    assert_over(|_| false);
    setup.set_ahead(&clock, 9);
    assert_over(|deadline| deadline == Deadline::Connect);
    setup.set_ahead(&clock, 35);
    assert_over(|deadline| deadline == Deadline::Connect);
    setup.set_ahead(&clock, 61);
    assert_over(|_| true);
    for (stall, login) in stalls.iter().zip(&mut logins) {
        let error = read_refusal(login);
        assert_eq!(
            (error.sqlstate(), error.message()),
            (stall.deadline.sqlstate(), stall.message),
            "{}",
            stall.phase
        );
    }
    setup.assert_nothing_is_left();
}

/// Passes connections on to a server, and keeps to itself what the server sends behind so many
/// bytes. Counts the bytes that have passed, and the connections that stall.
fn relay_that_stalls(server: u16, after: u64, passed: Arc<AtomicU64>, stalled: Stalled) -> u16 {
    serve(move |mut client| {
        let (passed, stalled) = (passed.clone(), stalled.clone());
        std::thread::spawn(move || {
            let mut server = TcpStream::connect(("127.0.0.1", server)).expect("it accepts");
            let mut upwards = (client.try_clone().unwrap(), server.try_clone().unwrap());
            let (below, above) = (server.try_clone().unwrap(), client.try_clone().unwrap());
            let proxy = std::thread::spawn(move || {
                let _ = io::copy(&mut upwards.0, &mut upwards.1);
                for stream in [below, above] {
                    let _ = stream.shutdown(Shutdown::Both);
                }
            });
            let mut from_server = (&mut server).take(after);
            let mut bytes = [0; 1024];
            // A session may end with a reset.
            while let Ok(count @ 1..) = from_server.read(&mut bytes)
                && client.write_all(&bytes[..count]).is_ok()
            {
                passed.fetch_add(count as u64, Ordering::SeqCst);
            }
            stalled.fetch_add(1, Ordering::SeqCst);
            proxy.join().unwrap();
        });
    })
}

#[test]
fn a_network_that_falls_silent_behind_any_part_of_a_login_fails_it_at_its_deadline() {
    const PLACES: u64 = 20;
    let server = Testbed::shared().rds().port();
    let authority = std::fs::read_to_string(Testbed::shared().ca_file()).unwrap();
    // How much a server sends in a login, to the byte or nearly so, and at its end.
    let (passed, stalled) = (Arc::<AtomicU64>::default(), Stalled::default());
    let port = relay_that_stalls(server, u64::MAX, passed.clone(), stalled.clone());
    let setup = Setup::new(&authority, &[port], Vec::new());
    read_until_ready(&mut setup.begin(0));
    wait_for("the end of the session", || {
        (stalled.load(Ordering::SeqCst) == 1).then_some(())
    });
    let length = passed.load(Ordering::SeqCst);

    let stalled = Stalled::default();
    let ports: Vec<_> = (0..PLACES)
        .map(|place| {
            let after = length * place / PLACES;
            relay_that_stalls(server, after, Arc::default(), stalled.clone())
        })
        .collect();
    let clock = WallClock::new();
    let setup = Setup::new(&authority, &ports, clock.env_of_all_clocks());
    let mut logins: Vec<_> = (0..ports.len()).map(|number| setup.begin(number)).collect();
    wait_for("the network to fall silent", || {
        (stalled.load(Ordering::SeqCst) == ports.len()).then_some(())
    });
    assert!(!logins.iter().any(is_over), "all of them wait");
    setup.assert_serves();
    setup.set_ahead(&clock, 9);
    setup.wait_for_end(&logins[0], "the connection's deadline");
    assert!(!is_over(logins.last().unwrap()), "the login has more time");
    setup.assert_serves();
    setup.set_ahead(&clock, 61);
    let mut sqlstates = Vec::new();
    for login in &mut logins {
        setup.wait_for_end(login, "the login's deadline");
        sqlstates.push(read_refusal(login).sqlstate().to_string());
    }
    assert!(sqlstates.is_sorted(), "{sqlstates:?}");
    sqlstates.dedup();
    assert_eq!(sqlstates, ["08001", "08006"]);
    setup.assert_nothing_is_left();
}

fn read_until_ready(stream: &mut TcpStream) {
    while !matches!(read_reply(stream), Reply::Message(b'Z', _)) {}
}

/// Passes the bytes of both sides on one at a time.
fn relay_that_drips(server: u16) -> u16 {
    serve(move |client| {
        let server = TcpStream::connect(("127.0.0.1", server)).expect("it accepts");
        for stream in [&client, &server] {
            stream.set_nodelay(true).unwrap();
        }
        let there = (client.try_clone().unwrap(), server.try_clone().unwrap());
        for (from, mut to) in [there, (server, client)] {
            std::thread::spawn(move || {
                for byte in io::BufReader::new(from).bytes().map_while(Result::ok) {
                    if to.write_all(&[byte]).is_err() {
                        break;
                    }
                }
                let _ = to.shutdown(Shutdown::Write);
            });
        }
    })
}

#[test]
fn a_server_whose_login_arrives_byte_by_byte_is_logged_in_to() {
    let authority = std::fs::read_to_string(Testbed::shared().ca_file()).unwrap();
    let port = relay_that_drips(Testbed::shared().rds().port());
    let setup = Setup::new(&authority, &[port], Vec::new());
    let mut stream = setup.begin(0);
    read_until_ready(&mut stream);
    drop(stream);
    setup.assert_nothing_is_left();
}

#[test]
fn servers_that_flood_before_they_are_ready_are_refused_and_cost_little_memory() {
    // A proxy that read on would take 10 MB of each.
    const FLOODS: usize = 12;
    const MOST: u64 = 10_000;
    let authority = Authority::new("hostile");
    let identity = authority.server();
    let text = [&[b'M'][..], &[b'x'; 1_020], b"\0\0"].concat();
    let setting = [&b"application_name\0"[..], &[b'x'; 1_000], b"\0"].concat();
    let ports: Vec<_> = (0..FLOODS)
        .map(|number| {
            let before = [&b""[..], &message(b'R', &AUTHENTICATION_OK)];
            let (before, flood) = match number % 3 {
                0 => (before[0], message(b'N', &text)),
                1 => (before[1], message(b'N', &text)),
                _ => (before[1], message(b'S', &setting)),
            };
            let before = before.to_vec();
            serve_tls(&identity, move |stream| {
                stream.write_all(&before)?;
                for _ in 0..10_000 {
                    stream.write_all(&flood)?;
                }
                stream.write_all(&message(b'Z', b"I"))
            })
        })
        .collect();
    let setup = Setup::new(&authority.certificate, &ports, Vec::new());
    forget_peak_memory(&setup.proxy);
    let before = memory(&setup.proxy);
    let mut logins: Vec<_> = (0..FLOODS).map(|number| setup.begin(number)).collect();
    setup.assert_serves();
    for login in &mut logins {
        let error = read_refusal(login);
        assert_eq!(
            (error.sqlstate(), error.message()),
            ("08P01", "the database server does not follow the protocol")
        );
    }
    let grown = peak_memory(&setup.proxy) - before;
    assert!(grown < MOST, "{grown} kB");
    setup.assert_nothing_is_left();
}

#[test]
fn a_name_whose_resolution_hangs_fails_its_login_at_the_deadline_and_no_other_login() {
    // Who opens this pipe to look a name up waits until somebody opens it to write.
    let folder = tempfile::tempdir().unwrap();
    let hosts = folder.path().join("hosts");
    let made = Command::new("mkfifo").arg(&hosts).status().unwrap();
    assert!(made.success());
    let names = [
        ("LD_PRELOAD", nss_wrapper().display().to_string()),
        ("NSS_WRAPPER_HOSTS", hosts.display().to_string()),
    ]
    .map(|(name, value)| (name.to_string(), value));
    let bed = Testbed::shared();
    let rds = bed.rds().port();
    let config = rds_config(&format!(
        "host = \"127.0.0.1\"\nport = {rds}\nsigning_host = \"localhost:{rds}\"\n\
         db_user = \"jane_doe\"\ndatabase = \"postgres\"\n[target.lost]\nengine = \"rds\"\n\
         region = \"us-west-2\"\nhost = \"db.example.com\"\ndb_user = \"jane_doe\"\n"
    ))
    .replace("targets = [\"app\"", "targets = [\"app\", \"lost\"");
    let aws = bed.aws();
    let proxy = Proxy::with_config_and_env(&config, [aws.env(), names.into()].concat());
    let log_in = |target| Client::log_in(proxy.address(), &[("user", "ana"), ("database", target)]);
    std::thread::scope(|scope| {
        let lost = scope.spawn(|| log_in("lost").err().expect("there is no such server"));
        assert_eq!(log_in("app").unwrap().value("select 1"), "1");
        assert!(!lost.is_finished(), "it takes eight seconds");
        let error = lost.join().unwrap();
        assert_eq!(
            (error.sqlstate(), error.message()),
            ("08001", "cannot resolve the database server's name")
        );
    });
    proxy.log_line(&["cannot resolve db.example.com", "timed out"]);
    assert_eq!(log_in("app").unwrap().value("select 1"), "1");
}
