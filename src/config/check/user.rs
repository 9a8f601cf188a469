//! What may a user's own table say?

use std::collections::HashMap;

use toml::Spanned;

use super::{Checker, items, max_sessions, tables};
use crate::config::keys::{self, text, texts};
use crate::config::{User, redshift_rules};
use crate::verifier::Verifier;

impl Checker<'_> {
    /// The users of all sources, without those of the users file.
    pub(super) fn users(&mut self) -> HashMap<String, User> {
        let mut users = HashMap::new();
        self.each_source(|checker, source| {
            for (name, user) in tables(&source.file.user) {
                users.insert(name.clone(), checker.user(user.as_ref()));
            }
        });
        users
    }

    fn user(&mut self, raw: &keys::User) -> User {
        let verifier = raw.password.as_ref().and_then(|password| {
            Verifier::parse(password.as_ref())
                // Never the value: it may be the password itself.
                .map_err(|rule| self.problem(&password.span(), format!("user.password: {rule}")))
                .ok()
        });
        for name in items(raw.targets.as_ref()) {
            self.unknown_target("user.targets", name);
        }
        self.groups("user.db_groups", raw.db_groups.as_ref());
        self.role_arn("user.role_arn", raw.role_arn.as_ref());
        User {
            verifier,
            targets: texts(&raw.targets),
            db_user: text(&raw.db_user),
            db_groups: texts(&raw.db_groups),
            role_arn: text(&raw.role_arn),
            max_sessions: max_sessions(&raw.max_sessions),
        }
    }

    /// `DbGroups`, each by itself.
    pub(super) fn groups(&mut self, key: &str, groups: Option<&Spanned<Vec<Spanned<String>>>>) {
        for group in items(groups) {
            self.rule(key, Some(group), redshift_rules::check_db_group);
        }
    }
}
