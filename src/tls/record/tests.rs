//! Does the record layer understand that of rustls and OpenSSL, and withstand a peer that
//! misbehaves?

use std::io::{BufRead, BufReader, ErrorKind, PipeReader, Write};
use std::process::{Child, Command, Stdio};

use proptest::prelude::*;
use rustls::crypto::aws_lc_rs;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, duplex};
use tokio::net::{TcpListener, TcpStream};

use super::super::handshake;
use super::super::stream::TlsStream;
use super::super::testing::{both_ours, configs, localhost, our_client, our_server};
use super::*;

mod peers;

async fn pass<A, B>(from: &mut A, to: &mut B, bytes: &[u8])
where
    A: AsyncWrite + Unpin,
    B: AsyncRead + Unpin,
{
    let mut got = vec![0; bytes.len()];
    let send = async {
        from.write_all(bytes).await?;
        from.flush().await
    };
    let (written, read) = tokio::join!(send, to.read_exact(&mut got));
    written.unwrap();
    read.unwrap();
    assert!(got == bytes, "{} bytes arrive unchanged", bytes.len());
}

fn payload(length: usize) -> Vec<u8> {
    (0..length)
        .map(|number| u8::try_from(number % 251).unwrap())
        .collect()
}

#[tokio::test]
async fn every_cipher_of_both_versions_is_understood_by_rustls_in_both_roles_and_directions() {
    for suite in aws_lc_rs::ALL_CIPHER_SUITES {
        // The self-signed certificate has an ECDSA key.
        if format!("{suite:?}").contains("_RSA_") {
            continue;
        }
        let configs = configs(Some(*suite));
        let (near, far) = duplex(1 << 20);
        let (mut client, mut server) = our_client(&configs, near, far).await;
        let (near, far) = duplex(1 << 20);
        let (mut our_server, mut their_client) = our_server(&configs, near, far).await;
        for length in [1, 2, 255, 16_383, 16_384, 16_385, 100_000] {
            pass(&mut client, &mut server, &payload(length)).await;
            pass(&mut server, &mut client, &payload(length)).await;
            pass(&mut our_server, &mut their_client, &payload(length)).await;
            pass(&mut their_client, &mut our_server, &payload(length)).await;
        }
    }
}

#[tokio::test]
async fn a_key_update_of_the_peer_is_followed_and_answered() {
    let (near, far) = duplex(1 << 20);
    let (mut ours, mut theirs) = our_client(&configs(None), near, far).await;
    for _ in 0..3 {
        // rustls asks for an update of ours too.
        theirs.get_mut().1.refresh_traffic_keys().unwrap();
        pass(&mut theirs, &mut ours, b"after the update").await;
        let is_pending = ours.records.has_pending_answer();
        pass(&mut ours, &mut theirs, b"after the answer").await;
        assert!(!is_pending, "the answer goes out without waiting for data");
    }
}

#[tokio::test]
async fn a_key_update_in_the_same_read_as_the_end_of_the_handshake_is_answered() {
    let configs = configs(None);
    let (near, far) = duplex(1 << 20);
    let connector = tokio_rustls::TlsConnector::from(configs.client.clone());
    let client = async {
        let mut client = connector.connect(localhost(), far).await.unwrap();
        // Our server has no turn between the handshake and this.
        client.get_mut().1.refresh_traffic_keys().unwrap();
        client.write_all(b"early").await.unwrap();
        client.flush().await.unwrap();
        client
    };
    let (ours, mut theirs) = tokio::join!(
        handshake::accept(configs.server.clone(), false, near),
        client
    );
    let mut ours = ours.map_err(|(error, _)| error).unwrap().stream;
    let mut got = [0; 5];
    ours.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"early");
    pass(&mut ours, &mut theirs, b"sealed with the next key").await;
    pass(&mut theirs, &mut ours, b"and back").await;
}

