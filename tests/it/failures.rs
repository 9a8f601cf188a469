//! What do clients read when AWS fails or a server refuses their login, and do other logins go on?

use testbed::{Fault, FaultRule, Testbed};

use crate::support::client::{Client, ServerError};
use crate::support::proxy::{Proxy, rds_config, redshift_config};

fn refusal(proxy: &Proxy) -> ServerError {
    Client::log_in(proxy.address(), &[("user", "x")])
        .err()
        .expect("the login fails")
}

#[test]
fn the_error_for_a_denied_call_names_the_missing_action_and_no_arn() {
    let aws = Testbed::shared().aws();
    let config = redshift_config(&aws, "db_user = \"ana\"\ndatabase = \"dev\"");
    aws.add_fault(
        FaultRule::new(Fault::Deny)
            .for_action("DescribeClusters")
            .times(1),
    );
    aws.add_fault(
        FaultRule::new(Fault::DenyAction("redshift:JoinGroup"))
            .for_action("GetClusterCredentials")
            .times(1),
    );
    let proxy = Proxy::with_config(&aws, &config);
    let error = refusal(&proxy);
    assert_eq!(
        (error.sqlstate(), error.message()),
        (
            "28000",
            "redshift:DescribeClusters is not allowed for the proxy's AWS identity"
        )
    );
    let proxy = Proxy::with_config(&aws, &config);
    let error = refusal(&proxy);
    assert_eq!(
        (error.sqlstate(), error.message()),
        (
            "28000",
            "redshift:JoinGroup is not allowed for the proxy's AWS identity"
        )
    );
    assert!(!format!("{error:?}").contains("arn:"));
    proxy.log_line(&[
        "WARN",
        "login refused",
        "redshift:JoinGroup",
        "arn:aws:iam::123456789012:user/",
    ]);
}

#[test]
fn a_denial_is_cached_only_for_a_moment() {
    let aws = Testbed::shared().aws();
    let proxy = Proxy::with_config(
        &aws,
        &redshift_config(&aws, "db_user = \"ana\"\ndatabase = \"dev\""),
    );
    aws.add_fault(
        FaultRule::new(Fault::Deny)
            .for_action("GetClusterCredentials")
            .times(1),
    );
    assert_eq!(refusal(&proxy).sqlstate(), "28000");
    assert_eq!(refusal(&proxy).sqlstate(), "28000");
    assert_eq!(
        aws.calls("GetClusterCredentials"),
        1,
        "the second answer comes from the cache"
    );
    crate::support::wait_for("the permission", || {
        Client::log_in(proxy.address(), &[("user", "x")]).ok()
    });
    assert_eq!(aws.calls("GetClusterCredentials"), 2);
}

#[test]
fn logins_go_on_while_aws_fails_and_a_cached_credential_is_valid() {
    let aws = Testbed::shared().aws();
    let proxy = Proxy::with_config(
        &aws,
        &redshift_config(&aws, "db_user = \"ana\"\ndatabase = \"dev\""),
    );
    let log_in = || {
        Client::log_in(proxy.address(), &[("user", "x")])
            .map(|mut client| client.value("select current_user"))
    };
    assert_eq!(log_in().unwrap(), "IAM:ana");
    for fault in [
        Fault::Throttle,
        Fault::InternalError,
        Fault::Deny,
        Fault::Hang,
    ] {
        aws.set_fault(fault);
        assert_eq!(log_in().unwrap(), "IAM:ana", "{fault:?}");
    }
    assert_eq!(aws.calls("GetClusterCredentials"), 1);
}

