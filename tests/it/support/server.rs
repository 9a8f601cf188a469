//! Servers that do what no real server does: each connection is given to a script.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

/// Serves every connection with `script`, until the process ends; gives the port.
pub fn serve(script: impl Fn(TcpStream) + Send + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || listener.incoming().flatten().for_each(script));
    port
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
