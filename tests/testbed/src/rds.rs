//! How does a stand-in for RDS work? It is PostgreSQL that lets members of `rds_iam` in only with
//! an authentication token, as RDS does.
//!
//! RDS asks for a cleartext password over TLS and has PAM judge it. Here PostgreSQL's `ldap` method
//! does the same with a bind server in this process, which recomputes the token's signature. This
//! needs no root, and passwords may be as long as PostgreSQL allows.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use anyhow::Result;
use postgres_protocol::escape::{escape_identifier, escape_literal};
use tokio::net::TcpListener;
use tokio_postgres::Client;

use crate::accounts::Accounts;
use crate::ldap::Authenticator;
use crate::postgres::{Administrator, Postgres};
use crate::runtime::{Background, Guard};
use crate::sigv4::{self, Presigned};
use crate::{REGION, dsql, ldap, locked, shifted};

/// A user without `rds_iam`, who has an ordinary password.
pub const MASTER_USER: &str = "master";
pub const MASTER_PASSWORD: &str = "master-password";
/// Members of `rds_iam` that exist from the start. The second name needs every kind of escaping.
pub const IAM_USERS: [&str; 2] = ["jane_doe", "a+b@c d"];
pub const DB_INSTANCE: &str = "mydb";
pub const DB_CLUSTER: &str = "mycluster";
/// The cluster's first instance.
pub const DB_CLUSTER_INSTANCE: &str = "mycluster-1";
pub const DB_PROXY: &str = "myproxy";

#[derive(Clone)]
pub struct Rds {
    inner: Arc<Inner>,
}

struct Inner {
    port: u16,
    background: Background,
    administrator: Administrator,
    gate: Arc<Gate>,
    _binds: Guard,
}

/// What the bind server bases its decisions on, and what it decided.
struct Gate {
    accounts: Accounts,
    endpoints: Mutex<BTreeSet<String>>,
    accepted: Mutex<Vec<String>>,
    refusals: Mutex<Vec<(String, String)>>,
    refuse_next: Mutex<Vec<(Option<String>, usize)>>,
    /// The seconds by which the server's clock is ahead of this machine's, for tokens of each user.
    clocks_ahead: Mutex<HashMap<String, i64>>,
    tokens: Mutex<BTreeSet<String>>,
}

const MAX_LIFE: Duration = Duration::from_mins(15);

/// The bind servers' ports have to be known before the server starts. The front of DSQL comes
/// through the Unix socket.
pub(crate) fn hba(rds_binds: u16, dsql_binds: u16) -> String {
    format!(
        "local all postgres trust\n\
         local postgres +{} {}\n\
         hostnossl all all all reject\n\
         hostssl all +rds_iam all {}\n\
         hostssl all all all scram-sha-256\n",
        dsql::GROUP,
        ldap::hba_method(dsql_binds),
        ldap::hba_method(rds_binds),
    )
}

impl Rds {
    pub(crate) async fn open(
        postgres: &Postgres,
        binds: TcpListener,
        accounts: Accounts,
        background: Background,
    ) -> Result<Rds> {
        let superuser = postgres.superuser("postgres").await?;
        superuser.batch_execute("CREATE DATABASE exampledb").await?;
        let master = format!(
            "CREATE ROLE rds_iam NOLOGIN; CREATE ROLE {} LOGIN CREATEDB CREATEROLE PASSWORD {}; \
             GRANT CREATE ON SCHEMA public TO PUBLIC",
            escape_identifier(MASTER_USER),
            escape_literal(MASTER_PASSWORD)
        );
        superuser.batch_execute(&master).await?;
        postgres
            .superuser("exampledb")
            .await?
            .batch_execute("GRANT CREATE ON SCHEMA public TO PUBLIC")
            .await?;
        for user in IAM_USERS {
            create_user(&superuser, user).await?;
        }
        let gate = Arc::new(Gate::new(accounts, postgres.port()));
        let guard = background.spawn(ldap::serve(binds, Arc::clone(&gate)));
        Ok(Rds {
            inner: Arc::new(Inner {
                port: postgres.port(),
                background,
                administrator: postgres.administrator(),
                gate,
                _binds: guard,
            }),
        })
    }

