//! Who binds, and with which password? This is the little LDAP that PostgreSQL's `ldap` method
//! speaks.
//!
//! PostgreSQL hands every password, of any length that it accepts itself, to the bind server and
//! takes its word. For each connection it sends one simple BindRequest (RFC 4511 §4.2) and then an
//! UnbindRequest.

use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Whether this user may log in with this password.
pub trait Authenticator: Send + Sync + 'static {
    fn decide(&self, user: &str, password: &[u8]) -> bool;
}

struct Bind {
    id: u8,
    name: String,
    password: Vec<u8>,
}

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;
const BIND_REQUEST: u8 = 0x60;
const BIND_RESPONSE: u8 = 0x61;
const UNBIND_REQUEST: u8 = 0x42;
const SIMPLE: u8 = 0x80;
const SUCCESS: u8 = 0;
const INVALID_CREDENTIALS: u8 = 49;
/// PostgreSQL reads passwords of up to 65 535 bytes (PG_MAX_AUTH_TOKEN_LENGTH). The rest is for the
/// name and the framing.
const LIMIT: usize = 80_000;

const DN_PREFIX: &str = "uid=";
const DN_SUFFIX: &str = ",dc=testbed";

/// The method and its options, as in a line of `pg_hba.conf`.
pub fn hba_method(port: u16) -> String {
    format!(
        "ldap ldapserver=127.0.0.1 ldapport={port} ldapprefix=\"{DN_PREFIX}\" \
         ldapsuffix=\"{DN_SUFFIX}\""
    )
}

pub async fn serve(listener: TcpListener, authenticator: Arc<impl Authenticator>) {
    while let Ok((stream, _)) = listener.accept().await {
        let authenticator = Arc::clone(&authenticator);
        tokio::spawn(async move { serve_one(stream, &*authenticator).await });
    }
}

async fn serve_one(mut stream: TcpStream, authenticator: &impl Authenticator) -> Result<()> {
    while let Some(bind) = read_bind(&mut stream).await? {
        let accepted = authenticator.decide(user_of(&bind.name), &bind.password);
        answer(&mut stream, &bind, accepted).await?;
    }
    Ok(())
}

/// PostgreSQL puts the user's name between prefix and suffix without escaping it.
fn user_of(name: &str) -> &str {
    let name = name.strip_prefix(DN_PREFIX).unwrap_or(name);
    name.strip_suffix(DN_SUFFIX).unwrap_or(name)
}

/// Returns `None` if the peer only connects, or unbinds.
async fn read_bind(stream: &mut TcpStream) -> Result<Option<Bind>> {
    let Some(message) = read_message(stream).await? else {
        return Ok(None);
    };
    let mut message = Reader(&message);
    let id = message.take(INTEGER)?;
    ensure!(id.len() == 1, "a message id of one byte is expected");
    if message.0.first() == Some(&UNBIND_REQUEST) {
        return Ok(None);
    }
    let mut request = Reader(message.take(BIND_REQUEST)?);
    ensure!(request.take(INTEGER)? == [3], "not LDAP version 3");
    let name =
        String::from_utf8(request.take(OCTET_STRING)?.to_vec()).context("the name is not UTF-8")?;
    let password = request.take(SIMPLE)?.to_vec();
    Ok(Some(Bind {
        id: id[0],
        name,
        password,
    }))
}

async fn answer(stream: &mut TcpStream, bind: &Bind, accepted: bool) -> Result<()> {
    let code = if accepted {
        SUCCESS
    } else {
        INVALID_CREDENTIALS
    };
    stream
        .write_all(&[
            SEQUENCE,
            12,
            INTEGER,
            1,
            bind.id,
            BIND_RESPONSE,
            7,
            0x0a,
            1,
            code,
            OCTET_STRING,
            0,
            OCTET_STRING,
            0,
        ])
        .await?;
    Ok(())
}

async fn read_message(stream: &mut TcpStream) -> Result<Option<Vec<u8>>> {
    let Ok(tag) = stream.read_u8().await else {
        return Ok(None);
    };
    ensure!(tag == SEQUENCE, "not an LDAP message");
    let first = stream.read_u8().await?;
    let length = if first < 0x80 {
        usize::from(first)
    } else {
        let mut bytes = [0; 8];
        let count = usize::from(first & 0x7f);
        ensure!((1..=4).contains(&count), "length of {count} bytes");
        stream.read_exact(&mut bytes[8 - count..]).await?;
        usize::try_from(u64::from_be_bytes(bytes))?
    };
    ensure!(length <= LIMIT, "message of {length} bytes");
    let mut message = vec![0; length];
    stream.read_exact(&mut message).await?;
    Ok(Some(message))
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, tag: u8) -> Result<&'a [u8]> {
        let [found, first, rest @ ..] = self.0 else {
            bail!("truncated")
        };
        ensure!(*found == tag, "expected tag {tag:#x}, got {found:#x}");
        let (length, rest) = if *first < 0x80 {
            (usize::from(*first), rest)
        } else {
            let count = usize::from(first & 0x7f);
            ensure!(count <= 4 && count <= rest.len(), "bad length");
            let (length, rest) = rest.split_at(count);
            (
                length
                    .iter()
                    .fold(0, |sum, byte| sum << 8 | usize::from(*byte)),
                rest,
            )
        };
        ensure!(length <= rest.len(), "truncated");
        let (value, rest) = rest.split_at(length);
        self.0 = rest;
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(bytes: Vec<u8>) -> Result<Option<Bind>> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let mut peer = TcpStream::connect(listener.local_addr()?).await?;
        peer.write_all(&bytes).await?;
        drop(peer);
        read_bind(&mut listener.accept().await?.0).await
    }

    #[tokio::test]
    async fn short_and_long_lengths_are_read() {
        let short = read(b"\x30\x0e\x02\x01\x01\x60\x09\x02\x01\x03\x04\x01u\x80\x01p".to_vec())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(
            (short.id, short.name.as_str(), &short.password[..]),
            (1, "u", &b"p"[..])
        );
        let mut long = b"\x30\x82\x01\x3b\x02\x01\x02\x60\x82\x01\x34\x02\x01\x03\x04\x81\x01u\
            \x80\x82\x01\x29"
            .to_vec();
        long.extend([b'p'; 297]);
        assert_eq!(read(long).await.unwrap().unwrap().password, vec![b'p'; 297]);
    }

    #[tokio::test]
    async fn probes_and_unbinds_are_recognized_and_the_rest_is_refused() {
        assert!(read(Vec::new()).await.unwrap().is_none());
        assert!(
            read(b"\x30\x05\x02\x01\x02\x42\x00".to_vec())
                .await
                .unwrap()
                .is_none()
        );
        for bad in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"\x30\x84\xff\xff\xff\xff",
            b"\x30\x05\x02\x01\x02\x60\x7f",
            b"\x30\x0e\x02\x01",
        ] {
            assert!(read(bad.to_vec()).await.is_err());
        }
    }
}
