//! Which proxy is soaked, and what does it hold at rest?

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bench::process::{Process, pause, resident};
use postgres_protocol::password;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use testbed::{Aws, Testbed};

use crate::client::Door;

const PASSWORD: &str = "a password of the soak";
/// Sessions that wait for a client are gone this long after the last one.
const SPARE_MAX_AGE: Duration = Duration::from_secs(15);
const REST: Duration = Duration::from_mins(1);
/// The proxy's own deadline for open sessions when it is told to stop is ten seconds.
const STOP: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// RDS, with a new login each time.
    App,
    /// RDS, with sessions that are used again.
    Kept,
    /// RDS, with sessions that are logged in before their client comes.
    Warm,
    /// Redshift, with such sessions too.
    Warehouse,
}

impl Target {
    pub const ALL: [Target; 4] = [Target::App, Target::Kept, Target::Warm, Target::Warehouse];

    pub fn is_redshift(self) -> bool {
        self == Target::Warehouse
    }

    /// The database name that leads to it.
    pub fn database(self) -> &'static str {
        match self {
            Target::App => "app/postgres",
            Target::Kept => "kept/postgres",
            Target::Warm => "warm/postgres",
            Target::Warehouse => "warehouse/dev",
        }
    }

    pub fn user(self) -> &'static str {
        if self.is_redshift() {
            "IAM:ana"
        } else {
            "jane_doe"
        }
    }
}

pub struct Proxy {
    process: Process,
    pub doors: Vec<Door>,
    admin: SocketAddr,
    log: Arc<Mutex<Log>>,
    _dir: tempfile::TempDir,
}

#[derive(Default)]
struct Log {
    ready_sessions: usize,
    errors: Vec<String>,
    last: Vec<String>,
}

/// What the proxy holds when nobody uses it.
#[derive(Clone, Copy, Debug)]
pub struct Rest {
    pub anonymous_kib: f64,
    /// Without those of sessions in the pool.
    pub files: f64,
    pub threads: f64,
}

