//! How does the benchmark speak to its other processes? In lines.

use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::load::{Done, Job};
use crate::process::Process;

/// Another process of this program, which is spoken to in lines.
pub struct Part {
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    process: Process,
}

impl Part {
    pub fn start(arguments: &[&str]) -> Result<Part> {
        let mut command = Command::new(std::env::current_exe()?);
        let mut process = Process::start(
            command
                .args(arguments)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped()),
        )?;
        let stdin = process.child().stdin.take().context("piped")?;
        let stdout = BufReader::new(process.child().stdout.take().context("piped")?);
        Ok(Part {
            stdin,
            stdout,
            process,
        })
    }

    pub fn id(&self) -> u32 {
        self.process.id()
    }

    pub fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        ensure!(
            self.stdout.read_line(&mut line)? > 0,
            "a part of the benchmark has ended"
        );
        Ok(line)
    }

    /// Has the load do a job.
    pub fn perform(&mut self, job: &Job) -> Result<Done> {
        writeln!(self.stdin, "{}", serde_json::to_string(job)?)?;
        let done: Done = serde_json::from_str(&self.line()?)?;
        if let Some(error) = done.error {
            bail!("{error}");
        }
        Ok(done)
    }
}
