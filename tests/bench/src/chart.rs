//! The chart of the README: a panel for each of the main figures, a bar for everybody.

use crate::goals::OURS;
use crate::peers::LegKind;
use crate::results::Results;
use crate::titles::number;

const PANELS: [(&str, &str); 6] = [
    (
        "bulk_down_mb_s",
        "Bulk to the client, MB/s — more is better",
    ),
    (
        "bulk_down_cpu_s_per_gb",
        "CPU for a gigabyte, seconds — less is better",
    ),
    (
        "trips_16_cpu_us",
        "CPU of a round trip, 16 clients, µs — less is better",
    ),
    (
        "logins_fresh_per_s",
        "Logins a second, nothing pooled — more is better",
    ),
    ("logins_fresh_cpu_ms", "CPU of a login, ms — less is better"),
    (
        "memory_1000_burst_kib",
        "Memory of an idle session, KiB — less is better",
    ),
];
const NAMES: [&str; 5] = [OURS, "haproxy", "nginx", "pgbouncer", "stunnel"];
const COLUMN: usize = 430;
const LABEL: usize = 96;
const BAR: usize = 12;
const STEP: usize = 16;
const LEG_GAP: usize = 22;
const STYLE: &str = "text{font:12px system-ui,sans-serif;fill:#57606a}.title{font-weight:600;fill:#24292f}.ours{fill:#0a7f5a}.peer{fill:#9aa4af}\
    @media(prefers-color-scheme:dark){text{fill:#9aa4af}.title{fill:#e6edf3}.ours{fill:#3fb98c}.peer{fill:#5b6570}}";

/// None where none of the panels was measured.
pub fn svg(results: &Results) -> Option<String> {
    let panels: Vec<(String, usize)> = PANELS
        .iter()
        .filter_map(|(figure, title)| panel(results, figure, title))
        .collect();
    let height = panels.iter().map(|(_, height)| *height).max()?;
    let rows = panels.len().div_ceil(2);
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"pg-iam-proxy and its peers\">\n<style>{STYLE}</style>\n",
        2 * COLUMN,
        rows * height
    );
    for (index, (content, _)) in panels.iter().enumerate() {
        let (x, y) = (index % 2 * COLUMN, index / 2 * height);
        text += &format!("<g transform=\"translate({x} {y})\">\n{content}</g>\n");
    }
    text += "</svg>\n";
    Some(text)
}

/// And its height.
fn panel(results: &Results, figure: &str, title: &str) -> Option<(String, usize)> {
    let median = |leg, name| {
        results
            .spread(figure, leg, name)
            .map(|spread| spread.median)
    };
    let bars = |leg| {
        NAMES
            .iter()
            .filter_map(move |name| Some((*name, median(leg, name)?)))
            .collect::<Vec<_>>()
    };
    let legs = [
        ("client leg plain", bars(LegKind::Plain)),
        ("client leg TLS", bars(LegKind::Tls)),
    ];
    let most = legs
        .iter()
        .flat_map(|(_, bars)| bars)
        .map(|(_, value)| *value)
        .fold(0.0, f64::max);
    if most <= 0.0 {
        return None;
    }
    let mut y = 18;
    let mut text = format!("<text class=\"title\" x=\"8\" y=\"{y}\">{title}</text>\n");
    for (leg, bars) in legs.iter().filter(|(_, bars)| !bars.is_empty()) {
        y += LEG_GAP;
        text += &format!("<text x=\"8\" y=\"{y}\">{leg}</text>\n");
        for (name, value) in bars {
            y += STEP;
            let width = (value / most * (COLUMN - LABEL - 70) as f64).max(1.0);
            let class = if *name == OURS { "ours" } else { "peer" };
            let top = y - BAR + 2;
            text += &format!(
                "<text x=\"{}\" y=\"{y}\" text-anchor=\"end\">{name}</text>",
                LABEL - 6
            );
            text += &format!(
                "<rect class=\"{class}\" x=\"{LABEL}\" y=\"{top}\" width=\"{width:.1}\" height=\"{BAR}\" rx=\"2\"/>"
            );
            text += &format!(
                "<text x=\"{:.1}\" y=\"{y}\">{}</text>\n",
                LABEL as f64 + width + 6.0,
                number(*value)
            );
        }
    }
    Some((text, y + LEG_GAP))
}
