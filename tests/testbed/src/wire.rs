//! How are the messages of the startup phase read and written?
//!
//! This is not the proxy's own code, so that no mistake is made twice. Lengths are checked because
//! the peer under test may be wrong, not because it may be hostile.

use anyhow::{Result, bail, ensure};
use tokio::io::{AsyncRead, AsyncReadExt};

pub enum First {
    SslRequest,
    GssEncRequest,
    /// A CancelRequest, as a whole packet to be passed on.
    Cancel(Vec<u8>),
    Startup(Startup),
}

pub struct Startup {
    pub minor: u16,
    /// The parameters in the order in which they came.
    pub parameters: Vec<(String, String)>,
}

const MAX_STARTUP: usize = 10_004;
const MAX_MESSAGE: usize = 70_000;

/// Returns `None` if the peer closed the connection without a word, as the probe of a load balancer
/// does.
pub async fn read_first(stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<First>> {
    let Ok(length) = stream.read_u32().await else {
        return Ok(None);
    };
    let size = length as usize;
    ensure!(
        (8..=MAX_STARTUP).contains(&size),
        "startup packet of {size} bytes"
    );
    let mut body = vec![0; size - 4];
    stream.read_exact(&mut body).await?;
    let code = u32::from_be_bytes([body[0], body[1], body[2], body[3]]);
    Ok(Some(match (code, size) {
        (80_877_103, 8) => First::SslRequest,
        (80_877_104, 8) => First::GssEncRequest,
        (80_877_102, _) => First::Cancel([&length.to_be_bytes()[..], &body].concat()),
        (code, _) if code >> 16 == 3 => First::Startup(Startup {
            minor: (code & 0xffff) as u16,
            parameters: parameters(&body[4..])?,
        }),
        (code, _) => bail!("unknown request code {code}"),
    }))
}

pub async fn read_message(stream: &mut (impl AsyncRead + Unpin)) -> Result<(u8, Vec<u8>)> {
    let kind = stream.read_u8().await?;
    let size = stream.read_u32().await? as usize;
    ensure!(
        (4..=MAX_MESSAGE).contains(&size),
        "message {:?} of {size} bytes",
        char::from(kind)
    );
    let mut body = vec![0; size - 4];
    stream.read_exact(&mut body).await?;
    Ok((kind, body))
}

pub fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.extend(length_of(body));
    bytes.extend(body);
    bytes
}

pub fn startup(parameters: &[(String, String)]) -> Vec<u8> {
    let mut body = 0x0003_0000_u32.to_be_bytes().to_vec();
    for (name, value) in parameters {
        body.extend(cstring(name));
        body.extend(cstring(value));
    }
    body.push(0);
    [&length_of(&body)[..], &body].concat()
}

pub fn authentication(code: u32, rest: &[u8]) -> Vec<u8> {
    message(b'R', &[&code.to_be_bytes()[..], rest].concat())
}

pub fn parameter_status(name: &str, value: &str) -> Vec<u8> {
    message(b'S', &[cstring(name), cstring(value)].concat())
}

/// A NegotiateProtocolVersion that says that 3.0 is spoken and that these options are unknown.
pub fn negotiate_version(unknown: &[&str]) -> Vec<u8> {
    let mut body = 0x0003_0000_u32.to_be_bytes().to_vec();
    body.extend(
        u32::try_from(unknown.len())
            .unwrap_or(u32::MAX)
            .to_be_bytes(),
    );
    body.extend(unknown.iter().flat_map(|name| cstring(name)));
    message(b'v', &body)
}

pub fn fatal(sqlstate: &str, text: &str) -> Vec<u8> {
    let mut body = Vec::new();
    for (field, value) in [
        (b'S', "FATAL"),
        (b'V', "FATAL"),
        (b'C', sqlstate),
        (b'M', text),
    ] {
        body.push(field);
        body.extend(cstring(value));
    }
    body.push(0);
    message(b'E', &body)
}

pub fn cstring(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

/// The bytes before the first NUL, as text.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

fn parameters(body: &[u8]) -> Result<Vec<(String, String)>> {
    let Some(body) = body.strip_suffix(&[0]) else {
        bail!("the startup packet has no terminator")
    };
    if body.is_empty() {
        return Ok(Vec::new());
    }
    let Some(body) = body.strip_suffix(&[0]) else {
        bail!("a startup parameter has no terminator")
    };
    let words: Vec<String> = body
        .split(|byte| *byte == 0)
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect();
    ensure!(
        words.len().is_multiple_of(2),
        "a startup parameter has no value"
    );
    Ok(words
        .chunks(2)
        .map(|pair| (pair[0].clone(), pair[1].clone()))
        .collect())
}

fn length_of(body: &[u8]) -> [u8; 4] {
    u32::try_from(body.len() + 4)
        .expect("messages of the startup phase are short")
        .to_be_bytes()
}
