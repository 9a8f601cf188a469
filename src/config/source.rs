//! What does a configuration file or a target URL say, where does it say it, and which parts of it
//! may be shown?

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::de::DeTable;

use super::keys::{Admin, CertificateMap, File, Limits, Listener, Log, Rule, Target, User};
use super::lines::Lines;
use super::problem::{Excerpt, MAX_SHOWN, Problem};
use super::spec::{Form, KeySpec, Table, ValueType};
use super::tables::Keys;
use super::values::{Findings, Mistake};

/// Mistakes of one document that are kept: one more than are shown, which tells that there are more.
pub(super) const MAX_MISTAKES: usize = MAX_SHOWN + 1;
/// Bytes of a line that are shown before the place of a mistake, and from there on.
const EXCERPT_BEFORE: usize = 120;
const EXCERPT_AFTER: usize = 240;
/// What is shown in place of a secret.
const HIDDEN: &str = "…";

/// Every table that a file can have.
const TABLES: [&Table; 9] = [
    &File::TABLE,
    &Listener::TABLE,
    &Rule::TABLE,
    &CertificateMap::TABLE,
    &User::TABLE,
    &Target::TABLE,
    &Limits::TABLE,
    &Log::TABLE,
    &Admin::TABLE,
];

/// A TOML document and its name in messages.
pub(super) struct Source {
    label: Label,
    text: String,
    lines: Lines,
    /// The parts of the text that no message may show, in order and without overlaps.
    secrets: Vec<Range<usize>>,
    /// The values of its keys.
    pub file: File,
}

/// The name of a document in messages.
pub(super) enum Label {
    File(PathBuf),
    Url(String),
}

/// A document that has been read, whatever is wrong with it.
pub(super) struct Parsed {
    pub source: Source,
    pub mistakes: Vec<Mistake>,
    /// Whether parts of it could not be read, so keys that are there may seem to be missing.
    pub incomplete: bool,
}

impl Source {
    /// Reads a document as far as that is possible.
    pub fn parse(label: Label, text: String) -> Parsed {
        let lines = Lines::new(&text);
        let (document, errors) = DeTable::parse_recoverable(&text);
        let Syntax {
            mistakes: syntax,
            incomplete,
            lost,
        } = Syntax::from_errors(&text, &lines, errors);
        let mut findings = Findings::default();
        let file = if lost {
            File::default()
        } else {
            File::read(document.as_ref(), &mut findings)
        };
        let broken: BTreeSet<_> = syntax
            .iter()
            .map(|mistake| lines.number(mistake.span.start))
            .collect();
        let hidden = syntax
            .iter()
            .filter_map(|mistake| hidden_in(&text, &lines, &mistake.span));
        findings.secrets.extend(hidden);
        // Any other mistake on a line that is not TOML follows from that. A misspelt key is one
        // mistake, whatever its value would mean under the right name.
        let mut pointed_at = BTreeSet::new();
        let found = findings.mistakes.into_iter().filter(|mistake| {
            let first = pointed_at.insert(mistake.span.start);
            first && !broken.contains(&lines.number(mistake.span.start))
        });
        let mistakes = found.chain(syntax).take(MAX_MISTAKES).collect();
        Parsed {
            source: Self {
                secrets: merged(findings.secrets),
                label,
                lines,
                text,
                file,
            },
            mistakes,
            incomplete,
        }
    }

    /// The path that a text stands for: relative to the folder of the file, or, in a URL, to the
    /// working directory.
    pub fn path(&self, text: &str) -> PathBuf {
        match &self.label {
            Label::File(name) => name.parent().unwrap_or(Path::new("")).join(text),
            Label::Url(_) => PathBuf::from(text),
        }
    }

    /// A problem at a place in this source.
    pub fn problem(&self, span: &Range<usize>, text: String) -> Problem {
        let (place, excerpt) = match &self.label {
            Label::File(path) => (
                self.lines.position(path, &self.text, span.start),
                self.excerpt(span.clone()),
            ),
            Label::Url(name) => (name.clone(), None),
        };
        Problem {
            place,
            text,
            excerpt,
        }
    }

