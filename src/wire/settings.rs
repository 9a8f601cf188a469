//! Which settings has a server reported in its `ParameterStatus` messages, and do they still have
//! the values of the login?

use std::collections::BTreeMap;

use bytes::Bytes;

use super::backend::RawMessage;
use super::protocol::PQMSG_PARAMETER_STATUS;
use super::{Violation, take_cstr};

/// The reported settings of one session, by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The settings that the login reported, with their values then.
    login: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The settings that have another value now, with that value.
    changed: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Settings {
    /// The settings that these messages of a login report. Messages other than `ParameterStatus`
    /// are ignored.
    pub fn at_login(messages: &[RawMessage]) -> Self {
        let login = messages
            .iter()
            .filter_map(RawMessage::setting)
            .map(|(name, value)| (name.to_vec(), value.to_vec()))
            .collect();
        Self {
            login,
            changed: BTreeMap::new(),
        }
    }

    /// Takes in the body of a `ParameterStatus`.
    ///
    /// # Errors
    /// A [`Violation`] when it is malformed, or when the login did not report that setting: nobody
    /// could say then whether its value has been restored.
    pub fn report(&mut self, body: Bytes) -> Result<(), Violation> {
        let raw = RawMessage {
            tag: PQMSG_PARAMETER_STATUS,
            body,
        };
        let mut rest = &raw.body[..];
        let (Some(name), Some(value), []) = (take_cstr(&mut rest), take_cstr(&mut rest), rest)
        else {
            return Err(Violation::new("invalid ParameterStatus"));
        };
        match self.login.get(name) {
            None => {
                return Err(Violation::new(
                    "ParameterStatus of a setting that was not reported at the login",
                ));
            }
            Some(login) if login == value => drop(self.changed.remove(name)),
            Some(_) => drop(self.changed.insert(name.to_vec(), value.to_vec())),
        }
        Ok(())
    }

    /// The value that the login reported for this setting.
    pub fn at_login_of(&self, name: &[u8]) -> Option<&[u8]> {
        self.login.get(name).map(Vec::as_slice)
    }

    /// The names of the settings that do not have the value of the login.
    pub fn changed(&self) -> impl Iterator<Item = &[u8]> {
        self.changed.keys().map(Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at_login() -> Settings {
        let raw = |tag, body: &'static [u8]| RawMessage {
            tag,
            body: Bytes::from_static(body),
        };
        Settings::at_login(&[
            raw(b'S', b"TimeZone\0UTC\0"),
            raw(b'N', b"SNOTICE\0\0"),
            raw(b'S', b"DateStyle\0ISO, MDY\0"),
        ])
    }

    fn changed(settings: &Settings) -> Vec<&[u8]> {
        settings.changed().collect()
    }

    #[test]
    fn a_setting_is_restored_when_it_has_the_value_of_the_login_again() {
        let mut settings = at_login();
        settings.report("TimeZone\0Europe/Vienna\0".into()).unwrap();
        settings.report("TimeZone\0Asia/Tokyo\0".into()).unwrap();
        assert_eq!(changed(&settings), [b"TimeZone"]);
        settings.report("DateStyle\0ISO, MDY\0".into()).unwrap();
        settings.report("TimeZone\0UTC\0".into()).unwrap();
        assert_eq!(settings, at_login());
    }

    #[test]
    fn what_cannot_be_compared_is_refused() {
        for (body, text) in [
            (
                "role\0x\0",
                "ParameterStatus of a setting that was not reported at the login",
            ),
            ("TimeZone\0UTC", "invalid ParameterStatus"),
            ("TimeZone\0UTC\0x", "invalid ParameterStatus"),
            ("", "invalid ParameterStatus"),
        ] {
            assert_eq!(
                at_login().report(body.into()).unwrap_err().to_string(),
                text,
                "{body}"
            );
        }
    }
}
