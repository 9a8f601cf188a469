//! What is left of the differences when the server is a real PostgreSQL? pgbench and COPY are
//! measured as shares of what they reach without a proxy.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use testbed::{Aws, Testbed, rds};

use crate::backend::PIECE;
use crate::load::{Job, Server, Tls};
use crate::part::Part;
use crate::peers::{Files, LegKind, Mode, Peer, Subject, Upstream};
use crate::process::cpu_seconds;
use crate::results::Results;
use crate::run::{Run, costed};

const DATABASE: &str = "postgres";
/// 48 MB of rows like those of pgbench_accounts.
const COPY_DOWN: &str =
    "copy (select i, 1, 0, repeat(' ', 84) from generate_series(1, 500000) i) to stdout";
/// The server parses these rows and throws them away, because the cost of storing them belongs to
/// no proxy.
const COPY_UP: &str = "copy sink from stdin where line is null";
const UP_PIECES: usize = 32 * 1024 * 1024 / PIECE;

/// A real PostgreSQL, its AWS endpoint, and the proxies in front of it.
pub struct Real {
    peers: Vec<(Subject, Peer)>,
    /// The certificates of both authorities, the server's and the proxies'.
    authority: PathBuf,
    script: PathBuf,
    log: PathBuf,
    _aws: Aws,
    testbed: Arc<Testbed>,
}

impl Real {
    pub fn start(run: &mut Run, testbed: &Arc<Testbed>) -> Result<Real> {
        let aws = testbed.aws();
        let dir = run.files.dir.clone();
        let authority = dir.join("authorities.pem");
        fs::write(
            &authority,
            [
                fs::read(testbed.ca_file())?,
                fs::read(&run.files.authority)?,
            ]
            .concat(),
        )?;
        let script = dir.join("select.sql");
        fs::write(&script, "select 1;\n")?;
        let files = Files {
            authority: testbed.ca_file().to_owned(),
            ..run.files.clone()
        };
        let upstream = Upstream {
            port: testbed.rds().port(),
            user: rds::MASTER_USER.into(),
            password: rds::MASTER_PASSWORD.into(),
            database: DATABASE.into(),
            aws: aws.env(),
            iam_user: rds::IAM_USERS[0].into(),
        };
        let mut peers = Vec::new();
        // haproxy and nginx do not speak PostgreSQL, and this server expects SSLRequest before TLS.
        let speak = |subject: &&Subject| !matches!(subject, Subject::Haproxy | Subject::Nginx);
        for subject in run
            .options
            .subjects
            .iter()
            .filter(speak)
            .cloned()
            .collect::<Vec<_>>()
        {
            match subject.start(Mode::Default, &files, &upstream) {
                Ok(peer) => peers.push((subject, peer)),
                Err(error) => run.note(&format!("real PostgreSQL: {error:#}")),
            }
        }
        Ok(Real {
            peers,
            authority,
            script,
            log: dir.join("pgbench"),
            _aws: aws,
            testbed: Arc::clone(testbed),
        })
    }

    pub fn measure(&self, run: &mut Run, round: usize) {
        let milliseconds = run.options.milliseconds;
        run.interleaved(
            "COPY of a real PostgreSQL",
            round,
            &self.peers,
            |results, _, subject, peer, leg| {
                let mut load = Part::start(&[
                    "load",
                    self.authority.to_str().context("TMPDIR is not UTF-8")?,
                ])?;
                self.copy(
                    results,
                    &mut load,
                    (subject, peer, leg),
                    (round, milliseconds),
                )
            },
        );
        let all = [
            ("simple", 1),
            ("simple", 16),
            ("simple", 64),
            ("prepared", 1),
            ("prepared", 16),
            ("prepared", 64),
        ];
        let few = [("simple", 1), ("simple", 16), ("prepared", 16)];
        let seconds = if run.options.quick { 1 } else { 3 };
        for (protocol, clients) in if run.options.quick {
            &few[..]
        } else {
            &all[..]
        } {
            run.interleaved(
                &format!("pgbench, {protocol}, {clients} clients"),
                round,
                &self.peers,
                |results, _, subject, peer, leg| {
                    self.pgbench(
                        results,
                        (subject, peer, leg),
                        (round, protocol, *clients, seconds),
                    )
                },
            );
        }
    }

