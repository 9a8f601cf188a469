//! What are figures called where people read them?

/// The words and the unit of a figure, or its own name if it has none.
pub fn title(figure: &str) -> String {
    let words: Vec<&str> = figure.split('_').collect();
    let unit = [
        ("_mb_s", "MB/s"),
        ("_cpu_s_per_gb", "CPU s/GB"),
        ("_per_s", "a second"),
        ("_cpu_us", "CPU µs"),
        ("_cpu_ms", "CPU ms"),
        ("_us", "µs"),
        ("_ms", "ms"),
        ("_kib", "KiB"),
    ]
    .into_iter()
    .find(|(end, _)| figure.ends_with(end))
    .map_or_else(String::new, |(_, unit)| format!(", {unit}"));
    let quantile = words
        .iter()
        .find(|word| matches!(**word, "p50" | "p99"))
        .map_or_else(String::new, |word| format!(" {word}"));
    match words[..] {
        ["bulk", direction, ..] => format!("bulk {direction}{unit}"),
        ["together", direction, "gain"] => format!("two bulk sessions {direction}, by one"),
        ["together", direction, ..] => format!("two bulk sessions {direction}{unit}"),
        ["trips", clients, ..] => format!("round trip, {}{quantile}{unit}", of_clients(clients)),
        ["pinned", ..] => {
            format!("round trip, 16 clients, the proxy has one processor{quantile}{unit}")
        }
        ["storm", ..] => format!("login, 1000 clients at once{quantile}{unit}"),
        ["burst", kind, ..] => {
            format!("logins, 8 clients leave and come again, {kind}{quantile}{unit}")
        }
        ["login", kind, ..] => format!("login, {kind}{quantile}{unit}"),
        ["logins", kind, ..] => format!("logins, {kind}{unit}"),
        ["memory", "rest", "anonymous", ..] => {
            "memory at rest without pages of files, KiB".to_owned()
        }
        ["memory", "rest", ..] => "memory at rest, KiB".to_owned(),
        ["memory", "first", ..] => "memory after the first login, KiB".to_owned(),
        ["memory", sessions, "burst", ..] => {
            format!("memory per idle session of {sessions}, after a burst, KiB")
        }
        ["memory", sessions, ..] => format!("memory per idle session of {sessions}, KiB"),
        ["beside", "growth"] => {
            "16 busy sessions beside 10000 idle ones: CPU per round trip, by that of 16 alone"
                .to_owned()
        }
        ["beside", idle, ..] => {
            format!("16 busy sessions beside {idle} idle ones, a round trip{unit}")
        }
        ["real", "copy", direction, ..] => format!("PostgreSQL: COPY {direction}{unit}"),
        ["real", "tps", clients, protocol] => format!(
            "PostgreSQL: select 1, {protocol}, {}, tps",
            of_clients(clients)
        ),
        ["real", _, _, clients, protocol] => format!(
            "PostgreSQL: select 1, {protocol}, {}{quantile}{}",
            of_clients(clients),
            if figure.contains("cpu") {
                ", CPU µs"
            } else {
                ", µs"
            }
        ),
        ["phase", phase, ..] => format!("phase of a login: {phase}{quantile}{unit}"),
        ["first", "logins"] => "first logins at once".to_owned(),
        ["first", "logins", "aws", "calls"] => "calls to AWS of all first logins".to_owned(),
        ["first", "logins", ..] => "longest wait for AWS of first logins, ms".to_owned(),
        _ => figure.to_owned(),
    }
}

/// Formats a number with three significant digits.
pub fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn of_clients(count: &str) -> String {
    if count == "1" {
        "1 client".to_owned()
    } else {
        format!("{count} clients")
    }
}
