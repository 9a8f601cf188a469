//! How does a test get a server that does what no real one does? Each connection is handed to a
//! script.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::pki::Identity;

/// The server's side of an encrypted connection.
pub type TlsServerStream = StreamOwned<ServerConnection, TcpStream>;

/// Runs `script` for every connection until the process ends, and returns the port.
pub fn serve(script: impl Fn(TcpStream) + Send + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || listener.incoming().flatten().for_each(script));
    port
}

/// Forwards connections to another port, and can hold them up on the way.
pub struct Relay {
    pub port: u16,
    gate: Arc<(Mutex<Gate>, Condvar)>,
}

#[derive(Default)]
struct Gate {
    holding: bool,
    waiting: usize,
}

impl Relay {
    pub fn to(port: u16) -> Self {
        let gate: Arc<(Mutex<Gate>, Condvar)> = Arc::default();
        let shared = gate.clone();
        let port = serve(move |near| {
            let gate = shared.clone();
            std::thread::spawn(move || {
                pass(&gate);
                let far = TcpStream::connect(("127.0.0.1", port)).expect("the server accepts");
                let (near_too, far_too) = (near.try_clone().unwrap(), far.try_clone().unwrap());
                std::thread::spawn(move || copy(far_too, near_too));
                copy(near, far);
            });
        });
        Self { port, gate }
    }

    /// Holds up all connections that arrive from now on.
    pub fn hold(&self) {
        self.gate.0.lock().unwrap().holding = true;
    }

    /// Whether a connection is waiting.
    pub fn is_holding_one(&self) -> bool {
        self.gate.0.lock().unwrap().waiting > 0
    }

    /// How many connections are waiting.
    pub fn held(&self) -> usize {
        self.gate.0.lock().unwrap().waiting
    }

    /// Lets all waiting connections continue.
    pub fn release(&self) {
        self.gate.0.lock().unwrap().holding = false;
        self.gate.1.notify_all();
    }
}

fn pass((gate, released): &(Mutex<Gate>, Condvar)) {
    let mut gate = gate.lock().unwrap();
    gate.waiting += 1;
    let mut gate = released.wait_while(gate, |gate| gate.holding).unwrap();
    gate.waiting -= 1;
}

fn copy(mut from: TcpStream, mut to: TcpStream) {
    let _ = std::io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}

/// Reads the `SSLRequest`, answers with these bytes, and waits until the proxy closes the
/// connection.
pub fn answer_ssl_request(answer: &'static [u8]) -> u16 {
    serve(move |mut stream| {
        let mut request = [0; 8];
        if stream.read_exact(&mut request).is_ok() && stream.write_all(answer).is_ok() {
            let _ = stream.read_to_end(&mut Vec::new());
        }
    })
}

/// A server's TLS with this certificate.
pub fn server_config(identity: &Identity) -> Arc<ServerConfig> {
    let chain = CertificateDer::pem_slice_iter(identity.certificate.as_bytes())
        .collect::<Result<_, _>>()
        .unwrap();
    let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).unwrap();
    let config = ServerConfig::builder_with_provider(aws_lc_rs::default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    Arc::new(config)
}

/// Agrees to TLS with this certificate, reads the startup packet, and hands the connection to
/// `script`.
pub fn serve_tls(
    identity: &Identity,
    script: impl Fn(&mut TlsServerStream) -> std::io::Result<()> + Send + 'static,
) -> u16 {
    let config = server_config(identity);
    serve(move |mut tcp| {
        let talk = || {
            tcp.read_exact(&mut [0; 8])?;
            tcp.write_all(b"S")?;
            let connection = ServerConnection::new(config.clone()).unwrap();
            let mut stream = StreamOwned::new(connection, tcp);
            let mut length = [0; 4];
            stream.read_exact(&mut length)?;
            let rest = u32::from_be_bytes(length) as usize - length.len();
            stream.read_exact(&mut vec![0; rest])?;
            script(&mut stream)
        };
        // The proxy may close the connection at any moment.
        let _: std::io::Result<()> = talk();
    })
}

/// Forwards connections to another port until it is told to end them as a host does that has
/// crashed: with an RST.
pub struct ResettingRelay {
    pub port: u16,
    state: Arc<ResettingState>,
}

#[derive(Default)]
struct ResettingState {
    connections: Mutex<Vec<TcpStream>>,
    is_resetting: AtomicBool,
    resets_at_end: AtomicBool,
}

impl ResettingRelay {
    pub fn to(port: u16) -> Self {
        let state: Arc<ResettingState> = Arc::default();
        let shared = state.clone();
        let port = serve(move |near| {
            let far = TcpStream::connect(("127.0.0.1", port)).expect("the server accepts");
            let ends = [&near, &far].map(|end| end.try_clone().unwrap());
            shared.connections.lock().unwrap().extend(ends);
            for (mut from, mut to) in [
                (near.try_clone().unwrap(), far.try_clone().unwrap()),
                (far, near),
            ] {
                let state = shared.clone();
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
                    if state.resets_at_end.load(Ordering::SeqCst) {
                        state.reset();
                    } else if !state.is_resetting.load(Ordering::SeqCst) {
                        let _ = to.shutdown(Shutdown::Write);
                    }
                });
            }
        });
        Self { port, state }
    }

    /// Resets all connections.
    pub fn reset(&self) {
        self.state.reset();
    }

    /// Resets the connections instead of closing them when the server has sent all and ends one, as
    /// its host does where something is left that the server has not read.
    pub fn reset_at_end(&self) {
        self.state.resets_at_end.store(true, Ordering::SeqCst);
    }
}

impl ResettingState {
    fn reset(&self) {
        self.is_resetting.store(true, Ordering::SeqCst);
        for end in self.connections.lock().unwrap().drain(..) {
            socket2::SockRef::from(&end)
                .set_linger(Some(Duration::ZERO))
                .unwrap();
            // This wakes up the thread that reads, and sends nothing.
            let _ = end.shutdown(Shutdown::Read);
        }
    }
}