    /// The line in which a place begins, as far as it is near; `None` when nothing of it may be
    /// shown.
    fn excerpt(&self, span: Range<usize>) -> Option<Excerpt> {
        let line = self.lines.range(&self.text, span.start);
        let line = near(&self.text, line, span.start);
        let first = self
            .secrets
            .partition_point(|secret| secret.end <= line.start);
        let hidden: Vec<_> = self.secrets[first..]
            .iter()
            .take_while(|secret| secret.start < line.end)
            .map(|secret| secret.start.max(line.start)..secret.end.min(line.end))
            .collect();
        if hidden.contains(&line) && !line.is_empty() {
            return None;
        }
        let mut shown = String::new();
        let mut at = line.start;
        for secret in &hidden {
            shown.push_str(&self.text[at..secret.start]);
            shown.push_str(HIDDEN);
            at = secret.end;
        }
        let rest = &self.text[at..line.end];
        // People who change a password sometimes keep the old one in a comment behind it.
        if hidden.is_empty() || !rest.trim_start().starts_with('#') {
            shown.push_str(rest);
        }
        let column = |byte: usize| {
            let mut column = byte.clamp(line.start, line.end) - line.start;
            for secret in hidden.iter().filter(|secret| secret.start < byte) {
                column -= secret.end.min(byte) - secret.start;
                column += if byte < secret.end { 0 } else { HIDDEN.len() };
            }
            column.min(shown.len())
        };
        let marked = column(span.start)..column(span.end);
        Some(Excerpt {
            number: self.lines.number(span.start),
            marked,
            line: shown,
        })
    }
}

/// The part of a line that is near a place. A line may be as long as the file, and each mistake on it
/// has an excerpt of its own.
fn near(text: &str, line: Range<usize>, place: usize) -> Range<usize> {
    let start = place.saturating_sub(EXCERPT_BEFORE).max(line.start);
    let end = place.saturating_add(EXCERPT_AFTER).min(line.end);
    text.floor_char_boundary(start)..text.ceil_char_boundary(end)
}

/// The parts of a text that are not TOML.
struct Syntax {
    mistakes: Vec<Mistake>,
    /// Whether keys may have been lost.
    incomplete: bool,
    /// Whether the parser may have misread what comes after the last mistake.
    lost: bool,
}

impl Syntax {
    /// The parser continues after a mistake. As long as a mistake is confined to its line, the next
    /// one is a mistake of its own. After a broken header, or a list or string that has no end,
    /// whatever seems to be wrong below is only a consequence, and is left out.
    fn from_errors(text: &str, lines: &Lines, errors: Vec<toml::de::Error>) -> Self {
        let mut mistakes: Vec<Mistake> = Vec::new();
        // The lines that have a mistake already.
        let mut told = BTreeSet::new();
        let mut incomplete = false;
        for error in errors {
            let end = text.trim_end().len();
            let span = error.span().unwrap_or(end..end);
            let line = lines.range(text, span.start);
            let message = error.message();
            let twice = message == "duplicate key";
            let header = text[line.clone()].trim_start().starts_with('[') && !twice;
            let over_lines = ["array", "inline table", "multi-line", "unclosed"];
            if header || over_lines.iter().any(|word| message.contains(word)) {
                mistakes.retain(|mistake| mistake.span.start < line.start);
                mistakes.push(mistake(span, message));
                return Self {
                    mistakes,
                    incomplete: true,
                    lost: true,
                };
            }
            incomplete |= !twice;
            if told.insert(line.start) {
                mistakes.push(mistake(span, message));
            }
        }
        Self {
            mistakes,
            incomplete,
            lost: false,
        }
    }
}

fn mistake(span: Range<usize>, message: &str) -> Mistake {
    Mistake {
        span,
        text: message.to_string(),
    }
}

/// The part of a line with a mistake that must not be shown, because the line is not TOML and may
/// contain a secret wherever the mistake has moved it. Only what comes from a key that is known to
/// be harmless may be shown, and nothing that looks like another value behind the mistake.
fn hidden_in(text: &str, lines: &Lines, mistake: &Range<usize>) -> Option<Range<usize>> {
    let line = lines.range(text, mistake.start);
    let shown = &text[line.clone()];
    if shown.trim_start().starts_with('[') {
        return Some(line.start + length_of_header(shown)..line.end);
    }
    let Some((name, value)) = shown.split_once('=') else {
        return Some(line);
    };
    let value_start = line.start + name.len() + 1;
    let known = || TABLES.iter().filter_map(|table| table.key(name.trim()));
    if known().next().is_none() {
        return Some(line);
    }
    let is_secret = |key: &KeySpec| !matches!(key.form, Form::Plain | Form::Path);
    // A table in braces has keys of its own, which the mistake may have made unrecognizable.
    let is_table = |key: &KeySpec| {
        matches!(
            key.value_type,
            ValueType::Table(_) | ValueType::Tables(_) | ValueType::Named(_)
        )
    };
    let mut secrets = TABLES
        .iter()
        .flat_map(|table| table.keys)
        .filter(|key| is_secret(key));
    if known().any(|key| is_secret(key) || is_table(key))
        || value.contains(['{', '}'])
        || secrets.any(|key| value.contains(key.name))
    {
        return Some(value_start..line.end);
    }
    let rest = mistake.end.clamp(value_start, line.end)..line.end;
    text[rest.clone()]
        .contains(['=', '"', '\''])
        .then_some(rest)
}

