//! Is the password right that the client sends as it is?
//!
//! This is for clients that can do nothing better. Only TLS hides the password from the network.

use tokio::io::{AsyncRead, AsyncWrite};

use super::{Challenge, RefusedPassword, Verdict, read_password, send};
use crate::error::{ErrorKind, LoginError, Refusal};
use crate::verifier::Verifier;
use crate::wire::backend::encode_cleartext_password;

/// Asks for the password, and checks it against either kind of verifier.
///
/// # Errors
/// The same as those of [`super::authenticate`].
pub(super) async fn authenticate<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    challenge: &Challenge<'_>,
) -> Result<Verdict, LoginError> {
    send(stream, encode_cleartext_password).await?;
    let password = read_password(stream).await?;
    if challenge.attempt.is_hopeless() {
        // A flood of guesses is not worth the hashing.
        return Ok(Err(RefusedPassword::TooManyWait));
    }
    let md5_matches = match challenge.verifier {
        Some(Verifier::Md5(verifier)) => Some(verifier.matches(challenge.user, password.expose())),
        Some(Verifier::Scram(_)) | None => None,
    };
    // Hashing takes milliseconds. It is also done for users who have no SCRAM verifier, since an
    // answer that came sooner would tell that. It is done on another thread, where it holds up no
    // session, and takes its permit along, because it goes on when the login is given up.
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
    let verdict = match md5_matches {
        Some(true) => Ok(()),
        Some(false) => Err(RefusedPassword::Wrong),
        None => known.and(if scram_matches {
            Ok(())
        } else {
            Err(RefusedPassword::Wrong)
        }),
    };
    Ok(challenge.in_turn(verdict).await)
}
