//! What does a client see of its login: settings, protocol versions, startup parameters and the
//! server's own errors?

use std::io::{Read, Write};
use std::process::Command;

use testbed::Testbed;

use crate::support::client::{Client, V3_0, V3_2, connect, read_reply, startup_packet};
use crate::support::pki::Authority;
use crate::support::proxy::{Proxy, config_file, rds_config, redshift_config};
use crate::support::server::{TlsServerStream, serve_tls};

#[test]
fn psql_logs_in_without_a_password_to_both_engines() {
    let bed = Testbed::shared();
    let aws = bed.aws();
    let redshift = format!(
        "redshift://ana@examplecluster.us-west-2/dev?listen=127.0.0.1:0&ca_file={}&endpoint_url={}",
        bed.ca_file().display(),
        aws.endpoint_url()
    );
    let rds = format!(
        "rds://jane_doe@localhost:{}/exampledb?region=us-west-2&listen=127.0.0.1:0&ca_file={}",
        bed.rds().port(),
        bed.ca_file().display()
    );
    let proxy = Proxy::with_urls(&aws, &[&redshift, &rds]);
    let uris: Vec<&str> = proxy
        .printed
        .lines()
        .filter_map(|line| line.strip_prefix("  psql  "))
        .collect();
    assert_eq!(uris.len(), 2, "{}", proxy.printed);
    for (uri, expected) in uris.into_iter().zip(["IAM:ana|dev", "jane_doe|exampledb"]) {
        let psql = Command::new("psql")
            .args([
                "-XAtw",
                uri,
                "-c",
                "select current_user, current_database()",
            ])
            .output()
            .expect("psql starts");
        assert_eq!(
            String::from_utf8_lossy(&psql.stdout).trim(),
            expected,
            "{}",
            String::from_utf8_lossy(&psql.stderr)
        );
    }
}

#[test]
fn the_greeting_arrives_in_one_piece_and_ends_with_ready_for_query() {
    let aws = Testbed::shared().aws();
    let proxy = Proxy::with_config(
        &aws,
        &rds_config("db_user = \"jane_doe\"\ndatabase = \"postgres\""),
    );
    let mut stream = connect(proxy.address());
    stream
        .write_all(&startup_packet(V3_0, &[("user", "anybody")]))
        .unwrap();
    let mut greeting = vec![0; 65_536];
    let length = stream.read(&mut greeting).unwrap();
    assert_eq!(&greeting[..9], b"R\0\0\0\x08\0\0\0\0");
    assert_eq!(&greeting[length - 6..length], b"Z\0\0\0\x05I");
}

#[test]
fn the_client_is_told_the_servers_settings_and_its_real_process_id() {
    let aws = Testbed::shared().aws();
    let proxy = Proxy::with_config(
        &aws,
        &rds_config("db_user = \"jane_doe\"\ndatabase = \"postgres\""),
    );
    let mut client = Client::log_in(
        proxy.address(),
        &[
            ("user", "x"),
            ("application_name", "it"),
            ("client_encoding", "UTF8"),
        ],
    )
    .unwrap();
    assert_eq!(client.settings["application_name"], "it");
    assert_eq!(client.settings["session_authorization"], "jane_doe");
    assert_eq!(
        client.value("select pg_backend_pid()"),
        client.process_id().to_string()
    );
    assert_eq!(client.key.len(), 8);
}

#[test]
fn protocol_3_2_is_spoken_and_newer_minor_versions_are_negotiated_down_to_it() {
    let aws = Testbed::shared().aws();
    let proxy = Proxy::with_config(
        &aws,
        &rds_config("db_user = \"jane_doe\"\ndatabase = \"postgres\""),
    );
    let client = Client::log_in_with(proxy.address(), V3_2, &[("user", "x")]).unwrap();
    assert_eq!(client.negotiated, None);
    assert!(
        (4 + 32..=4 + 256).contains(&client.key.len()),
        "{}",
        client.key.len()
    );
    let client = Client::log_in_with(
        proxy.address(),
        0x0003_270f,
        &[("user", "x"), ("_pq_.new", "1")],
    )
    .unwrap();
    assert_eq!(
        client.negotiated.unwrap(),
        b"\0\x03\0\x02\0\0\0\x01_pq_.new\0"
    );
    assert!(client.key.len() > 4 + 4);
    let client =
        Client::log_in_with(proxy.address(), V3_0, &[("user", "x"), ("_pq_.new", "1")]).unwrap();
    assert_eq!(
        client.negotiated.unwrap(),
        b"\0\x03\0\0\0\0\0\x01_pq_.new\0"
    );
    assert_eq!(client.key.len(), 4 + 4);
}

