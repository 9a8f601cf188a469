//! How do tests run psql so that it verifies the certificate and the name?

use std::path::Path;
use std::process::Command;

pub struct Psql<'a> {
    pub host: &'a str,
    pub port: u16,
    pub user: &'a str,
    pub password: &'a str,
    pub database: &'a str,
    pub ca_file: &'a Path,
    pub sslmode: &'a str,
}

impl Psql<'_> {
    /// Runs a statement, and returns its result or psql's complaint.
    pub fn run(&self, sql: &str) -> Result<String, String> {
        let mut psql = Command::new("psql");
        psql.args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-c", sql]);
        psql.env("PGHOST", self.host)
            .env("PGPORT", self.port.to_string());
        psql.env("PGUSER", self.user)
            .env("PGPASSWORD", self.password)
            .env("PGDATABASE", self.database);
        psql.env("PGSSLMODE", self.sslmode)
            .env("PGSSLROOTCERT", self.ca_file);
        let output = psql.output().expect("psql is installed with PostgreSQL");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() {
            Ok(text(&output.stdout))
        } else {
            Err(text(&output.stderr))
        }
    }
}