#[tokio::test]
async fn a_worn_key_is_replaced_and_the_peer_follows() {
    let (near, far) = duplex(1 << 20);
    let (mut ours, mut theirs) = our_server(&configs(None), near, far).await;
    for _ in 0..3 {
        ours.update_key_after(2);
        for _ in 0..5 {
            pass(&mut ours, &mut theirs, &payload(20_000)).await;
        }
        assert!(!ours.records.sealing_key.update_is_due());
        pass(&mut theirs, &mut ours, b"and back").await;
    }
}

#[tokio::test]
async fn a_worn_key_of_tls_1_2_ends_the_connection() {
    let suite = aws_lc_rs::cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384;
    let (near, far) = duplex(1 << 20);
    let (mut ours, mut theirs) = our_client(&configs(Some(suite)), near, far).await;
    ours.update_key_after(1);
    pass(&mut ours, &mut theirs, b"the last").await;
    let error = ours.write_all(b"one more").await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "the TLS 1.2 key of the connection is used up"
    );
}

#[tokio::test]
async fn close_notify_ends_one_direction_and_leaves_the_other() {
    let (near, far) = duplex(1 << 20);
    let (mut ours, mut theirs) = our_client(&configs(None), near, far).await;
    theirs.shutdown().await.unwrap();
    assert_eq!(ours.read(&mut [0]).await.unwrap(), 0);
    pass(&mut ours, &mut theirs, b"still there").await;
    ours.shutdown().await.unwrap();
    assert_eq!(
        theirs.read(&mut [0]).await.unwrap(),
        0,
        "rustls is content: close_notify came before the end"
    );
}

#[tokio::test]
async fn an_end_without_close_notify_is_told_from_one_with_it() {
    let (near, far) = duplex(1 << 20);
    let (mut ours, theirs) = our_client(&configs(None), near, far).await;
    drop(theirs);
    assert_eq!(
        ours.read(&mut [0]).await.unwrap_err().kind(),
        ErrorKind::UnexpectedEof
    );
}

#[tokio::test]
async fn data_before_an_alert_is_good_and_the_alert_ends_the_connection() {
    let (mut ours, mut theirs) = both_ours(&configs(None)).await;
    theirs.write_all(b"good").await.unwrap();
    let mut alert = Vec::new();
    theirs
        .records
        .seal_alert(RecordError::Unexpected("a test"), &mut alert)
        .unwrap();
    theirs.get_mut().write_all(&alert).await.unwrap();
    let mut got = [0; 4];
    ours.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"good");
    assert_eq!(
        ours.read(&mut [0]).await.unwrap_err().to_string(),
        "received fatal TLS alert 10"
    );
}

#[tokio::test]
async fn what_is_no_record_behind_data_in_the_same_read_is_an_error_and_no_proper_end() {
    let (mut ours, mut theirs) = both_ours(&configs(None)).await;
    let mut slot = [0; 64];
    slot[HEADER..HEADER + 4].copy_from_slice(b"good");
    let length = theirs.records.seal(&mut slot, 4).unwrap();
    let sent = [&slot[..length], b"HTTP/1.1 400 Bad Request\r\n"].concat();
    theirs.get_mut().write_all(&sent).await.unwrap();
    let mut got = [0; 4];
    ours.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"good");
    assert_eq!(
        ours.read(&mut [0]).await.unwrap_err().to_string(),
        "received what is no TLS record on a TLS connection"
    );
    assert_eq!(
        theirs.read(&mut [0]).await.unwrap_err().to_string(),
        "received fatal TLS alert 10"
    );
}

/// What our client says to these raw bytes, and what our server then hears from it.
async fn refusal(raw: &[u8]) -> (String, String) {
    let (mut ours, mut theirs) = both_ours(&configs(None)).await;
    theirs.get_mut().write_all(raw).await.unwrap();
    let error = ours.read(&mut [0]).await.unwrap_err().to_string();
    (error, theirs.read(&mut [0]).await.unwrap_err().to_string())
}

