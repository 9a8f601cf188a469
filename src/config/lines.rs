//! On which line of a text is a byte, and in which column?

use std::ops::Range;
use std::path::Path;

/// Where the lines of a text begin, so that nobody has to look for them again for each mistake.
pub(super) struct Lines {
    /// The first byte of each line, in order.
    starts: Vec<usize>,
}

impl Lines {
    /// Finds the lines of a text.
    pub fn new(text: &str) -> Self {
        let behind_ends = text.match_indices('\n').map(|(end, _)| end + 1);
        Self {
            starts: std::iter::once(0).chain(behind_ends).collect(),
        }
    }

    /// The number of the line that contains this byte, from 1.
    pub fn number(&self, byte: usize) -> usize {
        self.starts.partition_point(|start| *start <= byte)
    }

    /// The line that contains this byte, without its line ending. `text` is the one whose lines these
    /// are.
    pub fn range(&self, text: &str, byte: usize) -> Range<usize> {
        let number = self.number(byte);
        let start = self.starts[number - 1];
        let end = self.starts.get(number).map_or(text.len(), |next| next - 1);
        start..start + text[start..end].trim_end_matches('\r').len()
    }

    /// A place as `file:line:column`. Both numbers begin at 1, and columns are characters.
    pub fn position(&self, path: &Path, text: &str, byte: usize) -> String {
        let start = self.range(text, byte).start;
        let column = text[start..byte].chars().count() + 1;
        format!("{}:{}:{column}", path.display(), self.number(byte))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_on_a_line() {
        let text = "ab\r\n\ncé\n";
        let lines = Lines::new(text);
        let at = |byte| (lines.number(byte), &text[lines.range(text, byte)]);
        assert_eq!(at(0), (1, "ab"));
        assert_eq!(at(3), (1, "ab"));
        assert_eq!(at(4), (2, ""));
        assert_eq!(at(5), (3, "cé"));
        assert_eq!(at(text.len()), (4, ""));
        let path = Path::new("f");
        assert_eq!(lines.position(path, text, 8), "f:3:3");
        assert_eq!(lines.position(path, text, text.len()), "f:4:1");
        assert_eq!(Lines::new("").position(path, "", 0), "f:1:1");
    }
}
