//! `pg-iam-proxy policy`: what must AWS allow for exactly this configuration, and nothing besides?
//!
//! `allowed_logins` finds who may log in to what, `aws_ids` holds the account numbers and resource
//! ids that only AWS knows, `permissions` adds up what each AWS identity needs, `size_limit` keeps
//! each policy within IAM's limit, and `document` is the JSON.

mod allowed_logins;
mod aws_ids;
mod document;
mod notes;
mod permissions;
mod size_limit;

use allowed_logins::allowed_logins;
use aws_ids::AwsIds;
use document::PolicyOutput;
use notes::Notes;
use permissions::{Principal, RequiredPermissions};

use crate::config::Config;

/// The policies of a configuration.
pub struct GeneratedPolicy {
    /// One JSON document.
    pub json: String,
    /// Where the policies allow more than they would have to, and how to narrow them: a line each.
    pub notes: Vec<String>,
}

/// Generates the policies that a configuration needs.
///
/// With `discover`, AWS is asked for the account and for the ids of servers that the configuration
/// does not have. When AWS does not answer, the policies have wildcards in their place, and a note
/// says so. `account` is the account id of the proxy's own AWS identity, where the user gives it.
pub async fn policy(config: &Config, account: Option<String>, discover: bool) -> GeneratedPolicy {
    let mut notes = Notes::default();
    let mut ids = AwsIds::of_account(account);
    if discover {
        ids.discover(config, &mut notes).await;
    }
    let output = generate(config, &ids, &mut notes);
    GeneratedPolicy {
        json: serde_json::to_string_pretty(&output).expect("it has text and lists only"),
        notes: notes.into_lines(),
    }
}

fn generate(config: &Config, ids: &AwsIds, notes: &mut Notes) -> PolicyOutput {
    let logins = allowed_logins(config);
    if logins.is_empty() {
        notes.add("nobody can log in, so that nothing has to be allowed".to_string());
    }
    let mut required = RequiredPermissions::collect(config, &logins, ids, notes);
    for (principal, permissions) in &mut required.by_principal {
        if let Some(note) = size_limit::fit(permissions) {
            notes.add(match principal {
                Principal::Proxy(None) => format!("the proxy's policy {note}"),
                Principal::Proxy(Some(profile)) => {
                    format!("the policy of profile {profile} {note}")
                }
                Principal::Role(arn) => format!("the policy of {arn} {note}"),
            });
        }
    }
    PolicyOutput::new(&required, ids, notes)
}
