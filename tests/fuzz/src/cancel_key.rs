//! Is a cancel key opened only if it was sealed, and are its contents read exactly as written?

use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use pg_iam_proxy::fuzzing::wire::backend::BackendKey;
use pg_iam_proxy::fuzzing::wire::protocol::CANCEL_REQUEST_CODE;
use pg_iam_proxy::fuzzing::wire::startup::{CancelRequest, MAX_CANCEL_KEY, Packet, parse};
use pg_iam_proxy::fuzzing::{Contents, Seal};

const PROCESS_ID: u32 = 7;
static SEAL: LazyLock<Seal> = LazyLock::new(|| Seal::new(&[7; 32]));
static NOW: LazyLock<SystemTime> =
    LazyLock::new(|| SystemTime::UNIX_EPOCH + Duration::from_hours(500_000));

/// Takes the input for a key that a client sends, and for what is sealed in one. Nobody but a
/// replica can choose the latter, but a fuzzer cannot get past the seal.
pub fn cancel_key(data: &[u8]) {
    if let Some(request) = request(data) {
        assert!(SEAL.open(&request, *NOW).is_none(), "nobody has sealed it");
    }
    let Some(contents) = Contents::decode(PROCESS_ID, data) else {
        return;
    };
    // A name may be written in several ways, and has one in what is written here.
    let written = contents.encode().expect("what was read fits");
    assert_eq!(
        Contents::decode(PROCESS_ID, &written).as_ref(),
        Some(&contents)
    );
    assert_eq!(
        Contents::decode(PROCESS_ID, &[&written[..], &[0]].concat()),
        None
    );
    if let Some(key) = SEAL.seal(&contents.destination, *NOW) {
        check_sealed(&key, &contents, data);
    }
}

fn check_sealed(key: &BackendKey, contents: &Contents<String>, data: &[u8]) {
    let sealed = key.secret_key.expose();
    assert!(sealed.len() <= MAX_CANCEL_KEY);
    let open = |bytes: &[u8]| SEAL.open(&request(bytes).expect("its length is right"), *NOW);
    let opened = open(sealed).expect("it was sealed here");
    assert!(opened.is_own && opened.is_current);
    assert_eq!(opened.destination, contents.destination);
    let mut changed = sealed.to_vec();
    changed[data.len() % sealed.len()] ^= data[0] | 1;
    assert!(open(&changed).is_none());
    let elsewhere = CancelRequest {
        process_id: PROCESS_ID + 1,
        secret_key: key.secret_key.clone(),
    };
    assert!(SEAL.open(&elsewhere, *NOW).is_none());
}

/// The request with this key; `None` if no request has a key of such a length.
fn request(key: &[u8]) -> Option<CancelRequest> {
    let head = [CANCEL_REQUEST_CODE.to_be_bytes(), PROCESS_ID.to_be_bytes()].concat();
    match parse(&Bytes::from([&head[..], key].concat())) {
        Ok(Packet::Cancel(request)) => Some(request),
        _ => None,
    }
}
