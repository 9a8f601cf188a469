//! Which server do the proxies talk to? One that is never the bottleneck: it does as much of
//! PostgreSQL as a proxy needs to see, and nothing behind it.
//!
//! Clients ask for TLS with SSLRequest or begin it at once; nobody gets in without it. The server
//! asks for a cleartext password, as RDS does for a token, and accepts any. `down N` and `up N`
//! move N pieces of CopyData, `select` returns one row, and any other statement succeeds.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::mpsc::channel;

use anyhow::{Context, Result, bail};
use rustls::ServerConfig;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::leg::{self, Leg};
use crate::threads::Threads;
use crate::wire;

/// The bytes of CopyData in one piece of `down` and `up`.
pub const PIECE: usize = 256 * 1024;
const LISTENERS: usize = 16;
const TLS_HANDSHAKE: u8 = 22;

struct Shared {
    config: Arc<ServerConfig>,
    greeting: Vec<u8>,
    row: Vec<u8>,
    piece: Vec<u8>,
}

/// Prints the ports and serves until standard input ends. There are several ports, since loopback
/// allows only 28 000 connections to one.
pub fn run(certificate: &str, key: &str) -> Result<()> {
    let shared = Arc::new(Shared {
        config: leg::server_config(&std::fs::read(certificate)?, &std::fs::read(key)?)?,
        greeting: wire::greeting(),
        row: wire::answer("select 1"),
        piece: wire::rows(PIECE),
    });
    let (sender, accepted) = channel();
    let mut ports = Vec::new();
    for _ in 0..LISTENERS {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        ports.push(listener.local_addr()?.port());
        let sender = sender.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let _ = sender.send(stream);
            }
        });
    }
    println!("{}", json!(ports));
    std::thread::spawn(move || {
        let threads = Threads::start(2);
        for (index, stream) in accepted.into_iter().enumerate() {
            let shared = Arc::clone(&shared);
            drop(threads.spawn(index, async move {
                // A client that leaves in the middle is nothing to report.
                let _ = serve(stream, &shared).await;
            }));
        }
    });
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    Ok(())
}

async fn serve(stream: std::net::TcpStream, shared: &Shared) -> Result<()> {
    stream.set_nonblocking(true)?;
    stream.set_nodelay(true)?;
    let mut stream = TcpStream::from_std(stream)?;
    let mut first = [0; 8];
    stream.read_exact(&mut first).await?;
    let mut leg = if first[0] == TLS_HANDSHAKE {
        Leg::accept(stream, &shared.config, &first).await?
    } else if first == wire::SSL_REQUEST {
        stream.write_all(b"S").await?;
        Leg::accept(stream, &shared.config, &[]).await?
    } else {
        bail!("not TLS");
    };
    let mut inbox = Vec::new();
    while inbox.len() < 4 || inbox.len() < length(&inbox, 0)? {
        receive(&mut leg, &mut inbox).await?;
    }
    inbox.clear();
    leg.write(&wire::message(b'R', &[0, 0, 0, 3])).await?;
    next(&mut leg, &mut inbox).await?;
    leg.write(&shared.greeting).await?;
    loop {
        let (kind, body) = next(&mut leg, &mut inbox).await?;
        match kind {
            b'X' => return Ok(()),
            b'Q' => answer(&mut leg, &body, &mut inbox, shared).await?,
            _ => {}
        }
    }
}

async fn answer(leg: &mut Leg, query: &[u8], inbox: &mut Vec<u8>, shared: &Shared) -> Result<()> {
    let text = std::str::from_utf8(query)?.trim_end_matches('\0');
    match text.split_once(' ') {
        Some(("down", pieces)) => {
            leg.write(&wire::message(b'H', &[0, 0, 1, 0, 0])).await?;
            for _ in 0..pieces.parse::<usize>()? {
                leg.write(&shared.piece).await?;
            }
            leg.write(&[&wire::COPY_DONE[..], &wire::complete("COPY 1")].concat())
                .await
        }
        Some(("up", pieces)) => {
            leg.write(&wire::message(b'G', &[0, 0, 1, 0, 0])).await?;
            let expected = pieces.parse::<usize>()? * shared.piece.len() + wire::COPY_DONE.len();
            let mut received = std::mem::take(inbox).len();
            while received < expected {
                if !leg.read(|bytes| received += bytes.len()).await? {
                    bail!("closed");
                }
            }
            leg.write(&wire::complete("COPY 1")).await
        }
        Some(("select", "1")) => leg.write(&shared.row).await,
        _ => leg.write(&wire::answer(text)).await,
    }
}

async fn receive(leg: &mut Leg, inbox: &mut Vec<u8>) -> Result<()> {
    if !leg.read(|bytes| inbox.extend_from_slice(bytes)).await? {
        bail!("closed");
    }
    Ok(())
}

async fn next(leg: &mut Leg, inbox: &mut Vec<u8>) -> Result<(u8, Vec<u8>)> {
    while inbox.len() < 5 || inbox.len() < 1 + length(inbox, 1)? {
        receive(leg, inbox).await?;
    }
    let end = 1 + length(inbox, 1)?;
    let message = inbox[5..end].to_vec();
    let kind = inbox[0];
    inbox.drain(..end);
    if inbox.is_empty() {
        // The buffer is released, because this process also holds ten thousand idle sessions.
        inbox.shrink_to(0);
    }
    Ok((kind, message))
}

fn length(bytes: &[u8], at: usize) -> Result<usize> {
    let field = bytes
        .get(at..at + 4)
        .context("a message without a length")?;
    Ok(u32::from_be_bytes(field.try_into()?) as usize)
}
