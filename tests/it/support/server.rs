//! How does a test get a server that does what no real one does? Each connection is handed to a
//! script.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};

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
    held: Arc<(Mutex<Held>, Condvar)>,
}

#[derive(Default)]
struct Held {
    holding: bool,
    waiting: usize,
}

impl Relay {
    pub fn to(port: u16) -> Self {
        let held: Arc<(Mutex<Held>, Condvar)> = Arc::default();
        let gate = held.clone();
        let port = serve(move |near| {
            let gate = gate.clone();
            std::thread::spawn(move || {
                pass(&gate);
                let far = TcpStream::connect(("127.0.0.1", port)).expect("the server accepts");
                let (near_too, far_too) = (near.try_clone().unwrap(), far.try_clone().unwrap());
                std::thread::spawn(move || copy(far_too, near_too));
                copy(near, far);
            });
        });
        Self { port, held }
    }

    /// Holds up all connections that arrive from now on.
    pub fn hold(&self) {
        self.held.0.lock().unwrap().holding = true;
    }

    /// Whether a connection is waiting.
    pub fn is_holding_one(&self) -> bool {
        self.held.0.lock().unwrap().waiting > 0
    }

    /// Lets all waiting connections continue.
    pub fn release(&self) {
        self.held.0.lock().unwrap().holding = false;
        self.held.1.notify_all();
    }
}

fn pass((held, released): &(Mutex<Held>, Condvar)) {
    let mut held = held.lock().unwrap();
    held.waiting += 1;
    let mut held = released.wait_while(held, |held| held.holding).unwrap();
    held.waiting -= 1;
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