/// What our client says to sealed records of this content.
async fn refusal_of(content: u8, payloads: &[&[u8]]) -> String {
    let (mut ours, mut theirs) = both_ours(&configs(None)).await;
    for payload in payloads {
        let mut slot = vec![0; payload.len() + 2 * MAX_CONTROL];
        slot[HEADER..HEADER + payload.len()].copy_from_slice(payload);
        let length = theirs
            .records
            .sealing_key
            .seal(content, &mut slot, payload.len())
            .unwrap();
        theirs.get_mut().write_all(&slot[..length]).await.unwrap();
    }
    match ours.read(&mut [0]).await {
        Ok(read) => format!("{read} bytes"),
        Err(error) => error.to_string(),
    }
}

#[tokio::test]
async fn a_forged_record_ends_the_connection_and_the_peer_is_told() {
    let forged = [&[23, 3, 3, 0, 40][..], &[7; 40]].concat();
    let expected = (
        "received a TLS record that is corrupt or forged",
        "received fatal TLS alert 20",
    );
    assert_eq!(
        refusal(&forged).await,
        (expected.0.into(), expected.1.into())
    );
}

#[tokio::test]
async fn a_record_too_short_for_its_tag_is_forged() {
    assert_eq!(
        refusal(&[23, 3, 3, 0, 1, 9]).await.0,
        "received a TLS record that is corrupt or forged"
    );
}

#[tokio::test]
async fn a_record_that_is_too_long_is_refused_by_its_header() {
    let expected = (
        "received a TLS record that is too long",
        "received fatal TLS alert 22",
    );
    assert_eq!(
        refusal(&[23, 3, 3, 0x41, 0x01]).await,
        (expected.0.into(), expected.1.into())
    );
}

#[tokio::test]
async fn what_is_no_record_is_refused() {
    assert_eq!(
        refusal(b"HTTP/1.1 400 Bad Request\r\n").await.0,
        "received what is no TLS record on a TLS connection"
    );
    assert_eq!(
        refusal(&[22, 3, 3, 0, 30, 1].repeat(8)).await.0,
        "received a record that is not encrypted on a TLS connection"
    );
    assert_eq!(
        refusal(&[20, 3, 3, 0, 18, 1].repeat(8)).await.0,
        "received a record that is not encrypted on a TLS connection"
    );
}

#[tokio::test]
async fn messages_that_have_no_place_after_the_handshake_are_refused() {
    let misplaced =
        "received a handshake message that has no place after the handshake on a TLS connection";
    // Finished, CertificateRequest, HelloRequest, ClientHello.
    for kind in [20, 13, 0, 1] {
        assert_eq!(refusal_of(HANDSHAKE, &[&[kind, 0, 0, 0]]).await, misplaced);
    }
    assert_eq!(
        refusal_of(HANDSHAKE, &[b""]).await,
        "received an empty handshake record on a TLS connection"
    );
    assert_eq!(
        refusal_of(ALERT, &[&[2]]).await,
        "received a malformed alert on a TLS connection"
    );
    assert_eq!(
        refusal_of(CHANGE_CIPHER_SPEC, &[&[1]]).await,
        "received a content type that has no place after the handshake on a TLS connection"
    );
}

#[tokio::test]
async fn session_tickets_are_skipped_wherever_records_cut_them() {
    let ticket = [&[4, 0, 0, 200][..], &[9; 200], &[4, 0, 0, 3, 1, 2, 3]].concat();
    for cut in [1, 2, 3, 4, 5, 100, 203, 204, 205, 206, 208] {
        let (mut ours, mut theirs) = both_ours(&configs(None)).await;
        for payload in [&ticket[..cut], &ticket[cut..]] {
            let mut slot = [0; 512];
            slot[HEADER..HEADER + payload.len()].copy_from_slice(payload);
            let length = theirs
                .records
                .sealing_key
                .seal(HANDSHAKE, &mut slot, payload.len())
                .unwrap();
            theirs.get_mut().write_all(&slot[..length]).await.unwrap();
        }
        pass(&mut theirs, &mut ours, b"behind the tickets").await;
    }
}

#[tokio::test]
async fn nothing_may_come_inside_a_handshake_message() {
    let (mut ours, mut theirs) = both_ours(&configs(None)).await;
    let mut slot = [0; 128];
    slot[HEADER] = 4;
    let length = theirs
        .records
        .sealing_key
        .seal(HANDSHAKE, &mut slot, 1)
        .unwrap();
    theirs.get_mut().write_all(&slot[..length]).await.unwrap();
    theirs.write_all(b"data").await.unwrap();
    let error = ours.read(&mut [0]).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "received another record inside a handshake message on a TLS connection"
    );
}

