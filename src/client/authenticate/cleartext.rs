//! The password itself, for clients that can do nothing better; only TLS keeps it from the network.

use tokio::io::{AsyncRead, AsyncWrite};

use super::{Challenge, Verdict, WRONG, read_password, send};
use crate::error::{ErrorKind, LoginError, Refusal};
use crate::verifier::Verifier;
use crate::wire::backend::encode_cleartext_password;

pub(super) async fn ask<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    challenge: &Challenge<'_>,
) -> Result<Verdict, LoginError> {
    send(stream, encode_cleartext_password).await?;
    let password = read_password(stream).await?;
    let md5_matches = match challenge.verifier {
        Some(Verifier::Md5(verifier)) => Some(verifier.matches(challenge.user, password.expose())),
        Some(Verifier::Scram(_)) | None => None,
    };
    // Milliseconds of work, also for who has no SCRAM verifier: an answer that came sooner would
    // tell. It is done where it holds up no other session; the permit goes along, since the work
    // outlives a login that is given up.
    let permit = challenge
        .password_checker
        .hashing
        .clone()
        .acquire_owned()
        .await
        .expect("the semaphore is never closed");
    let (verifier, known) = challenge.scram_verifier();
    let verifier = verifier.into_owned();
    let hashing = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        verifier.matches(password.expose())
    });
    let scram_matches = hashing.await.map_err(|error| {
        Refusal::new(ErrorKind::Internal, "the password could not be verified").because(error)
    })?;
    Ok(match md5_matches {
        Some(true) => Ok(()),
        Some(false) => Err(WRONG),
        None => known.and(if scram_matches { Ok(()) } else { Err(WRONG) }),
    })
}
