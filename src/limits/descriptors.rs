//! Are there file descriptors left for what sessions need?
//!
//! A session that has been let in connects to its server, and may have to ask AWS. A tenth of the
//! descriptors is kept for that.

use std::fs;

/// The reserve is one in this many descriptors.
const RESERVE: u64 = 10;

/// Whether less than the reserve is free, while this many clients hold one that have not proved who
/// they are. A few of them may use the reserve, or nobody could come in beside many sessions.
pub(super) fn are_scarce(clients: usize) -> bool {
    let Ok((limit, _)) = rlimit::Resource::NOFILE.get() else {
        return false;
    };
    let (reserve, clients) = (limit / RESERVE, u64::try_from(clients).unwrap_or(u64::MAX));
    // The common case is decided without a question to the system.
    clients > reserve / 2 && open().is_some_and(|open| open > limit - reserve)
}

/// How many descriptors are open.
fn open() -> Option<u64> {
    let directory = "/proc/self/fd";
    match fs::metadata(directory).ok()?.len() {
        // Kernels before 6.2 do not tell, so they are counted.
        0 => u64::try_from(fs::read_dir(directory).ok()?.count()).ok(),
        open => Some(open),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_files_are_counted() {
        let before = open().unwrap();
        let files: Vec<_> = (0..100)
            .map(|_| fs::File::open("/dev/null").unwrap())
            .collect();
        // Other tests open and close files meanwhile.
        assert!(open().unwrap() + 50 > before + 100);
        drop(files);
        assert!(!are_scarce(0));
    }
}