#[test]
fn the_compression_parameter_of_redshifts_jdbc_driver_is_silently_dropped() {
    let bed = Testbed::shared();
    let aws = bed.aws();
    let proxy = Proxy::with_config(
        &aws,
        &redshift_config(&aws, "db_user = \"ana\"\ndatabase = \"dev\""),
    );
    let parameters = [
        ("user", "x"),
        ("_pq_.compression", "lz4:1"),
        ("driver_version", "Redshift JDBC Driver 2.1.0.30"),
    ];
    let mut client = Client::log_in(proxy.address(), &parameters).unwrap();
    assert_eq!(client.negotiated, None);
    assert_eq!(client.value("select 1"), "1");
    assert!(
        bed.redshift()
            .startups()
            .iter()
            .flatten()
            .all(|(name, _)| !name.starts_with("_pq_."))
    );
}

#[test]
fn startup_parameters_reach_the_server_in_order_without_those_that_it_refuses() {
    let bed = Testbed::shared();
    let aws = bed.aws();
    let proxy = Proxy::with_config(
        &aws,
        &redshift_config(
            &aws,
            "db_user = \"ana\"\nignore_startup_parameters = [\"geqo\"]",
        ),
    );
    let parameters = [
        ("user", "x"),
        ("DateStyle", "ISO"),
        ("IntervalStyle", "postgres"),
        ("extra_float_digits", "3"),
        ("application_name", "ordered"),
        ("geqo", "off"),
        ("database", "dev"),
        ("client_encoding", "UTF8"),
    ];
    let mut client = Client::log_in(proxy.address(), &parameters).unwrap();
    assert_eq!(client.value("select current_user"), "IAM:ana");
    let startups = bed.redshift().startups();
    let seen = startups
        .iter()
        .find(|startup| startup.contains(&("application_name".into(), "ordered".into())))
        .unwrap();
    let seen: Vec<(&str, &str)> = seen
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    let expected = [
        ("user", "IAM:ana"),
        ("DateStyle", "ISO"),
        ("extra_float_digits", "2"),
        ("application_name", "ordered"),
        ("database", "dev"),
        ("client_encoding", "UTF8"),
    ];
    assert_eq!(seen, expected);
}

#[test]
fn amazon_drivers_parameters_do_not_reach_rds() {
    let aws = Testbed::shared().aws();
    let proxy = Proxy::with_config(
        &aws,
        &rds_config("db_user = \"jane_doe\"\ndatabase = \"postgres\""),
    );
    let parameters = [
        ("user", "x"),
        ("client_protocol_version", "2"),
        ("driver_version", "Redshift Python Driver 2.2.0"),
        ("os_version", "x"),
    ];
    assert_eq!(
        Client::log_in(proxy.address(), &parameters)
            .unwrap()
            .value("select 1"),
        "1"
    );
}

#[test]
fn parameter_values_that_are_not_utf8_pass_through() {
    let aws = Testbed::shared().aws();
    let proxy = Proxy::with_config(
        &aws,
        &rds_config("db_user = \"jane_doe\"\ndatabase = \"postgres\""),
    );
    let mut stream = connect(proxy.address());
    let body = [
        &V3_0.to_be_bytes()[..],
        b"user\0x\0client_encoding\0LATIN1\0application_name\0caf\xe9\0\0",
    ]
    .concat();
    stream
        .write_all(&crate::support::client::packet(&body))
        .unwrap();
    // PostgreSQL replaces each byte of application_name that is not ASCII, so one question mark
    // means that one byte arrived.
    let mut greeting = vec![0; 65_536];
    let length = stream.read(&mut greeting).unwrap();
    assert!(String::from_utf8_lossy(&greeting[..length]).contains("application_name\0caf?\0"));
}

#[test]
fn the_servers_own_error_arrives_field_for_field() {
    let aws = Testbed::shared().aws();
    let proxy = Proxy::with_config(&aws, &rds_config("db_user = \"jane_doe\""));
    let error = Client::log_in(proxy.address(), &[("user", "x"), ("database", "nowhere")])
        .err()
        .unwrap();
    assert_eq!(
        (error.sqlstate(), error.message()),
        ("3D000", "database \"nowhere\" does not exist")
    );
    assert_eq!(
        error.0[&'R'], "InitPostgres",
        "the server's routine name is there too"
    );
    assert!(
        !error.detail().contains("pg-iam-proxy"),
        "the proxy adds nothing"
    );
}

