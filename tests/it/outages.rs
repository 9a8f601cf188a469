//! What happens to logins when AWS or the instance metadata service is slow, silent or away, when
//! AWS credentials end, and when very many first logins come at once?

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use testbed::{Aws, Fault, FaultRule, Testbed};

use crate::support::client::{Client, ServerError, V3_0, connect, read_refusal, startup_packet};
use crate::support::proxy::{Proxy, rds_config, redshift_config};
use crate::support::{PATIENCE, wait_for};

fn log_in(proxy: &Proxy, user: &str) -> Result<String, ServerError> {
    Client::log_in(proxy.address(), &[("user", user)])
        .map(|mut client| client.value("select current_user"))
}

/// Starts a proxy that gets its AWS credentials from the instance metadata service.
fn on_an_instance(aws: &Aws) -> Proxy {
    let mut env = aws.env_without_key();
    env.retain(|(name, _)| name != "AWS_EC2_METADATA_DISABLED");
    env.push((
        "AWS_EC2_METADATA_SERVICE_ENDPOINT".to_string(),
        aws.imds_url(),
    ));
    Proxy::with_config_and_env(&redshift_config(aws, "database = \"dev\""), env)
}

#[test]
fn logins_wait_for_a_slow_instance_metadata_service() {
    let aws = Testbed::shared().aws();
    aws.add_fault(FaultRule::new(Fault::Slow(Duration::from_millis(700))).for_action("metadata"));
    let started = Instant::now();
    assert_eq!(log_in(&on_an_instance(&aws), "ana").unwrap(), "IAM:ana");
    assert!(
        started.elapsed() > Duration::from_millis(1_400),
        "the proxy asks for a session token and then for the credentials"
    );
}

#[test]
fn logins_fail_instead_of_hanging_when_the_instance_metadata_service_hangs() {
    let aws = Testbed::shared().aws();
    aws.add_fault(FaultRule::new(Fault::Hang).for_action("metadata"));
    let proxy = on_an_instance(&aws);
    let started = Instant::now();
    // All of them wait for the same request.
    let errors: Vec<ServerError> = std::thread::scope(|scope| {
        let logins = ["ana", "ana", "bi_tableau"]
            .map(|user| scope.spawn(|| log_in(&proxy, user).unwrap_err()));
        logins
            .into_iter()
            .map(|login| login.join().unwrap())
            .collect()
    });
    assert!(started.elapsed() < PATIENCE, "{:?}", started.elapsed());
    for error in errors {
        // The same happens on a machine without such a service, where nobody answers either.
        let message = "no AWS credentials: none in the environment, the profile, a web identity, \
            a container or the instance metadata";
        assert_eq!((error.sqlstate(), error.message()), ("28000", message));
    }
    aws.set_fault(None);
    assert_eq!(
        wait_for("the metadata service", || log_in(&proxy, "ana").ok()),
        "IAM:ana"
    );
}

#[test]
fn logins_fail_with_57p03_when_the_instance_metadata_service_hangs_later() {
    let aws = Testbed::shared().aws();
    aws.set_role_life(Duration::from_secs(1));
    aws.set_credential_life(Duration::from_secs(1));
    let proxy = on_an_instance(&aws);
    assert_eq!(log_in(&proxy, "ana").unwrap(), "IAM:ana");
    aws.add_fault(FaultRule::new(Fault::Hang).for_action("metadata"));
    let error = wait_for("the end of all credentials", || log_in(&proxy, "ana").err());
    assert_eq!(
        (error.sqlstate(), error.message()),
        ("57P03", "AWS credentials cannot be loaded now")
    );
}

#[test]
fn a_hanging_instance_metadata_service_delays_nobody_while_its_credentials_are_valid() {
    let aws = Testbed::shared().aws();
    let proxy = on_an_instance(&aws);
    assert_eq!(log_in(&proxy, "ana").unwrap(), "IAM:ana");
    aws.add_fault(FaultRule::new(Fault::Hang).for_action("metadata"));
    let started = Instant::now();
    // The first login uses a cached password, and the second one gets a new password with the AWS
    // credentials at hand.
    assert_eq!(log_in(&proxy, "ana").unwrap(), "IAM:ana");
    assert_eq!(log_in(&proxy, "bi_tableau").unwrap(), "IAM:bi_tableau");
    assert!(
        started.elapsed() < Duration::from_secs(4),
        "{:?}",
        started.elapsed()
    );
}

