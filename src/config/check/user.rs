//! Which rules does the table of a user have to follow?

use std::collections::HashMap;

use toml::Spanned;

use super::Checker;
use crate::config::keys;
use crate::config::values::Key;
use crate::config::{User, redshift_rules};
use crate::verifier::Verifier;

impl Checker<'_> {
    /// The users of all sources, without those of the users file.
    pub(super) fn users(&mut self) -> HashMap<String, User> {
        let mut users = HashMap::new();
        self.each_source(|checker, source| {
            for (name, user) in source.file.user.named() {
                users.insert(name.clone(), checker.user(user.as_ref()));
            }
        });
        users
    }

    fn user(&mut self, raw: &keys::User) -> User {
        let verifier = raw.password.as_ref().and_then(|password| {
            Verifier::parse(password.as_ref())
                // The value must not appear in the message: it may be the password itself.
                .map_err(|rule| self.problem(&password.span(), format!("user.password: {rule}")))
                .ok()
        });
        for name in raw.targets.items() {
            self.unknown_target("user.targets", name);
        }
        self.groups("user.db_groups", &raw.db_groups);
        self.role_arn("user.role_arn", raw.role_arn.as_ref());
        User {
            verifier,
            targets: raw.targets.texts(),
            db_user: raw.db_user.text(),
            db_groups: raw.db_groups.texts(),
            role_arn: raw.role_arn.text(),
            max_sessions: raw.max_sessions.limit(),
        }
    }

    /// Checks each of `DbGroups`.
    pub(super) fn groups(&mut self, key: &str, groups: &Key<Vec<Spanned<String>>>) {
        for group in groups.items() {
            self.rule(key, Some(group), redshift_rules::check_db_group);
        }
    }
}
