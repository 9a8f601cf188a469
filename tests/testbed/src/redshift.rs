//! How does a stand-in for a Redshift cluster work? It is PostgreSQL whose users are made by
//! GetClusterCredentials, behind fronts that speak Redshift's login.
//!
//! Redshift accepts several temporary passwords of one user at a time, but PostgreSQL only one for
//! each role. So each credential is a login role of its own, with its password and VALID UNTIL, and
//! becomes the API's DbUser (`SET role`) as it logs in. The DbUser's role has the newest password
//! too, for the direct port, where PostgreSQL itself does the whole login.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use anyhow::Result;
use postgres_protocol::escape::{escape_identifier, escape_literal};
use tokio_postgres::Client;

use crate::front::{Front, FrontOptions};
use crate::pki::Pki;
use crate::postgres::{Administrator, Postgres};
use crate::runtime::Background;
use crate::{locked, random, timestamp};

pub const CLUSTER: &str = "examplecluster";
/// A custom domain name of the cluster.
pub const CUSTOM_DOMAIN: &str = "warehouse.example.com";
/// A custom domain name that is on record for the cluster, but that GetClusterCredentials refuses.
pub const STALE_CUSTOM_DOMAIN: &str = "old-warehouse.example.com";
/// A Redshift Serverless workgroup, with the same PostgreSQL behind it.
pub const WORKGROUP: &str = "myworkgroup";
/// A custom domain name of the workgroup.
pub const WORKGROUP_DOMAIN: &str = "serverless.example.com";
/// Database users that exist before anybody asks for AutoCreate.
pub const DB_USERS: [&str; 3] = ["ana", "temp_creds_user", "bi_tableau"];
/// A user who logs in on the direct port without any challenge, with an AuthenticationOk at once.
pub const TRUSTED_USER: &str = "trusted";

#[derive(Clone)]
pub struct Redshift {
    inner: Arc<Inner>,
}

struct Inner {
    direct_port: u16,
    background: Background,
    pki: Pki,
    backend: Arc<Backend>,
    catalog: tokio::sync::Mutex<Catalog>,
    front: Front,
}

/// What the fronts need to know.
pub(crate) struct Backend {
    pub socket: PathBuf,
    pub credentials: Mutex<Vec<Credential>>,
    pub startups: Mutex<Vec<Vec<(String, String)>>>,
}

#[derive(Clone)]
pub(crate) struct Credential {
    pub db_user: String,
    pub login_role: String,
    pub password: String,
}

/// How PostgreSQL stores the password, which decides how it asks for it on the direct port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PasswordEncryption {
    #[default]
    Md5,
    Scram,
}

pub(crate) struct Wanted {
    /// The user's name as the API returns it, such as `IAM:ana`.
    pub db_user: String,
    pub groups: Vec<String>,
    pub life: Duration,
    pub encryption: PasswordEncryption,
    /// Whether the user exists. If not, its name is made up, and the credential will not log in.
    pub user_exists: bool,
}

pub(crate) struct Issued {
    pub password: String,
    pub expires: SystemTime,
}

struct Catalog {
    administrator: Administrator,
    superuser: Client,
    roles: BTreeSet<String>,
    users: BTreeSet<String>,
}

pub(crate) const HBA: &str = "\
local all postgres trust
local all all password
hostnossl all all all reject
hostssl all trusted all trust
hostssl all all all md5
";

impl Redshift {
    pub(crate) async fn open(
        postgres: &Postgres,
        pki: Pki,
        background: Background,
    ) -> Result<Redshift> {
        let superuser = postgres.superuser("postgres").await?;
        for database in ["dev", "exampledb"] {
            superuser
                .batch_execute(&format!("CREATE DATABASE {database}"))
                .await?;
            postgres
                .superuser(database)
                .await?
                .batch_execute("GRANT CREATE ON SCHEMA public TO PUBLIC")
                .await?;
        }
        superuser
            .batch_execute(&format!("CREATE ROLE {TRUSTED_USER} LOGIN"))
            .await?;
        let users = DB_USERS.map(str::to_owned).into();
        let backend = Arc::new(Backend {
            socket: postgres.socket(),
            credentials: Mutex::default(),
            startups: Mutex::default(),
        });
        let front = Front::open(
            FrontOptions::default(),
            &pki,
            Arc::clone(&backend),
            &background,
        )
        .await?;
        let catalog = tokio::sync::Mutex::new(Catalog {
            administrator: postgres.administrator(),
            superuser,
            roles: BTreeSet::new(),
            users,
        });
        let inner = Inner {
            direct_port: postgres.port(),
            background,
            pki,
            backend,
            catalog,
            front,
        };
        Ok(Redshift {
            inner: Arc::new(inner),
        })
    }