#[test]
fn an_instance_metadata_service_that_hangs_during_a_renewal_delays_nobody() {
    let aws = Testbed::shared().aws();
    // The proxy renews these credentials after 6 to 7.5 seconds and can use them for 9.
    aws.set_role_life(Duration::from_secs(12));
    let proxy = on_an_instance(&aws);
    assert_eq!(log_in(&proxy, "ana").unwrap(), "IAM:ana");
    let asked = aws.calls("metadata");
    aws.add_fault(FaultRule::new(Fault::Hang).for_action("metadata"));
    assert_eq!(
        log_in(&proxy, "temp_creds_user").unwrap(),
        "IAM:temp_creds_user"
    );
    wait_for("the renewal", || {
        (aws.calls("metadata") > asked).then_some(())
    });
    let started = Instant::now();
    assert_eq!(log_in(&proxy, "bi_tableau").unwrap(), "IAM:bi_tableau");
    assert!(
        started.elapsed() < Duration::from_secs(1),
        "{:?}",
        started.elapsed()
    );
}

#[test]
fn logins_go_on_while_aws_is_down_and_the_log_says_once_that_it_fails_and_once_that_it_answers() {
    let bed = Testbed::shared();
    let aws = bed.aws();
    // The proxy renews this credential after 21 to 28 seconds and can use it for 30.
    aws.set_credential_life(Duration::from_secs(40));
    bed.redshift().create_user("steady");
    let proxy = Proxy::with_config(
        &aws,
        &redshift_config(&aws, "db_user = \"steady\"\ndatabase = \"dev\""),
    );
    let started = Instant::now();
    let log_in = || assert_eq!(log_in(&proxy, "x").unwrap(), "IAM:steady");
    log_in();
    aws.set_fault(Fault::Deny);
    wait_for("a third of its life", || {
        (started.elapsed() > Duration::from_secs(13)).then_some(())
    });
    proxy.log_line(&[
        "WARN",
        "cannot be renewed; what is at hand serves on",
        "warehouse as \\\"steady\\\"",
    ]);
    (0..5).for_each(|_| log_in());
    // These are the first call and the renewal, and another attempt a second later if this machine
    // is slow.
    assert!(
        (2..=3).contains(&aws.calls("GetClusterCredentials")),
        "logins do not ask AWS"
    );
    aws.set_fault(None);
    wait_for("AWS", || {
        log_in();
        proxy.log().contains("AWS answers again").then_some(())
    });
    (0..5).for_each(|_| log_in());
    assert!((3..=4).contains(&aws.calls("GetClusterCredentials")));
    assert_eq!(
        ["cannot be renewed", "AWS answers again"].map(|line| proxy.log().matches(line).count()),
        [1, 1]
    );
}

/// Reserves a port on which nobody listens.
fn dead_port() -> (socket2::Socket, SocketAddr) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket
        .bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())
        .unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}

#[test]
fn aws_is_used_as_soon_as_it_can_be_reached() {
    let aws = Testbed::shared().aws();
    let (socket, address) = dead_port();
    let keys = "database = \"dev\"\nrole_arn = \"arn:aws:iam::123456789012:role/analyst\"";
    let config =
        redshift_config(&aws, keys).replace(&aws.endpoint_url(), &format!("http://{address}"));
    let proxy = Proxy::with_config(&aws, &config);
    let error = log_in(&proxy, "ana").unwrap_err();
    assert_eq!(
        (error.sqlstate(), error.message()),
        ("57P03", "sts:AssumeRole: AWS cannot be reached")
    );
    socket.listen(128).unwrap();
    let there: SocketAddr = aws
        .endpoint_url()
        .trim_start_matches("http://")
        .parse()
        .unwrap();
    std::thread::spawn(move || {
        std::net::TcpListener::from(socket)
            .incoming()
            .flatten()
            .for_each(|stream| forward(stream, there));
    });
    assert_eq!(wait_for("AWS", || log_in(&proxy, "ana").ok()), "IAM:ana");
}

fn forward(here: TcpStream, there: SocketAddr) {
    let there = TcpStream::connect(there).unwrap();
    for (mut from, mut to) in [
        (here.try_clone().unwrap(), there.try_clone().unwrap()),
        (there, here),
    ] {
        std::thread::spawn(move || std::io::copy(&mut from, &mut to));
    }
}

