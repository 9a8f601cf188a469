//! Servers that do what no real server does: each connection is given to a script.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};

/// Serves every connection with `script`, until the process ends; gives the port.
pub fn serve(script: impl Fn(TcpStream) + Send + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || listener.incoming().flatten().for_each(script));
    port
}

/// Connections on their way to another port, which a test can hold up.
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

    /// Holds up the connections that come from now on.
    pub fn hold(&self) {
        self.held.0.lock().unwrap().holding = true;
    }

    /// Whether a connection is being held up.
    pub fn is_holding_one(&self) -> bool {
        self.held.0.lock().unwrap().waiting > 0
    }

    /// Lets all go on.
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

/// Reads the `SSLRequest`, answers with these bytes, and waits for the proxy to close.
pub fn answer_ssl_request(answer: &'static [u8]) -> u16 {
    serve(move |mut stream| {
        let mut request = [0; 8];
        if stream.read_exact(&mut request).is_ok() && stream.write_all(answer).is_ok() {
            let _ = stream.read_to_end(&mut Vec::new());
        }
    })
}
