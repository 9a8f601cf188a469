//! Does the idle tracker say the same of a session however its bytes are cut, and send only whole
//! messages to the server?

use bytes::Bytes;
use pg_iam_proxy::fuzzing::wire::backend::RawMessage;
use pg_iam_proxy::fuzzing::wire::frontend::TERMINATE;
use pg_iam_proxy::fuzzing::wire::protocol::PQMSG_PARAMETER_STATUS;
use pg_iam_proxy::fuzzing::wire::settings::Settings;
use pg_iam_proxy::fuzzing::{IdleTracker, Observer};

/// Takes the input for a session. The first byte of each chunk says who sends it (the server, where
/// the highest bit is set) and how long it is.
pub fn idle_tracker(data: &[u8]) {
    let mut chunks = Vec::new();
    let mut rest = data;
    while let Some((&head, tail)) = rest.split_first() {
        let (chunk, tail) = tail.split_at(tail.len().min(usize::from(head & 0x7f)));
        chunks.push((head & 0x80 != 0, chunk));
        rest = tail;
    }
    let bytes = chunks
        .iter()
        .flat_map(|&(server, chunk)| chunk.chunks(1).map(move |byte| (server, byte)));
    let verdict = verdict(chunks.iter().copied());
    assert_eq!(verdict, self::verdict(bytes), "chunks change nothing");
    if let (Ok(_), passed) = verdict {
        let client: Vec<u8> = chunks
            .iter()
            .filter(|(server, _)| !server)
            .flat_map(|(_, chunk)| *chunk)
            .copied()
            .collect();
        assert_eq!(&client[passed..], TERMINATE);
        assert!(are_whole_messages(&client[..passed]));
    }
}

/// What the tracker says at the end, and how many bytes were for the server.
fn verdict<'a>(
    chunks: impl Iterator<Item = (bool, &'a [u8])>,
) -> (Result<Settings, &'static str>, usize) {
    let status = |body: &'static [u8]| RawMessage {
        tag: PQMSG_PARAMETER_STATUS,
        body: Bytes::from_static(body),
    };
    let mut tracker = IdleTracker::new(Settings::at_login(&[
        status(b"TimeZone\0UTC\0"),
        status(b"a\0b\0"),
    ]));
    let (mut passed, mut gone) = (0, false);
    for (server, chunk) in chunks {
        if server {
            tracker.server_sent(chunk);
        } else {
            let taken = tracker.client_sent(chunk);
            assert!(taken <= chunk.len() && (!gone || taken == 0));
            gone |= taken < chunk.len();
            passed += taken;
        }
    }
    (tracker.into_settings(), passed)
}

fn are_whole_messages(mut bytes: &[u8]) -> bool {
    while let Some(([_, length @ ..], _)) = bytes.split_first_chunk::<5>() {
        let Some(rest) = bytes.get(1 + u32::from_be_bytes(*length) as usize..) else {
            return false;
        };
        bytes = rest;
    }
    bytes.is_empty()
}
