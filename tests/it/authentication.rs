//! Who is let in, by passwords, by rules, or on the word of the operating system?

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::process::Command;

use testbed::Testbed;

use crate::support::client::{
    Client, Reply, ServerError, V3_0, connect, error_fields, packet, read_refusal, read_reply,
    startup_packet,
};
use crate::support::proxy::{Proxy, command, hash_password, md5_verifier, rds_config};
use crate::support::tls_files::TlsFiles;

const PASSWORD: &str = "correct horse";

/// Starts a proxy in front of RDS as `jane_doe`, with these lines of the listener in place of
/// trust, and with these users.
fn proxy(listener: &str, users: &str) -> Proxy {
    let aws = Testbed::shared().aws();
    let config = rds_config("db_user = \"jane_doe\"\ndatabase = \"postgres\"")
        .replace("auth = \"trust\"\n", &format!("{listener}\n"));
    Proxy::with_config(&aws, &format!("{config}\n{users}"))
}

fn user(name: &str, verifier: &str) -> String {
    format!("[user.{name}]\npassword = \"{verifier}\"\n")
}

/// Runs psql and returns what it printed, or its error.
fn psql(proxy: &Proxy, user: &str, password: &str, options: &str) -> Result<String, String> {
    let uri = format!("postgresql://{user}@{}/x?{options}", proxy.address());
    let output = Command::new("psql")
        .args(["-XAtw", &uri, "-c", "select current_user"])
        .env("PGPASSWORD", password)
        .output()
        .expect("psql");
    if output.status.success() {
        Ok(String::from_utf8(output.stdout).unwrap().trim().to_string())
    } else {
        Err(String::from_utf8(output.stderr).unwrap())
    }
}

#[test]
fn hash_password_prints_a_verifier_and_never_the_password() {
    let verifier = hash_password(PASSWORD);
    assert!(verifier.starts_with("SCRAM-SHA-256$4096:"), "{verifier}");
    assert!(!verifier.contains(PASSWORD));
    let mut empty = command()
        .arg("hash-password")
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    empty.stdin.take().unwrap().write_all(b"\n").unwrap();
    assert_eq!(empty.wait_with_output().unwrap().status.code(), Some(1));
}

#[test]
fn scram_and_cleartext_accept_the_same_verifier_and_md5_needs_its_own() {
    let scram = user("ana", &hash_password(PASSWORD));
    let md5 = user("ana", &md5_verifier("ana", PASSWORD));
    for (auth, users, required) in [
        ("scram-sha-256", &scram, "scram-sha-256"),
        ("password", &scram, "password"),
        ("password", &md5, "password"),
        ("md5", &md5, "md5"),
    ] {
        let proxy = proxy(&format!("auth = \"{auth}\""), users);
        assert_eq!(
            psql(&proxy, "ana", PASSWORD, "").unwrap(),
            "jane_doe",
            "{auth}"
        );
        for (name, password) in [("ana", "wrong"), ("nobody", PASSWORD)] {
            let error = psql(&proxy, name, password, "").unwrap_err();
            assert!(
                error.contains(&format!(
                    "FATAL:  password authentication failed for user \"{name}\""
                )),
                "{required}: {error}"
            );
        }
        proxy.log_line(&["login refused", "user=\"ana\"", "28P01"]);
        assert!(!proxy.log().contains(PASSWORD));
    }
}

#[test]
fn users_file_accepts_a_userlist_of_pgbouncer() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("userlist.txt");
    std::fs::write(
        &path,
        format!(
            "; moved from pgbouncer\n\"ana\" \"{}\"\n\"o\"\"b\" \"{}\"\n",
            hash_password(PASSWORD),
            md5_verifier("o\"b", "x")
        ),
    )
    .unwrap();
    let aws = Testbed::shared().aws();
    let config = rds_config("db_user = \"jane_doe\"\ndatabase = \"postgres\"")
        .replace("\"trust\"", "\"scram-sha-256\"");
    let proxy = Proxy::with_config(
        &aws,
        &format!("users_file = \"{}\"\n{config}", path.display()),
    );
    assert_eq!(psql(&proxy, "ana", PASSWORD, "").unwrap(), "jane_doe");
}

