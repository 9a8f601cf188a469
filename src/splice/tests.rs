//! Do all bytes arrive as they were sent, in any pieces, both ways at once, with TLS and without?

use std::io::{self, IoSliceMut};
use std::pin::Pin;
use std::task::{Context, Poll};

use proptest::prelude::*;
use rustls::SupportedCipherSuite;
use rustls::crypto::aws_lc_rs::cipher_suite;
use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex,
};

mod ends;
mod upstream_left_open;

use super::leg::TryReadVectored;
use super::*;
use crate::tls::testing::{configs, our_client, our_server};

/// A connection that takes and gives at most as many bytes at a time as `limits` says, in turns. A
/// limit of 0 makes it pending once.
struct Halting<T> {
    io: T,
    limits: Vec<usize>,
    taken: usize,
    given: usize,
}

impl<T> Halting<T> {
    fn new(io: T, limits: &[usize]) -> Self {
        Self {
            io,
            limits: limits.to_vec(),
            taken: 0,
            given: 0,
        }
    }

    fn limit(limits: &[usize], turn: &mut usize, cx: &mut Context<'_>) -> Poll<usize> {
        let limit = limits[*turn % limits.len()];
        *turn += 1;
        if limit == 0 {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(limit)
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Halting<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let limit = ready!(Self::limit(&this.limits, &mut this.given, cx));
        let mut part = vec![0; buffer.remaining().min(limit)];
        let mut part = ReadBuf::new(&mut part);
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut part))?;
        buffer.put_slice(part.filled());
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Halting<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let limit = ready!(Self::limit(&this.limits, &mut this.taken, cx));
        Pin::new(&mut self.io).poll_write(cx, &bytes[..bytes.len().min(limit)])
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> TryReadVectored for Halting<T> {
    fn try_read_vectored(&self, _: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }
}

impl TryReadVectored for DuplexStream {
    fn try_read_vectored(&self, _: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }
}

fn bytes(length: usize, seed: u8) -> Vec<u8> {
    (0..length)
        .map(|number| u8::try_from(number % 253).unwrap() ^ seed)
        .collect()
}

/// Writes in pieces of these lengths, in turns.
async fn say<T: AsyncWrite + Unpin>(to: &mut T, mut said: &[u8], pieces: &[usize]) {
    let mut pieces = pieces.iter().cycle();
    while !said.is_empty() {
        let piece = said.len().min(*pieces.next().unwrap());
        to.write_all(&said[..piece]).await.unwrap();
        to.flush().await.unwrap();
        said = &said[piece..];
    }
}

async fn hear<T: AsyncRead + Unpin>(from: &mut T) -> Vec<u8> {
    let mut heard = Vec::new();
    from.read_to_end(&mut heard).await.unwrap();
    heard
}

/// A session: how much each side says, in which pieces, and how the two connections of the proxy
/// halt.
#[derive(Debug, Clone)]
struct Script {
    up: usize,
    down: usize,
    pieces: Vec<usize>,
    client_limits: Vec<usize>,
    upstream_limits: Vec<usize>,
}

fn script() -> impl Strategy<Value = Script> {
    let length = || {
        prop_oneof![
            Just(0),
            1..100_usize,
            16_000..17_000_usize,
            1..700_000_usize
        ]
    };
    let pieces = prop::collection::vec(
        prop_oneof![1..64_usize, 8_000..40_000_usize, Just(300_000)],
        1..6,
    );
    let limits = || {
        prop::collection::vec(
            prop_oneof![Just(0), 1..30_usize, 1_000..20_000_usize, Just(1 << 20)],
            1..6,
        )
    };
    // With zeros alone nothing would ever move.
    let limits = move || limits().prop_map(|limits| [limits, vec![50_000]].concat());
    (length(), length(), pieces, limits(), limits()).prop_map(
        |(up, down, pieces, client_limits, upstream_limits)| {
            // Many small pieces of something large take long and show nothing that fewer do not.
            let pieces = if up + down > 50_000 {
                pieces.into_iter().map(|piece| piece.max(2_000)).collect()
            } else {
                pieces
            };
            Script {
                up,
                down,
                pieces,
                client_limits,
                upstream_limits,
            }
        },
    )
}

/// Client and server talk at the same time; each must hear what the other has said, and nothing
/// else.
async fn play<C, S>(
    script: &Script,
    near: &mut impl Leg,
    upstream: &mut impl Leg,
    client: C,
    server: S,
) where
    C: AsyncRead + AsyncWrite,
    S: AsyncRead + AsyncWrite,
{
    let (up, down) = (bytes(script.up, 0), bytes(script.down, 0x55));
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_server, mut to_server) = tokio::io::split(server);
    let client = async {
        let speaking = async {
            say(&mut to_client, &up, &script.pieces).await;
            to_client.shutdown().await.unwrap();
        };
        tokio::join!(speaking, hear(&mut from_client)).1
    };
    let server = async {
        let ((), heard) = tokio::join!(
            say(&mut to_server, &down, &script.pieces),
            hear(&mut from_server)
        );
        to_server.shutdown().await.unwrap();
        heard
    };
    let (mut nobody, traffic) = ((), Traffic::default());
    let (outcome, heard_by_client, heard_by_server) = tokio::join!(
        splice(near, upstream, &mut nobody, &traffic),
        client,
        server
    );
    assert!(
        heard_by_server == up,
        "the server hears what the client says"
    );
    assert!(
        heard_by_client == down,
        "the client hears what the server says"
    );
    assert_eq!(
        (outcome.sent, outcome.received),
        (up.len() as u64, down.len() as u64)
    );
    assert!(outcome.error.is_none(), "{outcome:?}");
}

