//! Phase 3: who the client is, by the first rule of its listener that fits it.

use super::Login;
use crate::client::authenticate::{Challenge, ExchangeMethod, authenticate};
use crate::client::certificate_user;
use crate::client::identity::{AuthenticationMethod, ClientIdentity};
use crate::client::stream::{ClientAddr, ClientStream, Security};
use crate::config::{Auth, User};
use crate::error::{ErrorKind, LoginError, Refusal};

impl Login<'_> {
    /// Has the client prove that it is `user`.
    ///
    /// # Errors
    /// 28P01 for a wrong password, 28000 for everything else; after repeated failures from one
    /// address only when its penalty is over.
    pub(super) async fn identify(
        &self,
        stream: &mut ClientStream,
        security: &Security,
        user: &str,
        settings: Option<&User>,
    ) -> Result<ClientIdentity, LoginError> {
        let result = self.prove(stream, security, user, settings).await;
        if let (Err(LoginError::Refused(_)), Some(address)) = (&result, self.facts.client.ip()) {
            tokio::time::sleep(
                self.shared
                    .penalties
                    .failed(address, std::time::Instant::now()),
            )
            .await;
        }
        if let Ok(identity) = &result {
            let certificate = identity.certificate.as_ref();
            tracing::debug!(
                session = self.facts.id,
                user = identity.user,
                method = ?identity.method,
                rule = identity.rule,
                certificate = certificate.and_then(|names| names.iter().next()),
                "client has proved who it is"
            );
        }
        result
    }

    async fn prove(
        &self,
        stream: &mut ClientStream,
        security: &Security,
        user: &str,
        settings: Option<&User>,
    ) -> Result<ClientIdentity, LoginError> {
        let address = self.facts.client.ip();
        let fits = |names: &Option<Vec<String>>| {
            names
                .as_ref()
                .is_none_or(|names| names.iter().any(|name| name == user))
        };
        let rule = self
            .listener
            .rules
            .iter()
            .position(|rule| rule.from.includes(address) && fits(&rule.users));
        let Some(rule) = rule else {
            return Err(refuse(format!(
                "no rule of the proxy lets user \"{user}\" in from this address"
            ))
            .into());
        };
        let identity = |method| ClientIdentity {
            user: user.to_string(),
            method,
            rule,
            certificate: security.certificate.clone(),
        };
        let method = match self.listener.rules[rule].auth {
            Auth::Trust => return Ok(identity(AuthenticationMethod::Trust)),
            Auth::Cert => {
                self.prove_by_certificate(security, user)?;
                return Ok(identity(AuthenticationMethod::Cert));
            }
            Auth::Peer => {
                self.prove_by_peer(user)?;
                return Ok(identity(AuthenticationMethod::Peer));
            }
            Auth::Reject => {
                return Err(refuse(format!(
                    "the proxy rejects connections as user \"{user}\" from this address"
                ))
                .into());
            }
            Auth::Password if !security.tls && !self.listener.address.is_local() => {
                return Err(refuse("a password is taken over TLS only".to_string())
                    .hint("sslmode=require")
                    .into());
            }
            Auth::ScramSha256 => ExchangeMethod::ScramSha256,
            Auth::Md5 => ExchangeMethod::Md5,
            Auth::Password => ExchangeMethod::Cleartext,
        };
        let verifier = settings.and_then(|user| user.verifier.as_ref());
        let challenge = Challenge {
            user,
            verifier,
            channel_binding: security.channel_binding.as_deref(),
            password_checker: &self.shared.password_checker,
        };
        authenticate(stream, method, &challenge).await?;
        Ok(identity(method.into()))
    }

    fn prove_by_certificate(&self, security: &Security, user: &str) -> Result<(), LoginError> {
        match &security.certificate {
            Some(names)
                if certificate_user::may_be(names, user, &self.listener.certificate_map) =>
            {
                Ok(())
            }
            Some(names) => {
                let has = names.iter().collect::<Vec<_>>().join(", ");
                Err(refuse(format!(
                    "certificate authentication failed for user \"{user}\""
                ))
                .because(format!("the certificate names {has}"))
                .into())
            }
            None => {
                Err(refuse("connection requires a valid client certificate".to_string()).into())
            }
        }
    }

    fn prove_by_peer(&self, user: &str) -> Result<(), LoginError> {
        let name = match self.facts.client {
            ClientAddr::Local(uid) => uzers::get_user_by_uid(uid)
                .and_then(|found| found.name().to_str().map(str::to_string)),
            ClientAddr::Network(_) => None,
        };
        if name.as_deref() == Some(user) {
            return Ok(());
        }
        let cause = format!(
            "the operating system says {}",
            name.as_deref().unwrap_or("nothing")
        );
        Err(
            refuse(format!("Peer authentication failed for user \"{user}\""))
                .because(cause)
                .into(),
        )
    }
}

fn refuse(text: String) -> Refusal {
    Refusal::new(ErrorKind::InvalidAuthorization, text)
}
