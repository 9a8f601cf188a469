//! How can AWS and its databases be had on loopback? They are made of real parts: PostgreSQL over
//! TLS dressed as RDS, Aurora DSQL and Redshift, and an HTTP endpoint that verifies signatures.
//! Tests, benchmarks and the demo use them.
//!
//! A [`Testbed`] holds the databases. Each [`Testbed::aws`] is an endpoint with its own key, faults
//! and request log, so tests that share the databases do not disturb each other. Every refusal
//! comes from PostgreSQL or from recomputing a signature.

pub mod accounts;
pub mod aws;
pub mod dsql;
pub mod front;
mod ldap;
pub mod pki;
pub mod postgres;
mod random;
pub mod rds;
pub mod redshift;
mod runtime;
pub mod sigv4;
mod wire;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use time::OffsetDateTime;
use time::macros::format_description;

pub use accounts::{AccessKey, Accounts, Principal};
pub use aws::{Aws, Fault, FaultRule, LoggedRequest};
pub use dsql::Dsql;
pub use front::{Challenge, Front, FrontOptions};
pub use pki::ServerCertificate;
pub use postgres::{Postgres, Stop};
pub use rds::Rds;
pub use redshift::{PasswordEncryption, Redshift};

use pki::{Identity, Pki};
use postgres::Setup;
use runtime::OwnRuntime;

pub const REGION: &str = "us-west-2";

/// Fields are dropped in this order: tasks before the servers that they talk to.
pub struct Testbed {
    rds: Rds,
    dsql: Dsql,
    redshift: Redshift,
    accounts: Accounts,
    runtime: OwnRuntime,
    servers: [Postgres; 2],
    ca_files: [PathBuf; 2],
    good: Identity,
}

impl Testbed {
    /// The testbed of the whole process, which is started by whoever comes first.
    ///
    /// # Panics
    /// When it cannot be started; the text says what to install.
    pub fn shared() -> &'static Testbed {
        static SHARED: OnceLock<Testbed> = OnceLock::new();
        SHARED.get_or_init(|| {
            Testbed::start()
                .unwrap_or_else(|error| panic!("the testbed cannot be started: {error:#}"))
        })
    }

    pub fn start() -> Result<Testbed> {
        let pki = Pki::create()?;
        let accounts = Accounts::default();
        let runtime = OwnRuntime::start()?;
        let background = runtime.background();

        let binds = background.wait(tokio::net::TcpListener::bind("127.0.0.1:0"))?;
        let dsql_binds = background.wait(tokio::net::TcpListener::bind("127.0.0.1:0"))?;
        let rds_hba = rds::hba(binds.local_addr()?.port(), dsql_binds.local_addr()?.port());
        let [for_rds, for_redshift] = start_servers(&pki, &rds_hba)?;
        let ca_files = pki.write_authorities(for_rds.dir())?;
        let good = pki.identity(ServerCertificate::Good).clone();
        let (rds_accounts, dsql_accounts, own) =
            (accounts.clone(), accounts.clone(), background.clone());
        let (rds, dsql, redshift, servers) = background.wait(async move {
            let rds = Rds::open(&for_rds, binds, rds_accounts, own.clone())
                .await
                .context("RDS")?;
            let dsql = Dsql::open(&for_rds, &pki, dsql_binds, dsql_accounts, &own)
                .await
                .context("DSQL")?;
            let redshift = Redshift::open(&for_redshift, pki, own)
                .await
                .context("Redshift")?;
            anyhow::Ok((rds, dsql, redshift, [for_rds, for_redshift]))
        })?;
        Ok(Testbed {
            rds,
            dsql,
            redshift,
            accounts,
            runtime,
            servers,
            ca_files,
            good,
        })
    }

    /// Starts a new AWS endpoint with an IAM user and a key of its own, in front of the same
    /// databases.
    ///
    /// # Panics
    /// When loopback has no free port.
    pub fn aws(&self) -> Aws {
        let (rds, redshift, accounts) = (
            self.rds.clone(),
            self.redshift.clone(),
            self.accounts.clone(),
        );
        let background = self.runtime.background();
        let open = Aws::open(rds, redshift, accounts, background.clone());
        background.wait(open).expect("a free port on loopback")
    }

    pub fn rds(&self) -> &Rds {
        &self.rds
    }

    pub fn dsql(&self) -> &Dsql {
        &self.dsql
    }

    pub fn redshift(&self) -> &Redshift {
        &self.redshift
    }

    pub fn accounts(&self) -> &Accounts {
        &self.accounts
    }

    /// The CA that has signed the good certificate, the expired one and the one with the wrong
    /// name.
    pub fn ca_file(&self) -> &Path {
        &self.ca_files[0]
    }

    /// The good certificate and its key, for others on loopback that want one.
    pub fn identity(&self) -> &Identity {
        &self.good
    }

    /// The CA of [`ServerCertificate::UnknownCa`].
    pub fn other_ca_file(&self) -> &Path {
        &self.ca_files[1]
    }

    /// The server behind RDS and DSQL. Who stops it needs a testbed of their own.
    pub fn rds_server(&self) -> &Postgres {
        &self.servers[0]
    }

    /// The server behind Redshift. Who stops it needs a testbed of their own.
    pub fn redshift_server(&self) -> &Postgres {
        &self.servers[1]
    }

    /// The process IDs of the two PostgreSQL servers.
    pub fn process_ids(&self) -> Vec<u32> {
        self.servers
            .iter()
            .filter_map(Postgres::process_id)
            .collect()
    }
}

/// Most of the time goes to initdb, so the two run at once.
fn start_servers(pki: &Pki, rds_hba: &str) -> Result<[Postgres; 2]> {
    let identity = pki.identity(ServerCertificate::Good);
    std::thread::scope(|scope| {
        let for_rds = scope.spawn(|| {
            Postgres::start(&Setup {
                hba: rds_hba,
                identity,
            })
        });
        let for_redshift = Postgres::start(&Setup {
            hba: redshift::HBA,
            identity,
        });
        let for_rds = for_rds
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok([for_rds?, for_redshift?])
    })
}

/// A panic elsewhere does not make wrong what was recorded before it.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn shifted(at: SystemTime, seconds: i64) -> SystemTime {
    let by = Duration::from_secs(seconds.unsigned_abs());
    if seconds < 0 { at - by } else { at + by }
}

/// Formats a time as AWS does.
fn timestamp(at: SystemTime) -> String {
    let format =
        format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
    OffsetDateTime::from(at)
        .format(format)
        .expect("the format has only parts of a date")
}
