//! A file of users and password verifiers in the format of pgbouncer's `userlist.txt`.
//!
//! Each line is `"name" "verifier"`; a quote in either is doubled, a line that begins with `;` is a
//! comment. Source: <https://www.pgbouncer.org/config.html#authentication-file-format>.

use std::path::Path;

use crate::verifier::Verifier;

/// Reads the users of a file.
///
/// # Errors
/// What is wrong and in which line; never a line's text, which may hold a password.
pub(super) fn read(path: &Path) -> Result<Vec<(String, Verifier)>, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("cannot read it: {error}"))?;
    parse(&text)
}

fn parse(text: &str) -> Result<Vec<(String, Verifier)>, String> {
    let mut users = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with(';') {
            continue;
        }
        let fields =
            quoted(line).and_then(|(name, rest)| Some((name, quoted(rest.trim_start())?.0)));
        let Some((name, password)) = fields else {
            return Err(format!(
                "line {number}: must be \"name\" \"verifier\", both in double quotes"
            ));
        };
        let verifier =
            Verifier::parse(&password).map_err(|rule| format!("line {number}: {rule}"))?;
        users.push((name, verifier));
    }
    Ok(users)
}

/// A quoted text, and what is behind it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut rest = text.strip_prefix('"')?;
    loop {
        let (part, behind) = rest.split_once('"')?;
        value.push_str(part);
        match behind.strip_prefix('"') {
            Some(more) => {
                value.push('"');
                rest = more;
            }
            None => return Some((value, behind)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_pgbouncer_reads_them() {
        let md5 = "md5d41d8cd98f00b204e9800998ecf8427e";
        let text =
            format!("; a comment\n\n\"ana\" \"{md5}\"\n  \"o\"\"brien\"  \"{md5}\" trailing\n");
        let names: Vec<String> = parse(&text)
            .unwrap()
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        assert_eq!(names, ["ana", "o\"brien"]);
    }

    #[test]
    fn mistakes_are_named_by_line_and_never_shown() {
        assert_eq!(
            parse("\"ana\" x").unwrap_err(),
            "line 1: must be \"name\" \"verifier\", both in double quotes"
        );
        let plain = parse("; one\n\"ana\" \"hunter2\"").unwrap_err();
        assert!(
            plain.starts_with("line 2: ") && !plain.contains("hunter2"),
            "{plain}"
        );
    }
}
