//! The first step: how does the text of a file get into memory, and how much of it?

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::ConfigError;
use super::lines::Lines;

/// The longest configuration file in bytes. A target takes a few hundred bytes.
const LONGEST_CONFIGURATION: u64 = 1 << 20;

/// Reads a configuration file.
///
/// # Errors
/// The file cannot be read, is longer than 1 MiB, or is not UTF-8.
pub(super) fn configuration(path: &Path) -> Result<String, ConfigError> {
    let name = path.display().to_string();
    let bytes =
        bounded(path, LONGEST_CONFIGURATION).map_err(|text| ConfigError::one(name, text))?;
    String::from_utf8(bytes).map_err(|error| {
        let good = error.utf8_error().valid_up_to();
        let text = String::from_utf8_lossy(&error.as_bytes()[..good]).into_owned();
        ConfigError::one(
            Lines::new(&text).position(path, &text, good),
            "this is not UTF-8",
        )
    })
}

/// Reads a file that may not have more than this many bytes.
///
/// # Errors
/// The reason, for the person who named the file.
pub(super) fn bounded(path: &Path, limit: u64) -> Result<Vec<u8>, String> {
    let read = || -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    match read() {
        Ok(bytes) if bytes.len() as u64 <= limit => Ok(bytes),
        Ok(_) => Err(format!(
            "it is longer than {} MiB: is it the right file?",
            limit >> 20
        )),
        Err(error) => Err(format!("cannot read it: {error}")),
    }
}
