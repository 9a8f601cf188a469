//! How is the value of a key read, and what is reported when it has the wrong type?

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeValue, ValueDeserializer};

use super::spec::{Form, KeySpec, ValueType, either};

/// A key that may have a value. The span is the place of the key, because that is what a message
/// points at; the items of a list have places of their own.
#[derive(Debug)]
pub(super) struct Key<T>(Option<Spanned<T>>);

impl<T> Key<T> {
    /// A key as it was read.
    pub fn new(value: Option<Spanned<T>>) -> Self {
        Self(value)
    }

    /// The value with the place of the key.
    pub fn as_ref(&self) -> Option<&Spanned<T>> {
        self.0.as_ref()
    }

    /// The value alone.
    pub fn value(&self) -> Option<&T> {
        self.as_ref().map(Spanned::as_ref)
    }

    pub fn is_none(&self) -> bool {
        self.0.is_none()
    }
}

impl<T> Default for Key<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: Copy> Key<T> {
    /// The value, or the default.
    pub fn or(&self, otherwise: T) -> T {
        self.value().copied().unwrap_or(otherwise)
    }
}

impl Key<usize> {
    /// The value as a limit, where 0 stands for none.
    pub fn limit(&self) -> Option<usize> {
        self.value().copied().filter(|&limit| limit > 0)
    }
}

impl Key<String> {
    pub fn text(&self) -> Option<String> {
        self.value().cloned()
    }
}

impl Key<Vec<Spanned<String>>> {
    /// The strings of a list, if there is one.
    pub fn texts(&self) -> Option<Vec<String>> {
        let list = self.value()?;
        Some(list.iter().map(|item| item.as_ref().clone()).collect())
    }
}

impl<T> Key<Vec<T>> {
    /// The items of the list; none if there is no list.
    pub fn items(&self) -> impl Iterator<Item = &T> {
        self.value().into_iter().flatten()
    }
}

impl<T> Key<BTreeMap<String, T>> {
    /// Whether there is a table of this name.
    pub fn has(&self, name: &str) -> bool {
        self.value().is_some_and(|tables| tables.contains_key(name))
    }

    /// The tables by their names; none if there is no such table.
    pub fn named(&self) -> impl Iterator<Item = (&String, &T)> {
        self.value().into_iter().flatten()
    }
}

/// A mistake in a document, with the place that a message points at.
#[derive(Debug)]
pub(super) struct Mistake {
    pub span: Range<usize>,
    pub text: String,
}

/// What has been found while reading a document, apart from its values.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub mistakes: Vec<Mistake>,
    /// The parts of the document that no message may show.
    pub secrets: Vec<Range<usize>>,
}

impl Findings {
    /// Keeps a value out of messages. The span of a table may be that of its key or header only, so
    /// its values have to be hidden one by one.
    pub fn hide(&mut self, value: &Spanned<DeValue<'_>>) {
        self.secrets.push(value.span());
        match value.as_ref() {
            DeValue::Table(table) => table.values().for_each(|inner| self.hide(inner)),
            DeValue::Array(items) => items.iter().for_each(|inner| self.hide(inner)),
            _ => {}
        }
    }

    pub fn mistake(&mut self, span: Range<usize>, text: impl Into<String>) {
        self.mistakes.push(Mistake {
            span,
            text: text.into(),
        });
    }
}

/// A type that a key's value can have.
pub(super) trait Value: Sized {
    /// How such a value is written.
    const VALUE_TYPE: ValueType;

    /// Reads a value. `None` means that it cannot be used, which has then been reported.
    fn read(given: &Given<'_>, findings: &mut Findings) -> Option<Self>;
}

/// A key in a document, with what the table of keys knows about it.
pub(super) struct Given<'a> {
    /// The name of the key in messages, as in `listener.address`.
    pub path: String,
    pub spec: &'static KeySpec,
    pub key: Range<usize>,
    pub value: &'a Spanned<DeValue<'a>>,
}

