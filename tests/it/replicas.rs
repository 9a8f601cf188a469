//! What happens to a cancel request that reaches another replica than the one with its session?

use testbed::Testbed;

use crate::support::client::{Client, V3_0, V3_2, cancel};
use crate::support::proxy::{Proxy, rds_config};

const TARGET: &str = "db_user = \"jane_doe\"\ndatabase = \"postgres\"";

/// A file with a key that replicas share.
pub fn key_file() -> tempfile::TempPath {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "0123456789abcdef0123456789abcdef\n").unwrap();
    file.into_temp_path()
}

#[test]
fn replicas_that_share_a_key_file_can_cancel_each_others_queries() {
    let aws = Testbed::shared().aws();
    let key = key_file();
    let config = format!(
        "cancel_key_file = \"{}\"\n{}",
        key.display(),
        rds_config(TARGET)
    );
    let (one, two) = (
        Proxy::with_config(&aws, &config),
        Proxy::with_config(&aws, &config),
    );
    for version in [V3_0, V3_2] {
        let mut client = Client::log_in_with(one.address(), version, &[("user", "x")]).unwrap();
        let mut observer = Client::log_in(one.address(), &[("user", "x")]).unwrap();
        client.sleep_on_server(&mut observer);
        cancel(two.address(), &client.key);
        assert_eq!(
            client.read_rows().err().unwrap().sqlstate(),
            "57014",
            "protocol {version:x}"
        );
        two.log_line(&[
            "cancel request forwarded",
            &format!("pid={}", client.process_id()),
        ]);
    }
}

#[test]
fn replicas_with_different_keys_cannot_cancel_each_others_queries() {
    let aws = Testbed::shared().aws();
    let (one, two) = (
        Proxy::with_config(&aws, &rds_config(TARGET)),
        Proxy::with_config(&aws, &rds_config(TARGET)),
    );
    for version in [V3_0, V3_2] {
        let mut client = Client::log_in_with(one.address(), version, &[("user", "x")]).unwrap();
        let mut observer = Client::log_in(one.address(), &[("user", "x")]).unwrap();
        client.sleep_on_server(&mut observer);
        cancel(two.address(), &client.key);
        two.log_line(&[
            "cancel request with a key of no session",
            &format!("pid={}", client.process_id()),
        ]);
        cancel(one.address(), &client.key);
        assert_eq!(client.read_rows().err().unwrap().sqlstate(), "57014");
    }
}

#[test]
fn many_clients_behind_one_address_can_cancel_queries_of_the_other_replica() {
    let aws = Testbed::shared().aws();
    let key = key_file();
    let config = format!(
        "cancel_key_file = \"{}\"\n{}",
        key.display(),
        rds_config(TARGET)
    );
    let (one, two) = (
        Proxy::with_config(&aws, &config),
        Proxy::with_config(&aws, &config),
    );
    let mut client = Client::log_in(one.address(), &[("user", "x")]).unwrap();
    let mut observer = Client::log_in(one.address(), &[("user", "x")]).unwrap();
    for _ in 0..10 {
        client.sleep_on_server(&mut observer);
        cancel(two.address(), &client.key);
        assert_eq!(client.read_rows().err().unwrap().sqlstate(), "57014");
    }
}

#[test]
fn guesses_at_cancel_keys_of_other_replicas_are_limited_per_client_address() {
    let aws = Testbed::shared().aws();
    let key = key_file();
    let proxy = Proxy::with_config(
        &aws,
        &format!(
            "cancel_key_file = \"{}\"\n{}",
            key.display(),
            rds_config(TARGET)
        ),
    );
    // The proxy can only try the server once a login has found its address.
    let client = Client::log_in(proxy.address(), &[("user", "x")]).unwrap();
    for round in 0u32.. {
        assert!(round < 100, "no limit in {round} rounds");
        // The limit runs off while the server is asked, so it is asked ten times at once.
        std::thread::scope(|scope| {
            for guess in round * 10..(round + 1) * 10 {
                let key = [client.process_id().to_be_bytes(), guess.to_be_bytes()].concat();
                let proxy = &proxy;
                scope.spawn(move || cancel(proxy.address(), &key));
            }
        });
        if proxy
            .log()
            .contains("too many wrong cancel keys from this address")
        {
            break;
        }
    }
}

#[test]
fn a_cancel_key_that_is_too_short_is_refused() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "short\n").unwrap();
    let config = format!(
        "cancel_key_file = \"{}\"\n{}",
        file.path().display(),
        rds_config(TARGET)
    );
    let path = crate::support::proxy::config_file(&config);
    let output = crate::support::proxy::output(&[
        "check",
        "--offline",
        "--config",
        &path.display().to_string(),
    ]);
    assert_eq!(output.status.code(), Some(78));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(
        text.contains("must hold at least 32 bytes, as `openssl rand -hex 32` makes them"),
        "{text}"
    );
}
