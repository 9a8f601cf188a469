//! What does the chart of the README look like? It has a row for each of five figures, a column for
//! each leg, and a bar for each subject.

use crate::goals::OURS;
use crate::peers::LegKind;
use crate::results::Results;
use crate::titles::number;

const ROWS: [(&str, &str); 5] = [
    (
        "bulk_down_mb_s",
        "Bulk data to the client, MB/s: more is better",
    ),
    (
        "bulk_down_cpu_s_per_gb",
        "CPU seconds for a gigabyte: less is better",
    ),
    (
        "trips_16_cpu_us",
        "CPU of a round trip with 16 clients, µs: less is better",
    ),
    (
        "logins_fresh_per_s",
        "Logins a second, nothing pooled: more is better",
    ),
    (
        "memory_1000_burst_kib",
        "Memory of an idle session, KiB: less is better",
    ),
];
const LEGS: [(LegKind, &str); 2] = [
    (LegKind::Plain, "client leg plain"),
    (LegKind::Tls, "client leg TLS"),
];
const NAMES: [&str; 5] = [OURS, "haproxy", "nginx", "pgbouncer", "stunnel"];
const COLUMN: usize = 430;
const LABEL: usize = 96;
/// The space for the number next to a bar.
const NUMBER: usize = 70;
const BAR: usize = 12;
const STEP: usize = 16;
const TITLE: usize = 18;
const GAP: usize = 14;
const STYLE: &str = "text{font:12px system-ui,sans-serif;fill:#57606a}\
    .title{font-weight:600;fill:#24292f}\
    .ours{fill:#0a7f5a}.peer{fill:#9aa4af}\
    @media(prefers-color-scheme:dark){text{fill:#9aa4af}.title{fill:#e6edf3}\
    .ours{fill:#3fb98c}.peer{fill:#5b6570}}";

/// Returns `None` if nothing that the chart shows was measured.
pub fn svg(results: &Results) -> Option<String> {
    let mut y = TITLE;
    let mut rows = String::new();
    for (x, (_, leg)) in [0, COLUMN].into_iter().zip(LEGS) {
        rows += &format!("<text x=\"{}\" y=\"{y}\">{leg}</text>\n", x + LABEL);
    }
    let heading = y + GAP;
    y = heading;
    for (figure, title) in ROWS {
        if let Some((row, height)) = row(results, figure, title) {
            rows += &format!("<g transform=\"translate(0 {y})\">\n{row}</g>\n");
            y += height;
        }
    }
    (y > heading).then(|| {
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {y}\" role=\"img\" \
             aria-label=\"pg-iam-proxy and its peers\">\n<style>{STYLE}</style>\n{rows}</svg>\n",
            2 * COLUMN
        )
    })
}

/// Draws one row, and returns it with its height.
fn row(results: &Results, figure: &str, title: &str) -> Option<(String, usize)> {
    let median = |leg, name| Some(results.spread(figure, leg, name)?.median);
    let most = LEGS
        .iter()
        .flat_map(|(leg, _)| NAMES.map(|name| median(*leg, name)))
        .flatten()
        .fold(0.0, f64::max);
    if most <= 0.0 {
        return None;
    }
    let mut text = format!("<text class=\"title\" x=\"8\" y=\"{TITLE}\">{title}</text>\n");
    let mut height = TITLE;
    for (x, (leg, _)) in [0, COLUMN].into_iter().zip(LEGS) {
        let mut y = TITLE;
        for (name, value) in NAMES
            .iter()
            .filter_map(|name| Some((*name, median(leg, name)?)))
        {
            y += STEP;
            let start = x + LABEL;
            let width = (value / most * (COLUMN - LABEL - NUMBER) as f64).max(1.0);
            let class = if name == OURS { "ours" } else { "peer" };
            text += &format!(
                "<text x=\"{}\" y=\"{y}\" text-anchor=\"end\">{name}</text>",
                start - 6
            );
            text += &format!(
                "<rect class=\"{class}\" x=\"{start}\" y=\"{}\" width=\"{width:.1}\" \
                 height=\"{BAR}\" rx=\"2\"/>",
                y + 2 - BAR
            );
            text += &format!(
                "<text x=\"{:.1}\" y=\"{y}\">{}</text>\n",
                start as f64 + width + 6.0,
                number(value)
            );
        }
        height = height.max(y);
    }
    Some((text, height + GAP))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_as_wide_as_its_longest_bar_and_missing_ones_take_no_space() {
        assert_eq!(svg(&Results::default()), None);
        let mut results = Results::default();
        results.add("bulk_down_mb_s", LegKind::Plain, OURS, 0, 2000.0);
        results.add("bulk_down_mb_s", LegKind::Tls, "nginx", 0, 1000.0);
        let svg = svg(&results).expect("a figure was measured");
        assert_eq!(svg.matches("class=\"title\"").count(), 1);
        assert!(svg.contains("class=\"ours\" x=\"96\" y=\"24\" width=\"264.0\""));
        assert!(svg.contains("class=\"peer\" x=\"526\" y=\"24\" width=\"132.0\""));
        assert!(svg.contains("viewBox=\"0 0 860 80\""), "{svg}");
    }
}
