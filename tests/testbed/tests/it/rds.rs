//! Who gets in to the RDS flavour?

use std::time::{Duration, SystemTime};

use testbed::accounts::Account;
use testbed::rds::{MASTER_PASSWORD, MASTER_USER};
use testbed::sigv4::Token;
use testbed::{AccessKey, Principal, Testbed};

use crate::psql::Psql;

fn token(testbed: &Testbed, user: &str, key: &AccessKey) -> String {
    let rds = testbed.rds();
    let life = Duration::from_mins(15);
    Token {
        host: rds.host(),
        port: rds.port(),
        user,
        region: testbed::REGION,
        life,
        at: SystemTime::now(),
    }
    .sign(key)
}

fn psql<'a>(testbed: &'a Testbed, user: &'a str, password: &'a str) -> Psql<'a> {
    let rds = testbed.rds();
    Psql {
        host: rds.host(),
        port: rds.port(),
        user,
        password,
        database: "postgres",
        ca_file: testbed.ca_file(),
        sslmode: "verify-full",
    }
}

#[test]
fn a_token_logs_its_user_in_only_over_tls() {
    let testbed = Testbed::shared();
    let token = token(testbed, "jane_doe", testbed.aws().key());
    let client = psql(testbed, "jane_doe", &token);
    assert_eq!(
        client.run("SELECT current_user, ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"),
        Ok("jane_doe|t".into())
    );
    client.run("CREATE TABLE made_by_jane (id int)").unwrap();
    Psql {
        database: "exampledb",
        ..client
    }
    .run("CREATE TABLE made_by_jane (id int)")
    .unwrap();
    let refusal = Psql {
        sslmode: "disable",
        ..psql(testbed, "jane_doe", &token)
    }
    .run("SELECT 1")
    .unwrap_err();
    assert!(
        refusal.contains("pg_hba.conf rejects connection") && refusal.contains("no encryption"),
        "{refusal}"
    );
}

#[test]
fn a_long_token_is_not_truncated() {
    let testbed = Testbed::shared();
    testbed.rds().create_user("long").unwrap();
    let session_token = "t".repeat(60_000);
    let key = AccessKey {
        id: "ASIALONG".into(),
        secret: "s".into(),
        session_token: Some(session_token.clone()),
        expires: None,
    };
    let principal = Principal::Role {
        name: "long".into(),
        session: "s".into(),
    };
    let account = Account {
        secret: key.secret.clone(),
        session_token: Some(session_token),
        expires: None,
        principal,
    };
    testbed.accounts().add(&key.id, account);
    let token = token(testbed, "long", &key);
    assert!(token.len() > 60_000);
    assert_eq!(
        psql(testbed, "long", &token).run("SELECT current_user"),
        Ok("long".into())
    );
    psql(testbed, "long", &token[..token.len() - 1])
        .run("SELECT 1")
        .unwrap_err();
    assert_eq!(
        testbed.rds().refusals_of("long"),
        ["the signature does not match"]
    );
}

#[test]
fn logins_are_refused_as_often_as_requested() {
    let testbed = Testbed::shared();
    testbed.rds().create_user("unlucky").unwrap();
    let token = token(testbed, "unlucky", testbed.aws().key());
    testbed.rds().refuse_next_of("unlucky", 1);
    let refusal = psql(testbed, "unlucky", &token)
        .run("SELECT 1")
        .unwrap_err();
    assert!(
        refusal.contains("authentication failed for user \"unlucky\""),
        "{refusal}"
    );
    assert_eq!(
        psql(testbed, "unlucky", &token).run("SELECT 1"),
        Ok("1".into())
    );
    assert_eq!(
        (
            testbed.rds().accepted_of("unlucky"),
            testbed.rds().refusals_of("unlucky")
        ),
        (1, vec!["told to refuse".to_owned()])
    );
}

#[test]
fn a_token_expires_with_the_session_that_signed_it() {
    let testbed = Testbed::shared();
    testbed.rds().create_user("short").unwrap();
    let key = testbed
        .accounts()
        .add_role_session("analyst", "me", Duration::ZERO);
    psql(testbed, "short", &token(testbed, "short", &key))
        .run("SELECT 1")
        .unwrap_err();
    assert_eq!(
        testbed.rds().refusals_of("short"),
        ["the access key has expired"]
    );
}

#[test]
fn the_master_user_logs_in_with_a_password() {
    let testbed = Testbed::shared();
    assert_eq!(
        psql(testbed, MASTER_USER, MASTER_PASSWORD).run("SELECT current_user"),
        Ok(MASTER_USER.into())
    );
    let token = token(testbed, MASTER_USER, testbed.aws().key());
    psql(testbed, MASTER_USER, &token)
        .run("SELECT 1")
        .unwrap_err();
}