#[test]
fn an_error_after_authentication_ok_is_the_first_thing_the_client_sees() {
    let aws = Testbed::shared().aws();
    let proxy = Proxy::with_config(
        &aws,
        &rds_config("db_user = \"jane_doe\"\ndatabase = \"postgres\""),
    );
    let mut stream = connect(proxy.address());
    stream
        .write_all(&startup_packet(
            V3_0,
            &[("user", "x"), ("no_such_setting", "1")],
        ))
        .unwrap();
    let crate::support::client::Reply::Message(b'E', body) = read_reply(&mut stream) else {
        panic!("an error first")
    };
    let error = crate::support::client::error_fields(&body);
    assert_eq!(
        (error.sqlstate(), error.message()),
        (
            "42704",
            "unrecognized configuration parameter \"no_such_setting\""
        )
    );
}

#[test]
fn several_targets_on_one_listener_are_chosen_by_database_name() {
    let bed = Testbed::shared();
    let aws = bed.aws();
    let both = format!(
        "{}{}",
        redshift_config(&aws, "db_user = \"ana\"\ndatabase = \"dev\"").replace(
            "targets = [\"warehouse\"]",
            "targets = [\"warehouse\", \"app\"]"
        ),
        rds_config("db_user = \"jane_doe\"")
            .split_once("[target.app]")
            .map(|(_, target)| format!("[target.app]{target}"))
            .unwrap()
    );
    let proxy = Proxy::with_config(&aws, &both);
    let user =
        |database: &str| Client::log_in(proxy.address(), &[("user", "x"), ("database", database)]);
    assert_eq!(
        user("warehouse").unwrap().value("select current_user"),
        "IAM:ana"
    );
    assert_eq!(
        user("app/exampledb")
            .unwrap()
            .value("select current_user || '@' || current_database()"),
        "jane_doe@exampledb"
    );
    let error = user("elsewhere").err().unwrap();
    assert_eq!(
        (error.sqlstate(), error.message()),
        ("3D000", "no target \"elsewhere\" on this address")
    );
}

/// The message that a client reads when the server's side of its login goes like this, and the
/// proxy's log.
fn refusal_by(
    script: impl Fn(&mut TlsServerStream) -> std::io::Result<()> + Send + 'static,
) -> (String, String, Proxy) {
    let authority = Authority::new("scripted");
    let ca_file = config_file(&authority.certificate);
    let port = serve_tls(&authority.server(), script);
    let keys = format!("host = \"localhost\"\nport = {port}\ndb_user = \"jane_doe\"\n");
    let bed = Testbed::shared();
    let config = rds_config(&keys).replace(
        &bed.ca_file().display().to_string(),
        &ca_file.display().to_string(),
    );
    let proxy = Proxy::with_config(&bed.aws(), &config);
    let error = Client::log_in(proxy.address(), &[("user", "x")])
        .err()
        .expect("there is no login");
    (
        error.sqlstate().to_string(),
        error.message().to_string(),
        proxy,
    )
}

#[test]
fn a_server_that_asks_for_the_password_twice_is_refused() {
    for again in [
        &b"R\0\0\0\x08\0\0\0\x03"[..],
        b"R\0\0\0\x0c\0\0\0\x05salt",
        b"R\0\0\0\x17\0\0\0\x0aSCRAM-SHA-256\0\0",
    ] {
        let (sqlstate, message, proxy) = refusal_by(move |stream| {
            stream.write_all(b"R\0\0\0\x0c\0\0\0\x05salt")?;
            // The answer to MD5 is always as long as this.
            stream.read_exact(&mut [0; 41])?;
            stream.write_all(again)?;
            stream.read_to_end(&mut Vec::new()).map(drop)
        });
        assert_eq!(
            (sqlstate.as_str(), message.as_str()),
            ("08P01", "the database server does not follow the protocol")
        );
        proxy.log_line(&["login refused", "another authentication request"]);
    }
}

#[test]
fn a_server_that_sends_notices_without_end_before_the_login_is_refused() {
    let (sqlstate, _, proxy) = refusal_by(|stream| {
        let notice = [&b"N\0\0\x04\x0cM"[..], &[b'x'; 1_029], b"\0\0"].concat();
        // As much as 10 MB would come, if the proxy read on.
        for _ in 0..10_000 {
            stream.write_all(&notice[..])?;
        }
        stream.read_to_end(&mut Vec::new()).map(drop)
    });
    assert_eq!(sqlstate, "08P01");
    proxy.log_line(&["login refused", "bytes of notices before it let us in"]);
}
