//! How is a table of keys read?
//!
//! The macro `keys!` turns the description of a table into two things: a struct for its values, and
//! a [`Table`] that serves the reference page, the JSON Schema, the parameters of URLs, the check
//! for keys of other engines, and suggestions.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::spec::{Form, KeySpec, Table, ValueType};
use super::values::{Findings, Given, Key, Value};
use crate::nearest::nearest;

/// A struct that `keys!` has made.
pub(super) trait Keys: Sized + 'static {
    /// The description of the table.
    const TABLE: Table;

    /// Reads a table and reports every mistake in it.
    fn read(document: &DeTable<'_>, findings: &mut Findings) -> Self;

    /// The keys that are present but could not be read, which is not the same as missing.
    fn wrong(&self) -> &Wrong;

    /// The keys that have a value, each with its place in the document.
    fn given(&self) -> Vec<(&'static KeySpec, Range<usize>)>;
}

/// The value of a key that is a single table, as in `[limits]`.
#[derive(Debug, Default)]
pub(super) struct Section<T>(pub T);

impl<T> Key<Section<T>> {
    /// The table, if there is one.
    pub fn section(&self) -> Option<&T> {
        self.value().map(|section| &section.0)
    }
}

impl<T: Keys> Value for Section<T> {
    const VALUE_TYPE: ValueType = ValueType::Table(&T::TABLE);

    fn read(given: &Given<'_>, findings: &mut Findings) -> Option<Self> {
        let header = T::TABLE.header.unwrap_or_default();
        match given.value.as_ref() {
            DeValue::Table(table) => Some(Self(T::read(table, findings))),
            _ => not_a_table(given, header, findings),
        }
    }
}

impl<T: Keys> Value for Vec<Spanned<T>> {
    const VALUE_TYPE: ValueType = ValueType::Tables(&T::TABLE);

    fn read(given: &Given<'_>, findings: &mut Findings) -> Option<Self> {
        let header = T::TABLE.header.unwrap_or_default();
        match given.value.as_ref() {
            DeValue::Array(items) => {
                let mut tables = Vec::new();
                for item in items {
                    match item.as_ref() {
                        DeValue::Table(table) => {
                            tables.push(Spanned::new(item.span(), T::read(table, findings)));
                        }
                        _ => return not_a_table(given, header, findings),
                    }
                }
                Some(tables)
            }
            // Somebody wrote single brackets. What is meant is clear, so the rest is checked.
            DeValue::Table(table) => {
                let text = format!("there may be several of these: write {header}");
                findings.mistake(given.value.span(), text);
                let table = T::read(table, findings);
                Some(vec![Spanned::new(given.value.span(), table)])
            }
            _ => not_a_table(given, header, findings),
        }
    }
}

impl<T: Keys> Value for BTreeMap<String, Spanned<T>> {
    const VALUE_TYPE: ValueType = ValueType::Named(&T::TABLE);

    fn read(given: &Given<'_>, findings: &mut Findings) -> Option<Self> {
        let header = T::TABLE.header.unwrap_or_default();
        let DeValue::Table(entries) = given.value.as_ref() else {
            return not_a_table(given, header, findings);
        };
        let mut tables = Self::new();
        for (name, value) in entries {
            let DeValue::Table(table) = value.as_ref() else {
                // The table lacks a name, which makes each of its keys look wrong: one report is
                // enough.
                findings.hide(given.value);
                let first = entries.keys().map(Spanned::span).min_by_key(|at| at.start);
                let text = format!("must be in a table that has a name: write {header}");
                findings.mistake(first.unwrap_or_else(|| name.span()), text);
                return None;
            };
            let table = T::read(table, findings);
            tables.insert(name.as_ref().to_string(), Spanned::new(value.span(), table));
        }
        Some(tables)
    }
}

fn not_a_table<T>(given: &Given<'_>, header: &str, findings: &mut Findings) -> Option<T> {
    // Nobody knows what this value is; it may be a password.
    findings.hide(given.value);
    let text = format!("{}: must be a table: write {header}", given.spec.name);
    findings.mistake(given.key.clone(), text);
    None
}

/// The keys that a table has in a document, before their values are read.
pub(super) struct Rows<'a> {
    table: &'static Table,
    rows: BTreeMap<&'static str, (Range<usize>, &'a Spanned<DeValue<'a>>)>,
    wrong: Wrong,
}

/// The names of keys that are present but whose values could not be read.
pub(super) type Wrong = BTreeSet<&'static str>;

