//! Does the client know the user's password? There is one file for each method of asking for it.
//!
//! A refused client reads the same text, after the same messages and the same work, whether the
//! user is unknown, has no password that serves the method, or has another password. Only the log
//! tells these cases apart. A further method is a variant of [`ExchangeMethod`] and a file with a
//! function `authenticate`.

mod cleartext;
mod md5;
mod scram;

use std::borrow::Cow;
use std::num::NonZeroU32;
use std::sync::Arc;

use aws_lc_rs::hmac;
use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::Semaphore;

use super::turns::{Attempt, TooManyWait};
use crate::error::{ErrorKind, LoginError, Refusal};
use crate::excerpt;
use crate::secret::Secret;
use crate::verifier::{SALT_LENGTH, ScramVerifier, Verifier};
use crate::wire::password::{
    ExpectedResponse, UnusablePassword, check_password, parse_password, read,
};

/// A method of authentication in which messages are exchanged with the client. For those that need
/// none see [`super::identity::AuthenticationMethod`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExchangeMethod {
    /// SCRAM-SHA-256, and SCRAM-SHA-256-PLUS where the connection has channel binding data.
    ScramSha256,
    /// MD5 with a salt, for drivers that know nothing better.
    Md5,
    /// The password itself, which everybody on the way can read where there is no TLS.
    Cleartext,
}

/// What a method has to know to challenge a client.
pub struct Challenge<'a> {
    /// The user name of the startup message.
    pub user: &'a str,
    /// The user's verifier; `None` when there is no such user, or the user has no password.
    pub verifier: Option<&'a Verifier>,
    /// The channel binding data (`tls-server-end-point`) of the listener's certificate; `None`
    /// without TLS, and for a certificate that has none.
    pub channel_binding: Option<&'a [u8]>,
    /// What the checks of all clients share.
    pub password_checker: &'a PasswordChecker,
    /// Decides when the client learns whether its password is right.
    pub attempt: &'a Attempt<'a>,
}

/// What the password checks of all clients share.
pub struct PasswordChecker {
    /// The salts of unknown users are made from this.
    mock_secret: Secret,
    mock_iterations: NonZeroU32,
    /// Bounds how many passwords are hashed at a time.
    hashing: Arc<Semaphore>,
}

impl PasswordChecker {
    /// `mock_secret` is what the salts of unknown users are made from. All replicas need the same
    /// one, since a salt that changes from one login to the next would tell that there is no such
    /// user. `mock_iterations` is the iteration count that most users have, for the same reason.
    pub fn new(mock_secret: Secret, mock_iterations: NonZeroU32) -> Self {
        // Who has proved nothing can have passwords hashed, so the sessions keep half of the
        // processors.
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            mock_secret,
            mock_iterations,
            hashing: Arc::new(Semaphore::new((processors / 2).max(1))),
        }
    }

    /// The verifier of a user who has no SCRAM verifier. It looks like one that PostgreSQL has
    /// made, is the same in each login, and matches no password.
    fn mock_verifier(&self, user: &str) -> ScramVerifier {
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.mock_secret.expose());
        ScramVerifier::matching_no_password(
            self.mock_iterations,
            hmac::sign(&key, user.as_bytes()).as_ref()[..SALT_LENGTH].to_vec(),
        )
    }
}

/// Whether the client has proved that it knows the user's password.
type Verdict = Result<(), RefusedPassword>;

/// Why a client is refused. Only the log may tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum RefusedPassword {
    #[error("wrong password")]
    Wrong,
    #[error("no such user, or one without a password")]
    UnknownUser,
    #[error("the user has an MD5 verifier, which is no use here")]
    Md5VerifierOnly,
    #[error("the user has a SCRAM verifier, which is no use here")]
    ScramVerifierOnly,
    #[error("too many logins of this user wait for their turn after repeated failures")]
    TooManyWait,
}

/// Challenges the client to prove that it knows the password, and checks its answer. The
/// `AuthenticationOk` that follows a right one is left to [`super::welcome`].
///
/// # Errors
/// 28P01 for every wrong answer, 08P01 and the like for answers that are not the protocol, and
/// [`LoginError::ClientGone`] when the client leaves instead, as psql does to ask its user for a
/// password.
pub async fn authenticate<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    method: ExchangeMethod,
    challenge: &Challenge<'_>,
) -> Result<(), LoginError> {
    let verdict = match method {
        ExchangeMethod::ScramSha256 => scram::authenticate(stream, challenge).await?,
        ExchangeMethod::Md5 => md5::authenticate(stream, challenge).await?,
        ExchangeMethod::Cleartext => cleartext::authenticate(stream, challenge).await?,
    };
    verdict.map_err(|cause| wrong_password(challenge.user).because(cause).into())
}

