//! What is wrong with a configuration, where, and how is a person shown the place?

use std::fmt;
use std::ops::Range;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// `file:line:column`, each counted from 1 and the column in characters; or the file alone,
    /// or the target URL without its parameters.
    pub place: String,
    /// What is wrong and what to write instead.
    pub text: String,
    /// The line that it is about, for places in the configuration file.
    pub excerpt: Option<Excerpt>,
}

/// A line of the configuration as it may be shown: secrets in it have been replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Excerpt {
    /// Number of the line, from 1.
    pub number: usize,
    /// The line, without its end.
    pub line: String,
    /// The bytes of the line that are pointed at.
    pub marked: Range<usize>,
}

/// A configuration that cannot be used: every mistake found in it, in the order of its lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError(pub Vec<Problem>);

impl ConfigError {
    /// With colours, for a terminal. `Display` has none.
    pub fn styled(&self) -> String {
        self.rendered(&Renderer::styled())
    }

    pub(super) fn one(place: impl Into<String>, text: impl Into<String>) -> Self {
        Self(vec![Problem {
            place: place.into(),
            text: text.into(),
            excerpt: None,
        }])
    }

    fn rendered(&self, renderer: &Renderer) -> String {
        let problems: Vec<_> = self
            .0
            .iter()
            .map(|problem| problem.rendered(renderer))
            .collect();
        problems.join("\n")
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.rendered(&Renderer::plain()))
    }
}

impl std::error::Error for ConfigError {}

impl Problem {
    /// The place comes first, as editors and `grep -n` have it; the renderer's own headline is
    /// left out.
    fn rendered(&self, renderer: &Renderer) -> String {
        let head = format!("{}: {}", self.place, self.text);
        let Some(excerpt) = &self.excerpt else {
            return head;
        };
        let snippet = Snippet::source(&excerpt.line)
            .line_start(excerpt.number)
            .annotation(AnnotationKind::Primary.span(excerpt.marked.clone()));
        let group = Group::with_level(Level::ERROR).element(snippet);
        format!("{head}\n{}", renderer.render(&[group]))
    }
}

/// Problems while they are being found, which is not in the order of lines.
#[derive(Debug, Default)]
pub(super) struct Problems(Vec<Found>);

#[derive(Debug)]
struct Found {
    /// Index of the source, and the place in it.
    at: (usize, usize),
    problem: Problem,
}

impl Problems {
    /// Adds one that is found at this byte of the source with this index.
    pub fn add(&mut self, source: usize, byte: usize, problem: Problem) {
        self.0.push(Found {
            at: (source, byte),
            problem,
        });
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// All of them in order; `None` when there are none.
    pub fn into_error(mut self) -> Option<ConfigError> {
        // The sort is stable: what is found first at a place stays first.
        self.0.sort_by_key(|found| found.at);
        let mut problems: Vec<_> = self.0.into_iter().map(|found| found.problem).collect();
        // Several rules of a listener may come to the same conclusion.
        problems.dedup();
        (!problems.is_empty()).then_some(ConfigError(problems))
    }
}
