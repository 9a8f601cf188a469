//! Phase 3: who is the client? The first rule of its listener that matches decides how that is
//! proved.

use tokio::time::{Instant, timeout_at};

use super::record::Record;
use super::{Context, Permits};
use crate::address::ClientAddr;
use crate::client::authenticate::{Challenge, ExchangeMethod, authenticate, wrong_password};
use crate::client::certificate_user;
use crate::client::identity::{AuthenticationMethod, ClientIdentity};
use crate::client::stream::{ClientStream, Security};
use crate::client::turns::Attempt;
use crate::config::{Auth, UserSettings};
use crate::error::{ErrorKind, LoginError, Refusal};
use crate::excerpt;
use crate::limits::UnauthenticatedClient;
use crate::wire::startup::StartupMessage;

/// The id of users that have none, where the kernel does not say which it is.
const DEFAULT_OVERFLOW_UID: u32 = 65_534;

/// What a client asks for, and how its connection is protected.
pub(super) struct Startup {
    pub message: StartupMessage,
    pub security: Security,
}

/// A login whose client has proved who it is.
pub(super) struct Proven {
    pub startup: Startup,
    pub identity: ClientIdentity,
    pub permits: Permits,
}

impl Startup {
    /// The database name in the startup message, if it has one.
    ///
    /// # Errors
    /// SQLSTATE 28000 if it is not UTF-8: names decide where a login goes, and AWS accepts text
    /// only.
    pub fn database(&self) -> Result<Option<&str>, Refusal> {
        self.utf8_parameter("database name", "database")
    }

    fn user(&self) -> Result<&str, Refusal> {
        // A startup message without a user was already refused when it was read.
        Ok(self
            .utf8_parameter("user name", "user")?
            .unwrap_or_default())
    }

    fn utf8_parameter(&self, what: &str, parameter: &str) -> Result<Option<&str>, Refusal> {
        let value = self.message.parameter(parameter);
        value
            .map(|value| std::str::from_utf8(value))
            .transpose()
            .map_err(|_| {
                Refusal::new(
                    ErrorKind::InvalidAuthorization,
                    format!("{what} is not valid UTF-8"),
                )
            })
    }
}

/// Has the client prove that it is the user that it names, within the startup timeout.
///
/// # Errors
/// SQLSTATE 53300 at a limit, 57014 if the timeout passes, 57P03 when the proxy stops, 28P01 for a
/// wrong password, and 28000 for everything else; [`LoginError::CrowdedOut`] when others need the
/// place. After repeated failures from one address, the error is returned only when the address's
/// penalty is over.
pub(super) async fn prove(
    context: &Context<'_>,
    stream: &mut ClientStream,
    startup: Startup,
    unauthenticated: &UnauthenticatedClient,
    record: &mut Record,
) -> Result<Proven, LoginError> {
    record.authenticating(startup.user()?);
    let proof = Proof {
        context,
        client: record.client(),
        startup: &startup,
        user: startup.user()?,
        attempt: context.runtime.turns.attempt(
            record.client().ip(),
            startup.user()?,
            startup.security.tls,
        ),
    };
    let identity = tokio::select! {
        proved = proof.identify_in_turn(stream, context.deadline(record)) => proved?,
        () = unauthenticated.must_go() => return Err(LoginError::CrowdedOut),
        stopping = context.stopping() => return Err(stopping),
    };
    record.proven(&identity);
    // Who has proved nothing takes no place of a session, and learns nothing of the limits.
    let permits = Permits {
        _proxy: context.snapshot.limit.acquire()?,
        _listener: context.listener.limit.acquire()?,
        user: None,
    };
    unauthenticated.free();
    Ok(Proven {
        startup,
        identity,
        permits,
    })
}

/// A client whose identity is being established.
struct Proof<'a> {
    context: &'a Context<'a>,
    client: ClientAddr,
    startup: &'a Startup,
    user: &'a str,
    attempt: Attempt<'a>,
}

