//! How is a throw-away PostgreSQL made, supervised and removed?
//!
//! A small shell runs each server and holds the read end of a pipe from this process. However this
//! process ends, the pipe closes, and the shell stops the server and removes its directory. A
//! process that runs as root becomes another user first, because PostgreSQL demands it.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tokio_postgres::{Client, NoTls};

use crate::pki::Identity;

/// The settings in which servers differ.
pub struct Setup<'a> {
    pub hba: &'a str,
    pub identity: &'a Identity,
}

pub struct Postgres {
    dir: PathBuf,
    port: u16,
    supervisor: Child,
}

const START_DEADLINE: Duration = Duration::from_secs(30);

/// How a server is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// SIGINT: sessions are told 57P01 and are ended.
    Fast,
    /// SIGQUIT: sessions are told 57P02 at best, and the next start recovers from the log.
    Immediate,
    /// SIGKILL: nobody is told anything.
    Kill,
}

/// The shell is there before the first file of the server, and outlives it. It copies stdin,
/// because background commands of a shell read /dev/null, and it repeats the signal, because one
/// that comes too early finds no handler in PostgreSQL. A server that ends while there is a file
/// `down` is started again as soon as that file is gone.
const SUPERVISE: &str = r#"
exec 3<&0
serve() {
    { [ -e "$1/data/PG_VERSION" ] ||
        "$BIN/initdb" --pgdata "$1/data" --auth=trust --no-sync --username=postgres \
            --encoding=UTF8 --locale=C; } &&
    [ ! -e "$1/end" ] && exec "$BIN/postgres" -D "$1/data" -c "config_file=$1/postgresql.conf"
}
{ cat <&3 >/dev/null; : >"$1/end"; until [ -e "$1/ended" ]; do kill -INT "$(cat "$1/server")"; sleep 0.1; done; } 2>/dev/null &
while [ ! -e "$1/end" ]; do
    serve "$1" >>"$1/server.log" 2>&1 </dev/null 3<&- &
    server=$!
    echo $server >"$1/server"
    wait $server
    [ -e "$1/down" ] || break
    : >"$1/is-down"
    while [ -e "$1/down" ] && [ ! -e "$1/end" ]; do sleep 0.05; done
done
: >"$1/ended"
wait
rm -rf "$1"
"#;