#[test]
fn a_credential_in_use_is_renewed_before_a_login_has_to_wait() {
    let bed = Testbed::shared();
    let aws = bed.aws();
    aws.set_credential_life(std::time::Duration::from_secs(3));
    bed.redshift().create_user("busy");
    let proxy = Proxy::with_config(
        &aws,
        &redshift_config(&aws, "db_user = \"busy\"\ndatabase = \"dev\""),
    );
    let log_in = || {
        Client::log_in(proxy.address(), &[("user", "x")])
            .map(|mut client| client.value("select current_user"))
    };
    assert_eq!(log_in().unwrap(), "IAM:busy");
    // Logins go on with the credential at hand while it is renewed twice.
    crate::support::wait_for("the third credential", || {
        assert_eq!(log_in().unwrap(), "IAM:busy");
        (aws.calls("GetClusterCredentials") >= 3).then_some(())
    });
}

#[test]
fn aws_is_asked_again_until_it_answers() {
    let aws = Testbed::shared().aws();
    aws.set_fault(Fault::InternalError);
    let proxy = Proxy::with_config(
        &aws,
        &redshift_config(&aws, "db_user = \"ana\"\ndatabase = \"dev\""),
    );
    assert_eq!(refusal(&proxy).sqlstate(), "57P03");
    aws.set_fault(None);
    crate::support::wait_for("AWS", || {
        Client::log_in(proxy.address(), &[("user", "x")]).ok()
    });
}

#[test]
fn transient_failures_of_aws_are_reported_as_57p03() {
    let aws = Testbed::shared().aws();
    for (fault, why) in [
        (Fault::Throttle, "AWS throttles the calls of this account"),
        (Fault::InternalError, "AWS fails"),
        (Fault::Hang, "AWS did not answer in time"),
        (Fault::Malformed, "AWS gave an answer that cannot be read"),
    ] {
        let proxy = Proxy::with_config(
            &aws,
            &redshift_config(&aws, "db_user = \"ana\"\ndatabase = \"dev\""),
        );
        aws.set_fault(fault);
        let error = refusal(&proxy);
        assert_eq!(
            (error.sqlstate(), error.message()),
            (
                "57P03",
                format!("redshift:DescribeClusters: {why}").as_str()
            ),
            "{fault:?}"
        );
        assert!(
            !proxy.log().contains("<DbUser>"),
            "the answer may contain a password, so it is not logged"
        );
    }
}

#[test]
fn logins_queue_for_a_server_but_not_forever() {
    let bed = Testbed::shared();
    let aws = bed.aws();
    bed.rds().create_user("queued").unwrap();
    let proxy = Proxy::with_config(
        &aws,
        &rds_config("db_user = \"queued\"\ndatabase = \"postgres\"\nmax_logins_per_second = 5"),
    );
    let started = std::time::Instant::now();
    std::thread::scope(|scope| {
        let logins: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| Client::log_in(proxy.address(), &[("user", "x")]).is_ok()))
            .collect();
        assert!(logins.into_iter().all(|login| login.join().unwrap()));
    });
    assert!(
        started.elapsed() > std::time::Duration::from_secs(1),
        "eight logins at five per second take more than a second"
    );
    let silent = crate::support::server::answer_ssl_request(b"");
    let keys = format!(
        "host = \"127.0.0.1\"\nport = {silent}\ndb_user = \"jane_doe\"\nmax_concurrent_logins = 1"
    );
    let proxy = Proxy::with_config(&aws, &rds_config(&keys));
    std::thread::scope(|scope| {
        let logins: Vec<_> = (0..3).map(|_| scope.spawn(|| refusal(&proxy))).collect();
        let mut sqlstates: Vec<String> = logins
            .into_iter()
            .map(|login| login.join().unwrap().sqlstate().to_string())
            .collect();
        sqlstates.sort();
        // The first login waits for the silent server, the second one waits in line, and the third
        // one waits too long.
        assert_eq!(sqlstates, ["08001", "08001", "57P03"]);
    });
}

#[test]
fn an_unreachable_aws_is_reported_as_57p03() {
    let aws = Testbed::shared().aws();
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let config = redshift_config(&aws, "db_user = \"ana\"")
        .replace(&aws.endpoint_url(), &format!("http://127.0.0.1:{port}"));
    let proxy = Proxy::with_config(&aws, &config);
    let error = refusal(&proxy);
    assert_eq!(
        (error.sqlstate(), error.message()),
        ("57P03", "redshift:DescribeClusters: AWS cannot be reached")
    );
}