impl Proxy {
    pub fn start(binary: &Path, bed: &Testbed, aws: &Aws) -> Result<Proxy> {
        let dir = tempfile::Builder::new().prefix("soak-").tempdir()?;
        let own = Own::create(dir.path(), bed)?;
        let config = dir.path().join("pg-iam-proxy.toml");
        fs::write(&config, configuration(bed, aws, &own))?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(binary);
        for (name, _) in
            std::env::vars().filter(|(name, _)| name.starts_with("AWS_") || name.starts_with("PG"))
        {
            command.env_remove(name);
        }
        command
            .args(["run", "--config"])
            .arg(&config)
            .envs(aws.env());
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut process = Process::start(&mut command)?;
        let log = Arc::new(Mutex::new(Log::default()));
        let (stderr, sink) = (
            process.child().stderr.take().context("piped")?,
            Arc::clone(&log),
        );
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                sink.lock().expect("nobody panics with it").add(line);
            }
        });
        let mut stdout = BufReader::new(process.child().stdout.take().context("piped")?);
        let (mut addresses, mut admin) = (Vec::new(), None);
        while addresses.len() < own.doors.len() || admin.is_none() {
            let mut line = String::new();
            if stdout.read_line(&mut line)? == 0 {
                pause(Duration::from_millis(100));
                bail!(
                    "the proxy ended: {}",
                    log.lock().expect("quiet").last.join("\n")
                );
            }
            if let Some((_, rest)) = line.split_once("http://") {
                admin = rest
                    .split('/')
                    .next()
                    .and_then(|address| address.parse().ok());
            } else if let Some((_, address)) = line.trim_end().rsplit_once(" on ") {
                let address: Option<SocketAddr> = address.parse().ok();
                addresses.extend(address.filter(|address| addresses.last() != Some(address)));
            }
        }
        // Whatever else the proxy prints must be read, or it would block.
        std::thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()));
        let doors = own.doors.into_iter().zip(addresses);
        Ok(Proxy {
            process,
            doors: doors
                .map(|(door, address)| Door { address, ..door })
                .collect(),
            admin: admin.context("no admin address")?,
            log,
            _dir: dir,
        })
    }

    /// Waits until nobody uses the proxy any more, and says what it holds then.
    pub fn at_rest(&mut self) -> Result<Rest> {
        let deadline = Instant::now() + REST;
        let mut looks = Vec::new();
        loop {
            ensure!(
                !self.process.has_ended(),
                "the proxy has ended: {}",
                self.last_words()
            );
            let metrics = self.metrics()?;
            let sum = |name: &str, label: &str| -> f64 {
                let named = metrics
                    .iter()
                    .filter(|(series, _)| series.starts_with(name) && series.contains(label));
                named.map(|(_, value)| value).sum()
            };
            let open = sum("pg_iam_proxy_sessions_open", "");
            let starting = sum("pg_iam_proxy_pool_sessions", "state=\"starting\"");
            let kept = sum("pg_iam_proxy_pool_sessions", "target=\"kept\"");
            let pooled = sum("pg_iam_proxy_pool_sessions", "");
            let files = self.count("fd")? - pooled;
            let anonymous_kib = resident(self.process.id()).anonymous_kib;
            if open + starting + kept == 0.0 {
                looks.push(Rest {
                    anonymous_kib,
                    files,
                    threads: self.count("task")?,
                });
                // Connections to AWS and freed memory take a moment, so it is the least that counts.
                if looks.len() == 100 {
                    let least =
                        |of: fn(&Rest) -> f64| looks.iter().map(of).fold(f64::MAX, f64::min);
                    return Ok(Rest {
                        anonymous_kib: least(|rest| rest.anonymous_kib),
                        files: least(|rest| rest.files),
                        threads: least(|rest| rest.threads),
                    });
                }
            } else {
                looks.clear();
            }
            ensure!(
                Instant::now() < deadline,
                "{} s after the last client: {open} sessions open, {starting} of the pool are \
                 starting, {kept} are kept",
                REST.as_secs()
            );
            pause(Duration::from_millis(50));
        }
    }

    /// How many logins got a session of the pool.
    pub fn ready_sessions(&self) -> usize {
        self.log
            .lock()
            .expect("nobody panics with it")
            .ready_sessions
    }

    /// Lines at level ERROR, which no fault of the soak may cause.
    pub fn errors(&self) -> Vec<String> {
        self.log
            .lock()
            .expect("nobody panics with it")
            .errors
            .clone()
    }

    pub fn last_words(&self) -> String {
        self.log
            .lock()
            .expect("nobody panics with it")
            .last
            .join("\n")
    }

    /// Tells the proxy to stop, which must end it with exit code 0.
    pub fn stop(&mut self) -> Result<Duration> {
        let begun = Instant::now();
        Command::new("kill")
            .arg(self.process.id().to_string())
            .status()?;
        while !self.process.has_ended() {
            ensure!(
                begun.elapsed() < STOP,
                "it still runs {} s after SIGTERM",
                STOP.as_secs()
            );
            pause(Duration::from_millis(10));
        }
        let status = self.process.child().wait()?;
        ensure!(status.success(), "after SIGTERM it ended with {status}");
        Ok(begun.elapsed())
    }

    fn count(&self, folder: &str) -> Result<f64> {
        let entries = fs::read_dir(format!("/proc/{}/{folder}", self.process.id()))?;
        Ok(f64::from(u32::try_from(entries.count())?))
    }

    fn metrics(&self) -> Result<BTreeMap<String, f64>> {
        let mut stream = TcpStream::connect(self.admin)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: soak\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let lines = text.lines().filter_map(|line| line.rsplit_once(' '));
        Ok(lines
            .filter_map(|(series, value)| Some((series.to_owned(), value.parse().ok()?)))
            .collect())
    }
}

impl Log {
    fn add(&mut self, line: String) {
        if line.contains(" ERROR ") || line.starts_with("ERROR ") {
            self.errors.push(line.clone());
        }
        self.ready_sessions +=
            usize::from(line.contains("session opened") && line.contains(" warm=true"));
        if self.last.len() == 20 {
            self.last.remove(0);
        }
        self.last.push(line);
    }
}

/// The proxy's certificate, authority for clients, and listeners.
struct Own {
    certificate: PathBuf,
    key: PathBuf,
    client_ca: PathBuf,
    doors: Vec<Door>,
}

