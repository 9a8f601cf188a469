//! How do tests run software that is not ours? Scripts use the Python environment that `make venv`
//! creates.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The interpreter of the environment.
pub fn interpreter() -> PathBuf {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/venv/bin/python");
    assert!(
        python.exists(),
        "{} does not exist: run\n    make venv",
        python.display()
    );
    python
}

/// A command that runs this script of `tests/it` without any PostgreSQL settings of the machine.
pub fn script(name: &str) -> Command {
    let mut command = Command::new(interpreter());
    for (name, _) in
        std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PG"))
    {
        command.env_remove(name);
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it");
    command.arg(folder.join(name));
    command
}

/// Runs `psycopg_tls.py` with this connection string, and returns what it printed or its error.
pub fn psycopg(conninfo: &str, arguments: &[&str]) -> Result<String, String> {
    let output = script("psycopg_tls.py")
        .arg(conninfo)
        .args(arguments)
        .output()
        .expect("python starts");
    let text = |bytes| String::from_utf8_lossy(bytes).trim().to_string();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(text(&output.stderr))
    }
}
