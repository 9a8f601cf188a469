//! What was measured, by figure, leg, subject and round?

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::peers::LegKind;

#[derive(Default)]
pub struct Results {
    samples: BTreeMap<(String, LegKind), BTreeMap<String, BTreeMap<usize, f64>>>,
    pub failures: Vec<String>,
}

/// How a figure is spread over the rounds.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    pub min: f64,
    pub median: f64,
    pub max: f64,
}

impl Results {
    pub fn add(&mut self, figure: &str, leg: LegKind, subject: &str, round: usize, value: f64) {
        let subjects = self.samples.entry((figure.to_owned(), leg)).or_default();
        subjects
            .entry(subject.to_owned())
            .or_default()
            .insert(round, value);
    }

    pub fn figures(&self) -> impl Iterator<Item = (&str, LegKind)> {
        self.samples
            .keys()
            .map(|(figure, leg)| (figure.as_str(), *leg))
    }

    pub fn subjects(&self, figure: &str, leg: LegKind) -> impl Iterator<Item = &str> {
        self.samples
            .get(&(figure.to_owned(), leg))
            .into_iter()
            .flatten()
            .map(|(subject, _)| subject.as_str())
    }

    pub fn spread(&self, figure: &str, leg: LegKind, subject: &str) -> Option<Spread> {
        Spread::from_values(
            self.rounds(figure, leg, subject)?
                .values()
                .copied()
                .collect(),
        )
    }

    /// Divides one figure by another of the same round. Each may have a leg and a name of its own.
    pub fn ratio(
        &self,
        one: (&str, LegKind, &str),
        other: (&str, LegKind, &str),
    ) -> Option<Spread> {
        let others = self.rounds(other.0, other.1, other.2)?;
        let ones = self.rounds(one.0, one.1, one.2)?.iter();
        Spread::from_values(
            ones.filter_map(|(round, value)| Some(value / others.get(round)?))
                .filter(|ratio| ratio.is_finite())
                .collect(),
        )
    }

    pub fn to_json(&self) -> Value {
        let figures =
            self.samples.iter().map(|((figure, leg), subjects)| {
                json!({ "figure": figure, "leg": leg.name(), "subjects": subjects })
            });
        json!({ "figures": figures.collect::<Vec<_>>(), "failures": self.failures })
    }

    fn rounds(&self, figure: &str, leg: LegKind, subject: &str) -> Option<&BTreeMap<usize, f64>> {
        self.samples.get(&(figure.to_owned(), leg))?.get(subject)
    }
}

impl Spread {
    pub fn from_values(mut values: Vec<f64>) -> Option<Spread> {
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let (low, high) = (values[(values.len() - 1) / 2], values[values.len() / 2]);
        Some(Spread {
            min,
            median: f64::midpoint(low, high),
            max,
        })
    }
}
