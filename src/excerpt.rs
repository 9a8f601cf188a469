//! How much of a text that somebody else chose is shown in the log and in messages?
//!
//! A name may be as long as a startup packet, and a control character in it takes several times its
//! length where it is quoted. Whoever can connect could fill the disk with them.

use std::borrow::Cow;

/// More than the 63 bytes that servers know of a name.
const LONGEST_NAME: usize = 128;
/// Enough for what AWS says about a request that it refuses.
const LONGEST_TEXT: usize = 2_000;

/// The beginning of a name; `…` marks what was cut off.
pub fn name(name: &str) -> Cow<'_, str> {
    first(LONGEST_NAME, name)
}

/// The beginning of an error's text; `…` marks what was cut off.
pub fn text(text: &str) -> Cow<'_, str> {
    first(LONGEST_TEXT, text)
}

fn first(characters: usize, text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(characters) {
        Some((end, _)) => Cow::Owned(format!("{}…", &text[..end])),
        None => Cow::Borrowed(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cut_off_is_marked_and_the_rest_is_left_as_it_is() {
        let long = "é".repeat(128);
        assert_eq!(name(&long), long);
        assert_eq!(name(&format!("{long}é")), format!("{long}…"));
        assert_eq!(text(&format!("{long}é")), format!("{long}é"));
    }
}