/// What every client is told whose password is not taken.
pub fn wrong_password(user: &str) -> Refusal {
    let message = format!(
        "password authentication failed for user \"{}\"",
        excerpt::name(user)
    );
    Refusal::new(ErrorKind::WrongPassword, message)
}

impl Challenge<'_> {
    /// Waits until the client may learn the verdict, and returns what it may learn.
    async fn in_turn(&self, verdict: Verdict) -> Verdict {
        match self.attempt.judged(verdict.is_ok()).await {
            Ok(()) => verdict,
            Err(TooManyWait) => Err(RefusedPassword::TooManyWait),
        }
    }

    /// The user's SCRAM verifier. A user who has none gets a made-up one, and is refused whatever
    /// the answer.
    fn scram_verifier(&self) -> (Cow<'_, ScramVerifier>, Verdict) {
        match self.verifier {
            Some(Verifier::Scram(verifier)) => (Cow::Borrowed(verifier), Ok(())),
            Some(Verifier::Md5(_)) => (
                Cow::Owned(self.password_checker.mock_verifier(self.user)),
                Err(RefusedPassword::Md5VerifierOnly),
            ),
            None => (
                Cow::Owned(self.password_checker.mock_verifier(self.user)),
                Err(RefusedPassword::UnknownUser),
            ),
        }
    }
}

async fn send<S: AsyncWrite + Unpin>(
    stream: &mut S,
    encode: impl FnOnce(&mut BytesMut),
) -> Result<(), LoginError> {
    let mut out = BytesMut::new();
    encode(&mut out);
    stream
        .write_all(&out)
        .await
        .map_err(|_| LoginError::ClientGone)?;
    stream.flush().await.map_err(|_| LoginError::ClientGone)
}

