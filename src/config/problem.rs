//! What is wrong with a configuration, and where.

use std::fmt;

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// `file:line`, or the target URL without its parameters.
    pub place: String,
    /// What is wrong and what to write instead.
    pub text: String,
}

/// A configuration that cannot be used: every mistake found in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError(pub Vec<Problem>);

impl ConfigError {
    pub(super) fn one(place: impl Into<String>, text: impl Into<String>) -> Self {
        Self(vec![Problem {
            place: place.into(),
            text: text.into(),
        }])
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{}: {}", problem.place, problem.text)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}