#[tokio::test]
async fn a_flood_of_records_that_carry_nothing_is_refused_and_a_few_are_not() {
    let flood = "received too many records that carry nothing on a TLS connection";
    assert_eq!(refusal_of(APPLICATION_DATA, &[&[][..]; 33]).await, flood);
    let (mut ours, mut theirs) = both_ours(&configs(None)).await;
    for _ in 0..3 {
        for _ in 0..30 {
            let mut slot = [0; 64];
            let length = theirs
                .records
                .sealing_key
                .seal(APPLICATION_DATA, &mut slot, 0)
                .unwrap();
            theirs.get_mut().write_all(&slot[..length]).await.unwrap();
        }
        pass(&mut theirs, &mut ours, b"data").await;
    }
}

#[tokio::test]
async fn padding_of_tls_1_3_is_taken_off() {
    let (mut ours, mut theirs) = both_ours(&configs(None)).await;
    let mut slot = [0; 128];
    // Content type 23 inside, three bytes of padding behind it; `seal` appends a zero as the type,
    // which is one more.
    slot[HEADER..HEADER + 8].copy_from_slice(&[b'd', b'a', b't', b'a', 23, 0, 0, 0]);
    let length = theirs.records.sealing_key.seal(0, &mut slot, 8).unwrap();
    theirs.get_mut().write_all(&slot[..length]).await.unwrap();
    let mut got = [0; 4];
    ours.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"data");
}

#[tokio::test]
async fn a_record_of_padding_alone_is_refused() {
    assert_eq!(
        refusal_of(0, &[&[0; 8]]).await,
        "received a record without a content type on a TLS connection"
    );
}

#[tokio::test]
async fn renegotiation_of_tls_1_2_is_declined_and_not_for_ever() {
    let suite = aws_lc_rs::cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256;
    let (mut client, mut server) = both_ours(&configs(Some(suite))).await;
    let (hello_request, client_hello) = (0, 1);
    for _ in 0..32 {
        send_empty_message(&mut client, client_hello).await;
        pass(&mut client, &mut server, b"goes on").await;
        pass(&mut server, &mut client, b"behind a warning").await;
    }
    send_empty_message(&mut server, hello_request).await;
    pass(&mut server, &mut client, b"this one is the client's first").await;
    send_empty_message(&mut client, client_hello).await;
    let error = server.read(&mut [0]).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "received too many attempts at renegotiation on a TLS connection"
    );
}

/// Sends an empty handshake message of this type.
async fn send_empty_message(stream: &mut TlsStream<tokio::io::DuplexStream>, kind: u8) {
    let mut slot = [0; 64];
    slot[stream.record_overhead().before] = kind;
    let length = stream
        .records
        .sealing_key
        .seal(HANDSHAKE, &mut slot, 4)
        .unwrap();
    stream.get_mut().write_all(&slot[..length]).await.unwrap();
}

/// What a peer that has these bytes to send makes of our end: an error or an end, and never a
/// panic.
fn endure(send: impl AsyncFnOnce(&mut TlsStream<tokio::io::DuplexStream>)) {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
        .block_on(async {
            let (mut ours, mut theirs) = both_ours(&configs(None)).await;
            send(&mut theirs).await;
            drop(theirs);
            let mut got = Vec::new();
            let _ = ours.read_to_end(&mut got).await;
        });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_bytes_make_us_panic(bytes in prop::collection::vec(any::<u8>(), 0..2_000)) {
        endure(async |theirs| theirs.get_mut().write_all(&bytes).await.unwrap());
    }

    #[test]
    fn no_sealed_records_make_us_panic(
        records in prop::collection::vec(
            (18..27_u8, prop::collection::vec(any::<u8>(), 0..300)),
            0..12,
        ),
    ) {
        endure(async |theirs| {
            for (content, payload) in records {
                let mut slot = vec![0; payload.len() + MAX_CONTROL];
                slot[HEADER..HEADER + payload.len()].copy_from_slice(&payload);
                let key = &mut theirs.records.sealing_key;
                let length = key.seal(content, &mut slot, payload.len()).unwrap();
                theirs.get_mut().write_all(&slot[..length]).await.unwrap();
            }
        });
    }
}