impl Postgres {
    /// Starts a server, and blocks until it accepts connections. Somebody else can take a free port
    /// before the server binds it, so it tries a few.
    pub fn start(setup: &Setup<'_>) -> Result<Postgres> {
        let binaries = find_binaries()?;
        let mut attempts = 1;
        loop {
            match attempt(&binaries, setup) {
                Err(_) if attempts < 3 => attempts += 1,
                result => return result,
            }
        }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The server's directory, which is removed with it.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The Unix socket, where the superuser `postgres` is trusted. Only the server's user may enter
    /// its directory.
    pub fn socket(&self) -> PathBuf {
        self.dir.join(format!("data/.s.PGSQL.{}", self.port))
    }

    pub fn process_id(&self) -> Option<u32> {
        fs::read_to_string(self.dir.join("data/postmaster.pid"))
            .ok()?
            .lines()
            .next()?
            .parse()
            .ok()
    }

    /// Stops the server, and blocks until none of its processes is left. Its data stays.
    pub fn stop(&self, how: Stop) -> Result<()> {
        let postmaster = self.process_id().context("the server does not run")?;
        fs::write(self.dir.join("down"), "")?;
        let signal = match how {
            Stop::Fast => "-INT",
            Stop::Immediate => "-QUIT",
            Stop::Kill => "-KILL",
        };
        // kill(1) sends it, because signals need unsafe code or a dependency.
        let status = Command::new("kill")
            .args([signal, &postmaster.to_string()])
            .status()?;
        ensure!(status.success(), "the server cannot be told to stop");
        wait_until("PostgreSQL stops", || {
            Ok(self.dir.join("is-down").exists() && !self.has_processes())
        })?;
        fs::remove_file(self.dir.join("is-down"))?;
        // A server that was killed leaves it behind, and with it the claim that it is ready.
        match fs::remove_file(self.dir.join("data/postmaster.pid")) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Starts the server again after a stop, on its old port, and blocks until it is ready.
    pub fn start_again(&self) -> Result<()> {
        fs::remove_file(self.dir.join("down"))?;
        wait_until_ready(self)
    }

    /// All processes of a server work in its data directory.
    fn has_processes(&self) -> bool {
        let data = self.dir.join("data");
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        processes
            .into_iter()
            .any(|process| fs::read_link(process.path().join("cwd")).is_ok_and(|cwd| cwd == data))
    }

    pub async fn superuser(&self, database: &str) -> Result<Client> {
        self.administrator().connect(database).await
    }

    pub fn administrator(&self) -> Administrator {
        Administrator {
            socket_dir: self.dir.join("data"),
            port: self.port,
        }
    }
}

/// Connects to a server as its superuser.
#[derive(Clone)]
pub struct Administrator {
    socket_dir: PathBuf,
    port: u16,
}

impl Administrator {
    pub async fn connect(&self, database: &str) -> Result<Client> {
        let mut config = tokio_postgres::Config::new();
        config
            .host_path(&self.socket_dir)
            .port(self.port)
            .user("postgres")
            .dbname(database);
        let (client, connection) = config.connect(NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        drop(self.supervisor.stdin.take());
        let _ = self.supervisor.wait();
    }
}

/// Finds the newest version in Debian's folders, which are not on the PATH. `PG_BIN` overrides
/// them.
fn find_binaries() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("PG_BIN") {
        let dir = PathBuf::from(dir);
        ensure!(
            dir.join("initdb").exists(),
            "PG_BIN={} has no initdb",
            dir.display()
        );
        return Ok(dir);
    }
    let debian = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten();
    let newest = debian
        .filter_map(|entry| {
            Some((
                entry.file_name().to_str()?.parse::<u32>().ok()?,
                entry.path().join("bin"),
            ))
        })
        .filter(|(version, dir)| *version >= 15 && dir.join("postgres").exists())
        .max();
    if let Some((_, dir)) = newest {
        return Ok(dir);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .find(|dir| dir.join("initdb").exists() && dir.join("postgres").exists())
        .context(
            "PostgreSQL 15 or newer is needed and was not found; install it with: apt-get \
            install postgresql",
        )
}

fn attempt(binaries: &Path, setup: &Setup<'_>) -> Result<Postgres> {
    let dir = tempfile::Builder::new()
        .prefix("testbed-")
        .permissions(fs::Permissions::from_mode(0o755))
        .tempdir()?;
    let user = ServerUser::instead_of_owner(dir.path())?;
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let files = [
        ("postgresql.conf", settings(dir.path(), port)?),
        ("pg_hba.conf", setup.hba.to_owned()),
        ("server.crt", setup.identity.certificate.clone()),
        ("server.key", setup.identity.key.clone()),
    ];
    for (name, content) in files {
        let file = dir.path().join(name);
        fs::write(&file, content)?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
        give(&file, user.as_ref())?;
    }
    give(dir.path(), user.as_ref())?;
    let mut shell = command(Path::new("/bin/sh"), dir.path(), user.as_ref());
    shell.args(["-c", SUPERVISE, "supervise"]).arg(dir.path());
    shell
        .env("BIN", binaries)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let supervisor = shell.spawn().context("sh cannot be run")?;
    let server = Postgres {
        dir: dir.keep(),
        port,
        supervisor,
    };
    wait_until_ready(&server)?;
    Ok(server)
}

fn settings(dir: &Path, port: u16) -> Result<String> {
    let dir = dir
        .to_str()
        .context("the temporary directory's name is not UTF-8")?;
    ensure!(
        dir.len() < 85,
        "unix socket names have 107 bytes: set TMPDIR to a shorter path than {dir}"
    );
    Ok(format!(
        "listen_addresses = '127.0.0.1'\nport = {port}\nunix_socket_directories = '{dir}/data'\n\
         max_connections = 200\nhba_file = '{dir}/pg_hba.conf'\ntimezone = 'UTC'\n\
         log_timezone = 'UTC'\nlog_connections = on\nshared_buffers = '16MB'\nfsync = off\n\
         synchronous_commit = off\nfull_page_writes = off\nautovacuum = off\nssl = on\n\
         ssl_cert_file = '{dir}/server.crt'\nssl_key_file = '{dir}/server.key'\n\
         ssl_ecdh_curve = 'prime256v1'\nssl_min_protocol_version = 'TLSv1.2'\n"
    ))
}

fn wait_until_ready(server: &Postgres) -> Result<()> {
    let ready = wait_until("PostgreSQL is ready", || {
        ensure!(
            !server.dir.join("ended").exists(),
            "PostgreSQL ended at start"
        );
        Ok(server_is_up(&server.dir))
    });
    ready.with_context(|| log_of(&server.dir))
}

#[allow(
    clippy::disallowed_methods,
    reason = "the pause between two looks at the condition"
)]
fn wait_until(what: &str, condition: impl Fn() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + START_DEADLINE;
    while !condition()? {
        if Instant::now() >= deadline {
            bail!("waited for {START_DEADLINE:?} in vain until {what}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Reads the last line of the lock file, which is the server's own word for its state.
fn server_is_up(dir: &Path) -> bool {
    fs::read_to_string(dir.join("data/postmaster.pid")).is_ok_and(|text| {
        text.lines()
            .nth(7)
            .is_some_and(|state| state.trim() == "ready")
    })
}

fn log_of(dir: &Path) -> String {
    fs::read_to_string(dir.join("server.log")).unwrap_or_default()
}

/// The user that root becomes, because PostgreSQL refuses to run as root.
struct ServerUser {
    uid: u32,
    gid: u32,
}

impl ServerUser {
    /// This process's effective user owns what it creates, and std has no other way to find out who
    /// that is.
    fn instead_of_owner(dir: &Path) -> Result<Option<ServerUser>> {
        if dir.metadata()?.uid() != 0 {
            return Ok(None);
        }
        let passwd = fs::read_to_string("/etc/passwd")?;
        let find = |name: &str| {
            let line = passwd
                .lines()
                .find(|line| line.split(':').next() == Some(name))?;
            let mut ids = line.split(':').skip(2).map_while(|id| id.parse().ok());
            Some(ServerUser {
                uid: ids.next()?,
                gid: ids.next()?,
            })
        };
        let user = find("postgres").or_else(|| find("nobody"));
        Ok(Some(user.context(
            "PostgreSQL refuses to run as root, and there is neither a user \
            postgres nor nobody to run it as",
        )?))
    }
}

fn command(program: &Path, directory: &Path, user: Option<&ServerUser>) -> Command {
    let mut command = Command::new(program);
    // The shell gets its own process group, because Ctrl-C at the terminal must not end it before
    // it has cleaned up.
    command
        .current_dir(directory)
        .process_group(0)
        .env_remove("PGDATA")
        .env("LC_ALL", "C");
    if let Some(user) = user {
        command.uid(user.uid).gid(user.gid);
    }
    command
}

fn give(path: &Path, user: Option<&ServerUser>) -> Result<()> {
    user.map_or(Ok(()), |user| {
        chown(path, Some(user.uid), Some(user.gid))
            .with_context(|| format!("chown {}", path.display()))
    })
}