#[test]
fn missing_clusters_and_instances_are_reported_as_58000() {
    let aws = Testbed::shared().aws();
    let endpoint = format!(
        "endpoint_url = \"{}\"\ndb_user = \"ana\"",
        aws.endpoint_url()
    );
    for (config, action) in [
        (
            redshift_config(&aws, "db_user = \"ana\"\ncluster_identifier = \"nowhere\""),
            "redshift:DescribeClusters",
        ),
        (
            rds_config(&format!("instance_identifier = \"nowhere\"\n{endpoint}")),
            "rds:DescribeDBInstances",
        ),
        (
            rds_config(&format!("cluster_identifier = \"nowhere\"\n{endpoint}")),
            "rds:DescribeDBClusters",
        ),
    ] {
        let error = refusal(&Proxy::with_config(&aws, &config));
        let message = format!(
            "{action}: there is no such cluster, workgroup or instance in this account and region"
        );
        assert_eq!(
            (error.sqlstate(), error.message()),
            ("58000", message.as_str())
        );
    }
}

#[test]
fn unknown_aws_keys_are_reported_as_28000() {
    let aws = Testbed::shared().aws();
    let mut env = aws.env_without_key();
    env.push(("AWS_ACCESS_KEY_ID".into(), "AKIANOBODY".into()));
    env.push(("AWS_SECRET_ACCESS_KEY".into(), "nothing".into()));
    let proxy = Proxy::with_config_and_env(&redshift_config(&aws, "db_user = \"ana\""), env);
    let error = refusal(&proxy);
    let message = "redshift:DescribeClusters: AWS does not accept the proxy's AWS credentials \
        (InvalidClientTokenId)";
    assert_eq!((error.sqlstate(), error.message()), ("28000", message));
}

#[test]
fn a_database_user_that_does_not_exist_is_refused_in_the_servers_words() {
    let aws = Testbed::shared().aws();
    let proxy = Proxy::with_config(
        &aws,
        &redshift_config(&aws, "db_user = \"nobody_here\"\ndatabase = \"dev\""),
    );
    let error = refusal(&proxy);
    assert_eq!(
        (error.sqlstate(), error.message()),
        (
            "28P01",
            "password authentication failed for user \"IAM:nobody_here\""
        )
    );
}

#[test]
fn a_cached_credential_that_the_server_refuses_is_replaced_without_the_client_noticing() {
    let bed = Testbed::shared();
    let aws = bed.aws();
    bed.redshift().create_user("revoked");
    let proxy = Proxy::with_config(
        &aws,
        &redshift_config(&aws, "db_user = \"revoked\"\ndatabase = \"dev\""),
    );
    let log_in = || {
        Client::log_in(proxy.address(), &[("user", "x")])
            .map(|mut client| client.value("select current_user"))
    };
    assert_eq!(log_in().unwrap(), "IAM:revoked");
    assert_eq!(log_in().unwrap(), "IAM:revoked");
    assert_eq!(
        aws.calls("GetClusterCredentials"),
        1,
        "the second login used the first one's credential"
    );
    bed.redshift().revoke("IAM:revoked").unwrap();
    assert_eq!(log_in().unwrap(), "IAM:revoked");
    assert_eq!(aws.calls("GetClusterCredentials"), 2);
}

