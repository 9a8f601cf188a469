//! How do tests start the binary as a user would, and read what it prints and logs?

use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

use testbed::{Aws, Testbed};

use super::PATIENCE;

/// A running proxy, which is killed when it is dropped.
pub struct Proxy {
    child: Child,
    /// What it has printed, up to the lines of its last listener.
    pub printed: String,
    /// The addresses of its listeners, in their order.
    pub addresses: Vec<SocketAddr>,
    log: Arc<Log>,
}

#[derive(Default)]
struct Log {
    text: Mutex<String>,
    grown: Condvar,
}

/// A command that runs the binary without any AWS or PostgreSQL settings of this machine.
pub fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pg-iam-proxy"));
    for (name, _) in
        std::env::vars().filter(|(name, _)| name.starts_with("AWS_") || name.starts_with("PG"))
    {
        command.env_remove(name);
    }
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Runs the binary and waits until it ends.
pub fn output(arguments: &[&str]) -> Output {
    command()
        .args(arguments)
        .output()
        .expect("the binary starts")
}

/// Returns what `hash-password` prints for this password on its standard input.
pub fn hash_password(password: &str) -> String {
    let mut child = command()
        .arg("hash-password")
        .stdin(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    child
        .stdin
        .take()
        .expect("piped")
        .write_all(format!("{password}\n").as_bytes())
        .expect("it reads");
    let output = child.wait_with_output().expect("it is our child");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout)
        .expect("text")
        .trim_end()
        .to_string()
}

/// The MD5 verifier of a user with this password.
pub fn md5_verifier(user: &str, password: &str) -> String {
    let output = Command::new("sh")
        .args([
            "-c",
            "printf %s \"$1\" | md5sum | cut -c1-32",
            "sh",
            &format!("{password}{user}"),
        ])
        .output()
        .unwrap();
    format!("md5{}", String::from_utf8(output.stdout).unwrap().trim())
}

/// Writes a configuration file that is deleted when the value is dropped.
pub fn config_file(text: &str) -> tempfile::TempPath {
    let file = tempfile::Builder::new()
        .suffix(".toml")
        .tempfile()
        .expect("a temporary file");
    std::fs::write(file.path(), text).expect("the file is written");
    file.into_temp_path()
}

impl Proxy {
    /// Starts `run` with a configuration file and the identity of this AWS endpoint, at log level
    /// debug.
    pub fn with_config(aws: &Aws, text: &str) -> Self {
        Self::with_config_and_env(text, aws.env())
    }

    pub fn with_config_and_env(text: &str, env: Vec<(String, String)>) -> Self {
        let file = config_file(text);
        let listeners = text.matches("[[listener]]").count();
        let mut command = command();
        command
            .args(["run", "--log-level", "debug", "--config"])
            .arg(&file)
            .envs(env);
        // The file may be deleted after this, because the proxy reads it before it prints an
        // address.
        Self::start(command, listeners)
    }

    /// Starts `run` with target URLs, each on a free port.
    pub fn with_urls(aws: &Aws, urls: &[&str]) -> Self {
        let mut command = command();
        command
            .args(["run", "--log-level", "debug"])
            .args(urls)
            .envs(aws.env());
        Self::start(command, urls.len())
    }

    /// Starts a proxy with one listener on a Unix socket.
    pub fn start_unix(command: Command) -> Self {
        Self::start_until(command, |printed, _| printed.contains("  psql  "))
    }

    /// Starts a proxy with this many TCP listeners. The JDBC line is the last one that each of them
    /// prints.
    pub fn start(command: Command, listeners: usize) -> Self {
        Self::start_until(command, |printed, addresses| {
            addresses.len() >= listeners
                && printed
                    .lines()
                    .last()
                    .is_some_and(|line| line.starts_with("  JDBC"))
        })
    }

    fn start_until(mut command: Command, ready: impl Fn(&str, &[SocketAddr]) -> bool) -> Self {
        let mut child = command.spawn().expect("the binary starts");
        let log = Arc::new(Log::default());
        // A test may have taken the standard error elsewhere.
        if let Some(stderr) = child.stderr.take() {
            let sink = log.clone();
            std::thread::spawn(move || sink.collect(stderr));
        }
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        let (mut printed, mut addresses) = (String::new(), Vec::new());
        while !ready(&printed, &addresses) {
            let mut line = String::new();
            let read = stdout.read_line(&mut line).expect("stdout is text");
            assert!(read > 0, "the proxy ended: {}", log.text());
            if let Some((_, address)) = line.trim_end().rsplit_once(" on ") {
                // Unix sockets are left out, because they have no such address.
                addresses.extend(
                    address
                        .parse()
                        .ok()
                        .filter(|address| addresses.last() != Some(address)),
                );
            }
            printed += &line;
        }
        Self {
            child,
            printed,
            addresses,
            log,
        }
    }

