//! The rules of users: those of the configuration and those of the users file.

use std::sync::Arc;

use toml::Spanned;

use super::listener::unknown_target;
use super::{Checker, Targets, Users};
use crate::config::{User, raw, redshift_rules, users_file};
use crate::verifier::Verifier;

impl Checker<'_> {
    pub(super) fn users(&mut self, targets: &Targets) -> Users {
        let mut users = Users::new();
        for (index, source) in self.sources.iter().enumerate() {
            self.source = index;
            for (name, user) in &source.file.user {
                let user = self.user(user.as_ref(), targets);
                users.insert(name.clone(), Arc::new(user));
            }
            if let Some(file) = &source.file.users_file {
                self.users_of_file(file, &mut users);
            }
        }
        users
    }

    fn user(&mut self, raw: &raw::User, targets: &Targets) -> User {
        let verifier =
            raw.password
                .as_ref()
                .and_then(|password| match Verifier::parse(password.as_ref()) {
                    Ok(verifier) => Some(verifier),
                    Err(rule) => {
                        // Never the value: it may be the password itself.
                        self.problem(&password.span(), format!("user.password: {rule}"));
                        None
                    }
                });
        for name in raw
            .targets
            .iter()
            .flat_map(Spanned::as_ref)
            .filter(|name| !targets.contains_key(name.as_ref()))
        {
            self.problem(
                &name.span(),
                unknown_target("user.targets", name.as_ref(), targets),
            );
        }
        for group in raw.db_groups.iter().flat_map(Spanned::as_ref) {
            self.rule(
                "user.db_groups",
                Some(group),
                redshift_rules::check_db_group,
            );
        }
        self.role_arn("user.role_arn", raw.role_arn.as_ref());
        let texts = |list: &Spanned<Vec<Spanned<String>>>| {
            list.as_ref()
                .iter()
                .map(|item| item.as_ref().clone())
                .collect()
        };
        User {
            verifier,
            targets: raw.targets.as_ref().map(texts),
            db_user: raw.db_user.as_ref().map(|name| name.as_ref().clone()),
            db_groups: raw.db_groups.as_ref().map(texts),
            role_arn: raw.role_arn.as_ref().map(|arn| arn.as_ref().clone()),
            max_sessions: self.max_sessions("user.max_sessions", raw.max_sessions.as_ref()),
        }
    }

    /// What a user's own table says wins over the file, but for a password that only the file has.
    fn users_of_file(&mut self, file: &Spanned<String>, users: &mut Users) {
        match users_file::read(&self.path(file.as_ref())) {
            Ok(entries) => {
                for (name, verifier) in entries {
                    let user = Arc::make_mut(users.entry(name).or_default());
                    user.verifier = user.verifier.take().or(Some(verifier));
                }
            }
            Err(problem) => self.value("users_file", file, &problem),
        }
    }
}
