//! What may a peer send after the handshake, how often and in which pieces, and which alert does it
//! get for what it may not?

use rustls::SupportedCipherSuite;
use rustls::crypto::aws_lc_rs::cipher_suite;
use tokio::io::DuplexStream;

use super::super::super::testing::both_ours;
use super::*;

type Stream = TlsStream<DuplexStream>;

const KEY_UPDATE_REQUESTED: [u8; 5] = [KEY_UPDATE, 0, 0, 1, 1];

/// Sends a sealed record of this content.
async fn send(from: &mut Stream, content: u8, payload: &[u8]) {
    let before = from.record_overhead().before;
    let mut slot = vec![0; payload.len() + MAX_CONTROL];
    slot[before..before + payload.len()].copy_from_slice(payload);
    let key = &mut from.records.sealing_key;
    let length = key.seal(content, &mut slot, payload.len()).unwrap();
    from.get_mut().write_all(&slot[..length]).await.unwrap();
}

/// Sends a `KeyUpdate` that asks for one in return, cut into records of these lengths, and seals
/// with the next key from then on.
async fn request_key_update(from: &mut Stream, pieces: &[usize]) {
    let mut rest = &KEY_UPDATE_REQUESTED[..];
    for piece in pieces {
        let (payload, behind) = rest.split_at(*piece);
        send(from, HANDSHAKE, payload).await;
        rest = behind;
    }
    from.records.change_sealing_key().unwrap();
}

/// Lets a stream take in all that its peer has sent, which has no data for a reader.
async fn take_in(stream: &mut Stream) {
    let mut byte = [0];
    let read = std::future::poll_fn(|cx| {
        let mut buffer = tokio::io::ReadBuf::new(&mut byte);
        std::task::Poll::Ready(std::pin::Pin::new(&mut *stream).poll_read(cx, &mut buffer))
    });
    let read = read.await;
    assert!(read.is_pending(), "there is nothing to be read: {read:?}");
}

/// What our client says to what this server sends, and the alert that the server gets for it.
async fn answer_to(server: impl AsyncFnOnce(&mut Stream)) -> (String, String) {
    let (mut ours, mut theirs) = both_ours(&configs(None)).await;
    server(&mut theirs).await;
    let error = ours.read(&mut [0]).await.unwrap_err().to_string();
    let heard = theirs.read(&mut [0]).await.unwrap_err().to_string();
    let alert = heard
        .strip_prefix("received fatal TLS alert ")
        .expect(&heard);
    (error, alert.to_string())
}

/// The alert for sealed records of this content.
async fn alert_for(content: u8, payloads: &[&[u8]]) -> String {
    let server = async |theirs: &mut Stream| {
        for payload in payloads {
            send(theirs, content, payload).await;
        }
    };
    answer_to(server).await.1
}

#[tokio::test]
async fn a_peer_that_asks_for_a_key_update_with_each_record_that_it_reads_is_served() {
    // Java does this until our answer is there, which comes behind all that is on its way.
    let (mut ours, mut theirs) = both_ours(&configs(None)).await;
    for number in 0..200 {
        pass(
            &mut ours,
            &mut theirs,
            format!("record {number}").as_bytes(),
        )
        .await;
    }
    for number in 0..200 {
        request_key_update(&mut theirs, &[5]).await;
        if number == 100 {
            pass(&mut theirs, &mut ours, b"a query in the middle").await;
        }
    }
    pass(&mut theirs, &mut ours, b"another query").await;
    pass(&mut ours, &mut theirs, b"and its answer").await;
}

#[tokio::test]
async fn an_idle_peer_may_ask_for_any_number_of_key_updates_that_are_answered_one_by_one() {
    for idle_is_server in [false, true] {
        let (client, server) = both_ours(&configs(None)).await;
        let (mut ours, mut theirs) = if idle_is_server {
            (client, server)
        } else {
            (server, client)
        };
        for _ in 0..200 {
            request_key_update(&mut theirs, &[5]).await;
            take_in(&mut ours).await;
            take_in(&mut theirs).await;
        }
        pass(&mut theirs, &mut ours, b"and then it goes on").await;
    }
}

#[tokio::test]
async fn a_flood_of_key_updates_is_refused_beyond_the_records_that_the_peer_was_sent() {
    let flood = "received too many records that carry nothing on a TLS connection";
    let (mut ours, mut theirs) = both_ours(&configs(None)).await;
    // With this, the tickets of the handshake do not count any more.
    pass(&mut theirs, &mut ours, b"data").await;
    for _ in 0..10 {
        pass(&mut ours, &mut theirs, b"a record").await;
    }
    for _ in 0..32 + 10 {
        request_key_update(&mut theirs, &[5]).await;
    }
    // This is the answer to all of them, and one record more that the peer was sent.
    take_in(&mut ours).await;
    for _ in 0..2 {
        request_key_update(&mut theirs, &[5]).await;
    }
    let error = ours.read(&mut [0]).await.unwrap_err();
    assert_eq!(error.to_string(), flood);
}

#[tokio::test]
async fn a_key_update_is_followed_wherever_records_cut_it() {
    for pieces in [
        &[1, 4][..],
        &[2, 3],
        &[3, 2],
        &[4, 1],
        &[1, 1, 1, 1, 1],
        &[2, 2, 1],
    ] {
        let (mut ours, mut theirs) = both_ours(&configs(None)).await;
        request_key_update(&mut theirs, pieces).await;
        pass(&mut theirs, &mut ours, b"with the next key").await;
        pass(&mut ours, &mut theirs, b"and back").await;
    }
}

