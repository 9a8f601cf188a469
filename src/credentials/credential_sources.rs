//! Where did the AWS credential chain look for credentials, and what is there?
//!
//! When the chain finds nothing, its error says only that. This file looks at the same places again
//! to tell a person what was missing; their names and their order are those of the SDK:
//! <https://docs.aws.amazon.com/sdk-for-rust/latest/dg/credproviders.html>.

use std::env;
use std::path::{Path, PathBuf};

use aws_config::profile;
use aws_types::os_shim_internal::{Env, Fs};

use crate::nearest::nearest;

/// Why the chain has found no credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CredentialSources {
    /// Neither file has the profile that the target or `AWS_PROFILE` names.
    NoSuchProfile {
        /// The name that was asked for.
        name: String,
        /// The paths of both files, for a person to read.
        files: String,
        /// The profile with the most similar name.
        nearest: Option<String>,
    },
    /// None of these places has credentials; each is described for a person to read.
    NoneHasCredentials(Vec<String>),
}

/// Looks again at every place of the default chain, or only at the profile that a target names.
pub async fn inspect_credential_sources(profile: Option<&str>) -> CredentialSources {
    let files = [
        ("AWS_CONFIG_FILE", "config"),
        ("AWS_SHARED_CREDENTIALS_FILE", "credentials"),
    ]
    .map(shared_file);
    #[allow(
        clippy::default_trait_access,
        reason = "the type of the files has no name that is not deprecated"
    )]
    let profiles = profile::load(&Fs::real(), &Env::real(), &Default::default(), None).await;
    let names: Option<Vec<&str>> = profiles
        .as_ref()
        .ok()
        .map(|profiles| profiles.profiles().collect());
    let of_environment = env::var("AWS_PROFILE").ok().filter(|name| !name.is_empty());
    let wanted = profile.or(of_environment.as_deref());
    if let (Some(name), Some(names)) = (wanted, &names)
        && !names.contains(&name)
    {
        return CredentialSources::NoSuchProfile {
            name: name.to_string(),
            files: files.map(|file| file.display().to_string()).join(" and "),
            nearest: nearest(name, names.iter().copied()).map(str::to_string),
        };
    }
    let in_files = format!(
        "profile \"{}\" ({})",
        wanted.unwrap_or("default"),
        files.map(|file| state_of_file(&file)).join(", ")
    );
    CredentialSources::NoneHasCredentials(if profile.is_some() {
        vec![in_files]
    } else {
        default_chain(in_files)
    })
}

/// Every place of the default chain, in the SDK's order.
fn default_chain(in_files: String) -> Vec<String> {
    let metadata_is_off =
        env::var("AWS_EC2_METADATA_DISABLED").is_ok_and(|value| value.eq_ignore_ascii_case("true"));
    let metadata = if metadata_is_off {
        "turned off by AWS_EC2_METADATA_DISABLED"
    } else {
        "no answer, or no role"
    };
    vec![
        format!(
            "environment ({})",
            state_of_variables(["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
        ),
        in_files,
        format!(
            "web identity ({})",
            state_of_variables(["AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN"])
        ),
        format!(
            "container ({})",
            state_of_variables([
                "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
                "AWS_CONTAINER_CREDENTIALS_FULL_URI"
            ])
        ),
        format!("instance metadata ({metadata})"),
    ]
}

/// The path of a shared file: the one that the variable names, or the one below `~/.aws`.
fn shared_file((variable, name): (&str, &str)) -> PathBuf {
    let from_environment = env::var_os(variable)
        .filter(|path| !path.is_empty())
        .map(PathBuf::from);
    from_environment.unwrap_or_else(|| env::home_dir().unwrap_or_default().join(".aws").join(name))
}

fn state_of_file(file: &Path) -> String {
    let state = if file.exists() {
        "has none"
    } else {
        "does not exist"
    };
    format!("{} {state}", file.display())
}

fn state_of_variables(names: [&str; 2]) -> String {
    names
        .map(|name| {
            let state = if env::var_os(name).is_some() {
                "set"
            } else {
                "not set"
            };
            format!("{name} is {state}")
        })
        .join(", ")
}