#[test]
fn an_unknown_user_sees_the_same_exchange_as_a_known_one() {
    let users = user("ana", &hash_password(PASSWORD));
    let start = || proxy("auth = \"scram-sha-256\"", &users);
    let proxy = start();
    // Runs the exchange up to the proxy's first SCRAM message, and returns the mechanisms, the
    // length of the nonce, and the salt with the iterations.
    let first_from = |proxy: &Proxy, name: &str| {
        let mut stream = connect(proxy.address());
        stream
            .write_all(&startup_packet(V3_0, &[("user", name)]))
            .unwrap();
        let Reply::Message(b'R', mechanisms) = read_reply(&mut stream) else {
            panic!("a request")
        };
        let initial = b"SCRAM-SHA-256\0\0\0\0\x0an,,n=,r=ab".to_vec();
        stream
            .write_all(&[&b"p"[..], &packet(&initial)].concat())
            .unwrap();
        let Reply::Message(b'R', first) = read_reply(&mut stream) else {
            panic!("a challenge")
        };
        let first = String::from_utf8(first[4..].to_vec()).unwrap();
        let (nonce, rest) = first.split_once(",s=").unwrap();
        (mechanisms, nonce.len(), rest.to_string())
    };
    let first_of = |name| first_from(&proxy, name);
    let (known, unknown) = (first_of("ana"), first_of("nobody"));
    assert_eq!(
        (&known.0, known.1, known.2.len()),
        (&unknown.0, unknown.1, unknown.2.len())
    );
    assert_eq!(
        first_of("nobody").2,
        unknown.2,
        "the made-up salt is stable"
    );
    assert_ne!(
        first_of("somebody").2,
        unknown.2,
        "another user has another salt"
    );
    assert_eq!(
        first_from(&start(), "nobody").2,
        unknown.2,
        "and stays after a restart"
    );
}

#[test]
fn repeated_failures_from_one_address_are_slowed_down_and_logged() {
    let proxy = proxy(
        "auth = \"password\"",
        &user("ana", &hash_password(PASSWORD)),
    );
    let started = std::time::Instant::now();
    let mut failures = 0;
    while !proxy.log().contains("repeated failures") {
        assert!(psql(&proxy, "ana", "wrong", "").is_err());
        failures += 1;
        assert!(
            failures < 30 && started.elapsed() < crate::support::PATIENCE,
            "{}",
            proxy.log()
        );
    }
    assert_eq!(
        psql(&proxy, "ana", PASSWORD, "").unwrap(),
        "jane_doe",
        "the right password is still accepted"
    );
}

/// Sends this password as it is, and does not wait for the answer.
fn guess(proxy: &Proxy, user: &str, password: &str) -> TcpStream {
    let mut stream = connect(proxy.address());
    stream
        .write_all(&startup_packet(V3_0, &[("user", user)]))
        .unwrap();
    assert_eq!(
        read_reply(&mut stream),
        Reply::Message(b'R', vec![0, 0, 0, 3])
    );
    let answer = [password.as_bytes(), b"\0"].concat();
    stream
        .write_all(&[b"p", &packet(&answer)[..]].concat())
        .unwrap();
    stream
}

#[test]
fn a_right_password_among_many_guesses_is_not_told_out_of_turn_and_other_users_go_on() {
    let verifier = hash_password(PASSWORD);
    let users = [user("ana", &verifier), user("bob", &verifier)].concat();
    let proxy = proxy(
        "auth = \"password\"",
        &format!("{users}[limits]\nmax_sessions = 1\n"),
    );
    for _ in 0..6 {
        let error = read_refusal(&mut guess(&proxy, "ana", "wrong"));
        assert_eq!(error.sqlstate(), "28P01");
    }
    let _impatient: Vec<_> = (0..30).map(|_| guess(&proxy, "ana", "wrong")).collect();
    let error = read_refusal(&mut guess(&proxy, "ana", PASSWORD));
    assert_eq!(
        (error.sqlstate(), error.message()),
        ("28P01", "password authentication failed for user \"ana\"")
    );
    proxy.log_line(&["too many logins of this user wait for their turn"]);
    // Those that wait hold no place of a session.
    let mut bob = guess(&proxy, "bob", PASSWORD);
    assert_eq!(read_reply(&mut bob), Reply::Message(b'R', vec![0, 0, 0, 0]));
}