fn run(future: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future);
}

/// As many bytes as the kernel would hold on the way.
const KERNEL: usize = 64 * 1024;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_pieces_arrive_the_same_from_a_client_without_tls(script in script()) {
        run(async {
            let ((client, near), (far, server)) = (duplex(KERNEL), duplex(KERNEL));
            let near = Halting::new(near, &script.client_limits);
            let far = Halting::new(far, &script.upstream_limits);
            let (mut upstream, server) = our_client(&configs(None), far, server).await;
            upstream.update_key_after(3);
            play(&script, &mut PlainStream::new(near), &mut upstream, client, server).await;
        });
    }

    #[test]
    fn any_pieces_arrive_the_same_from_a_client_over_tls(
        script in script(),
        suites in (0..SUITES.len(), 0..SUITES.len()),
    ) {
        run(async {
            let (ours, theirs) = (configs(Some(SUITES[suites.0])), configs(Some(SUITES[suites.1])));
            let ((client, near), (far, server)) = (duplex(KERNEL), duplex(KERNEL));
            let near = Halting::new(near, &script.client_limits);
            let (mut near, client) = our_server(&ours, near, client).await;
            let far = Halting::new(far, &script.upstream_limits);
            let (mut upstream, server) = our_client(&theirs, far, server).await;
            play(&script, &mut near, &mut upstream, client, server).await;
        });
    }
}

/// One cipher suite for each form of record.
static SUITES: [SupportedCipherSuite; 4] = [
    cipher_suite::TLS13_AES_256_GCM_SHA384,
    cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
];

#[tokio::test]
async fn a_client_that_reads_slowly_holds_one_buffer_and_stops_the_server() {
    let ((client, near), (far, server)) = (duplex(1024), duplex(1024));
    let (mut upstream, mut server) = our_client(&configs(None), far, server).await;
    let mut near = PlainStream::new(near);
    let (mut nobody, traffic) = ((), Traffic::default());
    let session = splice(&mut near, &mut upstream, &mut nobody, &traffic);
    let flood = async {
        let mut written = 0;
        // Until nothing more is taken for as long as all tasks get a turn.
        while let Ok(Ok(more)) =
            timeout(Duration::from_millis(200), server.write(&[7; 16_384])).await
        {
            written += more;
        }
        written
    };
    let written = tokio::select! {
        _ = session => panic!("nobody has closed"),
        written = flood => written,
    };
    assert!(
        written < SEND_BUFFER + 128 * 1024,
        "{written} bytes taken from the server for a client that reads none"
    );
    drop(client);
}
