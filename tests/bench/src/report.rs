//! How are the figures shown? Two tables as text and as Markdown, and everything as JSON.

use std::collections::BTreeSet;
use std::fs;

use anyhow::Result;
use serde_json::json;

use crate::goals::{Bound, Judged, goals};
use crate::noise::Verdict;
use crate::run::Run;

/// Prints the tables and writes the files; says where they are.
pub fn write(run: &Run) -> Result<()> {
    let verdict = run.noise.verdict();
    let judged: Vec<Judged> = goals().into_iter().filter_map(|goal| goal.judge(&run.results)).collect();
    let (figures, ratios) = (figures(run), ratios(&judged, &verdict));
    let text = [padded(&figures), String::new(), padded(&ratios), String::new(), words(run, &judged, &verdict)].join("\n");
    println!("\n{text}");
    let folder = &run.options.output;
    fs::create_dir_all(folder)?;
    let markdown = [markdown(&ratios), String::new(), markdown(&figures), String::new(), words(run, &judged, &verdict)].join("\n");
    fs::write(folder.join("bench.md"), markdown)?;
    let file = json!({
        "noise": verdict.to_json(),
        "rounds": run.options.rounds,
        "quick": run.options.quick,
        "results": run.results.to_json(),
        "goals": judged.iter().map(to_json).collect::<Vec<_>>(),
    });
    fs::write(folder.join("bench.json"), serde_json::to_string_pretty(&file)?)?;
    println!("Written: {}", ["bench.md", "bench.json"].map(|name| folder.join(name).display().to_string()).join(", "));
    Ok(())
}

/// Medians of everybody.
fn figures(run: &Run) -> Vec<Vec<String>> {
    let mut names: Vec<&str> = run.options.subjects.iter().map(crate::peers::Subject::name).collect();
    let measured: BTreeSet<&str> = run.results.figures().flat_map(|(figure, leg)| run.results.subjects(figure, leg)).collect();
    names.retain(|name| measured.contains(name));
    let mut table = vec![["figure", "leg"].iter().chain(&names).map(ToString::to_string).collect::<Vec<_>>()];
    for (figure, leg) in run.results.figures() {
        let cell = |name: &&str| run.results.spread(figure, leg, name).map_or_else(String::new, |spread| number(spread.median));
        table.push([figure.to_owned(), leg.name().to_owned()].into_iter().chain(names.iter().map(cell)).collect());
    }
    table
}

fn ratios(judged: &[Judged], verdict: &Verdict) -> Vec<Vec<String>> {
    let heading = ["figure", "leg", "ours", "against", "theirs", "ratio min", "median", "max", "goal", "verdict"];
    let mut table = vec![heading.map(str::to_owned).to_vec()];
    for Judged { goal, ours, peer, ratio, met } in judged {
        let (name, theirs) =
            peer.as_ref().map_or_else(|| ("itself".to_owned(), String::new()), |(name, spread)| (name.clone(), number(spread.median)));
        let bound = match goal.bound {
            Bound::AtLeast(least) => format!(">= {least}"),
            Bound::AtMost(most) => format!("<= {most}"),
        };
        let word = match met {
            _ if !verdict.reasons.is_empty() => "none",
            true => "met",
            false => "MISSED",
        };
        let cells = [goal.figure, goal.leg.name(), &number(ours.median), &name, &theirs];
        let cells = cells.into_iter().map(str::to_owned).chain([ratio.min, ratio.median, ratio.max].map(|value| format!("{value:.2}")));
        table.push(cells.chain([bound, word.to_owned()]).collect());
    }
    table
}

fn words(run: &Run, judged: &[Judged], verdict: &Verdict) -> String {
    let mut lines: Vec<String> = Vec::new();
    lines.push(format!(
        "{} rounds, interleaved, {} s in all; medians, ratios within a round.",
        run.options.rounds,
        run.options.started.elapsed().as_secs()
    ));
    lines.extend(run.options.subjects.iter().map(|subject| format!("{}: {}.", subject.name(), subject.settings())));
    lines.extend(run.results.failures.iter().map(|failure| format!("Not measured: {failure}")));
    lines.push(format!("Noise: {verdict}."));
    if verdict.reasons.is_empty() {
        lines.push(format!("{} of {} goals met.", judged.iter().filter(|judged| judged.met).count(), judged.len()));
    } else {
        lines.push(format!("No verdict, the machine was too noisy: {}.", verdict.reasons.join("; ")));
    }
    lines.join("\n")
}

fn to_json(judged: &Judged) -> serde_json::Value {
    let (bound, value) = match judged.goal.bound {
        Bound::AtLeast(least) => ("at_least", least),
        Bound::AtMost(most) => ("at_most", most),
    };
    let spread = |spread: &crate::results::Spread| json!({ "min": spread.min, "median": spread.median, "max": spread.max });
    json!({
        "figure": judged.goal.figure,
        "leg": judged.goal.leg.name(),
        "ours": spread(&judged.ours),
        "against": judged.peer.as_ref().map(|(name, _)| name),
        "theirs": judged.peer.as_ref().map(|(_, theirs)| spread(theirs)),
        "ratio": spread(&judged.ratio),
        bound: value,
        "met": judged.met,
    })
}

fn padded(table: &[Vec<String>]) -> String {
    let widths: Vec<usize> =
        (0..table[0].len()).map(|column| table.iter().map(|row| row[column].len()).max().unwrap_or_default()).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).enumerate();
        let cells = cells.map(|(index, (cell, width))| if index < 2 { format!("{cell:<width$}") } else { format!("{cell:>width$}") });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    table.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn markdown(table: &[Vec<String>]) -> String {
    let line = |row: &Vec<String>| format!("| {} |", row.join(" | "));
    let rule = format!("|{}", "---|".repeat(table[0].len()));
    let mut lines = vec![line(&table[0]), rule];
    lines.extend(table[1..].iter().map(line));
    lines.join("\n")
}

/// Three digits that count.
fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