impl Own {
    /// The proxy shows a certificate of the testbed's authority.
    fn create(dir: &Path, bed: &Testbed) -> Result<Own> {
        let write = |name: &str, text: &str| -> Result<PathBuf> {
            let path = dir.join(name);
            fs::write(&path, text)?;
            Ok(path)
        };
        let identity = bed.identity();
        let (authority, client, key) = client_certificate("cert-user")?;
        let config = |shown: Option<(&str, &str)>| client_config(bed, shown).map(Arc::new);
        let (bare, showing) = (config(None)?, config(Some((&client, &key)))?);
        let doors = [
            ("plain, trust", None, "x"),
            ("plain, scram-sha-256", None, "scram-user"),
            ("plain, md5", None, "md5-user"),
            ("TLS, scram-sha-256", Some(&bare), "scram-user"),
            ("TLS, password", Some(&bare), "scram-user"),
            ("TLS, cert", Some(&showing), "cert-user"),
        ];
        Ok(Own {
            certificate: write("server.crt", &identity.certificate)?,
            key: write("server.key", &identity.key)?,
            client_ca: write("clients.pem", &authority)?,
            doors: doors
                .map(|(name, tls, user)| Door {
                    name,
                    address: SocketAddr::from(([127, 0, 0, 1], 0)),
                    tls: tls.cloned(),
                    user,
                    password: PASSWORD,
                })
                .into(),
        })
    }
}

fn configuration(bed: &Testbed, aws: &Aws, own: &Own) -> String {
    let mut text = String::from("[admin]\nhttp = \"127.0.0.1:0\"\n");
    for door in &own.doors {
        let auth = door.name.split(", ").nth(1).expect("a method");
        text += &format!(
            "[[listener]]\naddress = \"127.0.0.1:0\"\nauth = \"{auth}\"\n\
             targets = [\"app\", \"kept\", \"warm\", \"warehouse\"]\n"
        );
        if door.tls.is_some() {
            text += &format!(
                "tls = \"required\"\ncertificate = \"{}\"\nkey = \"{}\"\n",
                own.certificate.display(),
                own.key.display()
            );
        }
        if auth == "cert" {
            text += &format!("client_ca = \"{}\"\n", own.client_ca.display());
        }
    }
    text += &format!(
        "[user.cert-user]\n[user.scram-user]\npassword = \"{}\"\n[user.md5-user]\n\
         password = \"{}\"\n",
        password::scram_sha_256(PASSWORD.as_bytes()),
        password::md5(PASSWORD.as_bytes(), "md5-user"),
    );
    let role = aws.add_role("soak", None);
    for (name, keys) in [
        ("app", ""),
        ("kept", "reuse_sessions = true\n"),
        ("warm", "warm_sessions = 3\n"),
    ] {
        text += &format!(
            "[target.{name}]\nengine = \"rds\"\nhost = \"{}\"\nport = {}\ndb_user = \"jane_doe\"\n\
             role_arn = \"{role}\"\n{keys}",
            bed.rds().host(),
            bed.rds().port()
        );
        text += &common(bed, aws);
    }
    text += "[target.warehouse]\nengine = \"redshift\"\ncluster_identifier = \"examplecluster\"\n\
             db_user = \"ana\"\nwarm_sessions = 2\n";
    text + &common(bed, aws)
}

fn common(bed: &Testbed, aws: &Aws) -> String {
    format!(
        "region = \"{}\"\nca_file = \"{}\"\nendpoint_url = \"{}\"\nspare_max_age = \"{}s\"\n",
        aws.region(),
        bed.ca_file().display(),
        aws.endpoint_url(),
        SPARE_MAX_AGE.as_secs()
    )
}

fn client_config(bed: &Testbed, shown: Option<(&str, &str)>) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(bed.ca_file())? {
        roots.add(certificate?)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots);
    Ok(match shown {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => builder.with_client_auth_cert(
            vec![CertificateDer::from_pem_slice(certificate.as_bytes())?],
            PrivateKeyDer::from_pem_slice(key.as_bytes())?,
        )?,
    })
}

/// An authority, and a certificate and key for a user, as PEM.
fn client_certificate(user: &str) -> Result<(String, String, String)> {
    let mut params = CertificateParams::new(Vec::new())?;
    params
        .distinguished_name
        .push(DnType::CommonName, "soak CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let authority = params.self_signed(&key)?.pem();
    let issuer = Issuer::new(params, key);
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, user);
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let certificate = params.signed_by(&key, &issuer)?.pem();
    Ok((authority, certificate, key.serialize_pem()))
}
