//! What does a file of users and password verifiers in the format of pgbouncer's `userlist.txt`
//! say?
//!
//! Each line is `"name" "verifier"`; a quote in either is doubled, and a line that begins with `;`
//! is a comment. Source: <https://www.pgbouncer.org/config.html#authentication-file-format>.

use super::values::Mistake;
use crate::verifier::Verifier;

/// The longest file in bytes, which is enough for a hundred thousand users.
pub(super) const LONGEST: u64 = 16 << 20;

/// The users in a file, and its mistakes. The text of a mistake never quotes its line, which may
/// contain a password.
#[derive(Debug, Default)]
pub(super) struct UsersFile {
    /// The names and verifiers on the lines that are good.
    pub users: Vec<(String, Verifier)>,
    /// One mistake for each line that is not.
    pub mistakes: Vec<Mistake>,
}

/// Reads every line of a file.
pub(super) fn parse(text: &str) -> UsersFile {
    let mut file = UsersFile::default();
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        let indent = line.len() - line.trim_start().len();
        let entry = line.trim();
        if !entry.is_empty() && !entry.starts_with(';') {
            match user(entry) {
                Ok(user) => file.users.push(user),
                Err((column, rule)) => {
                    let byte = start + indent + column;
                    file.mistakes.push(Mistake {
                        span: byte..byte,
                        text: rule.to_string(),
                    });
                }
            }
        }
        start += line.len();
    }
    file
}

/// The user on a line; or the byte at which the line is wrong, and the reason.
fn user(entry: &str) -> Result<(String, Verifier), (usize, &'static str)> {
    let form = "must be \"name\" \"verifier\", both in double quotes";
    let (name, rest) = quoted(entry).ok_or((0, form))?;
    let rest = rest.trim_start();
    let (password, _) = quoted(rest).ok_or((0, form))?;
    let verifier = Verifier::parse(&password).map_err(|rule| (entry.len() - rest.len(), rule))?;
    Ok((name, verifier))
}

/// The quoted text at the beginning, and what comes after it.
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
        let file = parse(&text);
        let names: Vec<_> = file.users.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["ana", "o\"brien"]);
        assert!(file.mistakes.is_empty());
    }

    #[test]
    fn every_line_that_is_wrong_is_named_and_none_is_shown() {
        let md5 = "md5d41d8cd98f00b204e9800998ecf8427e";
        let text = format!("\"ana\" x\n; one\n  \"bo\" \"hunter2\"\n\"cy\" \"{md5}\"\nhunter2\n");
        let file = parse(&text);
        assert_eq!(file.users.len(), 1);
        let places: Vec<_> = file
            .mistakes
            .iter()
            .map(|mistake| mistake.span.start)
            .collect();
        let bo = text.find("\"hunter2").unwrap();
        assert_eq!(places, [0, bo, text.rfind("hunter2").unwrap()]);
        let form = "must be \"name\" \"verifier\", both in double quotes";
        assert_eq!(file.mistakes[0].text, form);
        for mistake in &file.mistakes {
            assert!(!mistake.text.contains("hunter2"), "{}", mistake.text);
        }
    }
}