    /// The address of the first listener.
    pub fn address(&self) -> SocketAddr {
        self.addresses[0]
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> String {
        self.log.text()
    }

    /// Waits for a log line that contains all of `parts`, and returns the first one.
    pub fn log_line(&self, parts: &[&str]) -> String {
        self.log.line(parts)
    }

    pub fn signal(&self, signal: &str) {
        let status = Command::new("kill")
            .args([signal, &self.id().to_string()])
            .status()
            .expect("kill starts");
        assert!(status.success());
    }

    /// Waits until the proxy ends by itself.
    pub fn wait(&mut self) -> ExitStatus {
        self.child.wait().expect("it is our child")
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Log {
    fn collect(&self, stderr: impl Read) {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            let mut text = self.text.lock().unwrap();
            text.push_str(&line);
            text.push('\n');
            self.grown.notify_all();
        }
    }

    fn text(&self) -> String {
        self.text.lock().unwrap().clone()
    }

    fn line(&self, parts: &[&str]) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut text = self.text.lock().unwrap();
        loop {
            if let Some(line) = text
                .lines()
                .find(|line| parts.iter().all(|part| line.contains(part)))
            {
                return line.to_string();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no log line with {parts:?} in:\n{text}");
            text = self.grown.wait_timeout(text, left).unwrap().0;
        }
    }
}

/// A listener and a target for the RDS flavour. `keys` are further lines of the target.
pub fn rds_config(keys: &str) -> String {
    let bed = Testbed::shared();
    format!(
        r#"
[[listener]]
address = "127.0.0.1:0"
targets = ["app"]
auth = "trust"
[target.app]
engine = "rds"
region = "us-west-2"
ca_file = "{}"
{}{}
"#,
        bed.ca_file().display(),
        default_key(
            keys,
            "host",
            &format!("host = \"localhost\"\nport = {}\n", bed.rds().port())
        ),
        keys,
    )
}

/// A listener and a target for the Redshift flavour. `keys` are further lines of the target.
pub fn redshift_config(aws: &Aws, keys: &str) -> String {
    let bed = Testbed::shared();
    format!(
        r#"
[[listener]]
address = "127.0.0.1:0"
targets = ["warehouse"]
auth = "trust"
[target.warehouse]
engine = "redshift"
region = "us-west-2"
ca_file = "{}"
endpoint_url = "{}"
{}{}
"#,
        bed.ca_file().display(),
        aws.endpoint_url(),
        default_key(
            keys,
            "cluster_identifier",
            "cluster_identifier = \"examplecluster\"\n"
        ),
        keys,
    )
}

/// A listener and a target for the Redshift Serverless flavour. `keys` are further lines of the
/// target.
pub fn serverless_config(aws: &Aws, keys: &str) -> String {
    let config = redshift_config(aws, &format!("cluster_identifier = \"\"\n{keys}"));
    config
        .replace("engine = \"redshift\"", "engine = \"redshift-serverless\"")
        .replace("cluster_identifier = \"\"\n", "")
}

/// A listener and a target for the DSQL flavour. `keys` are further lines of the target.
pub fn dsql_config(keys: &str) -> String {
    let port = Testbed::shared().dsql().port();
    let host = default_key(keys, "host", "host = \"localhost\"\n");
    rds_config(&format!("host = \"\"\n{host}port = {port}\n{keys}"))
        .replace("engine = \"rds\"", "engine = \"dsql\"")
        .replace("host = \"\"\n", "")
}

fn default_key(keys: &str, key: &str, default: &str) -> String {
    let has = |key: &str| {
        keys.lines()
            .any(|line| line.starts_with(&format!("{key} =")))
    };
    let given =
        has(key) || (key == "host" && (has("instance_identifier") || has("cluster_identifier")));
    if given {
        String::new()
    } else {
        default.to_string()
    }
}