#[test]
fn failures_of_one_user_do_not_hold_up_the_right_passwords_of_another_at_the_same_address() {
    let verifier = hash_password(PASSWORD);
    let users = [user("ana", &verifier), user("bob", &verifier)].concat();
    let proxy = proxy("auth = \"password\"", &users);
    for _ in 0..6 {
        let error = read_refusal(&mut guess(&proxy, "ana", "wrong"));
        assert_eq!(error.sqlstate(), "28P01");
    }
    // A tool that opens its pool of connections.
    let pool: Vec<_> = (0..20).map(|_| guess(&proxy, "bob", PASSWORD)).collect();
    for mut bob in pool {
        assert_eq!(read_reply(&mut bob), Reply::Message(b'R', vec![0, 0, 0, 0]));
    }
}

#[test]
fn a_password_whose_turn_does_not_come_in_time_is_refused_with_28p01() {
    let proxy = proxy(
        "auth = \"password\"",
        &format!(
            "{}[limits]\nstartup_timeout = \"700ms\"\n",
            user("ana", &hash_password(PASSWORD))
        ),
    );
    for _ in 0..8 {
        let error = read_refusal(&mut guess(&proxy, "ana", "wrong"));
        assert_eq!(error.sqlstate(), "28P01");
    }
    proxy.log_line(&["its turn did not come before startup_timeout"]);
}

#[test]
fn a_login_of_psql_that_is_tried_with_and_without_tls_is_one_failure() {
    let tls = TlsFiles::new();
    let proxy = proxy(
        &format!("auth = \"password\"\n{}", tls.keys("optional")),
        &user("ana", &hash_password(PASSWORD)),
    );
    for _ in 0..3 {
        let error = psql(&proxy, "ana", "wrong", "sslmode=prefer").unwrap_err();
        assert_eq!(error.matches("FATAL").count(), 2, "{error}");
    }
    assert!(
        !proxy.log().contains("repeated failures"),
        "{}",
        proxy.log()
    );
    psql(&proxy, "ana", "wrong", "sslmode=require").unwrap_err();
    proxy.log_line(&["repeated failures", "failures=4"]);
}

#[test]
fn a_client_of_a_newer_protocol_learns_the_version_before_it_is_refused() {
    let proxy = proxy(
        "auth = \"password\"",
        &user("ana", &hash_password(PASSWORD)),
    );
    let mut stream = connect(proxy.address());
    stream
        .write_all(&startup_packet(0x0003_270f, &[("user", "ana")]))
        .unwrap();
    assert_eq!(
        read_reply(&mut stream),
        Reply::Message(b'v', b"\0\x03\0\x02\0\0\0\0".to_vec())
    );
    assert_eq!(
        read_reply(&mut stream),
        Reply::Message(b'R', vec![0, 0, 0, 3])
    );
}

#[test]
fn a_client_that_closes_at_the_password_prompt_is_not_a_failed_login() {
    let proxy = proxy(
        "auth = \"password\"",
        &user("ana", &hash_password(PASSWORD)),
    );
    let mut stream = connect(proxy.address());
    stream
        .write_all(&startup_packet(V3_0, &[("user", "ana")]))
        .unwrap();
    assert!(matches!(read_reply(&mut stream), Reply::Message(b'R', _)));
    drop(stream);
    proxy.log_line(&["DEBUG", "client left before its login was done"]);
}

#[test]
fn a_client_that_does_not_answer_is_refused_with_57014() {
    let proxy = proxy(
        "auth = \"scram-sha-256\"",
        &format!(
            "{}[limits]\nstartup_timeout = \"300ms\"\n",
            user("ana", &hash_password(PASSWORD))
        ),
    );
    let mut stream = connect(proxy.address());
    stream
        .write_all(&startup_packet(V3_0, &[("user", "ana")]))
        .unwrap();
    assert!(matches!(read_reply(&mut stream), Reply::Message(b'R', _)));
    let Reply::Message(b'E', body) = read_reply(&mut stream) else {
        panic!("an error")
    };
    let error = error_fields(&body);
    assert_eq!(
        (error.sqlstate(), error.message()),
        ("57014", "canceling authentication due to timeout")
    );
}