    #[allow(
        clippy::unused_self,
        reason = "belongs to the endpoint as the port does"
    )]
    pub fn host(&self) -> &'static str {
        "localhost"
    }

    /// The port of the front with the md5 challenge and the good certificate, which
    /// DescribeClusters returns.
    pub fn port(&self) -> u16 {
        self.inner.front.port()
    }

    /// The port of PostgreSQL with TLS and without a front: it has its own challenges and no habits
    /// of Redshift.
    pub fn direct_port(&self) -> u16 {
        self.inner.direct_port
    }

    #[allow(
        clippy::unused_self,
        reason = "belongs to the cluster as the port does"
    )]
    pub fn cluster_identifier(&self) -> &'static str {
        CLUSTER
    }

    /// Starts another front on a port of its own, which ends when it is dropped.
    pub fn front(&self, options: FrontOptions) -> Result<Front> {
        let (inner, background) = (Arc::clone(&self.inner), self.inner.background.clone());
        let open = async move {
            Front::open(options, &inner.pki, Arc::clone(&inner.backend), &background).await
        };
        self.inner.background.wait(open)
    }

    /// Adds a database user, as CREATE USER does, so that credentials for it work without
    /// AutoCreate.
    pub fn create_user(&self, name: &str) {
        let (inner, name) = (Arc::clone(&self.inner), name.to_owned());
        self.inner
            .background
            .wait(async move { inner.catalog.lock().await.users.insert(name) });
    }

    /// Ends the validity of all credentials of a DbUser now, so that PostgreSQL refuses them.
    pub fn revoke(&self, db_user: &str) -> Result<()> {
        let (inner, db_user) = (Arc::clone(&self.inner), db_user.to_owned());
        self.inner
            .background
            .wait(async move { inner.revoke(&db_user).await })
    }

    /// All temporary passwords of this cluster and of the workgroup, for tests that make sure they
    /// do not show up anywhere.
    pub fn passwords(&self) -> Vec<String> {
        locked(&self.inner.backend.credentials)
            .iter()
            .map(|credential| credential.password.clone())
            .collect()
    }

    /// The parameters of every StartupMessage that reached a front, in order of arrival.
    pub fn startups(&self) -> Vec<Vec<(String, String)>> {
        locked(&self.inner.backend.startups).clone()
    }

    pub(crate) async fn user_exists(&self, name: &str) -> bool {
        self.inner.catalog.lock().await.users.contains(name)
    }

    pub(crate) async fn add_user(&self, name: &str) {
        self.inner
            .catalog
            .lock()
            .await
            .users
            .insert(name.to_owned());
    }

    pub(crate) async fn issue(&self, wanted: &Wanted) -> Result<Issued> {
        let issued = Issued {
            password: random::base64(64),
            expires: SystemTime::now() + wanted.life,
        };
        if wanted.user_exists {
            self.inner.store(wanted, &issued).await?;
        }
        Ok(issued)
    }
}

impl Inner {
    async fn store(&self, wanted: &Wanted, issued: &Issued) -> Result<()> {
        let login_role = format!("credential_{}", random::identifier(16).to_lowercase());
        let mut catalog = self.catalog.lock().await;
        let mut sql = String::from("BEGIN;\n");
        let newcomers: Vec<String> = wanted
            .groups
            .iter()
            .map(|group| group_role(group))
            .chain([truncated(&wanted.db_user)])
            .filter(|role| !catalog.roles.contains(role))
            .collect();
        for role in &newcomers {
            let _ = writeln!(sql, "CREATE ROLE {};", escape_identifier(role));
        }
        sql += &wanted.statements(issued, &login_role);
        sql += "COMMIT;";
        catalog.superuser().await?.batch_execute(&sql).await?;
        catalog.roles.extend(newcomers);
        let credential = Credential {
            db_user: wanted.db_user.clone(),
            login_role,
            password: issued.password.clone(),
        };
        locked(&self.backend.credentials).push(credential);
        Ok(())
    }

    async fn revoke(&self, db_user: &str) -> Result<()> {
        let credentials = locked(&self.backend.credentials).clone();
        let logins = credentials
            .into_iter()
            .filter(|credential| credential.db_user == db_user)
            .map(|credential| credential.login_role);
        let roles: Vec<String> = logins.chain([truncated(db_user)]).collect();
        let mut catalog = self.catalog.lock().await;
        for role in roles {
            let sql = format!(
                "ALTER ROLE {} VALID UNTIL '-infinity'",
                escape_identifier(&role)
            );
            catalog.superuser().await?.batch_execute(&sql).await?;
        }
        Ok(())
    }
}

impl Catalog {
    /// The connection of the superuser, which is made again after the server was stopped.
    async fn superuser(&mut self) -> Result<&Client> {
        if self.superuser.is_closed() {
            self.superuser = self.administrator.connect("postgres").await?;
        }
        Ok(&self.superuser)
    }
}

impl Wanted {
    fn statements(&self, issued: &Issued, login_role: &str) -> String {
        let encryption = match self.encryption {
            PasswordEncryption::Md5 => "md5",
            PasswordEncryption::Scram => "scram-sha-256",
        };
        let user = escape_identifier(&truncated(&self.db_user));
        let login = escape_identifier(login_role);
        let secret = format!(
            "LOGIN PASSWORD {} VALID UNTIL {}",
            escape_literal(&issued.password),
            escape_literal(&timestamp(issued.expires))
        );
        let mut sql = format!(
            "SET LOCAL password_encryption = '{encryption}';\nALTER ROLE {user} {secret};\n\
             CREATE ROLE {login} {secret} IN ROLE {user};\nALTER ROLE {login} SET role = {};\n",
            escape_literal(&truncated(&self.db_user))
        );
        for group in &self.groups {
            let _ = writeln!(
                sql,
                "GRANT {} TO {user};",
                escape_identifier(&group_role(group))
            );
        }
        sql
    }
}

/// Redshift may have a group and a user of the same name, while PostgreSQL's roles share one
/// namespace.
fn group_role(group: &str) -> String {
    truncated(&format!("group {group}"))
}

/// PostgreSQL truncates names to 63 bytes, in SQL and in the StartupMessage, where Redshift allows
/// 127.
pub(crate) fn truncated(name: &str) -> String {
    name.chars()
        .scan(0, |size, character| {
            *size += character.len_utf8();
            (*size <= 63).then_some(character)
        })
        .collect()
}
