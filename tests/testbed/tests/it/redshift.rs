//! Who gets in to the Redshift flavour, and what does it do that PostgreSQL does not?

use std::time::{Duration, Instant};

use aws_lc_rs::digest::{SHA256, digest};
use testbed::redshift::TRUSTED_USER;
use testbed::{Aws, Challenge, FrontOptions, PasswordEncryption, ServerCertificate, Testbed};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::psql::Psql;
use crate::raw::{Message, Raw, error_field, status};

struct Credentials {
    user: String,
    password: String,
}

/// Each caller names a user of its own, so that tests can revoke credentials without disturbing
/// each other.
fn credentials(aws: &Aws, parameters: &str) -> Credentials {
    let body = format!(
        "Action=GetClusterCredentials&Version=2012-12-01&ClusterIdentifier=examplecluster&\
         AutoCreate=true&{parameters}"
    );
    let answer = crate::aws::signed_call(aws, "redshift", &body);
    let text = |name: &str| {
        let (_, rest) = answer
            .split_once(&format!("<{name}>"))
            .unwrap_or_else(|| panic!("{answer}"));
        rest.split_once('<').unwrap().0.to_owned()
    };
    Credentials {
        user: text("DbUser"),
        password: text("DbPassword"),
    }
}

fn psql<'a>(testbed: &'a Testbed, port: u16, credentials: &'a Credentials) -> Psql<'a> {
    let (user, password) = (credentials.user.as_str(), credentials.password.as_str());
    Psql {
        host: "localhost",
        port,
        user,
        password,
        database: "dev",
        ca_file: testbed.ca_file(),
        sslmode: "verify-full",
    }
}

#[test]
fn several_credentials_of_a_user_are_valid_at_the_same_time_until_they_end() {
    let testbed = Testbed::shared();
    let (redshift, aws) = (testbed.redshift(), testbed.aws());
    let first = credentials(&aws, "DbUser=twin");
    let second = credentials(&aws, "DbUser=twin");
    assert_eq!(first.user, "IAMA:twin");
    for credentials in [&first, &second] {
        assert_eq!(
            psql(testbed, redshift.port(), credentials).run("SELECT current_user"),
            Ok("IAMA:twin".into())
        );
    }
    psql(testbed, redshift.port(), &first)
        .run("CREATE TABLE public.made_by_twin (id int)")
        .unwrap();
    Psql {
        database: "exampledb",
        ..psql(testbed, redshift.port(), &second)
    }
    .run("CREATE TABLE public.made_by_twin (id int)")
    .unwrap();

    let wrong = Credentials {
        user: first.user.clone(),
        password: "guess".into(),
    };
    let refusal = psql(testbed, redshift.port(), &wrong)
        .run("SELECT 1")
        .unwrap_err();
    assert!(
        refusal.contains("password authentication failed for user \"IAMA:twin\""),
        "{refusal}"
    );
    redshift.revoke("IAMA:twin").unwrap();
    let refusal = psql(testbed, redshift.port(), &second)
        .run("SELECT 1")
        .unwrap_err();
    assert!(
        refusal.contains("password authentication failed for user \"IAMA:twin\""),
        "{refusal}"
    );
    assert_eq!(
        psql(testbed, redshift.port(), &credentials(&aws, "DbUser=twin")).run("SELECT 1"),
        Ok("1".into())
    );
}

#[test]
fn a_credential_expires_at_its_expiration() {
    let testbed = Testbed::shared();
    let aws = testbed.aws();
    aws.set_credential_life(Duration::from_secs(2));
    let credentials = credentials(&aws, "DbUser=mayfly");
    let client = psql(testbed, testbed.redshift().port(), &credentials);
    client.run("SELECT 1").unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while client.run("SELECT 1").is_ok() {
        assert!(Instant::now() < deadline);
    }
}

#[test]
fn without_tls_the_password_is_reported_as_wrong() {
    let testbed = Testbed::shared();
    let credentials = credentials(&testbed.aws(), "DbUser=plain");
    let client = Psql {
        sslmode: "disable",
        ..psql(testbed, testbed.redshift().port(), &credentials)
    };
    let refusal = client.run("SELECT 1").unwrap_err();
    assert!(
        refusal.contains("password authentication failed for user \"IAMA:plain\""),
        "{refusal}"
    );
}

#[test]
fn groups_are_joined_and_names_may_be_longer_than_those_of_postgresql() {
    let testbed = Testbed::shared();
    let user = "u".repeat(64);
    let credentials = credentials(
        &testbed.aws(),
        &format!("DbUser={user}&DbGroups.DbGroup.1=bi&DbGroups.DbGroup.2=etl"),
    );
    assert_eq!(credentials.user, format!("IAMA:{user}:bi,etl"));
    let client = psql(testbed, testbed.redshift().port(), &credentials);
    assert_eq!(
        client
            .run("SELECT pg_has_role('group bi', 'member') AND pg_has_role('group etl', 'member')"),
        Ok("t".into())
    );
}

