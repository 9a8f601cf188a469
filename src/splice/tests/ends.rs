//! What do the two sides learn when one of them ends the session by an error, and how soon?

use std::time::Instant;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::super::*;
use super::SUITES;
use crate::tls::testing::{configs, our_client, our_server};

/// Far less than the time that a client may take to close its side.
const AT_ONCE: Duration = Duration::from_secs(4);

async fn tcp() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap());
    let (near, far) = tokio::join!(near, listener.accept());
    (near.unwrap(), far.unwrap().0)
}

/// Closes a connection as a host does that has crashed or knows nothing of it, with an RST.
fn reset(connection: &TcpStream) {
    socket2::SockRef::from(connection)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
}

#[tokio::test]
async fn a_client_without_tls_reads_all_and_the_end_at_once_when_the_server_resets() {
    let (near, mut client) = tcp().await;
    let (far, mut server) = tcp().await;
    let task = tokio::spawn(async move {
        let (mut near, mut far) = (PlainStream::new(near), PlainStream::new(far));
        splice(&mut near, &mut far, &mut (), &Traffic::default()).await
    });
    let begin = Instant::now();
    server.write_all(b"the last error").await.unwrap();
    let mut got = [0; 14];
    client.read_exact(&mut got).await.unwrap();
    reset(&server);
    drop(server);
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    assert!(begin.elapsed() < AT_ONCE, "{:?}", begin.elapsed());
    drop(client);
    let outcome = task.await.unwrap();
    assert_eq!(outcome.ended_by, Side::Upstream);
    assert_eq!(
        outcome.error.unwrap().kind(),
        io::ErrorKind::ConnectionReset
    );
}

#[tokio::test]
async fn a_client_over_tls_gets_close_notify_at_once_when_the_server_resets() {
    let (near, client) = tcp().await;
    let (far, server) = tcp().await;
    let configs = configs(None);
    let (mut near, mut client) = our_server(&configs, near, client).await;
    let (mut far, server) = our_client(&configs, far, server).await;
    let task =
        tokio::spawn(
            async move { splice(&mut near, &mut far, &mut (), &Traffic::default()).await },
        );
    let begin = Instant::now();
    reset(server.get_ref().0);
    drop(server);
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0, "close_notify");
    assert!(begin.elapsed() < AT_ONCE, "{:?}", begin.elapsed());
    drop(client);
    assert_eq!(task.await.unwrap().ended_by, Side::Upstream);
}

#[tokio::test]
async fn a_forged_record_of_the_server_ends_the_client_at_once_and_the_server_reads_the_alert() {
    let (near, mut client) = tcp().await;
    let (far, server) = tcp().await;
    let configs = configs(None);
    let mut near = PlainStream::new(near);
    let (mut far, mut server) = our_client(&configs, far, server).await;
    let task =
        tokio::spawn(
            async move { splice(&mut near, &mut far, &mut (), &Traffic::default()).await },
        );
    let begin = Instant::now();
    server.write_all(b"good").await.unwrap();
    // What comes behind it is more than a socket holds, and is read by nobody.
    let forged = [&[23, 3, 3, 0, 40][..], &[7; 40]].concat();
    let server_side = async {
        let tcp = server.get_mut().0;
        tcp.write_all(&forged).await.unwrap();
        let _ = tcp.write_all(&vec![7; 300_000]).await;
        server.read(&mut [0]).await.unwrap_err().to_string()
    };
    let client_side = async {
        let mut all = Vec::new();
        client.read_to_end(&mut all).await.unwrap();
        assert!(begin.elapsed() < AT_ONCE, "{:?}", begin.elapsed());
        drop(client);
        all
    };
    let (heard, all) = tokio::join!(server_side, client_side);
    assert_eq!(all, b"good");
    assert_eq!(heard, "received fatal alert: BadRecordMac");
    drop(server);
    assert_eq!(
        task.await.unwrap().error.unwrap().to_string(),
        "received a TLS record that is corrupt or forged"
    );
}

#[tokio::test]
async fn a_client_reads_the_alert_for_a_bad_record_whatever_it_has_sent_behind_it() {
    let configs = configs(None);
    for _ in 0..20 {
        let (near, client) = tcp().await;
        let (far, _server) = tcp().await;
        let (mut near, mut client) = our_server(&configs, near, client).await;
        let task = tokio::spawn(async move {
            let mut far = PlainStream::new(far);
            splice(&mut near, &mut far, &mut (), &Traffic::default()).await
        });
        let bad = [&[23, 3, 3, 0, 40][..], &vec![7; 300_000]].concat();
        client.get_mut().0.write_all(&bad).await.unwrap();
        let error = client.read(&mut [0]).await.unwrap_err();
        assert_eq!(error.to_string(), "received fatal alert: BadRecordMac");
        drop(client);
        assert_eq!(task.await.unwrap().ended_by, Side::Client);
    }
}

#[tokio::test]
async fn a_session_whose_tls_1_2_key_is_worn_is_closed_properly_by_the_proxy() {
    for client_is_worn in [true, false] {
        let configs = configs(Some(SUITES[2]));
        let (near, client) = tcp().await;
        let (far, server) = tcp().await;
        let (mut near, mut client) = our_server(&configs, near, client).await;
        let (mut far, mut server) = our_client(&configs, far, server).await;
        if client_is_worn {
            near.update_key_after(1000);
        } else {
            far.update_key_after(1000);
        }
        let task =
            tokio::spawn(
                async move { splice(&mut near, &mut far, &mut (), &Traffic::default()).await },
            );
        let (from, to): (&mut (dyn AsyncWrite + Unpin), &mut (dyn AsyncRead + Unpin)) =
            if client_is_worn {
                (&mut server, &mut client)
            } else {
                (&mut client, &mut server)
            };
        from.write_all(&vec![7; 20_000]).await.unwrap();
        from.flush().await.unwrap();
        let mut all = Vec::new();
        to.read_to_end(&mut all).await.expect("close_notify");
        assert_eq!(all.len(), 20_000);
        drop((client, server));
        let outcome = task.await.unwrap();
        assert_eq!(outcome.ended_by, Side::Proxy);
        assert_eq!(
            outcome.error.unwrap().to_string(),
            "the TLS 1.2 key of the connection is used up"
        );
    }
}