impl Given<'_> {
    /// Reads a value with serde, whose message says what is wrong with it.
    pub fn leaf<T: for<'de> Deserialize<'de>>(&self, findings: &mut Findings) -> Option<T> {
        match T::deserialize(ValueDeserializer::from(self.value.clone())) {
            Ok(value) => Some(value),
            // The message of the parser would contain the value.
            Err(_) if self.spec.form == Form::Secret => {
                findings.mistake(self.key.clone(), format!("{}: must be a string", self.path));
                None
            }
            Err(error) => {
                // In a list the message points at the item, otherwise at the key.
                let span = error
                    .span()
                    .filter(|span| *span != self.value.span())
                    .unwrap_or_else(|| self.key.clone());
                let text = error
                    .message()
                    .replace("unknown variant", "unknown value")
                    .trim_end()
                    .to_string();
                findings.mistake(span, text);
                None
            }
        }
    }

    /// Whether the value contains a string of several lines. No key needs one: it is a string that
    /// was never closed, with everything behind it, passwords included.
    pub fn is_of_several_lines(&self) -> bool {
        let text = |value: &DeValue<'_>| value.as_str().is_some_and(|text| text.contains('\n'));
        match self.value.as_ref() {
            DeValue::Array(items) => items.iter().any(|item| text(item.as_ref())),
            value => text(value),
        }
    }

    fn number(&self, findings: &mut Findings) -> Option<i64> {
        let number = self.leaf(findings)?;
        match &self.spec.bounds {
            Some(bounds) if !bounds.include(number) => {
                let text = format!("{} = {number}: {}", self.path, bounds.rule());
                findings.mistake(self.key.clone(), text);
                None
            }
            _ => Some(number),
        }
    }
}

impl Value for String {
    const VALUE_TYPE: ValueType = ValueType::Text;

    fn read(given: &Given<'_>, findings: &mut Findings) -> Option<Self> {
        given.leaf(findings)
    }
}

impl Value for bool {
    const VALUE_TYPE: ValueType = ValueType::Flag;

    fn read(given: &Given<'_>, findings: &mut Findings) -> Option<Self> {
        given.leaf(findings)
    }
}

impl Value for Vec<Spanned<String>> {
    const VALUE_TYPE: ValueType = ValueType::Texts;

    fn read(given: &Given<'_>, findings: &mut Findings) -> Option<Self> {
        given.leaf(findings)
    }
}

// A number is checked against the bounds of its key first. They lie within those of the type, so
// that the conversion cannot fail afterwards.
macro_rules! numbers {
    ($($type:ty),+) => {$(
        impl Value for $type {
            const VALUE_TYPE: ValueType = ValueType::Number;

            fn read(given: &Given<'_>, findings: &mut Findings) -> Option<Self> {
                given.number(findings)?.try_into().ok()
            }
        }
    )+};
}
numbers!(u16, i32, u32, usize);

impl Value for Duration {
    const VALUE_TYPE: ValueType = ValueType::Time;

    fn read(given: &Given<'_>, findings: &mut Findings) -> Option<Self> {
        let text: String = given.leaf(findings)?;
        let times = given.spec.times.as_ref();
        match humantime::parse_duration(&text) {
            Ok(time)
                if !time.is_zero() && times.is_none_or(|accepted| time <= accepted.longest) =>
            {
                Some(time)
            }
            _ => {
                let rule = times.map_or("must be a time, as in \"10s\"", |times| times.rule);
                let text = format!("{} = \"{text}\": {rule}", given.path);
                findings.mistake(given.key.clone(), text);
                None
            }
        }
    }
}

/// A type whose values are written as words.
pub(super) trait Words: Copy + 'static {
    /// All the words.
    const WORDS: &'static [&'static str];
    /// The value that each word stands for, in the same order.
    const MEANINGS: &'static [Self];
}

impl<T: Words> Value for T {
    const VALUE_TYPE: ValueType = ValueType::Words(T::WORDS);

    fn read(given: &Given<'_>, findings: &mut Findings) -> Option<Self> {
        let text: String = given.leaf(findings)?;
        let words = T::WORDS.iter().zip(T::MEANINGS);
        if let Some((_, meaning)) = words.into_iter().find(|(word, _)| **word == text) {
            return Some(*meaning);
        }
        let rule = format!("must be {}", either(T::WORDS, "or"));
        let text = format!("{} = \"{text}\": {rule}", given.path);
        findings.mistake(given.key.clone(), text);
        None
    }
}
