//! How are the figures shown? There are two tables, as text and as Markdown, and everything as
//! JSON.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::chart;
use crate::goals::{Against, Bound, GoalResult, Word, goals};
use crate::noise::Verdict;
use crate::peers::LegKind;
use crate::results::Spread;
use crate::run::Run;
use crate::titles::{number, title};

/// The page with the whole table, and with the chart that it shares with the README.
const PAGE: &str = "docs/performance.md";
const CHART: &str = "docs/performance.svg";
const FIGURES: [&str; 2] = ["<!-- figures -->\n", "<!-- /figures -->"];

/// Prints the tables, writes the files, and says where they are.
pub fn write(run: &Run) -> Result<()> {
    let verdict = run.noise.verdict();
    let judged: Vec<GoalResult> = goals()
        .into_iter()
        .filter_map(|goal| goal.judge(&run.results))
        .collect();
    let (figures, ratios) = (figures(run), ratios(&judged, &verdict));
    let text = [
        padded(&figures),
        String::new(),
        padded(&ratios),
        String::new(),
        words(run, &judged, &verdict),
    ]
    .join("\n");
    println!("\n{text}");
    let folder = &run.options.output;
    fs::create_dir_all(folder)?;
    let all = [
        markdown(&ratios),
        String::new(),
        markdown(&figures),
        String::new(),
        words(run, &judged, &verdict),
    ]
    .join("\n");
    fs::write(folder.join("bench.md"), all)?;
    let short = markdown(&short(&judged));
    fs::write(folder.join("performance.md"), format!("{short}\n"))?;
    let mut written = vec!["bench.md", "performance.md", "bench.json"];
    if let Some(svg) = chart::svg(&run.results) {
        fs::write(folder.join("chart.svg"), svg)?;
        written.push("chart.svg");
    }
    let file = json!({
        "noise": verdict.to_json(),
        "rounds": run.options.rounds,
        "quick": run.options.quick,
        "results": run.results.to_json(),
        "goals": judged.iter().map(to_json).collect::<Vec<_>>(),
    });
    fs::write(
        folder.join("bench.json"),
        serde_json::to_string_pretty(&file)?,
    )?;
    if run.options.publish {
        ensure!(
            verdict.reasons.is_empty(),
            "{PAGE} stays as it is: the machine was too noisy"
        );
        let page = fs::read_to_string(PAGE).context(PAGE)?;
        let noise = format!("{} rounds; {verdict}.", run.options.rounds);
        fs::write(PAGE, with_figures(&page, &format!("{short}\n\n{noise}"))?)?;
        fs::copy(folder.join("chart.svg"), CHART)?;
    }
    println!(
        "Written: {}",
        written
            .iter()
            .map(|name| folder.join(name).display().to_string())
            .collect::<Vec<_>>()
            .join(", ")
    );
    Ok(())
}

/// Replaces what stands between the marks of a page.
fn with_figures(page: &str, figures: &str) -> Result<String> {
    let (before, rest) = page
        .split_once(FIGURES[0])
        .context("no mark where the figures begin")?;
    let (_, after) = rest
        .split_once(FIGURES[1])
        .context("no mark where the figures end")?;
    Ok(format!(
        "{before}{}{figures}\n{}{after}",
        FIGURES[0], FIGURES[1]
    ))
}

/// The medians of all subjects.
fn figures(run: &Run) -> Vec<Vec<String>> {
    let mut names: Vec<&str> = run
        .options
        .subjects
        .iter()
        .map(crate::peers::Subject::name)
        .collect();
    let measured: BTreeSet<&str> = run
        .results
        .figures()
        .flat_map(|(figure, leg)| run.results.subjects(figure, leg))
        .collect();
    names.retain(|name| measured.contains(name));
    let mut table = vec![
        ["figure", "leg"]
            .iter()
            .chain(&names)
            .map(ToString::to_string)
            .collect::<Vec<_>>(),
    ];
    for (figure, leg) in run.results.figures() {
        let cell = |name: &&str| {
            run.results
                .spread(figure, leg, name)
                .map_or_else(String::new, |spread| number(spread.median))
        };
        table.push(
            [figure.to_owned(), leg.name().to_owned()]
                .into_iter()
                .chain(names.iter().map(cell))
                .collect(),
        );
    }
    table
}

fn ratios(judged: &[GoalResult], verdict: &Verdict) -> Vec<Vec<String>> {
    let heading = [
        "figure",
        "leg",
        "ours",
        "against",
        "theirs",
        "ratio min",
        "median",
        "max",
        "goal",
        "verdict",
    ];
    let mut table = vec![heading.map(str::to_owned).to_vec()];
    for GoalResult {
        goal,
        ours,
        peer,
        ratio,
        word,
    } in judged
    {
        let (name, theirs) = peer.as_ref().map_or_else(
            || ("itself".to_owned(), String::new()),
            |(name, spread)| (name.clone(), number(spread.median)),
        );
        let bound = match goal.bound {
            Bound::AtLeast(least) => format!(">= {least}"),
            Bound::AtMost(most) => format!("<= {most}"),
        };
        let word = match word {
            _ if !verdict.reasons.is_empty() => "none",
            Word::Met => "met",
            Word::Missed => "MISSED",
            Word::MachineFull => "machine full",
        };
        let cells = [
            goal.figure,
            goal.leg.name(),
            &number(ours.median),
            &name,
            &theirs,
        ];
        let cells = cells
            .into_iter()
            .map(str::to_owned)
            .chain([ratio.min, ratio.median, ratio.max].map(|value| format!("{value:.2}")));
        table.push(cells.chain([bound, word.to_owned()]).collect());
    }
    table
}