#[test]
fn oversized_and_malformed_answers_are_refused_before_they_allocate() {
    let proxy = proxy(
        "auth = \"password\"",
        &user("ana", &hash_password(PASSWORD)),
    );
    let answer = |bytes: &[u8]| -> ServerError {
        let mut stream = connect(proxy.address());
        stream
            .write_all(&startup_packet(V3_0, &[("user", "ana")]))
            .unwrap();
        assert!(matches!(read_reply(&mut stream), Reply::Message(b'R', _)));
        stream.write_all(bytes).unwrap();
        let Reply::Message(b'E', body) = read_reply(&mut stream) else {
            panic!("an error")
        };
        error_fields(&body)
    };
    for bytes in [
        &b"p\x7f\xff\xff\xff"[..],
        b"p\0\0\0\x03",
        b"p\0\0\0\0",
        b"Q\0\0\0\x05\0",
        b"p\0\0\0\x06ab",
        b"p\0\0\0\x08ab\0c",
    ] {
        assert_eq!(answer(bytes).sqlstate(), "08P01", "{bytes:?}");
    }
    assert_eq!(psql(&proxy, "ana", PASSWORD, "").unwrap(), "jane_doe");
}

#[test]
fn rules_are_tried_in_order_and_the_first_match_decides() {
    let rules = "[[listener.rule]]\nusers = [\"robot\"]\nfrom = \"127.0.0.0/8\"\nauth = \"trust\"\n\
                 [[listener.rule]]\nusers = [\"mallory\"]\nauth = \"reject\"\n\
                 [[listener.rule]]\nfrom = \"192.0.2.0/24\"\nauth = \"trust\"\n\
                 [[listener.rule]]\nusers = [\"ana\", \"mallory\"]\nauth = \"scram-sha-256\"\n";
    let aws = Testbed::shared().aws();
    let config = rds_config("db_user = \"jane_doe\"\ndatabase = \"postgres\"")
        .replace("auth = \"trust\"\n", rules);
    let users = [
        user("ana", &hash_password(PASSWORD)),
        user("mallory", &hash_password(PASSWORD)),
    ]
    .concat();
    let proxy = Proxy::with_config(&aws, &format!("{config}\n{users}"));
    assert_eq!(psql(&proxy, "robot", "", "").unwrap(), "jane_doe");
    assert_eq!(psql(&proxy, "ana", PASSWORD, "").unwrap(), "jane_doe");
    let refusal = |name: &str| {
        Client::log_in(proxy.address(), &[("user", name)])
            .err()
            .unwrap()
    };
    let error = refusal("mallory");
    assert_eq!(
        (error.sqlstate(), error.message()),
        (
            "28000",
            "the proxy rejects connections as user \"mallory\" from this address"
        )
    );
    let error = refusal("nobody");
    assert_eq!(
        (error.sqlstate(), error.message()),
        (
            "28000",
            "no rule of the proxy lets user \"nobody\" in from this address"
        )
    );
}

#[test]
fn peer_authentication_trusts_the_operating_system_on_a_unix_socket() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(".s.PGSQL.5439");
    let aws = Testbed::shared().aws();
    let config = rds_config("db_user = \"jane_doe\"\ndatabase = \"postgres\"")
        .replace("127.0.0.1:0", &path.display().to_string())
        .replace("\"trust\"", "\"peer\"");
    let file = crate::support::proxy::config_file(&config);
    let mut command = command();
    command.args(["run", "--config"]).arg(&file).envs(aws.env());
    let mut proxy = Proxy::start_unix(command);
    let me = String::from_utf8(Command::new("id").arg("-un").output().unwrap().stdout)
        .unwrap()
        .trim()
        .to_string();
    let uri = proxy
        .printed
        .lines()
        .find_map(|line| line.strip_prefix("  psql  "))
        .unwrap()
        .replace("USER@", &format!("{me}@"));
    let output = Command::new("psql")
        .args(["-XAtw", &uri, "-c", "select current_user"])
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout).trim(),
        "jane_doe",
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    proxy.log_line(&["session opened", "client=local:"]);
    let mut stream = UnixStream::connect(&path).unwrap();
    stream
        .write_all(&startup_packet(V3_0, &[("user", "somebody_else")]))
        .unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert!(
        String::from_utf8_lossy(&answer)
            .contains("C28000\0MPeer authentication failed for user \"somebody_else\"\0")
    );
    proxy.signal("-TERM");
    assert!(proxy.wait().success());
    assert!(!path.exists(), "the socket goes with the proxy");
}

