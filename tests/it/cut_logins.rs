//! What is left of a login whose connection breaks behind any one of its bytes, on either leg, in
//! either direction, with a FIN or with an RST?

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustls::{ServerConfig, ServerConnection, StreamOwned};
use testbed::Testbed;

use crate::support::PATIENCE;
use crate::support::client::{Client, SSL_REQUEST, V3_0, connect, packet, startup_packet};
use crate::support::holdings::{
    assert_no_session_is_counted, assert_nothing_is_left, descriptors_at_rest,
};
use crate::support::pki::{Authority, Identity};
use crate::support::proxy::{Proxy, config_file, hash_password, rds_config};
use crate::support::server::{serve, server_config};
use crate::support::tls_client::TlsClient;
use crate::support::tls_files::TlsFiles;

/// Nobody waits for a connection that has been cut. The deadlines of each step are far longer.
const DEADLINE: Duration = Duration::from_secs(5);
/// How many logins are cut at a time, each at a target of its own.
const WORKERS: usize = 8;
/// How many sessions there may be. All of them can be opened when everything is over, so none of
/// the thousands of logins has kept a place.
const MAX_SESSIONS: usize = 4 * WORKERS;

/// How a peer breaks off.
#[derive(Debug, Clone, Copy)]
enum End {
    /// With a FIN.
    Close,
    /// With an RST.
    Reset,
}

/// Whose bytes are counted.
#[derive(Debug, Clone, Copy)]
enum Sender {
    Proxy,
    Peer,
}

/// Where a connection with the proxy ends.
#[derive(Debug, Clone, Copy)]
struct Cut {
    sender: Sender,
    after: usize,
    how: End,
}

/// A connection with the proxy that breaks as soon as more bytes are wanted than the cut lets pass.
struct CutStream {
    tcp: TcpStream,
    /// How many more bytes of the proxy arrive.
    to_read: usize,
    /// How many more bytes are sent to the proxy.
    to_write: usize,
    how: End,
}

impl CutStream {
    fn new(tcp: TcpStream, cut: Option<Cut>) -> Self {
        tcp.set_nodelay(true).unwrap();
        tcp.set_read_timeout(Some(PATIENCE)).unwrap();
        let (to_read, to_write) = match cut {
            None => (usize::MAX, usize::MAX),
            Some(cut) => match cut.sender {
                Sender::Proxy => (cut.after, usize::MAX),
                Sender::Peer => (usize::MAX, cut.after),
            },
        };
        Self {
            tcp,
            to_read,
            to_write,
            how: cut.map_or(End::Close, |cut| cut.how),
        }
    }

    fn break_off(&mut self) -> io::Error {
        match self.how {
            // The proxy closes its side, too. Were ours closed before that with something unread,
            // the kernel would send an RST.
            End::Close => {
                let _ = self.tcp.shutdown(Shutdown::Write);
                let _ = self.tcp.read_to_end(&mut Vec::new());
            }
            // A close with nothing to linger for is an RST.
            End::Reset => socket2::SockRef::from(&self.tcp)
                .set_linger(Some(Duration::ZERO))
                .unwrap(),
        }
        io::ErrorKind::ConnectionAborted.into()
    }
}

impl Read for CutStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.to_read == 0 {
            return Err(self.break_off());
        }
        let most = buffer.len().min(self.to_read);
        let read = self.tcp.read(&mut buffer[..most])?;
        self.to_read -= read;
        Ok(read)
    }
}

impl Write for CutStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.to_write == 0 {
            return Err(self.break_off());
        }
        let most = bytes.len().min(self.to_write);
        let written = self.tcp.write(&bytes[..most])?;
        self.to_write -= written;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.tcp.flush()
    }
}

/// A server like RDS, whose next connections can be told to break.
struct Server {
    port: u16,
    cut: Arc<Mutex<Option<Cut>>>,
}