#[tokio::test]
async fn a_session_ticket_in_records_of_one_byte_is_no_flood_and_tickets_without_end_are() {
    let ticket = [&[4, 0, 0, 120][..], &[9; 120]].concat();
    let (mut ours, mut theirs) = both_ours(&configs(None)).await;
    // With this, the tickets of the handshake do not count any more.
    pass(&mut theirs, &mut ours, b"data").await;
    for _ in 0..32 {
        for byte in ticket.chunks(1) {
            send(&mut theirs, HANDSHAKE, byte).await;
        }
        take_in(&mut ours).await;
    }
    send(&mut theirs, HANDSHAKE, &ticket).await;
    assert_eq!(
        ours.read(&mut [0]).await.unwrap_err().to_string(),
        "received too many records that carry nothing on a TLS connection"
    );
}

#[tokio::test]
async fn each_record_that_ends_one_ticket_and_begins_the_next_counts() {
    let (mut ours, mut theirs) = both_ours(&configs(None)).await;
    send(&mut theirs, HANDSHAKE, &[4, 0, 0, 2, 1]).await;
    for _ in 0..32 {
        send(&mut theirs, HANDSHAKE, &[1, 4, 0, 0, 2, 1]).await;
    }
    assert_eq!(
        ours.read(&mut [0]).await.unwrap_err().to_string(),
        "received too many records that carry nothing on a TLS connection"
    );
}

#[tokio::test]
async fn a_key_update_of_another_value_is_an_illegal_parameter() {
    assert_eq!(alert_for(HANDSHAKE, &[&[24, 0, 0, 1, 2]]).await, "47");
    assert_eq!(alert_for(HANDSHAKE, &[&[24, 0, 0, 1], &[255]]).await, "47");
}

#[tokio::test]
async fn a_key_update_or_an_alert_of_another_length_is_a_decode_error() {
    assert_eq!(alert_for(HANDSHAKE, &[&[24, 0, 0, 0]]).await, "50");
    assert_eq!(alert_for(HANDSHAKE, &[&[24, 0, 0, 2, 0, 0]]).await, "50");
    assert_eq!(alert_for(ALERT, &[&[2]]).await, "50");
    assert_eq!(alert_for(ALERT, &[&[1, 0, 0]]).await, "50");
}

#[tokio::test]
async fn a_message_behind_a_key_update_in_its_record_is_an_unexpected_message() {
    let two = [KEY_UPDATE_REQUESTED, KEY_UPDATE_REQUESTED].concat();
    assert_eq!(alert_for(HANDSHAKE, &[&two]).await, "10");
    assert_eq!(alert_for(HANDSHAKE, &[b""]).await, "10");
    assert_eq!(alert_for(ALERT, &[b""]).await, "10");
}

#[tokio::test]
async fn a_change_cipher_spec_and_an_alert_in_the_clear_are_unexpected_messages() {
    for record in [&[20, 3, 3, 0, 1, 1][..], &[21, 3, 3, 0, 2, 2, 40]] {
        let server = async |theirs: &mut Stream| theirs.get_mut().write_all(record).await.unwrap();
        assert_eq!(
            answer_to(server).await,
            (
                "received a record that is not encrypted on a TLS connection".to_string(),
                "10".to_string()
            )
        );
    }
}

#[tokio::test]
async fn a_record_of_a_tag_alone_is_authenticated_before_it_is_refused() {
    let sealed = async |theirs: &mut Stream| {
        let record = theirs.records.sealing_key.seal_tag_alone();
        theirs.get_mut().write_all(&record).await.unwrap();
    };
    assert_eq!(
        answer_to(sealed).await,
        (
            "received a record without a content type on a TLS connection".to_string(),
            "10".to_string()
        )
    );
    let forged = async |theirs: &mut Stream| {
        let record = [&[23, 3, 3, 0, 16][..], &[7; 16]].concat();
        theirs.get_mut().write_all(&record).await.unwrap();
    };
    assert_eq!(answer_to(forged).await.1, "20");
}

/// The suites of TLS 1.2 with each form of record.
static TLS12_SUITES: [SupportedCipherSuite; 2] = [
    cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
];

#[tokio::test]
async fn a_flip_of_any_bit_of_a_tls_1_2_record_is_noticed() {
    for suite in TLS12_SUITES {
        let configs = configs(Some(suite));
        // The last two bytes of the header are the length, without which the record never ends.
        for (byte, bit) in [0, 1, 2, 5, 12, 16, 30]
            .into_iter()
            .flat_map(|byte| (0..8).map(move |bit| (byte, bit)))
        {
            let (mut ours, mut theirs) = both_ours(&configs).await;
            let before = theirs.record_overhead().before;
            let mut slot = [0; 100];
            slot[before..before + 20].copy_from_slice(&[b'd'; 20]);
            let length = theirs.records.seal(&mut slot, 20).unwrap();
            slot[byte] ^= 1 << bit;
            theirs.get_mut().write_all(&slot[..length]).await.unwrap();
            let result = ours.read(&mut [0]).await;
            assert!(result.is_err(), "byte {byte} bit {bit} of {suite:?}");
        }
    }
}

#[tokio::test]
async fn a_key_that_has_sealed_millions_of_small_records_is_not_worn() {
    for suite in [
        cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        cipher_suite::TLS13_AES_128_GCM_SHA256,
    ] {
        let (mut ours, mut theirs) = both_ours(&configs(Some(suite))).await;
        ours.records.sealing_key.skip_to(1 << 30);
        theirs.records.opening_key.skip_to(1 << 30);
        pass(&mut ours, &mut theirs, b"goes on").await;
        pass(&mut ours, &mut theirs, b"with the same key").await;
        assert!(!ours.records.sealing_key.update_is_due());
    }
}