/// The table of the page in words, with a row for each figure and the peer that it is compared
/// with, and a column for each leg.
fn short(judged: &[GoalResult]) -> Vec<Vec<String>> {
    let mut table = vec![
        [
            "ours : theirs, ratio (least to most)",
            "client leg plain",
            "client leg TLS",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    let mut rows: Vec<(&str, Against, [String; 2])> = Vec::new();
    for GoalResult {
        goal,
        ours,
        peer,
        ratio,
        ..
    } in judged
    {
        let cell = match peer {
            None => number(ours.median),
            Some((name, theirs)) => {
                let (ours, theirs) = (number(ours.median), number(theirs.median));
                format!(
                    "{ours} : {theirs} {name}, **{:.2}** ({:.2} to {:.2})",
                    ratio.median, ratio.min, ratio.max
                )
            }
        };
        let row = rows
            .iter()
            .position(|(figure, against, _)| *figure == goal.figure && *against == goal.against)
            .unwrap_or(rows.len());
        if row == rows.len() {
            rows.push((goal.figure, goal.against, Default::default()));
        }
        rows[row].2[usize::from(goal.leg == LegKind::Tls)] = cell;
    }
    table.extend(
        rows.into_iter()
            .map(|(figure, _, [plain, tls])| vec![title(figure), plain, tls]),
    );
    table
}

fn words(run: &Run, judged: &[GoalResult], verdict: &Verdict) -> String {
    let mut lines: Vec<String> = Vec::new();
    lines.push(format!(
        "{} rounds, interleaved, {} s in all; medians, ratios within a round.",
        run.options.rounds,
        run.options.started.elapsed().as_secs()
    ));
    lines.extend(
        run.options
            .subjects
            .iter()
            .map(|subject| format!("{}: {}.", subject.name(), subject.settings())),
    );
    lines.extend(
        run.results
            .failures
            .iter()
            .map(|failure| format!("Not measured: {failure}")),
    );
    lines.push(format!("Noise: {verdict}."));
    if verdict.reasons.is_empty() {
        let count = |word| judged.iter().filter(|judged| judged.word == word).count();
        let (met, missed, full) = (
            count(Word::Met),
            count(Word::Missed),
            count(Word::MachineFull),
        );
        lines.push(format!(
            "{met} goals met, {missed} missed, {full} that this machine has too \
            few processors to show."
        ));
    } else {
        lines.push(format!(
            "No verdict, the machine was too noisy: {}.",
            verdict.reasons.join("; ")
        ));
    }
    lines.join("\n")
}

fn to_json(judged: &GoalResult) -> serde_json::Value {
    let (bound, value) = match judged.goal.bound {
        Bound::AtLeast(least) => ("at_least", least),
        Bound::AtMost(most) => ("at_most", most),
    };
    let spread =
        |spread: &Spread| json!({ "min": spread.min, "median": spread.median, "max": spread.max });
    json!({
        "figure": judged.goal.figure,
        "leg": judged.goal.leg.name(),
        "ours": spread(&judged.ours),
        "against": judged.peer.as_ref().map(|(name, _)| name),
        "theirs": judged.peer.as_ref().map(|(_, theirs)| spread(theirs)),
        "ratio": spread(&judged.ratio),
        bound: value,
        "verdict": format!("{:?}", judged.word),
    })
}

fn padded(table: &[Vec<String>]) -> String {
    let widths: Vec<usize> = (0..table[0].len())
        .map(|column| {
            table
                .iter()
                .map(|row| row[column].len())
                .max()
                .unwrap_or_default()
        })
        .collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).enumerate();
        let cells = cells.map(|(index, (cell, width))| {
            if index < 2 {
                format!("{cell:<width$}")
            } else {
                format!("{cell:>width$}")
            }
        });
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

#[cfg(test)]
mod tests {
    use super::{PAGE, with_figures};

    #[test]
    fn only_what_stands_between_the_marks_is_replaced() {
        let page = "a\n<!-- figures -->\nold\n<!-- /figures -->\nb\n";
        let new = with_figures(page, "new").expect("it has marks");
        assert_eq!(new, "a\n<!-- figures -->\nnew\n<!-- /figures -->\nb\n");
        assert_eq!(with_figures(&new, "new").expect("it has marks"), new);
        assert!(with_figures("no marks", "new").is_err());
    }

    #[test]
    fn the_page_has_marks_for_the_figures() {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
        let page = std::fs::read_to_string(format!("{root}/{PAGE}")).expect("it is there");
        assert!(with_figures(&page, "new").is_ok());
    }
}