#[test]
fn a_thousand_simultaneous_first_logins_make_one_call_per_database_user() {
    const USERS: [&str; 3] = ["storm_one", "storm_two", "storm_three"];
    const LOGINS: usize = 1_000;
    let _ = rlimit::increase_nofile_limit(u64::MAX);
    let aws = Testbed::shared().aws();
    aws.add_fault(
        FaultRule::new(Fault::Slow(Duration::from_secs(1))).for_action("GetClusterCredentials"),
    );
    // Nobody listens where the credential would be used, because this test is not about what a
    // thousand PostgreSQL processes cost.
    let (_socket, nobody) = dead_port();
    let keys = format!(
        "host = \"127.0.0.1\"\nport = {}\ndatabase = \"dev\"\nauto_create = true\n\
         max_logins_per_second = 100000\nmax_concurrent_logins = 1000",
        nobody.port()
    );
    let proxy = Proxy::with_config(
        &aws,
        &format!(
            "{}[limits]\nmax_sessions = {LOGINS}\n",
            redshift_config(&aws, &keys)
        ),
    );
    let mut clients: Vec<TcpStream> = (0..LOGINS).map(|_| connect(proxy.address())).collect();
    for (client, user) in clients.iter_mut().zip(USERS.into_iter().cycle()) {
        client
            .write_all(&startup_packet(V3_0, &[("user", user)]))
            .unwrap();
    }
    for client in &mut clients {
        let error = read_refusal(client);
        assert_eq!(
            (error.sqlstate(), error.message()),
            ("08001", "cannot connect to the database server")
        );
    }
    let mut calls: BTreeMap<String, usize> = BTreeMap::new();
    for request in aws.requests() {
        *calls
            .entry(format!(
                "{} {}",
                request.action,
                request.params.get("DbUser").unwrap()
            ))
            .or_default() += 1;
    }
    let expected = USERS.map(|user| (format!("GetClusterCredentials {user}"), 1));
    assert_eq!(calls, expected.into());
}

/// A file of the AWS configuration that an environment variable points to.
struct AwsFile(tempfile::TempPath);

impl AwsFile {
    fn new(text: &str) -> Self {
        let file = Self(tempfile::NamedTempFile::new().unwrap().into_temp_path());
        file.write(text);
        file
    }

    fn write(&self, text: &str) {
        std::fs::write(&self.0, text).unwrap();
    }

    fn env(&self, aws: &Aws, variable: &str) -> Vec<(String, String)> {
        let mut env = aws.env_without_key();
        env.retain(|(name, _)| name != variable);
        env.push((variable.to_string(), self.0.display().to_string()));
        env
    }
}

#[test]
fn replaced_keys_are_read_from_their_file_when_aws_refuses_the_old_ones() {
    let bed = Testbed::shared();
    let aws = bed.aws();
    let keys = |name: &str| {
        let key = bed.accounts().add_user(name);
        (
            format!(
                "[default]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
                key.id, key.secret
            ),
            key.id,
        )
    };
    let (old, old_id) = keys("rotated");
    let file = AwsFile::new(&old);
    let proxy = Proxy::with_config_and_env(
        &redshift_config(&aws, "database = \"dev\""),
        file.env(&aws, "AWS_SHARED_CREDENTIALS_FILE"),
    );
    assert_eq!(log_in(&proxy, "ana").unwrap(), "IAM:ana");
    bed.accounts().remove(&old_id);
    let error = log_in(&proxy, "bi_tableau").unwrap_err();
    let message = "redshift:GetClusterCredentials: AWS does not accept the proxy's AWS \
        credentials (InvalidClientTokenId)";
    assert_eq!((error.sqlstate(), error.message()), ("28000", message));
    assert_eq!(
        aws.calls("GetClusterCredentials"),
        2,
        "the same keys are not tried again"
    );
    file.write(&keys("rotated").0);
    assert_eq!(
        log_in(&proxy, "temp_creds_user").unwrap(),
        "IAM:temp_creds_user"
    );
    assert_eq!(log_in(&proxy, "ana").unwrap(), "IAM:ana");
}

#[test]
fn tokens_are_not_signed_with_expired_aws_credentials() {
    let aws = Testbed::shared().aws();
    let answer = format!(
        "{{\"Version\": 1, \"AccessKeyId\": \"{}\", \"SecretAccessKey\": \"{}\", \
         \"SessionToken\": \"t\", \"Expiration\": \"2020-01-01T00:00:00Z\"}}",
        aws.access_key_id(),
        aws.secret_access_key()
    );
    let answer = AwsFile::new(&answer);
    let file = AwsFile::new(&format!(
        "[default]\ncredential_process = cat {}\n",
        answer.0.display()
    ));
    let proxy = Proxy::with_config_and_env(
        &rds_config("db_user = \"jane_doe\""),
        file.env(&aws, "AWS_CONFIG_FILE"),
    );
    let error = log_in(&proxy, "x").unwrap_err();
    assert_eq!(
        (error.sqlstate(), error.message()),
        ("28000", "the proxy's AWS credentials have expired")
    );
}
