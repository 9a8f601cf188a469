//! What should a person know about the policies that were generated?

/// Lines for a person to read; none of them appears twice.
#[derive(Debug, Default)]
pub struct Notes(Vec<String>);

impl Notes {
    /// Adds a line at the end, unless it is there already.
    pub fn add(&mut self, note: String) {
        if !self.0.contains(&note) {
            self.0.push(note);
        }
    }

    /// The lines, in the order in which they were added.
    pub fn into_lines(self) -> Vec<String> {
        self.0
    }
}