#[test]
fn a_front_can_show_a_bad_certificate() {
    let testbed = Testbed::shared();
    let credentials = credentials(&testbed.aws(), "DbUser=certain");
    let open = |certificate| {
        testbed
            .redshift()
            .front(FrontOptions {
                certificate,
                ..FrontOptions::default()
            })
            .unwrap()
    };
    let refusal = |client: Psql<'_>| client.run("SELECT 1").unwrap_err();

    let expired = open(ServerCertificate::Expired);
    let refused = refusal(Psql {
        sslmode: "verify-ca",
        ..psql(testbed, expired.port(), &credentials)
    });
    assert!(refused.contains("certificate verify failed"), "{refused}");

    let wrong_name = open(ServerCertificate::WrongName);
    let refused = refusal(psql(testbed, wrong_name.port(), &credentials));
    assert!(
        refused.contains("\"other.example.com\" does not match host name \"localhost\""),
        "{refused}"
    );
    Psql {
        sslmode: "verify-ca",
        ..psql(testbed, wrong_name.port(), &credentials)
    }
    .run("SELECT 1")
    .unwrap();

    let unknown_ca = open(ServerCertificate::UnknownCa);
    let refused = refusal(psql(testbed, unknown_ca.port(), &credentials));
    assert!(refused.contains("certificate verify failed"), "{refused}");
    Psql {
        ca_file: testbed.other_ca_file(),
        ..psql(testbed, unknown_ca.port(), &credentials)
    }
    .run("SELECT 1")
    .unwrap();
}

#[test]
fn the_direct_port_asks_as_postgresql_does() {
    let testbed = Testbed::shared();
    let aws = testbed.aws();
    let port = testbed.redshift().direct_port();
    let md5 = credentials(&aws, "DbUser=direct_md5");
    assert_eq!(
        psql(testbed, port, &md5).run("SELECT current_user"),
        Ok("IAMA:direct_md5".into())
    );
    aws.set_password_encryption(PasswordEncryption::Scram);
    let scram = credentials(&aws, "DbUser=direct_scram");
    assert_eq!(
        psql(testbed, port, &scram).run("SELECT current_user"),
        Ok("IAMA:direct_scram".into())
    );
    assert_eq!(
        psql(testbed, testbed.redshift().port(), &scram).run("SELECT current_user"),
        Ok("IAMA:direct_scram".into())
    );
    let trusted = Credentials {
        user: TRUSTED_USER.into(),
        password: String::new(),
    };
    assert_eq!(
        psql(testbed, port, &trusted).run("SELECT current_user"),
        Ok(TRUSTED_USER.into())
    );
}

#[tokio::test]
async fn parameters_of_redshift_are_accepted_and_answered() {
    let testbed = Testbed::shared();
    let credentials = credentials(&testbed.aws(), "DbUser=driver");
    let more = [
        ("client_protocol_version", "2"),
        ("driver_version", "Redshift Python Driver 2.2.0"),
        ("plugin_name", "none"),
        ("extra_float_digits", "2"),
    ];
    let (_, messages) = log_in(testbed, testbed.redshift().port(), &credentials, &more).await;
    assert_eq!(status(&messages, "server_version").unwrap(), "8.0.2");
    assert_eq!(status(&messages, "server_protocol_version").unwrap(), "0");
    assert_eq!(
        status(&messages, "session_authorization").unwrap(),
        "IAMA:driver"
    );
    assert!(status(&messages, "padb_revision").is_some());
    assert_eq!(status(&messages, "standard_conforming_strings"), None);
    let startup = testbed
        .redshift()
        .startups()
        .into_iter()
        .find(|startup| startup.contains(&("user".into(), "IAMA:driver".into())));
    assert!(startup.unwrap().contains(&(
        "driver_version".into(),
        "Redshift Python Driver 2.2.0".into()
    )));
}

#[tokio::test]
async fn parameters_younger_than_redshift_are_refused_after_the_password() {
    let testbed = Testbed::shared();
    let credentials = credentials(&testbed.aws(), "DbUser=young");
    for (name, value, sqlstate) in [
        ("intervalstyle", "iso_8601", "42704"),
        ("standard_conforming_strings", "on", "42704"),
        ("lc_monetary", "C", "42501"),
        ("extra_float_digits", "3", "22023"),
        ("no_such_parameter", "1", "42704"),
    ] {
        let (_, messages) = log_in(
            testbed,
            testbed.redshift().port(),
            &credentials,
            &[(name, value)],
        )
        .await;
        assert_eq!(messages[0], (b'R', vec![0; 4]));
        assert_eq!(error_field(&messages, b'C'), sqlstate, "{name}");
    }
    let mut raw = Raw::connect(testbed.redshift().port(), testbed.ca_file())
        .await
        .unwrap();
    raw.startup(&[
        ("user", &credentials.user),
        ("database", "dev"),
        ("_pq_.compression", "lz4"),
    ])
    .await;
    assert_eq!(error_field(&raw.receive_all().await, b'C'), "0A000");
}

