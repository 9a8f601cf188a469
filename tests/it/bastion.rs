//! Can a team share one address for several targets, with TLS and with passwords that are bound to
//! the TLS channel?

use std::path::PathBuf;

use testbed::{Aws, Testbed};

use crate::support::pki::{Authority, Leaf};
use crate::support::proxy::{Proxy, command, hash_password, rds_config, redshift_config};
use crate::support::python;

const PASSWORD: &str = "correct horse";

struct Bastion {
    proxy: Proxy,
    folder: tempfile::TempDir,
    _aws: Aws,
}

impl Bastion {
    /// Starts a proxy with two targets behind one TLS address, where everybody logs in with SCRAM.
    fn open() -> Self {
        let bed = Testbed::shared();
        let aws = bed.aws();
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new("team CA");
        let names = ["*.db.example.com", "localhost"];
        let server = authority.sign(&Leaf {
            common_name: "bastion",
            alternative_names: &names,
            ..Leaf::default()
        });
        for (name, text) in [
            ("ca.pem", &authority.certificate),
            ("server.crt", &server.certificate),
            ("server.key", &server.key),
        ] {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let listener = "auth = \"scram-sha-256\"\ntls = \"required\"\n\
            certificate = \"server.crt\"\nkey = \"server.key\"\n";
        let warehouse = redshift_config(&aws, "db_user = \"ana\"\ndatabase = \"dev\"")
            .replace("auth = \"trust\"\n", listener)
            .replace("[\"warehouse\"]", "[\"warehouse\", \"app\"]");
        let app = rds_config("db_user = \"jane_doe\"");
        let user = format!("[user.ana]\npassword = \"{}\"\n", hash_password(PASSWORD));
        let config = format!(
            "{warehouse}[target.app]{}{user}",
            app.split_once("[target.app]").unwrap().1
        );
        // Paths in the configuration are relative to the folder of its file.
        let file = folder.path().join("pg-iam-proxy.toml");
        std::fs::write(&file, config).unwrap();
        let mut command = command();
        command.args(["run", "--config"]).arg(&file).envs(aws.env());
        Self {
            proxy: Proxy::start(command, 1),
            folder,
            _aws: aws,
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Connects with libpq 18, and returns `current_user` and how it is connected, or the error.
    fn psycopg(&self, host: &str, more: &str) -> Result<String, String> {
        let conninfo = format!(
            "host={host} hostaddr=127.0.0.1 port={} user=ana password='{PASSWORD}' \
             sslmode=verify-full sslrootcert={} {more}",
            self.proxy.address().port(),
            self.file("ca.pem").display()
        );
        python::psycopg(&conninfo, &[])
    }
}

#[test]
fn the_tls_server_name_chooses_the_target_with_and_without_ssl_request() {
    let bastion = Bastion::open();
    for mode in ["", "sslnegotiation=direct"] {
        let warehouse = bastion.psycopg("warehouse.db.example.com", mode).unwrap();
        assert!(
            warehouse.starts_with("IAM:ana tls=True"),
            "{mode}: {warehouse}"
        );
        let app = bastion
            .psycopg("app.db.example.com", &format!("dbname=exampledb {mode}"))
            .unwrap();
        assert!(app.starts_with("jane_doe tls=True"), "{mode}: {app}");
    }
}

#[test]
fn the_database_name_chooses_the_target_when_the_server_name_is_not_one() {
    let bastion = Bastion::open();
    assert!(
        bastion
            .psycopg("localhost", "dbname=warehouse")
            .unwrap()
            .starts_with("IAM:ana")
    );
    assert!(
        bastion
            .psycopg("elsewhere.db.example.com", "dbname=app/postgres")
            .unwrap()
            .starts_with("jane_doe")
    );
    let error = bastion
        .psycopg("elsewhere.db.example.com", "dbname=nothing")
        .unwrap_err();
    assert!(
        error.contains("FATAL:  no target \"nothing\" on this address"),
        "{error}"
    );
}

#[test]
fn scram_works_with_channel_binding_and_without_it() {
    let bastion = Bastion::open();
    for more in [
        "channel_binding=require",
        "channel_binding=require require_auth=scram-sha-256 sslnegotiation=direct \
         max_protocol_version=latest",
    ] {
        let seen = bastion.psycopg("warehouse.db.example.com", more).unwrap();
        assert!(seen.starts_with("IAM:ana tls=True"), "{more}: {seen}");
    }
    assert!(
        bastion
            .psycopg("warehouse.db.example.com", "channel_binding=disable")
            .is_ok(),
        "clients without channel binding are let in too"
    );
    let error = bastion
        .psycopg("warehouse.db.example.com", "password=wrong")
        .unwrap_err();
    assert!(
        error.contains("FATAL:  password authentication failed for user \"ana\""),
        "{error}"
    );
}