impl<'a> Rows<'a> {
    /// Reports unknown keys. A key that is nearly a known one is then read as that one, so that the
    /// slip has no consequences such as a key that seems to be missing.
    pub fn new(table: &'static Table, document: &'a DeTable<'a>, findings: &mut Findings) -> Self {
        let mut rows = BTreeMap::new();
        let mut unknown = Vec::new();
        for (name, value) in document {
            match table.key(name.as_ref()) {
                Some(spec) => {
                    rows.insert(spec.name, (name.span(), value));
                }
                None => unknown.push((name, value)),
            }
        }
        for (name, value) in unknown {
            let meant = nearest(name.as_ref(), table.keys.iter().map(|key| key.name));
            let suggestion = meant.map(|meant| format!(": did you mean `{meant}`?"));
            let text = format!(
                "unknown key `{}`{}",
                name.as_ref(),
                suggestion.unwrap_or_default()
            );
            findings.mistake(name.span(), text);
            match meant.and_then(|meant| table.key(meant)) {
                Some(spec) if !rows.contains_key(spec.name) => {
                    rows.insert(spec.name, (name.span(), value));
                }
                // Nobody knows what this value is; it may be a password.
                _ => findings.hide(value),
            }
        }
        Self {
            table,
            rows,
            wrong: Wrong::new(),
        }
    }

    /// Reads the value of a key and reports one that cannot be used.
    pub fn take<T: Value>(&mut self, name: &'static str, findings: &mut Findings) -> Key<T> {
        let (Some(spec), Some((key, value))) = (self.table.key(name), self.rows.remove(name))
        else {
            return Key::default();
        };
        let hidden = match spec.form {
            Form::Secret => true,
            Form::Url => value
                .as_ref()
                .as_str()
                .is_none_or(|url| url.contains(['@', '?'])),
            Form::Plain | Form::Path => false,
        };
        if hidden {
            findings.hide(value);
        }
        let given = Given {
            path: format!("{}{name}", self.table.prefix()),
            spec,
            key: key.clone(),
            value,
        };
        let read = if !hidden && given.is_of_several_lines() {
            let text = format!("{}: must not have several lines", given.path);
            findings.mistake(key.clone(), text);
            None
        } else {
            T::read(&given, findings)
        };
        if read.is_none() {
            self.wrong.insert(name);
        }
        Key::new(read.map(|read| Spanned::new(key, read)))
    }

    /// The names of the keys whose values could not be read.
    pub fn into_wrong(self) -> Wrong {
        self.wrong
    }
}

/// Declares a table of the configuration: its struct, and its description.
///
/// A key is written like a field: its comment says what the key means, and the braces have what
/// differs from [`KeySpec::USUAL`].
macro_rules! keys {
    (
        $(#[doc = $about:literal])+
        $table:ident ($header:expr) {
            $(
                $(#[doc = $meaning:literal])+
                $key:ident: $type:ty { $($field:ident: $value:expr),* $(,)? }
            )*
        }
    ) => {
        $(#[doc = $about])+
        #[derive(Debug, Default)]
        pub(in crate::config) struct $table {
            $(
                $(#[doc = $meaning])+
                pub $key: $crate::config::values::Key<$type>,
            )*
            wrong: $crate::config::tables::Wrong,
        }

        impl $crate::config::tables::Keys for $table {
            const TABLE: $crate::config::spec::Table = $crate::config::spec::Table {
                header: $header,
                about: concat!($($about),+),
                keys: &[$(
                    $crate::config::spec::KeySpec {
                        name: stringify!($key),
                        value_type: <$type as $crate::config::values::Value>::VALUE_TYPE,
                        meaning: concat!($($meaning),+),
                        $($field: $value,)*
                        ..$crate::config::spec::KeySpec::USUAL
                    },
                )*],
            };

            fn read(
                document: &toml::de::DeTable<'_>,
                findings: &mut $crate::config::values::Findings,
            ) -> Self {
                let table = const { &Self::TABLE };
                let mut rows = $crate::config::tables::Rows::new(table, document, findings);
                Self {
                    $($key: rows.take(stringify!($key), findings),)*
                    wrong: rows.into_wrong(),
                }
            }

            fn wrong(&self) -> &$crate::config::tables::Wrong {
                &self.wrong
            }

            fn given(
                &self,
            ) -> Vec<(&'static $crate::config::spec::KeySpec, std::ops::Range<usize>)> {
                let table = const { &Self::TABLE };
                let mut given = Vec::new();
                $(
                    if let (Some(value), Some(spec)) =
                        (self.$key.as_ref(), table.key(stringify!($key)))
                    {
                        given.push((spec, value.span()));
                    }
                )*
                given
            }
        }
    };
}
pub(super) use keys;