/// Reads the answer to a cleartext or MD5 request.
async fn read_password<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Secret, LoginError> {
    let body = read(stream, ExpectedResponse::Password).await?;
    let password = parse_password(body.expose()).map_err(Refusal::from)?;
    match check_password(password) {
        Ok(()) => Ok(Secret::new(password)),
        Err(UnusablePassword::Empty) => Err(Refusal::new(
            ErrorKind::WrongPassword,
            "empty password returned by client",
        )
        .into()),
        // A message that could be read and parsed has no such password.
        Err(error @ (UnusablePassword::ContainsNul | UnusablePassword::TooLong)) => {
            Err(Refusal::new(ErrorKind::ProtocolViolation, error.to_string()).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::turns::Turns;
    use crate::verifier::{DEFAULT_ITERATIONS, Md5Verifier};
    use crate::wire::backend::{Authentication, BackendMessage, parse, read_message};
    use crate::wire::frontend::{password_message, sasl_initial_response, sasl_response};
    use postgres_protocol::authentication::md5_hash;
    use postgres_protocol::authentication::sasl::{
        ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256,
    };
    use tokio::io::DuplexStream;

    fn scram() -> Verifier {
        Verifier::Scram(ScramVerifier::from_password(
            b"right",
            DEFAULT_ITERATIONS,
            vec![7; SALT_LENGTH],
        ))
    }

    fn md5() -> Verifier {
        Verifier::Md5(Md5Verifier::from_password("ana", b"right"))
    }

    fn password_checker() -> PasswordChecker {
        PasswordChecker::new(Secret::new("mock"), DEFAULT_ITERATIONS)
    }

    /// How the login of the client that `client` plays ends; `None` when it succeeds.
    async fn ending_of<F: Future<Output = ()>>(
        method: ExchangeMethod,
        verifier: Option<&Verifier>,
        channel_binding: Option<&[u8]>,
        client: impl FnOnce(DuplexStream) -> F,
    ) -> Option<LoginError> {
        let (mut ours, theirs) = tokio::io::duplex(64);
        let password_checker = password_checker();
        let turns = Turns::default();
        let challenge = Challenge {
            user: "ana",
            verifier,
            channel_binding,
            password_checker: &password_checker,
            attempt: &turns.attempt(None, "ana", false),
        };
        let server = async move { authenticate(&mut ours, method, &challenge).await.err() };
        tokio::join!(server, client(theirs)).0
    }

    fn refusal(ending: Option<LoginError>) -> Refusal {
        match ending {
            Some(LoginError::Refused(refusal)) => refusal,
            other => panic!("{other:?}"),
        }
    }

    fn assert_wrong(ending: Option<LoginError>, cause: &str) {
        let expected = Refusal::new(
            ErrorKind::WrongPassword,
            "password authentication failed for user \"ana\"",
        )
        .because(cause);
        assert_eq!(refusal(ending), expected);
    }

    /// The next authentication request, with its length; `None` when the server has closed.
    async fn next(stream: &mut DuplexStream) -> Option<(Authentication, usize)> {
        let raw = read_message(stream).await.ok()?;
        let length = raw.length();
        match parse(raw) {
            Ok(BackendMessage::Authentication(request)) => Some((request, length)),
            other => panic!("{other:?}"),
        }
    }

    /// A whole SCRAM client, which notes the lengths of what it reads. `Ok` when it found that the
    /// server knows the password.
    async fn scram_client(
        mut stream: DuplexStream,
        password: &str,
        bound: Option<&[u8]>,
        lengths: &mut Vec<usize>,
    ) -> Result<(), String> {
        let (Authentication::Sasl { mechanisms }, length) = next(&mut stream).await.unwrap() else {
            panic!("a SASL request")
        };
        lengths.push(length);
        let (mechanism, binding) = match bound {
            Some(data) => (
                SCRAM_SHA_256_PLUS,
                ChannelBinding::tls_server_end_point(data.to_vec()),
            ),
            None => (SCRAM_SHA_256, ChannelBinding::unsupported()),
        };
        assert!(mechanisms.iter().any(|offered| offered == mechanism));
        let mut exchange = ScramSha256::new(password.as_bytes(), binding);
        stream
            .write_all(sasl_initial_response(mechanism, exchange.message()).expose())
            .await
            .unwrap();
        while let Some((request, length)) = next(&mut stream).await {
            lengths.push(length);
            match request {
                Authentication::SaslContinue(data) => {
                    exchange.update(&data).unwrap();
                    stream
                        .write_all(sasl_response(exchange.message()).expose())
                        .await
                        .unwrap();
                }
                Authentication::SaslFinal(data) => {
                    return exchange.finish(&data).map_err(|error| error.to_string());
                }
                other => panic!("{other:?}"),
            }
        }
        Err("closed".to_string())
    }

    /// How a SCRAM login ends on both sides, and the lengths of our messages.
    async fn scram_login(
        verifier: Option<&Verifier>,
        password: &str,
        ours: Option<&[u8]>,
        theirs: Option<&[u8]>,
    ) -> (Option<LoginError>, bool, Vec<usize>) {
        let (mut proved, mut lengths) = (false, Vec::new());
        let client = async |stream| {
            proved = scram_client(stream, password, theirs, &mut lengths)
                .await
                .is_ok();
        };
        let ending = ending_of(ExchangeMethod::ScramSha256, verifier, ours, client).await;
        (ending, proved, lengths)
    }

    #[tokio::test]
    async fn scram_lets_the_right_password_in_and_proves_that_we_know_it() {
        let (ending, verified, _) = scram_login(Some(&scram()), "right", None, None).await;
        assert!(ending.is_none() && verified, "{ending:?}");
    }

    #[tokio::test]
    async fn scram_plus_binds_to_our_certificate() {
        let (ending, verified, _) =
            scram_login(Some(&scram()), "right", Some(b"hash"), Some(b"hash")).await;
        assert!(ending.is_none() && verified, "{ending:?}");
        let (ending, verified, _) =
            scram_login(Some(&scram()), "right", Some(b"hash"), Some(b"another")).await;
        let refusal = refusal(ending);
        assert_eq!(
            (refusal.kind, &*refusal.message),
            (
                ErrorKind::InvalidAuthorization,
                "SCRAM channel binding check failed"
            )
        );
        assert!(!verified);
        // A client that does not know -PLUS says 'n', and may.
        let (ending, verified, _) = scram_login(Some(&scram()), "right", Some(b"hash"), None).await;
        assert!(ending.is_none() && verified, "{ending:?}");
    }

    #[tokio::test]
    async fn scram_refuses_wrong_passwords_and_unknown_users_alike() {
        let (ending, _, known) = scram_login(Some(&scram()), "wrong", None, None).await;
        assert_wrong(ending, "wrong password");
        for password in ["right", "wrong"] {
            let (ending, _, unknown) = scram_login(None, password, None, None).await;
            assert_wrong(ending, "no such user, or one without a password");
            assert_eq!(unknown, known);
            let (ending, _, unusable) = scram_login(Some(&md5()), password, None, None).await;
            assert_wrong(ending, "the user has an MD5 verifier, which is no use here");
            assert_eq!(unusable, known);
        }
    }

    #[test]
    fn a_made_up_salt_is_the_users_own_and_stays() {
        assert_eq!(
            password_checker().mock_verifier("ana"),
            password_checker().mock_verifier("ana")
        );
        assert_ne!(
            password_checker().mock_verifier("ana").salt,
            password_checker().mock_verifier("bob").salt
        );
        assert_ne!(
            password_checker().mock_verifier("ana").salt,
            PasswordChecker::new(Secret::new("another"), DEFAULT_ITERATIONS)
                .mock_verifier("ana")
                .salt
        );
        assert_eq!(
            (
                password_checker().mock_verifier("ana").salt.len(),
                password_checker().mock_verifier("ana").iterations.get()
            ),
            (16, 4096)
        );
    }

    #[tokio::test]
    async fn scram_takes_a_first_message_that_comes_late() {
        let client = async |mut stream: DuplexStream| {
            next(&mut stream).await;
            stream
                .write_all(b"p\0\0\0\x16SCRAM-SHA-256\0\xff\xff\xff\xff")
                .await
                .unwrap();
            assert_eq!(
                next(&mut stream).await.unwrap().0,
                Authentication::SaslContinue("".into())
            );
            let mut exchange = ScramSha256::new(b"right", ChannelBinding::unsupported());
            stream
                .write_all(sasl_response(exchange.message()).expose())
                .await
                .unwrap();
            let (Authentication::SaslContinue(data), _) = next(&mut stream).await.unwrap() else {
                panic!("a server-first-message")
            };
            exchange.update(&data).unwrap();
            stream
                .write_all(sasl_response(exchange.message()).expose())
                .await
                .unwrap();
            assert!(matches!(
                next(&mut stream).await,
                Some((Authentication::SaslFinal(_), _))
            ));
        };
        assert!(
            ending_of(ExchangeMethod::ScramSha256, Some(&scram()), None, client)
                .await
                .is_none()
        );
    }

    #[tokio::test]
    async fn only_offered_mechanisms_may_be_chosen() {
        for mechanism in ["SCRAM-SHA-256-PLUS", "SCRAM-SHA-1", ""] {
            let client = async |mut stream: DuplexStream| {
                let (request, _) = next(&mut stream).await.unwrap();
                assert_eq!(
                    request,
                    Authentication::Sasl {
                        mechanisms: vec!["SCRAM-SHA-256".to_string()]
                    }
                );
                stream
                    .write_all(sasl_initial_response(mechanism, b"n,,n=,r=x").expose())
                    .await
                    .unwrap();
            };
            let refusal =
                refusal(ending_of(ExchangeMethod::ScramSha256, Some(&scram()), None, client).await);
            assert_eq!(
                refusal.message, "client selected an invalid SASL authentication mechanism",
                "{mechanism}"
            );
        }
    }

    #[tokio::test]
    async fn a_client_that_believes_us_without_plus_is_refused_where_we_offered_it() {
        let say = async |binding: Option<&[u8]>| {
            let client = async |mut stream: DuplexStream| {
                next(&mut stream).await;
                stream
                    .write_all(sasl_initial_response(SCRAM_SHA_256, b"y,,n=,r=x").expose())
                    .await
                    .unwrap();
            };
            ending_of(ExchangeMethod::ScramSha256, Some(&scram()), binding, client).await
        };
        let refusal = refusal(say(Some(b"hash")).await);
        assert_eq!(
            (refusal.kind, &*refusal.message),
            (
                ErrorKind::InvalidAuthorization,
                "SCRAM channel binding negotiation error"
            )
        );
        assert!(matches!(say(None).await, Some(LoginError::ClientGone)));
    }

    /// What the client sends in answer to the one request of the other two methods.
    async fn password_login(
        method: ExchangeMethod,
        verifier: Option<&Verifier>,
        answer: impl Fn(Authentication) -> Secret,
    ) -> Option<LoginError> {
        let client = async |mut stream: DuplexStream| {
            let (request, _) = next(&mut stream).await.unwrap();
            stream.write_all(answer(request).expose()).await.unwrap();
        };
        ending_of(method, verifier, None, client).await
    }

    fn salted(password: &str) -> impl Fn(Authentication) -> Secret {
        move |request| {
            let Authentication::Md5Password { salt } = request else {
                panic!("{request:?}")
            };
            password_message(md5_hash(b"ana", password.as_bytes(), salt).as_bytes())
        }
    }

    #[tokio::test]
    async fn md5_checks_against_an_md5_verifier_only() {
        assert!(
            password_login(ExchangeMethod::Md5, Some(&md5()), salted("right"))
                .await
                .is_none()
        );
        assert_wrong(
            password_login(ExchangeMethod::Md5, Some(&md5()), salted("wrong")).await,
            "wrong password",
        );
        assert_wrong(
            password_login(ExchangeMethod::Md5, None, salted("right")).await,
            "no such user, or one without a password",
        );
        let cause = "the user has a SCRAM verifier, which is no use here";
        assert_wrong(
            password_login(ExchangeMethod::Md5, Some(&scram()), salted("right")).await,
            cause,
        );
    }

    #[tokio::test]
    async fn cleartext_checks_against_either_verifier() {
        for verifier in [scram(), md5()] {
            let say = async |password: &str| {
                password_login(ExchangeMethod::Cleartext, Some(&verifier), |_| {
                    password_message(password.as_bytes())
                })
                .await
            };
            assert!(say("right").await.is_none());
            assert_wrong(say("wrong").await, "wrong password");
        }
        let unknown = password_login(ExchangeMethod::Cleartext, None, |_| {
            password_message(b"right")
        })
        .await;
        assert_wrong(unknown, "no such user, or one without a password");
    }

    #[tokio::test]
    async fn an_empty_password_is_refused() {
        for method in [ExchangeMethod::Md5, ExchangeMethod::Cleartext] {
            let refusal =
                refusal(password_login(method, Some(&md5()), |_| password_message(b"")).await);
            assert_eq!(
                (refusal.kind, &*refusal.message),
                (
                    ErrorKind::WrongPassword,
                    "empty password returned by client"
                )
            );
        }
    }

    #[tokio::test]
    async fn a_client_that_leaves_at_the_prompt_is_gone() {
        for method in [
            ExchangeMethod::ScramSha256,
            ExchangeMethod::Md5,
            ExchangeMethod::Cleartext,
        ] {
            for torn in [&b""[..], b"p", b"p\0\0\0\x08", b"p\0\0\0\x08abc"] {
                let client = async |mut stream: DuplexStream| {
                    next(&mut stream).await;
                    stream.write_all(torn).await.unwrap();
                };
                let ending = ending_of(method, Some(&scram()), None, client).await;
                assert!(
                    matches!(ending, Some(LoginError::ClientGone)),
                    "{method:?} {torn:?}: {ending:?}"
                );
            }
        }
    }

    #[tokio::test]
    async fn another_message_than_an_answer_is_a_violation() {
        for (method, name) in [
            (ExchangeMethod::ScramSha256, "SASL"),
            (ExchangeMethod::Md5, "password"),
            (ExchangeMethod::Cleartext, "password"),
        ] {
            let client = async |mut stream: DuplexStream| {
                next(&mut stream).await;
                stream.write_all(b"Q\0\0\0\x0dSELECT 1\0").await.unwrap();
            };
            let refusal = refusal(ending_of(method, Some(&scram()), None, client).await);
            assert_eq!(
                refusal.message,
                format!("expected {name} response, got message type 81")
            );
        }
    }

    #[tokio::test]
    async fn hashing_waits_for_a_processor() {
        let (mut ours, mut theirs) = tokio::io::duplex(64);
        let (password_checker, verifier) = (password_checker(), scram());
        let all = password_checker
            .hashing
            .clone()
            .acquire_many_owned(
                password_checker
                    .hashing
                    .available_permits()
                    .try_into()
                    .unwrap(),
            )
            .await
            .unwrap();
        let turns = Turns::default();
        let challenge = Challenge {
            user: "ana",
            verifier: Some(&verifier),
            channel_binding: None,
            password_checker: &password_checker,
            attempt: &turns.attempt(None, "ana", false),
        };
        theirs
            .write_all(password_message(b"right").expose())
            .await
            .unwrap();
        let mut login = Box::pin(authenticate(
            &mut ours,
            ExchangeMethod::Cleartext,
            &challenge,
        ));
        tokio::select! {
            biased;
            _ = &mut login => panic!("it does not wait"),
            () = tokio::task::yield_now() => {}
        }
        drop(all);
        assert!(login.await.is_ok());
    }
}
