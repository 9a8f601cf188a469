//! Where AWS credentials are looked for, and what is there: for whoever finds none.
//!
//! The chain itself says only that it is at its end. Names and order are those of the SDK.

use std::env;
use std::path::{Path, PathBuf};

use aws_config::profile;
use aws_types::os_shim_internal::{Env, Fs};

use crate::nearest::nearest;

/// What a search for AWS credentials came upon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Search {
    /// The profile that is asked for is in neither file.
    NoSuchProfile {
        /// Its name.
        name: String,
        /// The two files.
        files: String,
        /// The profile that has the most similar name.
        nearest: Option<String>,
    },
    /// There is nothing at any of these places.
    Nothing(Vec<String>),
}

/// Looks again at the places of the default chain, or at the one profile that a target names.
pub async fn search(profile: Option<&str>) -> Search {
    let files = [
        ("AWS_CONFIG_FILE", "config"),
        ("AWS_SHARED_CREDENTIALS_FILE", "credentials"),
    ]
    .map(file);
    #[allow(
        clippy::default_trait_access,
        reason = "the files' type has no name that is not deprecated"
    )]
    let known = profile::load(&Fs::real(), &Env::real(), &Default::default(), None).await;
    let names: Vec<&str> = known
        .as_ref()
        .map(|known| known.profiles().collect())
        .unwrap_or_default();
    let of_environment = env::var("AWS_PROFILE").ok().filter(|name| !name.is_empty());
    let asked = profile.or(of_environment.as_deref());
    if let Some(name) = asked.filter(|name| known.is_ok() && !names.contains(name)) {
        let nearest = nearest(name, names.iter().copied());
        let files = files.map(|file| file.display().to_string()).join(" and ");
        return Search::NoSuchProfile {
            name: name.to_string(),
            files,
            nearest: nearest.map(ToString::to_string),
        };
    }
    let in_files = format!(
        "profile \"{}\" ({})",
        asked.unwrap_or("default"),
        files.map(|file| state(&file)).join(", ")
    );
    if profile.is_some() {
        return Search::Nothing(vec![in_files]);
    }
    let metadata = if env::var("AWS_EC2_METADATA_DISABLED")
        .is_ok_and(|value| value.eq_ignore_ascii_case("true"))
    {
        "turned off by AWS_EC2_METADATA_DISABLED"
    } else {
        "no answer, or no role"
    };
    Search::Nothing(vec![
        format!(
            "environment ({})",
            variables(&["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
        ),
        in_files,
        format!(
            "web identity ({})",
            variables(&["AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN"])
        ),
        format!(
            "container ({})",
            variables(&[
                "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
                "AWS_CONTAINER_CREDENTIALS_FULL_URI"
            ])
        ),
        format!("instance metadata ({metadata})"),
    ])
}

fn file((variable, name): (&str, &str)) -> PathBuf {
    let own = env::var_os(variable)
        .filter(|path| !path.is_empty())
        .map(PathBuf::from);
    own.unwrap_or_else(|| env::home_dir().unwrap_or_default().join(".aws").join(name))
}

fn state(file: &Path) -> String {
    let what = if file.exists() {
        "has none"
    } else {
        "does not exist"
    };
    format!("{} {what}", file.display())
}

fn variables(names: &[&str]) -> String {
    let state = |name: &&str| {
        format!(
            "{name} is {}",
            if env::var_os(name).is_some() {
                "set"
            } else {
                "not set"
            }
        )
    };
    names.iter().map(state).collect::<Vec<_>>().join(", ")
}
