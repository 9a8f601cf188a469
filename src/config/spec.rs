//! What is known about a key of the configuration?

use std::ops::RangeInclusive;
use std::time::Duration;

use super::EngineName;

/// A table of the configuration.
#[derive(Debug)]
pub(super) struct Table {
    /// How its header is written, as in `[[listener]]`; `None` for the top of the file.
    pub header: Option<&'static str>,
    /// What it is for.
    pub about: &'static str,
    /// Its keys, in the order in which the reference page has them.
    pub keys: &'static [KeySpec],
}

impl Table {
    /// The prefix of a key's name in messages. The keys of a target have none, because they are
    /// also the parameters of target URLs.
    pub fn prefix(&self) -> String {
        match self.header {
            None | Some("[target.NAME]") => String::new(),
            Some(header) => format!(
                "{}.",
                header.trim_matches(['[', ']']).trim_end_matches(".NAME")
            ),
        }
    }

    /// The key with this name.
    pub fn key(&self, name: &str) -> Option<&'static KeySpec> {
        self.keys.iter().find(|key| key.name == name)
    }
}

/// A key of a table.
#[derive(Debug)]
pub(super) struct KeySpec {
    /// Its name, as it is written in the file.
    pub name: &'static str,
    /// How its value is written.
    pub value_type: ValueType,
    /// What it means, in sentences for the reference page and for editors.
    pub meaning: &'static str,
    /// The engines that it is for. Only keys of a target are for some engines and not for others.
    pub engines: &'static [EngineName],
    /// What applies when the key is omitted.
    pub default: Omitted,
    /// The numbers that it accepts, if its value is a number.
    pub bounds: Option<Bounds>,
    /// The times that it accepts, if its value is a time.
    pub times: Option<Times>,
    /// What its text stands for.
    pub form: Form,
}

impl KeySpec {
    /// What is true of most keys; each key overrides what is different.
    pub const USUAL: Self = Self {
        name: "",
        value_type: ValueType::Text,
        meaning: "",
        engines: &EngineName::ALL,
        default: Omitted::Means("none"),
        bounds: None,
        times: None,
        form: Form::Plain,
    };
}

/// How a value is written.
#[derive(Debug)]
pub(super) enum ValueType {
    Text,
    Number,
    Flag,
    Time,
    /// A list of strings.
    Texts,
    /// One of these words.
    Words(&'static [&'static str]),
    /// A table, as in `[limits]`.
    Table(&'static Table),
    /// Any number of tables, as in `[[listener]]`.
    Tables(&'static Table),
    /// Any number of tables, each with a name of the user's choice, as in `[target.warehouse]`.
    Named(&'static Table),
}

/// What applies when a key is omitted.
#[derive(Debug)]
pub(super) enum Omitted {
    /// Omitting the key is a mistake.
    Required,
    /// The key then has this value, which is valid TOML as well as valid JSON.
    Is(&'static str),
    /// Something that takes words to say.
    Means(&'static str),
}

/// The numbers that a key accepts.
#[derive(Debug)]
pub(super) struct Bounds {
    pub range: RangeInclusive<i64>,
    /// What 0 stands for, if it is accepted in addition to the range.
    pub zero: Option<&'static str>,
    /// Who set these bounds, if it was not us.
    pub source: Option<&'static str>,
}

impl Bounds {
    /// Bounds that we have set, without an exception for 0.
    pub const fn new(range: RangeInclusive<i64>) -> Self {
        Self {
            range,
            zero: None,
            source: None,
        }
    }

    /// The smallest number that the key accepts.
    pub fn least(&self) -> i64 {
        match self.zero {
            Some(_) => 0,
            None => *self.range.start(),
        }
    }

    /// Whether the key accepts this number.
    pub fn include(&self, number: i64) -> bool {
        self.range.contains(&number) || (number == 0 && self.zero.is_some())
    }

    /// The rule in words, to be put behind the name of the key.
    pub fn rule(&self) -> String {
        let mut rule = format!("must be {} to {}", self.range.start(), self.range.end());
        if let Some(zero) = self.zero {
            rule.push_str(&format!(", or 0 for {zero}"));
        }
        if let Some(source) = self.source {
            rule.push_str(&format!(" ({source})"));
        }
        rule
    }
}

/// The times that a key accepts: more than zero and no more than the longest.
#[derive(Debug)]
pub(super) struct Times {
    pub longest: Duration,
    /// The rule in words, to be put behind the name of the key.
    pub rule: &'static str,
}

/// What a string stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Plain,
    /// A file, whose path is relative to the folder of the configuration file.
    Path,
    /// A URL, which may hold a user name and password.
    Url,
    /// A secret, which no message may show.
    Secret,
}

/// Words as a list in a sentence: `"a", "b" or "c"`.
pub(super) fn either(words: &[&str], or: &str) -> String {
    let quoted: Vec<_> = words.iter().map(|word| format!("\"{word}\"")).collect();
    match quoted.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} {or} {last}", others.join(", ")),
        None => String::new(),
    }
}
