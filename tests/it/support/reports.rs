//! What is said of a wrong configuration, taken apart.

use std::path::Path;

use super::proxy::output;

/// One mistake as it is reported.
#[derive(Debug)]
pub struct Report {
    /// `line:column: message`
    pub head: String,
    /// The line of the file that is shown below.
    pub line: String,
    /// What the carets are under.
    pub marked: String,
}

impl Report {
    /// The message alone.
    pub fn message(&self) -> &str {
        self.head.splitn(3, ':').nth(2).expect("a message").trim()
    }
}

/// What both `run` and `check --offline` say of this configuration, which is not good.
pub fn complaint(file: &Path) -> String {
    let path = file.display().to_string();
    let run = output(&["run", "--config", &path]);
    let check = output(&["check", "--offline", "--config", &path]);
    assert_eq!(
        (run.status.code(), check.status.code()),
        (Some(78), Some(78)),
        "{}",
        String::from_utf8_lossy(&run.stderr)
    );
    assert_eq!(run.stderr, check.stderr);
    String::from_utf8(run.stderr).expect("text")
}

/// Every mistake in this configuration, in the order in which they are reported.
pub fn reports(file: &Path) -> Vec<Report> {
    let complaint = complaint(file);
    let place = format!("\n{}:", file.display());
    format!("\n{complaint}")
        .split(&place)
        .skip(1)
        .map(report)
        .collect()
}

/// Takes a report apart and sees that its carets begin at its column.
fn report(report: &str) -> Report {
    let lines: Vec<&str> = report.trim_end().lines().collect();
    let [head, _, line, carets] = lines[..] else {
        panic!("a mistake with its line and carets: {report}");
    };
    let mut place = head.splitn(3, ':');
    let number = place.next().expect("a line");
    let column = place.next().expect("a column");
    let column: usize = column.parse().expect("a number");
    let line = line.strip_prefix(&format!("{number} | ")).expect("a line");
    let carets = &carets[number.len() + 3..];
    assert_eq!(carets.find('^'), Some(column - 1), "{report}");
    let marked = line.chars().skip(column - 1);
    Report {
        head: head.to_string(),
        line: line.to_string(),
        marked: marked.take(carets.trim().len()).collect(),
    }
}
