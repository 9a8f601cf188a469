//! Does a SCRAM exchange go on only with a server that follows it and knows the password?

use pg_iam_proxy::fuzzing::wire::scram::{MAX_SERVER_ITERATIONS, ScramClient};

/// The most iterations of one input. More of them cost time and tell nothing new.
const MAX_FUZZED_ITERATIONS: u32 = 16;

/// Takes the input for a server's two messages, of which the first ends with a line feed. `NONCE`
/// stands for the client's nonce, which no input can know.
pub fn scram(data: &[u8]) {
    for (mechanism, binding) in [
        ("SCRAM-SHA-256", None),
        ("SCRAM-SHA-256-PLUS", Some(b"hash".to_vec())),
    ] {
        let mut exchange = ScramClient::begin(&[mechanism.to_string()], b"password", binding)
            .expect("it is offered");
        let initial =
            String::from_utf8(exchange.message().to_vec()).expect("our own message is text");
        let nonce = initial.split_once(",r=").expect("it has a nonce").1;
        let (first, last) = match data.iter().position(|&byte| byte == b'\n') {
            Some(end) => (&data[..end], &data[end + 1..]),
            None => (data, &[][..]),
        };
        let first = with_nonce(first, nonce.as_bytes());
        let iterations = iterations(&first);
        if iterations.is_some_and(|iterations| {
            (MAX_FUZZED_ITERATIONS + 1..=MAX_SERVER_ITERATIONS).contains(&iterations)
        }) {
            return;
        }
        match exchange.server_first(&first) {
            Ok(()) => {
                assert!(
                    first.starts_with(format!("r={nonce}").as_bytes())
                        && iterations.is_some_and(|iterations| iterations > 0)
                );
                let theirs = first[2..]
                    .split(|&byte| byte == b',')
                    .next()
                    .expect("the first of at least one");
                let message =
                    std::str::from_utf8(exchange.message()).expect("our own message is text");
                let (prefix, proof) = message.split_once(",p=").expect("it has a proof");
                let (channel, answered) = prefix.split_once(",r=").expect("it has a nonce");
                assert!(channel.starts_with("c=") && answered.as_bytes() == theirs);
                // The proof has 32 bytes, in base64.
                assert_eq!(proof.len(), 44);
                assert!(
                    exchange.server_final(last).is_err(),
                    "a server without the password is believed"
                );
            }
            Err(_) => assert!(
                exchange.server_final(last).is_err(),
                "an exchange goes on after an error"
            ),
        }
    }
}

fn with_nonce(template: &[u8], nonce: &[u8]) -> Vec<u8> {
    const PLACE: &[u8] = b"NONCE";
    match template
        .windows(PLACE.len())
        .position(|window| window == PLACE)
    {
        Some(at) => [&template[..at], nonce, &template[at + PLACE.len()..]].concat(),
        None => template.to_vec(),
    }
}

fn iterations(first: &[u8]) -> Option<u32> {
    let digits = first
        .split(|&byte| byte == b',')
        .find_map(|field| field.strip_prefix(b"i="))?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}
