//! Which roles does a profile of the AWS files name, and with whose credentials are they assumed?
//!
//! The SDK assumes such roles too, but only at the STS that the environment or the files name: its
//! provider for profiles takes no endpoint. So where a target names an STS, the roles are read here
//! and assumed as the target's own is. Where the credentials of the first one come from remains for
//! the SDK to find out, and so does what is wrong with a profile that it could not use either.

#![allow(
    deprecated,
    reason = "the types of the files have no other names in this crate"
)]

use aws_config::Region;
use aws_config::environment::EnvironmentVariableCredentialsProvider;
use aws_config::profile::profile_file::{ProfileFileKind, ProfileFiles};
use aws_config::profile::{self, Profile, ProfileFileCredentialsProvider, ProfileSet};
use aws_config::provider_config::ProviderConfig;
use aws_credential_types::provider::ProvideCredentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_types::os_shim_internal::{Env, Fs};

use crate::config::Role;

/// What a profile gives credentials with, besides its role: first its keys.
const SOURCES: [&str; 12] = [
    "aws_access_key_id",
    "aws_secret_access_key",
    "aws_session_token",
    "aws_account_id",
    "credential_source",
    "credential_process",
    "login_session",
    "sso_session",
    "sso_account_id",
    "sso_role_name",
    "sso_region",
    "sso_start_url",
];
const KEYS: usize = 4;
/// The name that the SDK knows a profile by whose role has been taken out.
const WITHOUT_ROLE: &str = "pg-iam-proxy:without-role";

/// The roles of a profile.
pub struct ProfileRoles {
    /// In the order in which they are assumed, each with the credentials of the one before.
    pub roles: Vec<Role>,
    /// Has the credentials that the first of them is assumed with.
    pub source: ProfileFileCredentialsProvider,
}

impl ProfileRoles {
    /// Reads the files for this profile, or for the one that the default chain would use. `None` if
    /// the credentials do not come from a profile with a role.
    pub async fn read(profile: Option<&str>, region: Option<&Region>) -> Option<Self> {
        if profile.is_none() && environment_has_keys().await {
            return None;
        }
        let name = profile.map(|name| name.to_string().into());
        let files = ProfileFiles::default();
        let profiles = profile::load(&Fs::real(), &Env::real(), &files, name).await;
        let (roles, source) = follow(&profiles.ok()?)?;
        let context = ProviderConfig::without_region().with_region(region.cloned());
        let builder = ProfileFileCredentialsProvider::builder().configure(&context);
        let builder = match source {
            Source::Profile(name) => builder.profile_name(name),
            Source::WithoutRole(text) => {
                let files = ProfileFiles::builder()
                    .include_default_config_file(true)
                    .include_default_credentials_file(true)
                    .with_contents(ProfileFileKind::Config, text);
                builder
                    .profile_files(files.build())
                    .profile_name(WITHOUT_ROLE)
            }
        };
        Some(Self {
            roles,
            source: builder.build(),
        })
    }
}

/// In the default chain, keys in the environment take precedence over profiles.
async fn environment_has_keys() -> bool {
    let keys = EnvironmentVariableCredentialsProvider::new();
    !matches!(
        keys.provide_credentials().await,
        Err(CredentialsError::CredentialsNotLoaded(_))
    )
}

#[derive(Debug, PartialEq)]
enum Source {
    /// The profile of this name.
    Profile(String),
    /// What gives credentials in a profile that also has a role, written as a profile.
    WithoutRole(String),
}

/// Follows `source_profile` by the rules of the SDK. Returns the roles in the order in which they
/// are assumed.
fn follow(profiles: &ProfileSet) -> Option<(Vec<Role>, Source)> {
    let mut profile = profiles.get_profile(profiles.selected_profile())?;
    let mut visited = Vec::new();
    let mut roles = Vec::new();
    let source = loop {
        if visited.contains(&profile.name()) {
            return None;
        }
        visited.push(profile.name());
        // Only in the first profile does the role take precedence over keys.
        let has_keys = SOURCES[..2].iter().all(|key| profile.get(key).is_some());
        if has_keys && !roles.is_empty() {
            break without_role(profile, &SOURCES[..KEYS]);
        }
        let Some(role) = role(profile) else {
            break Source::Profile(profile.name().to_string());
        };
        roles.push(role);
        match (
            profile.get("source_profile"),
            profile.get("credential_source"),
        ) {
            (Some(next), None) if next != profile.name() => profile = profiles.get_profile(next)?,
            (Some(_), None) | (None, Some(_)) => break without_role(profile, &SOURCES),
            _ => return None,
        }
    };
    roles.reverse();
    (!roles.is_empty()).then_some((roles, source))
}

