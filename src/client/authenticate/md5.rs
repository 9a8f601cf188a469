//! Does the client know the MD5 hash of its password?

use tokio::io::{AsyncRead, AsyncWrite};

use super::{Challenge, RefusedPassword, Verdict, read_password, send};
use crate::error::LoginError;
use crate::random;
use crate::verifier::Verifier;
use crate::wire::backend::encode_md5_password;

/// Sends a salt, and checks the hash of the stored hash and that salt.
///
/// # Errors
/// The same as those of [`super::authenticate`].
pub(super) async fn authenticate<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    challenge: &Challenge<'_>,
) -> Result<Verdict, LoginError> {
    let salt = random::bytes();
    send(stream, |out| encode_md5_password(out, salt)).await?;
    let answer = read_password(stream).await?;
    // The first case takes two microseconds more, which no client can tell across a network.
    let verdict = match challenge.verifier {
        Some(Verifier::Md5(verifier)) if verifier.answers(salt, answer.expose()) => Ok(()),
        Some(Verifier::Md5(_)) => Err(RefusedPassword::Wrong),
        Some(Verifier::Scram(_)) => Err(RefusedPassword::ScramVerifierOnly),
        None => Err(RefusedPassword::UnknownUser),
    };
    Ok(challenge.in_turn(verdict).await)
}
