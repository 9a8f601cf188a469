//! Is nobody let in by SCRAM who does not know the password, and does no client learn who exists?

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use pg_iam_proxy::fuzzing;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::now;

/// The verifier of a password that no input can know the keys of, with one iteration.
const VERIFIER: &str = "SCRAM-SHA-256$1:W22ZaJ0SNY7soEsUEjb6gQ==$\
    WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";

/// A client that sends two or three messages, and can see the server's nonce before the last.
struct Client<'a> {
    messages: std::slice::Split<'a, u8, fn(&u8) -> bool>,
    mechanism: &'a [u8],
    is_first: bool,
    sending: Vec<u8>,
    received: Vec<u8>,
}

impl<'a> Client<'a> {
    fn new(data: &'a [u8], mechanism: &'a [u8]) -> Self {
        let is_end: fn(&u8) -> bool = |&byte| byte == b'\n';
        Self {
            messages: data.split(is_end),
            mechanism,
            is_first: true,
            sending: Vec::new(),
            received: Vec::new(),
        }
    }

    /// The next message in its frame. `NONCE` stands for the nonce that the server has sent.
    fn next(&mut self) -> Option<Vec<u8>> {
        let text = with_nonce(self.messages.next()?, &nonce(&self.received));
        let mut body = Vec::new();
        if std::mem::take(&mut self.is_first) {
            body.extend([self.mechanism, b"\0"].concat());
            body.extend(u32::try_from(text.len()).ok()?.to_be_bytes());
        }
        body.extend(text);
        let length = u32::try_from(body.len() + 4).ok()?;
        Some([b"p", &length.to_be_bytes()[..], &body].concat())
    }
}

impl AsyncRead for Client<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.sending.is_empty() {
            self.sending = self.next().unwrap_or_default();
        }
        let length = buffer.remaining().min(self.sending.len());
        buffer.put_slice(&self.sending[..length]);
        self.sending.drain(..length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Client<'_> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.received.extend(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Takes the lines of the input for a client's messages.
pub fn scram_login(data: &[u8]) {
    for (mechanism, binding) in [
        (&b"SCRAM-SHA-256"[..], None),
        (b"SCRAM-SHA-256", Some(&b"hash"[..])),
        (b"SCRAM-SHA-256-PLUS", Some(b"hash")),
    ] {
        let run = |verifier| {
            let mut client = Client::new(data, mechanism);
            let result = now(fuzzing::scram_login(&mut client, verifier, binding));
            let told = result.expect_err("a client without the password is let in");
            (told, client.received.len())
        };
        assert_eq!(
            run(Some(VERIFIER)),
            run(None),
            "a user who exists stands out"
        );
    }
}

/// The last nonce in what the server has sent.
fn nonce(received: &[u8]) -> Vec<u8> {
    let begin = received.windows(2).rposition(|window| window == b"r=");
    let rest = begin.map_or(&[][..], |begin| &received[begin + 2..]);
    rest.split(|&byte| byte == b',')
        .next()
        .unwrap_or_default()
        .to_vec()
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