impl Proof<'_> {
    /// Identifies the client by the deadline. After repeated failures, it learns the outcome when
    /// its turn has come.
    async fn identify_in_turn(
        &self,
        stream: &mut ClientStream,
        deadline: Instant,
    ) -> Result<ClientIdentity, LoginError> {
        let result = timeout_at(deadline, self.identify(stream)).await;
        let result = result.unwrap_or_else(|_| {
            // The password has come in time, and was told nothing of.
            if self.attempt.is_judged() {
                return Err(wrong_password(self.user)
                    .because("its turn did not come before startup_timeout")
                    .into());
            }
            let text = "canceling authentication due to timeout";
            Err(Refusal::new(ErrorKind::StartupTimeout, text).into())
        });
        if matches!(result, Err(LoginError::Refused(_))) && !self.attempt.is_judged() {
            // Nothing can be guessed in this way, so it is refused even if its turn does not come.
            let _ = timeout_at(deadline, self.attempt.judged(false)).await;
        }
        result
    }

    async fn identify(&self, stream: &mut ClientStream) -> Result<ClientIdentity, LoginError> {
        let Self { user, startup, .. } = self;
        let settings = &self.context.listener.settings;
        let address = self.client.ip();
        let fits = |names: &Option<Vec<String>>| {
            names
                .as_ref()
                .is_none_or(|names| names.iter().any(|name| name == user))
        };
        let rule = settings
            .rules
            .iter()
            .position(|rule| rule.from.includes(address) && fits(&rule.users));
        let Some(rule) = rule else {
            return Err(refuse(format!(
                "no rule of the proxy lets user \"{user}\" in from this address"
            ))
            .into());
        };
        let method = match settings.rules[rule].auth {
            Auth::Trust if !self.is_local() => {
                return Err(
                    refuse("the proxy trusts clients on its own machine only".to_string()).into(),
                );
            }
            Auth::Trust => AuthenticationMethod::Trust,
            Auth::Cert => self.by_certificate()?,
            Auth::Peer => self.by_operating_system().await?,
            Auth::Reject => {
                return Err(refuse(format!(
                    "the proxy rejects connections as user \"{user}\" from this address"
                ))
                .into());
            }
            Auth::Password if !startup.security.tls && !self.is_local() => {
                return Err(refuse("a password is taken over TLS only".to_string())
                    .hint("sslmode=require")
                    .into());
            }
            Auth::ScramSha256 => {
                self.by_password(stream, ExchangeMethod::ScramSha256)
                    .await?
            }
            Auth::Md5 => self.by_password(stream, ExchangeMethod::Md5).await?,
            Auth::Password => self.by_password(stream, ExchangeMethod::Cleartext).await?,
        };
        Ok(ClientIdentity {
            user: (*user).to_string(),
            method,
            rule,
            certificate: startup.security.certificate.clone(),
        })
    }

    /// Whether the client is on this machine, by its own address and by the listener's. A PROXY
    /// header may say that it is not.
    fn is_local(&self) -> bool {
        let client = self.client.ip();
        self.context.listener.address().is_local()
            && client.is_none_or(|address| address.to_canonical().is_loopback())
    }

    async fn by_password(
        &self,
        stream: &mut ClientStream,
        method: ExchangeMethod,
    ) -> Result<AuthenticationMethod, LoginError> {
        let snapshot = self.context.snapshot;
        let settings: Option<&UserSettings> = snapshot.user(self.user).map(|user| &*user.settings);
        let challenge = Challenge {
            user: self.user,
            verifier: settings.and_then(|user| user.verifier.as_ref()),
            channel_binding: self.startup.security.channel_binding.as_deref(),
            password_checker: &snapshot.password_checker,
            attempt: &self.attempt,
        };
        authenticate(stream, method, &challenge).await?;
        Ok(method.into())
    }

    fn by_certificate(&self) -> Result<AuthenticationMethod, Refusal> {
        let user = self.user;
        let map = &self.context.listener.settings.certificate_map;
        match &self.startup.security.certificate {
            Some(names) if certificate_user::may_be(names, user, map) => {
                Ok(AuthenticationMethod::Cert)
            }
            Some(names) => {
                let has: Vec<_> = names.iter().map(excerpt::name).collect();
                let has = has.join(", ");
                Err(refuse(format!(
                    "certificate authentication failed for user \"{}\"",
                    excerpt::name(user)
                ))
                .because(format!("the certificate names {has}")))
            }
            None => Err(refuse(
                "connection requires a valid client certificate".to_string(),
            )),
        }
    }

    async fn by_operating_system(&self) -> Result<AuthenticationMethod, Refusal> {
        let user = self.user;
        let name = match self.client {
            // The system may ask a directory server, for which no session should wait.
            ClientAddr::Local(uid) => tokio::task::spawn_blocking(move || local_user_name(uid))
                .await
                .unwrap_or_default(),
            ClientAddr::Network(_) => None,
        };
        if name.as_deref() == Some(user) {
            return Ok(AuthenticationMethod::Peer);
        }
        let cause = format!(
            "the operating system says {}",
            name.as_deref().unwrap_or("nothing")
        );
        Err(refuse(format!(
            "Peer authentication failed for user \"{}\"",
            excerpt::name(user)
        ))
        .because(cause))
    }
}

/// The name of this user of the operating system, unless the id may be anybody's: the kernel shows
/// every user of a namespace that has no id here as the same one.
fn local_user_name(uid: u32) -> Option<String> {
    let overflow = std::fs::read_to_string("/proc/sys/kernel/overflowuid");
    let overflow = overflow.ok().and_then(|text| text.trim().parse().ok());
    if uid == overflow.unwrap_or(DEFAULT_OVERFLOW_UID) {
        return None;
    }
    let found = uzers::get_user_by_uid(uid)?;
    found.name().to_str().map(str::to_string)
}

fn refuse(text: String) -> Refusal {
    Refusal::new(ErrorKind::InvalidAuthorization, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_that_stands_for_all_without_an_id_has_no_name() {
        assert_eq!(local_user_name(0).as_deref(), Some("root"));
        assert_eq!(local_user_name(DEFAULT_OVERFLOW_UID), None);
    }
}