#[test]
fn a_stale_socket_is_replaced_and_one_in_use_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(".s.PGSQL.5439");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let config =
        rds_config("db_user = \"jane_doe\"").replace("127.0.0.1:0", &path.display().to_string());
    let start = || {
        let file = crate::support::proxy::config_file(&config);
        let mut command = command();
        command.args(["run", "--config"]).arg(&file);
        (command, file)
    };
    let (first, _file) = start();
    let _proxy = Proxy::start_unix(first);
    let (mut second, _file) = start();
    let output = second.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("cannot listen on "),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(path.exists());
}

#[test]
fn what_a_killed_proxy_or_another_user_has_left_beside_a_socket_is_not_in_the_way() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(".s.PGSQL.5439");
    std::fs::create_dir(directory.path().join(".s.PGSQL.5439.new")).unwrap();
    let config =
        rds_config("db_user = \"jane_doe\"").replace("127.0.0.1:0", &path.display().to_string());
    let file = crate::support::proxy::config_file(&config);
    let mut command = command();
    command.args(["run", "--config"]).arg(&file);
    let _proxy = Proxy::start_unix(command);
    UnixStream::connect(&path).unwrap();
    let left: Vec<_> = std::fs::read_dir(directory.path()).unwrap().collect();
    assert_eq!(left.len(), 2, "nothing is left besides: {left:?}");
}

#[test]
fn a_file_at_the_path_of_a_socket_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("precious");
    std::fs::write(&path, "data").unwrap();
    let config =
        rds_config("db_user = \"jane_doe\"").replace("127.0.0.1:0", &path.display().to_string());
    let file = crate::support::proxy::config_file(&config);
    let mut command = command();
    let output = command
        .args(["run", "--config"])
        .arg(&*file)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    let expected = format!(
        "pg-iam-proxy: cannot listen on {}: there is a file that is not a socket\n",
        path.display()
    );
    assert_eq!(error, expected);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "data");
}

#[test]
fn users_can_be_restricted_to_targets_and_have_a_database_user_of_their_own() {
    let bed = Testbed::shared();
    let aws = bed.aws();
    let own = hash_password(PASSWORD);
    let users = format!(
        "[user.ana]\npassword = \"{own}\"\ntargets = [\"app\"]\n[user.bob]\npassword = \"{own}\"\n\
         targets = [\"warehouse\"]\ndb_user = \"bob_of_bi\"\ndb_groups = [\"bi\"]\n"
    );
    let warehouse = crate::support::proxy::redshift_config(
        &aws,
        "db_user = \"ana\"\ndatabase = \"dev\"\nauto_create = true",
    );
    let app = rds_config("db_user = \"jane_doe\"\ndatabase = \"postgres\"");
    let config = warehouse
        .replace(
            "targets = [\"warehouse\"]",
            "targets = [\"warehouse\", \"app\"]",
        )
        .replace("\"trust\"", "\"scram-sha-256\"");
    let config = format!(
        "{config}[target.app]{}{users}",
        app.split_once("[target.app]").unwrap().1
    );
    let proxy = Proxy::with_config(&aws, &config);
    let psql = |user: &str, database: &str| {
        let uri = format!("postgresql://{user}@{}/{database}", proxy.address());
        let output = Command::new("psql")
            .args(["-XAtw", &uri, "-c", "select current_user"])
            .env("PGPASSWORD", PASSWORD)
            .output()
            .unwrap();
        format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        )
        .trim()
        .to_string()
    };
    assert_eq!(psql("ana", "app"), "jane_doe");
    assert_eq!(psql("bob", "warehouse"), "IAMA:bob_of_bi:bi");
    assert!(
        psql("ana", "warehouse").contains("FATAL:  user \"ana\" may not use target \"warehouse\"")
    );
    assert!(psql("bob", "app").contains("FATAL:  user \"bob\" may not use target \"app\""));
}