impl Server {
    fn start(identity: &Identity) -> Self {
        let config = server_config(identity);
        let cut: Arc<Mutex<Option<Cut>>> = Arc::default();
        let shared = cut.clone();
        let port = serve(move |tcp| {
            let (config, cut) = (config.clone(), *shared.lock().unwrap());
            std::thread::spawn(move || {
                // The login may end at any moment.
                let _: io::Result<()> = serve_login(CutStream::new(tcp, cut), config);
            });
        });
        Self { port, cut }
    }
}

/// Serves a login as RDS does, and waits for the end of its session.
fn serve_login(mut tcp: CutStream, config: Arc<ServerConfig>) -> io::Result<()> {
    tcp.read_exact(&mut [0; 8])?;
    tcp.write_all(b"S")?;
    let mut stream = StreamOwned::new(ServerConnection::new(config).unwrap(), tcp);
    skip_packet(&mut stream)?;
    stream.write_all(&message(b'R', &[0, 0, 0, 3]))?;
    stream.read_exact(&mut [0])?;
    skip_packet(&mut stream)?;
    let greeting = [
        message(b'R', &[0; 4]),
        message(b'S', b"server_version\x0015.8\0"),
        message(b'S', b"client_encoding\0UTF8\0"),
        message(b'N', b"Mwelcome\0\0"),
        message(b'K', &[0, 0, 0, 7, 0, 0, 0, 8]),
        message(b'Z', b"I"),
    ];
    stream.write_all(&greeting.concat())?;
    stream.read_to_end(&mut Vec::new()).map(drop)
}

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    [&[tag], &packet(body)[..]].concat()
}

/// Reads a length and as many bytes as it says.
fn skip_packet(stream: &mut impl Read) -> io::Result<()> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let rest = u32::from_be_bytes(length) as usize - length.len();
    stream.read_exact(&mut vec![0; rest])
}

/// A proxy in front of a server for each worker, and of a real one, that has served a session of
/// each.
struct Setup {
    proxy: Proxy,
    servers: Vec<Server>,
    /// How many descriptors the proxy has when nothing is going on.
    descriptors: usize,
    tls: TlsFiles,
    _aws: testbed::Aws,
}

impl Setup {
    fn new() -> Self {
        let authority = Authority::new("scripted");
        let ca_file = config_file(&authority.certificate);
        let identity = authority.server();
        let servers: Vec<_> = (0..WORKERS).map(|_| Server::start(&identity)).collect();
        let names: Vec<_> = (0..WORKERS)
            .map(|worker| format!("\"cut{worker}\""))
            .collect();
        let tls = TlsFiles::new();
        let mut config = rds_config("db_user = \"jane_doe\"\ndatabase = \"postgres\"\n").replace(
            "targets = [\"app\"]\nauth = \"trust\"\n",
            &format!(
                "targets = [\"app\", {}]\nauth = \"trust\"\n{}[[listener.rule]]\n\
                     users = [\"bob\"]\nauth = \"password\"\n[[listener.rule]]\nauth = \"trust\"\n",
                names.join(", "),
                tls.keys("optional")
            ),
        );
        for (worker, server) in servers.iter().enumerate() {
            // One login at a time: one that kept its turn would be in the way of the next.
            config += &format!(
                "[target.cut{worker}]\nengine = \"rds\"\nregion = \"us-west-2\"\n\
                 host = \"127.0.0.1\"\nport = {}\nca_file = \"{}\"\ndb_user = \"jane_doe\"\n\
                 database = \"postgres\"\nmax_concurrent_logins = 1\n\
                 max_logins_per_second = 10000\n",
                server.port,
                ca_file.display()
            );
        }
        config += &format!(
            "[user.bob]\npassword = \"{}\"\n[limits]\nmax_sessions = {MAX_SESSIONS}\n\
             [admin]\nhttp = \"127.0.0.1:0\"\n",
            hash_password("x")
        );
        let aws = Testbed::shared().aws();
        let proxy = Proxy::with_config(&aws, &config);
        let mut setup = Self {
            proxy,
            servers,
            descriptors: 0,
            tls,
            _aws: aws,
        };
        drop(setup.fill());
        assert_no_session_is_counted(&setup.proxy);
        setup.descriptors = descriptors_at_rest(&setup.proxy);
        setup
    }

