//! How does a test move the clocks of a running process? The wall clock alone, as on a machine that
//! slept, or all of them, so that a deadline of a minute passes at once.

use std::path::PathBuf;

/// A wall clock that libfaketime reads from a file whenever the process asks for the time.
pub struct WallClock {
    folder: tempfile::TempDir,
    library: PathBuf,
}

impl WallClock {
    pub fn new() -> Self {
        let clock = Self {
            folder: tempfile::tempdir().expect("a temporary folder"),
            library: library(),
        };
        clock.set_ahead(0);
        clock
    }

    /// The environment variables with which the process has this wall clock. Its monotonic clock
    /// stays as it is.
    pub fn env(&self) -> Vec<(String, String)> {
        let monotonic = ("FAKETIME_DONT_FAKE_MONOTONIC".to_string(), "1".to_string());
        [self.env_of_all_clocks(), vec![monotonic]].concat()
    }

    /// The environment variables with which the monotonic clock of the process is moved as well.
    /// Who waits with a deadline there notices when it is woken up next.
    pub fn env_of_all_clocks(&self) -> Vec<(String, String)> {
        let pairs = [
            ("LD_PRELOAD", self.library.display().to_string()),
            ("FAKETIME_TIMESTAMP_FILE", self.file().display().to_string()),
            ("FAKETIME_NO_CACHE", "1".to_string()),
        ];
        pairs.map(|(name, value)| (name.to_string(), value)).into()
    }

    /// Sets the clock ahead of this machine's by this many seconds, from now on.
    pub fn set_ahead(&self, seconds: i64) {
        let next = self.folder.path().join("next");
        std::fs::write(&next, format!("{seconds:+}\n")).expect("the file is written");
        // The file is replaced in one step, so that nobody reads half of it.
        std::fs::rename(next, self.file()).expect("the file is replaced");
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("ahead")
    }
}

/// Finds the library, which is in the folder of the machine's architecture.
fn library() -> PathBuf {
    let folders = std::fs::read_dir("/usr/lib")
        .into_iter()
        .flatten()
        .flatten();
    let found = folders
        .map(|folder| folder.path().join("faketime/libfaketimeMT.so.1"))
        .find(|library| library.exists());
    found.expect(
        "libfaketime is missing; on Debian: apt-get install -y --no-install-recommends libfaketime",
    )
}