/// The role that is assumed with the credentials of another profile or source; a web identity has
/// its role for itself.
fn role(profile: &Profile) -> Option<Role> {
    let text = |key| profile.get(key).map(str::to_string);
    if profile.get("web_identity_token_file").is_some() {
        return None;
    }
    Some(Role {
        arn: text("role_arn")?,
        external_id: text("external_id"),
        session_name: text("role_session_name"),
        person: None,
    })
}

fn without_role(profile: &Profile, keys: &[&str]) -> Source {
    let mut text = format!("[profile {WITHOUT_ROLE}]\n");
    for key in keys {
        if let Some(value) = profile.get(key) {
            // A line that begins with a blank continues the one before.
            text += &format!("{key} = {}\n", value.replace('\n', "\n "));
        }
    }
    Source::WithoutRole(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn followed(name: &'static str, config: &str) -> Option<(Vec<String>, Source)> {
        let files = ProfileFiles::builder().with_contents(ProfileFileKind::Config, config);
        let (fs, env) = (Fs::from_slice(&[]), Env::from_slice(&[]));
        let profiles = profile::load(&fs, &env, &files.build(), Some(name.into()))
            .await
            .unwrap();
        let (roles, source) = follow(&profiles)?;
        Some((roles.into_iter().map(|role| role.arn).collect(), source))
    }

    fn without_role(lines: &str) -> Source {
        Source::WithoutRole(format!("[profile {WITHOUT_ROLE}]\n{lines}"))
    }

    #[tokio::test]
    async fn roles_are_assumed_from_the_source_on() {
        let config = "[profile a]\nrole_arn = A\nsource_profile = b\n\
            [profile b]\nrole_arn = B\nsource_profile = c\n\
            [profile c]\ncredential_process = cat c\n";
        let roles = vec!["B".to_string(), "A".to_string()];
        let source = Source::Profile("c".to_string());
        assert_eq!(followed("a", config).await, Some((roles, source)));
        assert_eq!(followed("c", config).await, None);
    }

    #[tokio::test]
    async fn keys_of_a_source_profile_take_precedence_over_its_role() {
        let config = "[profile a]\nrole_arn = A\nsource_profile = b\n\
            [profile b]\nrole_arn = B\nsource_profile = a\ncredential_process = cat b\n\
            aws_access_key_id = AKIA\naws_secret_access_key = s3cret\n";
        let source = without_role("aws_access_key_id = AKIA\naws_secret_access_key = s3cret\n");
        let expected = Some((vec!["A".to_string()], source));
        assert_eq!(followed("a", config).await, expected);
    }

    #[tokio::test]
    async fn a_profile_may_be_its_own_source() {
        for (lines, source) in [
            ("source_profile = a\nsso_session = s\n", "sso_session = s\n"),
            (
                "credential_source = Environment\n",
                "credential_source = Environment\n",
            ),
        ] {
            let config = format!("[profile a]\nrole_arn = A\n{lines}");
            let expected = Some((vec!["A".to_string()], without_role(source)));
            assert_eq!(followed("a", &config).await, expected);
        }
    }

    #[tokio::test]
    async fn profiles_that_lead_nowhere_are_left_to_the_sdk() {
        for config in [
            "[profile a]\nrole_arn = A\n",
            "[profile a]\nrole_arn = A\nsource_profile = missing\n",
            "[profile a]\nrole_arn = A\nsource_profile = b\ncredential_source = Environment\n",
            "[profile a]\nrole_arn = A\nsource_profile = b\n\
             [profile b]\nrole_arn = B\nsource_profile = a\n",
            "[profile a]\nrole_arn = A\nweb_identity_token_file = token\n",
        ] {
            assert_eq!(followed("a", config).await, None, "{config}");
        }
    }
}