/// An OpenSSL program that can be told to update keys: `K` asks for ours too, `k` does not.
struct OpenSsl {
    process: Child,
    output: BufReader<PipeReader>,
}

impl OpenSsl {
    fn start(arguments: &[&str]) -> Self {
        let (reader, writer) = std::io::pipe().unwrap();
        let process = Command::new("openssl")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(writer.try_clone().unwrap())
            .stderr(writer)
            .spawn()
            .expect("openssl is missing: apt-get install openssl");
        Self {
            process,
            output: BufReader::new(reader),
        }
    }

    fn say(&mut self, text: &str) {
        self.process
            .stdin
            .as_mut()
            .unwrap()
            .write_all(text.as_bytes())
            .unwrap();
    }

    /// Reads up to a line with this text.
    fn wait_for(&mut self, text: &str) -> String {
        let mut line = String::new();
        while !line.contains(text) {
            line.clear();
            assert!(
                self.output.read_line(&mut line).unwrap() > 0,
                "openssl ended before it said {text}"
            );
        }
        line
    }
}

impl Drop for OpenSsl {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

async fn exchange_with_key_updates(ours: &mut TlsStream<TcpStream>, openssl: &mut OpenSsl) {
    for (number, update) in ["", "K\n", "k\n", "K\n", "K\n"].into_iter().enumerate() {
        let line = format!("line {number}\n");
        if !update.is_empty() {
            // It takes what it reads at once for one command: the line must come later.
            openssl.say(update);
            ours.get_ref().peek(&mut [0]).await.unwrap();
        }
        openssl.say(&line);
        let mut got = vec![0; line.len()];
        ours.read_exact(&mut got).await.unwrap();
        assert_eq!(String::from_utf8(got).unwrap(), line);
        ours.update_key_after(1);
        ours.write_all(format!("from us {number}\nand more {number}\n").as_bytes())
            .await
            .unwrap();
        openssl.wait_for(&format!("from us {number}"));
        openssl.wait_for(&format!("and more {number}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn openssl_as_the_server_updates_keys_and_follows_ours() {
    let configs = configs(None);
    let files = tempfile::tempdir().unwrap();
    let (certificate, key) = (
        files.path().join("certificate.pem"),
        files.path().join("key.pem"),
    );
    std::fs::write(&certificate, &configs.certificate).unwrap();
    std::fs::write(&key, &configs.key).unwrap();
    let (certificate, key) = (certificate.to_str().unwrap(), key.to_str().unwrap());
    let mut openssl = OpenSsl::start(&[
        "s_server",
        "-accept",
        "127.0.0.1:0",
        "-cert",
        certificate,
        "-key",
        key,
        "-tls1_3",
    ]);
    let address = openssl
        .wait_for("ACCEPT")
        .trim()
        .rsplit(' ')
        .next()
        .unwrap()
        .to_string();
    let tcp = TcpStream::connect(&address).await.unwrap();
    let mut ours = handshake::connect(configs.client, localhost(), tcp)
        .await
        .unwrap()
        .stream;
    exchange_with_key_updates(&mut ours, &mut openssl).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn openssl_as_the_client_updates_keys_and_follows_ours() {
    let configs = configs(None);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let mut openssl = OpenSsl::start(&[
        "s_client",
        "-connect",
        &address,
        "-tls1_3",
        "-servername",
        "LOCALHOST",
    ]);
    let (tcp, _) = listener.accept().await.unwrap();
    let handshake = handshake::accept(configs.server, false, tcp)
        .await
        .map_err(|(error, _)| error)
        .unwrap();
    assert_eq!(handshake.server_name.as_deref(), Some("localhost"));
    let mut ours = handshake.stream;
    exchange_with_key_updates(&mut ours, &mut openssl).await;
}