/// How much of a line may be shown that begins as a header: brackets around the name of a table that
/// exists. Anything else may be the rest of a list or string that was broken over lines.
fn length_of_header(line: &str) -> usize {
    let brackets = |text: &str, bracket| text.len() - text.trim_start_matches(bracket).len();
    let indent = line.len() - line.trim_start().len();
    let start = indent + brackets(&line[indent..], '[');
    let is_in_name = |c: char| c.is_ascii_alphanumeric() || ['_', '-', '.', ' '].contains(&c);
    let name = line[start..]
        .split(|c| !is_in_name(c))
        .next()
        .unwrap_or_default();
    let first = name.split('.').next().unwrap_or_default().trim();
    let end = start + name.len();
    match brackets(&line[end..], ']') {
        0 => 0,
        closing if File::TABLE.key(first).is_some() => end + closing,
        _ => 0,
    }
}

/// Sorts ranges and joins those that overlap.
fn merged(mut ranges: Vec<Range<usize>>) -> Vec<Range<usize>> {
    ranges.retain(|range| !range.is_empty());
    ranges.sort_by_key(|range| range.start);
    let mut merged: Vec<Range<usize>> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Parsed {
        Source::parse(Label::File(PathBuf::from("f.toml")), text.to_string())
    }

    fn texts(parsed: &Parsed) -> Vec<String> {
        let problem = |mistake: &Mistake| {
            let problem = parsed.source.problem(&mistake.span, mistake.text.clone());
            crate::config::ConfigError(vec![problem]).to_string()
        };
        parsed.mistakes.iter().map(problem).collect()
    }

    #[test]
    fn an_unclosed_list_is_one_mistake() {
        let parsed = parsed("[[listener]]\ntargets = [\"a\",\nauth = \"trust\"\nadress = 5\n");
        assert_eq!(parsed.mistakes.len(), 1, "{:?}", parsed.mistakes);
        assert!(parsed.incomplete);
    }

    #[test]
    fn a_mistake_within_a_line_hides_no_other() {
        let parsed = parsed("[admin]\nhttp = = 5\nhtp = 1\n[log]\nlevel = \"loud\nformt = 1\n");
        let mut places: Vec<_> = texts(&parsed)
            .iter()
            .map(|text| text.split(": ").next().unwrap().to_string())
            .collect();
        places.sort();
        assert_eq!(
            places,
            ["f.toml:2:8", "f.toml:3:1", "f.toml:5:14", "f.toml:6:1"]
        );
    }

    #[test]
    fn lines_that_are_not_toml_show_no_secret() {
        for text in [
            "[user.ana]\npassword = hunter2\n",
            "[user.ana]\npassword = \"hunter2\n",
            "[user.ana]\npassword \"hunter2\"\n",
            "[user.ana]\npwd = = \"hunter2\"\n",
            "[user.ana]\nhunter2\n",
            "[user.ana]password = \"hunter2\"\n",
            "[[listener]]]hunter2==\n",
            "  [user.hunter2 = 5\n",
            "[user.ana]\npass \"hunter2==\"\n",
            "[user.ana]\nhunter2== \"\n",
            "[user.ana]\nrole_arn = \"x\"password = \"hunter2\"\n",
            "[user.ana]\nrole_arn = \"x\"pwd = \"hunter2\"\n",
            "[user.ana]\ntargets = [\"x\"\npassword = \"hunter2\"\n",
            "password = \"\"\"\nhunter2 \\q\n\"\"\"\n",
            "[user.ana = { password = \"hunter2\", targets = [\"a\"] }\n",
            "[user.ana password = \"hunter2\"  # [\"x\"]\n",
            "user = { ana = { pwd = \"hunter2\", targets = [\"a\"] }\n",
            "user = { ana = { \"p\" = \"hunter2\" }\n",
            "user = { ana = \"hunter2\"\n",
            "user = { cy = { pass word = '''hunter2''' } }\n",
            "user = { cy ='''hunter2''' } }\n",
            "[user.ana]\npassword = [ \"x\",\n  [hunter2\" ]\n",
        ] {
            let parsed = parsed(text);
            assert!(!parsed.mistakes.is_empty(), "{text}");
            for shown in texts(&parsed) {
                assert!(!shown.contains("hunter2"), "{shown}");
            }
        }
    }

    #[test]
    fn a_secret_beside_a_mistake_is_replaced() {
        let parsed = parsed("user.ana = { password = \"hunter2\", targts = [] } # hunter\n");
        let shown = texts(&parsed).join("\n");
        assert!(shown.contains("{ password = …, targts = [] }"), "{shown}");
        let marks = "\n  |                            ^^^^^^";
        assert!(shown.contains(marks), "{shown}");
    }
}
