//! MD5 of the stored hash and a salt of this login.

use tokio::io::{AsyncRead, AsyncWrite};

use super::{Challenge, NOBODY, Verdict, WRONG, read_password, send};
use crate::error::LoginError;
use crate::random;
use crate::verifier::Verifier;
use crate::wire::backend::encode_md5_password;

pub(super) async fn ask<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    challenge: &Challenge<'_>,
) -> Result<Verdict, LoginError> {
    let salt = random::bytes();
    send(stream, |out| encode_md5_password(out, salt)).await?;
    let answer = read_password(stream).await?;
    // Two microseconds of work in the first case, which no client can see across a network.
    Ok(match challenge.verifier {
        Some(Verifier::Md5(verifier)) if verifier.answers(salt, answer.expose()) => Ok(()),
        Some(Verifier::Md5(_)) => Err(WRONG),
        Some(Verifier::Scram(_)) => Err("the user has a SCRAM verifier, which is no use here"),
        None => Err(NOBODY),
    })
}