#[test]
fn a_login_fails_with_08004_when_the_server_refuses_the_replacement_too() {
    let bed = Testbed::shared();
    let aws = bed.aws();
    bed.rds().create_user("unlucky").unwrap();
    let proxy = Proxy::with_config(
        &aws,
        &rds_config("db_user = \"unlucky\"\ndatabase = \"postgres\""),
    );
    bed.rds().refuse_next_of("unlucky", 1);
    let error = refusal(&proxy);
    assert_eq!(
        (error.sqlstate(), error.message()),
        ("28000", "LDAP authentication failed for user \"unlucky\""),
        "a login with a fresh credential is not retried"
    );
    assert!(Client::log_in(proxy.address(), &[("user", "x")]).is_ok());
    bed.rds().refuse_next_of("unlucky", 1);
    assert!(
        Client::log_in(proxy.address(), &[("user", "x")]).is_ok(),
        "a login with a cached credential is retried"
    );
    bed.rds().refuse_next_of("unlucky", 2);
    let error = refusal(&proxy);
    let message = "the database server refused the temporary password twice: LDAP authentication \
        failed for user \"unlucky\"";
    assert_eq!((error.sqlstate(), error.message()), ("08004", message));
}

#[test]
fn a_credential_that_is_about_to_expire_is_not_handed_out() {
    let aws = Testbed::shared().aws();
    aws.set_credential_life(std::time::Duration::from_secs(2));
    let proxy = Proxy::with_config(
        &aws,
        &redshift_config(&aws, "db_user = \"temp_creds_user\"\ndatabase = \"dev\""),
    );
    let log_in = || {
        Client::log_in(proxy.address(), &[("user", "x")])
            .map(|mut client| client.value("select current_user"))
    };
    // Every login succeeds no matter when the credential expires, because it is replaced before the
    // server could refuse it.
    crate::support::wait_for("the third credential", || {
        assert_eq!(log_in().unwrap(), "IAM:temp_creds_user");
        (aws.calls("GetClusterCredentials") >= 3).then_some(())
    });
    assert!(!proxy.log().contains("refuses a cached credential"));
}

#[test]
fn one_broken_target_does_not_stop_the_others() {
    let bed = Testbed::shared();
    let aws = bed.aws();
    let good = rds_config("db_user = \"jane_doe\"\ndatabase = \"postgres\"");
    let broken = [
        "host = \"no-such-host.invalid\"\nprofile = \"no-such-profile\"",
        "host = \"no-such-host.invalid\"",
        "instance_identifier = \"nowhere\"\nendpoint_url = \"http://127.0.0.1:1\"",
    ];
    let mut config = good.clone();
    for (number, keys) in broken.iter().enumerate() {
        config += &format!(
            "[[listener]]\naddress = \"127.0.0.1:0\"\ntargets = [\"broken{number}\"]\n\
             auth = \"trust\"\n[target.broken{number}]\nengine = \"rds\"\nregion = \"us-west-2\"\n\
             {keys}\n"
        );
    }
    let proxy = Proxy::with_config(&aws, &config);
    let sqlstates: Vec<String> = proxy.addresses[1..]
        .iter()
        .map(|&address| {
            Client::log_in(address, &[("user", "x")])
                .err()
                .unwrap()
                .sqlstate()
                .to_string()
        })
        .collect();
    assert_eq!(sqlstates, ["28000", "08001", "57P03"]);
    assert_eq!(
        Client::log_in(proxy.address(), &[("user", "x")])
            .unwrap()
            .value("select 1"),
        "1"
    );
}

#[test]
fn simultaneous_first_logins_make_one_call() {
    let bed = Testbed::shared();
    let aws = bed.aws();
    bed.redshift().create_user("crowd");
    let keys = format!(
        "host = \"localhost\"\nport = {}\ndb_user = \"crowd\"\ndatabase = \"dev\"",
        bed.redshift().port()
    );
    let proxy = Proxy::with_config(&aws, &redshift_config(&aws, &keys));
    std::thread::scope(|scope| {
        let logins: Vec<_> = (0..20)
            .map(|_| scope.spawn(|| Client::log_in(proxy.address(), &[("user", "x")]).is_ok()))
            .collect();
        assert!(logins.into_iter().all(|login| login.join().unwrap()));
    });
    assert_eq!(aws.calls("GetClusterCredentials"), 1);
}