    #[allow(
        clippy::unused_self,
        reason = "belongs to the endpoint as the port does"
    )]
    pub fn host(&self) -> &'static str {
        "localhost"
    }

    /// The reader endpoint of the DB cluster, which is the same server.
    #[allow(
        clippy::unused_self,
        reason = "belongs to the endpoint as the port does"
    )]
    pub fn reader_host(&self) -> &'static str {
        "127.0.0.1"
    }

    pub fn port(&self) -> u16 {
        self.inner.port
    }

    /// Creates another member of `rds_iam`, so that a test can have one of its own.
    pub fn create_user(&self, name: &str) -> Result<()> {
        let (inner, name) = (Arc::clone(&self.inner), name.to_owned());
        self.inner.background.wait(async move {
            let superuser = inner.administrator.connect("postgres").await?;
            create_user(&superuser, &name).await
        })
    }

    /// Runs statements as the superuser, which no client can be.
    pub fn administer(&self, database: &str, sql: &str) -> Result<()> {
        let (administrator, database, sql) = (
            self.inner.administrator.clone(),
            database.to_owned(),
            sql.to_owned(),
        );
        self.inner.background.wait(async move {
            Ok(administrator
                .connect(&database)
                .await?
                .batch_execute(&sql)
                .await?)
        })
    }

    /// Each `host:port` for which tokens may be signed.
    pub fn endpoints(&self) -> Vec<String> {
        locked(&self.inner.gate.endpoints).iter().cloned().collect()
    }

    pub fn register_endpoint(&self, host: &str, port: u16) {
        locked(&self.inner.gate.endpoints).insert(format!("{host}:{port}"));
    }

    /// Refuses the next `logins`, whatever their token and whoever logs in.
    pub fn refuse_next(&self, logins: usize) {
        locked(&self.inner.gate.refuse_next).push((None, logins));
    }

    pub fn refuse_next_of(&self, user: &str, logins: usize) {
        locked(&self.inner.gate.refuse_next).push((Some(user.to_owned()), logins));
    }

    /// Judges a user's tokens by a clock that is ahead of this machine's.
    pub fn set_clock_ahead_of(&self, user: &str, seconds: i64) {
        locked(&self.inner.gate.clocks_ahead).insert(user.to_owned(), seconds);
    }

    /// Why tokens were refused, oldest first.
    pub fn refusals(&self) -> Vec<String> {
        locked(&self.inner.gate.refusals)
            .iter()
            .map(|(_, reason)| reason.clone())
            .collect()
    }

    /// Every password that was presented, for tests that make sure they do not show up anywhere.
    pub fn tokens(&self) -> Vec<String> {
        locked(&self.inner.gate.tokens).iter().cloned().collect()
    }

    pub fn refusals_of(&self, user: &str) -> Vec<String> {
        locked(&self.inner.gate.refusals)
            .iter()
            .filter(|(who, _)| who == user)
            .map(|(_, reason)| reason.clone())
            .collect()
    }

    pub fn accepted(&self) -> usize {
        locked(&self.inner.gate.accepted).len()
    }

    pub fn accepted_of(&self, user: &str) -> usize {
        locked(&self.inner.gate.accepted)
            .iter()
            .filter(|who| *who == user)
            .count()
    }
}

impl Gate {
    fn new(accounts: Accounts, port: u16) -> Gate {
        let local = ["localhost", "127.0.0.1"].map(|host| format!("{host}:{port}"));
        let aws = crate::pki::AWS_NAMES
            .into_iter()
            .filter(|name| name.contains(".rds."))
            .map(|name| format!("{name}:5432"));
        Gate {
            accounts,
            endpoints: Mutex::new(local.into_iter().chain(aws).collect()),
            accepted: Mutex::default(),
            refusals: Mutex::default(),
            refuse_next: Mutex::default(),
            clocks_ahead: Mutex::default(),
            tokens: Mutex::default(),
        }
    }

    fn check(&self, user: &str, password: &[u8], now: SystemTime) -> Result<(), String> {
        if self.is_to_be_refused(user) {
            return Err("told to refuse".to_owned());
        }
        let token =
            std::str::from_utf8(password).map_err(|_| "not a token: not UTF-8".to_owned())?;
        let (host, query) = token
            .split_once("/?")
            .ok_or_else(|| format!("not a token: {} bytes without \"/?\"", token.len()))?;
        let presigned = Presigned {
            host,
            query,
            region: REGION,
            service: "rds-db",
            max_life: MAX_LIFE,
        };
        let (_, parameters) = sigv4::verify_presigned(&presigned, &self.accounts, now)
            .map_err(|refusal| refusal.to_string())?;
        if !locked(&self.endpoints).contains(host) {
            return Err(format!("signed for endpoint {host}"));
        }
        if parameters.get("Action").map(String::as_str) != Some("connect") {
            return Err("the action is not connect".to_owned());
        }
        match parameters.get("DBUser") {
            Some(signed) if signed == user => Ok(()),
            signed => Err(format!(
                "signed for user {}",
                signed.map_or("(none)", String::as_str)
            )),
        }
    }

    fn is_to_be_refused(&self, user: &str) -> bool {
        let mut rules = locked(&self.refuse_next);
        let rule = rules
            .iter_mut()
            .find(|(who, left)| *left > 0 && who.as_deref().is_none_or(|who| who == user));
        rule.map(|(_, left)| *left -= 1).is_some()
    }
}

impl Authenticator for Gate {
    fn decide(&self, user: &str, password: &[u8]) -> bool {
        let ahead = locked(&self.clocks_ahead)
            .get(user)
            .copied()
            .unwrap_or_default();
        locked(&self.tokens).insert(String::from_utf8_lossy(password).into_owned());
        match self.check(user, password, shifted(SystemTime::now(), ahead)) {
            Ok(()) => {
                locked(&self.accepted).push(user.to_owned());
                true
            }
            Err(reason) => {
                locked(&self.refusals).push((user.to_owned(), reason));
                false
            }
        }
    }
}

async fn create_user(superuser: &Client, name: &str) -> Result<()> {
    Ok(superuser
        .batch_execute(&format!(
            "CREATE ROLE {} LOGIN IN ROLE rds_iam",
            escape_identifier(name)
        ))
        .await?)
}
