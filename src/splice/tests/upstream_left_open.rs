//! What happens to the server's connection when an observer has seen the client's `Terminate`?

use std::task::Poll;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::super::{Leg, Observer, PlainStream, Side, Traffic, splice};

/// An observer that takes an exclamation mark for the client's `Terminate`.
#[derive(Default)]
struct Exclamation {
    behind: Vec<u8>,
    from_server: Vec<u8>,
    heard: bool,
}

impl Observer for Exclamation {
    fn client_sent(&mut self, bytes: &[u8]) -> usize {
        let taken = if self.heard {
            0
        } else {
            bytes
                .iter()
                .position(|byte| *byte == b'!')
                .unwrap_or(bytes.len())
        };
        self.heard |= taken < bytes.len();
        self.behind.extend(&bytes[taken..]);
        taken
    }

    fn server_sent(&mut self, bytes: &[u8]) {
        self.from_server.extend(bytes);
    }
}

struct Ends {
    client: DuplexStream,
    server: DuplexStream,
}

type Spliced = tokio::task::JoinHandle<(
    Exclamation,
    super::super::Outcome,
    Option<PlainStream<DuplexStream>>,
)>;

/// Starts a splice between a client's socket and a server's that hold this many bytes each.
fn start(client_room: usize, server_room: usize) -> (Ends, Spliced) {
    let ((client, near_client), (server, near_server)) = (duplex(client_room), duplex(server_room));
    let task = tokio::spawn(async move {
        let mut observer = Exclamation::default();
        let mut upstream = PlainStream::new(near_server);
        let outcome = splice(
            &mut PlainStream::new(near_client),
            &mut upstream,
            &mut observer,
            &Traffic::default(),
        )
        .await;
        let upstream = outcome.upstream_left_open.then_some(upstream);
        (observer, outcome, upstream)
    });
    (Ends { client, server }, task)
}

#[tokio::test(start_paused = true)]
async fn a_terminate_gives_the_servers_stream_back_with_all_before_it_written() {
    let (
        Ends {
            mut client,
            mut server,
        },
        task,
    ) = start(64, 64);
    client.write_all(b"before!behind").await.unwrap();
    assert_eq!(
        client.read(&mut [0]).await.unwrap(),
        0,
        "the client's side is closed"
    );
    client.write_all(b" it").await.unwrap();
    drop(client);
    let (observer, outcome, upstream) = task.await.unwrap();
    assert_eq!((outcome.sent, outcome.ended_by), (6, Side::Client));
    assert_eq!(observer.behind, b"!behind it");
    let mut upstream = upstream.expect("the stream");
    std::future::poll_fn(|cx| Poll::Ready(upstream.send(cx, b" and after")))
        .await
        .unwrap();
    drop(upstream);
    let mut all = String::new();
    server.read_to_string(&mut all).await.unwrap();
    assert_eq!(all, "before and after");
}

#[tokio::test(start_paused = true)]
async fn what_the_server_has_said_reaches_a_client_that_has_sent_terminate_and_reads_late() {
    let (
        Ends {
            mut client,
            mut server,
        },
        task,
    ) = start(16, 4096);
    let said =
        b"more than the client's socket can hold, and all of it before the terminate".repeat(20);
    server.write_all(&said).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    client.write_all(b"!").await.unwrap();
    tokio::time::sleep(Duration::from_mins(1)).await;
    let mut received = Vec::new();
    client.read_to_end(&mut received).await.unwrap();
    drop(client);
    let (observer, _, upstream) = task.await.unwrap();
    assert!(
        received == said,
        "{} of {} bytes",
        received.len(),
        said.len()
    );
    assert!(observer.from_server == said);
    assert!(upstream.is_some());
    drop(server);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_sends_terminate_and_stays_is_not_waited_for() {
    let (Ends { mut client, server }, task) = start(64, 64);
    client.write_all(b"!").await.unwrap();
    let begin = tokio::time::Instant::now();
    assert!(task.await.unwrap().2.is_some());
    assert!(
        begin.elapsed() <= Duration::from_secs(5),
        "{:?}",
        begin.elapsed()
    );
    drop((client, server));
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_the_server_has_closed_is_not_given_back() {
    let (Ends { mut client, server }, task) = start(64, 64);
    drop(server);
    client.write_all(b"!").await.unwrap();
    drop(client);
    assert!(task.await.unwrap().2.is_none());
}

#[tokio::test(start_paused = true)]
async fn without_a_terminate_the_stream_is_closed_and_not_given_back() {
    let (
        Ends {
            mut client,
            mut server,
        },
        task,
    ) = start(64, 64);
    client.write_all(b"a query").await.unwrap();
    drop(client);
    let mut all = String::new();
    server.read_to_string(&mut all).await.unwrap();
    assert_eq!(all, "a query");
    drop(server);
    let (observer, _, upstream) = task.await.unwrap();
    assert!(upstream.is_none() && !observer.heard);
}