    /// Opens as many sessions as there may be.
    fn fill(&self) -> Vec<Client> {
        let mut sessions: Vec<_> = (0..MAX_SESSIONS - 1)
            .map(|number| self.log_in(&format!("cut{}", number % WORKERS)))
            .collect();
        let mut real = self.log_in("app");
        assert_eq!(real.value("select 1"), "1");
        sessions.push(real);
        sessions
    }

    fn log_in(&self, target: &str) -> Client {
        Client::log_in(
            self.proxy.address(),
            &[("user", "ana"), ("database", target)],
        )
        .unwrap_or_else(|error| panic!("{target}: {error:?}"))
    }

    fn assert_nothing_is_left(&self) {
        assert_no_session_is_counted(&self.proxy);
        assert_nothing_is_left(&self.proxy, self.descriptors);
        drop(self.fill());
    }
}

/// Runs `cut` for every place of a login behind a byte of `sender`, until it says that the
/// login was done before that. Returns how many logins were cut.
fn cut_everywhere(sender: Sender, cut: impl Fn(usize, Cut) -> bool + Sync) -> usize {
    let worker = |worker: usize| {
        let mut logins = 0;
        for how in [End::Close, End::Reset] {
            for after in (worker..).step_by(WORKERS) {
                let place = Cut { sender, after, how };
                let begun = Instant::now();
                let is_cut = cut(worker, place);
                assert!(
                    begun.elapsed() < DEADLINE,
                    "{place:?}: {:?}",
                    begun.elapsed()
                );
                if !is_cut {
                    break;
                }
                logins += 1;
            }
        }
        logins
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS)
            .map(|number| scope.spawn(move || worker(number)))
            .collect();
        workers.into_iter().map(|one| one.join().unwrap()).sum()
    })
}

#[test]
fn a_server_may_break_off_behind_every_byte_of_a_login() {
    let setup = Setup::new();
    for sender in [Sender::Peer, Sender::Proxy] {
        let cut = cut_everywhere(sender, |worker, cut| {
            let server = &setup.servers[worker];
            *server.cut.lock().unwrap() = Some(cut);
            let database = format!("cut{worker}");
            let login = Client::log_in(
                setup.proxy.address(),
                &[("user", "ana"), ("database", &database)],
            );
            *server.cut.lock().unwrap() = None;
            match login {
                Ok(_) => false,
                Err(error) => {
                    assert!(
                        ["08001", "08006"].contains(&error.sqlstate()),
                        "{cut:?}: {error:?}"
                    );
                    true
                }
            }
        });
        assert!(cut > 1_000, "a login is longer than this: {cut}");
    }
    setup.assert_nothing_is_left();
}

#[test]
fn a_client_may_break_off_behind_every_byte_of_a_login_over_tls() {
    let setup = Setup::new();
    let client = setup.tls.client();
    for sender in [Sender::Peer, Sender::Proxy] {
        let cut = cut_everywhere(sender, |worker, cut| {
            let stream = CutStream::new(connect(setup.proxy.address()), Some(cut));
            log_in_over_tls(&client, stream, &format!("cut{worker}")).is_err()
        });
        assert!(cut > 500, "a login is longer than this: {cut}");
    }
    setup.assert_nothing_is_left();
}

/// Logs in with a password, up to `ReadyForQuery`.
fn log_in_over_tls(client: &TlsClient, mut tcp: CutStream, target: &str) -> io::Result<()> {
    tcp.write_all(&SSL_REQUEST)?;
    tcp.read_exact(&mut [0])?;
    let mut stream = StreamOwned::new(client.connection(), tcp);
    stream.write_all(&startup_packet(
        V3_0,
        &[("user", "bob"), ("database", target)],
    ))?;
    // The password is asked for.
    stream.read_exact(&mut [0; 9])?;
    stream.write_all(&message(b'p', b"x\0"))?;
    loop {
        let mut tag = [0];
        stream.read_exact(&mut tag)?;
        skip_packet(&mut stream)?;
        match tag[0] {
            b'Z' => return Ok(()),
            b'E' => panic!("a login that is not cut succeeds"),
            _ => {}
        }
    }
}