    fn copy(
        &self,
        results: &mut Results,
        load: &mut Part,
        (subject, peer, leg): (&Subject, &Peer, LegKind),
        (round, milliseconds): (usize, u64),
    ) -> Result<()> {
        ensure!(
            !self.testbed.process_ids().is_empty(),
            "PostgreSQL has ended"
        );
        load.perform(&Job::Open {
            server: peer.server(leg),
            sessions: 1,
            clients: 1,
        })?;
        load.perform(&Job::Down {
            statement: "create temp table sink (line text)".into(),
            sessions: 1,
            milliseconds: 0,
        })?;
        let down = costed(
            load,
            peer,
            &Job::Down {
                statement: COPY_DOWN.into(),
                sessions: 1,
                milliseconds,
            },
        )?;
        let up = costed(
            load,
            peer,
            &Job::Up {
                statement: COPY_UP.into(),
                pieces: UP_PIECES,
                sessions: 1,
                milliseconds,
            },
        )?;
        for (direction, cost) in [("down", down), ("up", up)] {
            let mut add = |figure: &str, value| {
                results.add(
                    &format!("real_copy_{direction}_{figure}"),
                    leg,
                    subject.name(),
                    round,
                    value,
                );
            };
            add("mb_s", cost.done.count / cost.done.seconds / 1e6);
            if *subject != Subject::Direct {
                add("cpu_s_per_gb", cost.cpu / cost.done.count * 1e9);
            }
        }
        Ok(())
    }

    fn pgbench(
        &self,
        results: &mut Results,
        (subject, peer, leg): (&Subject, &Peer, LegKind),
        (round, protocol, clients, seconds): (usize, &str, usize, u32),
    ) -> Result<()> {
        if *subject == Subject::Stunnel {
            // libpq takes an offer of SCRAM-SHA-256-PLUS without TLS for an attack.
            return Ok(());
        }
        let server = peer.server(leg);
        let cpu = || peer.id().map_or(0.0, cpu_seconds);
        let before = cpu();
        let mut command = Command::new("pgbench");
        command.args([
            "--no-vacuum",
            "--protocol",
            protocol,
            "--jobs",
            if clients > 1 { "2" } else { "1" },
        ]);
        command
            .arg("--client")
            .arg(clients.to_string())
            .arg("--time")
            .arg(seconds.to_string())
            .arg("--file")
            .arg(&self.script);
        if clients == 1 {
            // With several clients, pgbench reads the clock once for all that are ready, and finds
            // that many of their answers took no time.
            command.arg("--log").arg("--log-prefix").arg(&self.log);
        }
        let output = command
            .arg(self.conninfo(&server))
            .env("PGPASSWORD", &server.password)
            .output()
            .context("pgbench")?;
        let cpu = cpu() - before;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(
            output.status.success(),
            "pgbench: {}",
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
        let number = |line: &str| -> Result<f64> {
            let found = text.lines().find_map(|text| {
                text.strip_prefix(line)?
                    .split([' ', '/'])
                    .next()?
                    .parse()
                    .ok()
            });
            found.with_context(|| format!("no line {line:?} from pgbench"))
        };
        let mut add = |figure: &str, value| {
            results.add(
                &format!("real_{figure}_{clients}_{protocol}"),
                leg,
                subject.name(),
                round,
                value,
            );
        };
        add("tps", number("tps = ")?);
        if *subject != Subject::Direct {
            add(
                "cpu_us",
                cpu / number("number of transactions actually processed: ")? * 1e6,
            );
        }
        if clients == 1 {
            let times = self.times()?;
            let at = |share: usize| {
                times
                    .get(times.len() * share / 100)
                    .copied()
                    .unwrap_or_default()
            };
            add("p50_us", at(50));
            add("p99_us", at(99));
        }
        Ok(())
    }

    fn conninfo(&self, server: &Server) -> String {
        let Server {
            address,
            user,
            database,
            ..
        } = server;
        let tls = match server.tls {
            Tls::None => "sslmode=disable".to_owned(),
            Tls::Direct | Tls::SslRequest => format!(
                "sslmode=verify-full sslrootcert={}",
                self.authority.display()
            ),
        };
        format!(
            "host=localhost hostaddr={} port={} user={user} dbname={database} gssencmode=disable \
             {tls}",
            address.ip(),
            address.port()
        )
    }

    /// The duration of each transaction in microseconds, in ascending order. It is the third word
    /// in each line of pgbench's logs, which are removed.
    fn times(&self) -> Result<Vec<f64>> {
        let mut times = Vec::new();
        let prefix = self
            .log
            .file_name()
            .and_then(|name| name.to_str())
            .context("a name")?;
        for entry in fs::read_dir(self.log.parent().context("a folder")?)?.flatten() {
            if entry.file_name().to_str().is_some_and(|name| {
                name.strip_prefix(prefix)
                    .is_some_and(|rest| rest.starts_with('.'))
            }) {
                let text = fs::read_to_string(entry.path())?;
                times.extend(
                    text.lines()
                        .filter_map(|line| line.split(' ').nth(2)?.parse::<f64>().ok()),
                );
                fs::remove_file(entry.path())?;
            }
        }
        times.sort_by(f64::total_cmp);
        ensure!(!times.is_empty(), "pgbench wrote no log");
        Ok(times)
    }
}