#[tokio::test]
async fn the_credential_is_found_with_every_challenge() {
    let testbed = Testbed::shared();
    let aws = testbed.aws();
    let first = credentials(&aws, "DbUser=challenged");
    let second = credentials(&aws, "DbUser=challenged");
    let wrong = Credentials {
        user: first.user.clone(),
        password: "guess".into(),
    };
    for challenge in [Challenge::Md5, Challenge::Digest, Challenge::Cleartext] {
        let front = testbed
            .redshift()
            .front(FrontOptions {
                challenge,
                ..FrontOptions::default()
            })
            .unwrap();
        for good in [&first, &second] {
            let (_, messages) = log_in(testbed, front.port(), good, &[]).await;
            assert_eq!(messages.last().unwrap().0, b'Z', "{challenge:?}");
        }
        let (_, messages) = log_in(testbed, front.port(), &wrong, &[]).await;
        assert_eq!(error_field(&messages, b'C'), "28P01", "{challenge:?}");
        assert_eq!(
            error_field(&messages, b'M'),
            "password authentication failed for user \"IAMA:challenged\""
        );
    }
    let front = testbed
        .redshift()
        .front(FrontOptions {
            challenge: Challenge::Code(14),
            ..FrontOptions::default()
        })
        .unwrap();
    let mut raw = Raw::connect(front.port(), testbed.ca_file()).await.unwrap();
    raw.startup(&[("user", &first.user)]).await;
    assert_eq!(raw.receive().await, (b'R', vec![0, 0, 0, 14]));
}

#[tokio::test]
async fn a_query_is_cancelled_from_inside_tls_and_from_outside() {
    let testbed = Testbed::shared();
    let port = testbed.redshift().port();
    let credentials = credentials(&testbed.aws(), "DbUser=impatient");
    for inside in [true, false] {
        let (mut session, messages) = log_in(testbed, port, &credentials, &[]).await;
        let key = messages
            .into_iter()
            .find(|(kind, _)| *kind == b'K')
            .unwrap()
            .1;
        session.send(b'Q', b"SELECT pg_sleep(30)\0").await;
        let packet = [&[0, 0, 0, 16, 0x04, 0xd2, 0x16, 0x2e][..], &key].concat();
        // A cancel request that arrives before the query has no effect, so it is sent until the
        // answer is there.
        let cancel = async {
            loop {
                if inside {
                    Raw::connect(port, testbed.ca_file())
                        .await
                        .unwrap()
                        .0
                        .write_all(&packet)
                        .await
                        .unwrap();
                } else {
                    TcpStream::connect(("127.0.0.1", port))
                        .await
                        .unwrap()
                        .write_all(&packet)
                        .await
                        .unwrap();
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::select! {
            messages = session.receive_all() => assert_eq!(error_field(&messages, b'C'), "57014"),
            () = cancel => {}
        }
    }
}

/// Logs in, whatever is asked, and returns the messages that came after that.
async fn log_in(
    testbed: &Testbed,
    port: u16,
    credentials: &Credentials,
    more: &[(&str, &str)],
) -> (Raw, Vec<Message>) {
    let mut raw = Raw::connect(port, testbed.ca_file()).await.unwrap();
    raw.startup(
        &[
            &[("user", credentials.user.as_str()), ("database", "dev")],
            more,
        ]
        .concat(),
    )
    .await;
    let (kind, request) = raw.receive().await;
    assert_eq!(kind, b'R');
    let password = credentials.password.as_bytes();
    match request[3] {
        3 => raw.send(b'p', &[password, &[0]].concat()).await,
        5 => {
            let hash = postgres_protocol::authentication::md5_hash(
                credentials.user.as_bytes(),
                password,
                request[4..8].try_into().unwrap(),
            );
            raw.send(b'p', &[hash.as_bytes(), &[0]].concat()).await;
        }
        13 => raw.send(b'd', &digest_answer(&request, password)).await,
        code => panic!("asked with {code}"),
    }
    let messages = raw.receive_all().await;
    (raw, messages)
}

fn digest_answer(request: &[u8], password: &[u8]) -> Vec<u8> {
    assert_eq!(request[4..8], [0; 4], "SHA-256");
    let (salt, rest) = request[12..].split_at(usize::from(request[11]));
    let nonce = &rest[4..];
    let stored = digest(&SHA256, &[password, salt].concat());
    let answer = digest(
        &SHA256,
        &[stored.as_ref(), nonce, b"1732154400000"].concat(),
    );
    [
        &[0, 0, 0, 32],
        answer.as_ref(),
        &[0, 0, 0, 13],
        b"1732154400000",
    ]
    .concat()
}
