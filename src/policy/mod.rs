//! `pg-iam-proxy policy`: what AWS must allow for exactly this configuration, and nothing besides.
//!
//! `access` finds who may log in to what, `facts` holds what only AWS knows, `grants` adds up
//! permissions by their owner, `fit` keeps each policy within IAM's limit, `document` is the JSON.

mod access;
pub mod arn;
mod document;
mod facts;
mod fit;
mod grants;

use std::collections::BTreeMap;

use document::Printed;
use facts::Facts;
use grants::{Holder, Plan};

use crate::config::{Config, Target};

/// The JSON, and what a person should know of it, a line each.
pub struct Answer {
    /// One document.
    pub json: String,
    /// Where it allows more than it would have to, and how to narrow it.
    pub notes: Vec<String>,
}

/// Writes the policies down. AWS is asked where `discover` says so, and a failure costs precision
/// only.
pub async fn policy(config: &Config, account: Option<String>, discover: bool) -> Answer {
    let mut notes = Notes::default();
    let mut facts = Facts {
        account,
        ..Facts::default()
    };
    if discover {
        facts.discover(config, &mut notes).await;
    }
    let printed = print(config, &facts, &mut notes);
    Answer {
        json: serde_json::to_string_pretty(&printed).expect("it has text and lists only"),
        notes: notes.0,
    }
}

fn print(config: &Config, facts: &Facts, notes: &mut Notes) -> Printed {
    let uses = access::uses(config);
    if uses.is_empty() {
        notes.add("nobody can log in, so that nothing has to be allowed".to_string());
    }
    let mut plan = Plan::of(config, &uses, facts, notes);
    for (holder, grants) in &mut plan.grants {
        if let Some(note) = fit::fit(grants) {
            notes.add(match holder {
                Holder::Proxy(None) => format!("the proxy's policy {note}"),
                Holder::Proxy(Some(profile)) => format!("the policy of profile {profile} {note}"),
                Holder::Role(arn) => format!("the policy of {arn} {note}"),
            });
        }
    }
    Printed::of(&plan, facts, notes)
}

/// Every target once, by name.
fn targets(config: &Config) -> impl Iterator<Item = &Target> {
    let by_name: BTreeMap<&str, &Target> = config
        .listeners
        .iter()
        .flat_map(|listener| &listener.targets)
        .map(|target| (&*target.name, &**target))
        .collect();
    by_name.into_values()
}

/// Lines for the person, none twice.
#[derive(Debug, Default)]
struct Notes(Vec<String>);

impl Notes {
    fn add(&mut self, note: String) {
        if !self.0.contains(&note) {
            self.0.push(note);
        }
    }
}
