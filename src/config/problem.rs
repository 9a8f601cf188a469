//! What is wrong with a configuration, where, and how is a person shown the place?

use std::fmt;
use std::ops::Range;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};

/// How many mistakes are shown. Nobody reads on before these are mended.
pub(super) const MAX_SHOWN: usize = 1_000;

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// `file:line:column`, where both numbers begin at 1 and columns are characters; or the file
    /// alone, or the target URL without its parameters.
    pub place: String,
    /// What is wrong and what to write instead.
    pub text: String,
    /// The line in question, if the place is in the configuration file.
    pub excerpt: Option<Excerpt>,
}

/// A line of the configuration in which secrets have been replaced, so that it may be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Excerpt {
    /// Number of the line, from 1.
    pub number: usize,
    /// The line, without its end.
    pub line: String,
    /// The bytes of the line that are pointed at.
    pub marked: Range<usize>,
}

/// Why a configuration cannot be used: every mistake in it, in the order of its lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError(pub Vec<Problem>);

impl ConfigError {
    /// The mistakes with colours, for a terminal. `Display` writes them without.
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
        let mut problems: Vec<_> = self
            .0
            .iter()
            .take(MAX_SHOWN)
            .map(|problem| problem.rendered(renderer))
            .collect();
        if self.0.len() > MAX_SHOWN {
            problems.push("… and more".to_string());
        }
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
    /// The place comes first, in the form that editors and `grep -n` use. The renderer's own
    /// headline is left out.
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

/// The problems that have been found so far, not yet in the order of lines.
#[derive(Debug, Default)]
pub(super) struct Problems(Vec<Found>);

#[derive(Debug)]
struct Found {
    /// The index of the source, and the byte in it.
    at: (usize, usize),
    problem: Problem,
}

impl Problems {
    /// Adds a problem at this byte of the source with this index.
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

    /// All problems in order; `None` if there are none.
    pub fn into_error(mut self) -> Option<ConfigError> {
        // The sort is stable, so that problems at the same place keep their order.
        self.0.sort_by_key(|found| found.at);
        let mut problems: Vec<_> = self.0.into_iter().map(|found| found.problem).collect();
        // Several rules of a listener may come to the same conclusion.
        problems.dedup();
        (!problems.is_empty()).then_some(ConfigError(problems))
    }
}
