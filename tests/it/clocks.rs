//! What happens when a clock jumps or a credential ends early? The proxy never uses a credential
//! that it knows to have expired, and it replaces those that only the server considers expired.

use std::time::{Duration, Instant};

use testbed::{Aws, Fault, Testbed};

use crate::support::client::{Client, ServerError};
use crate::support::proxy::{Proxy, dsql_config, rds_config, redshift_config};
use crate::support::wait_for;
use crate::support::wall_clock::WallClock;

const HOUR: i64 = 3600;

fn start(aws: &Aws, config: &str) -> (Proxy, WallClock) {
    let clock = WallClock::new();
    let env = [aws.env(), clock.env()].concat();
    (Proxy::with_config_and_env(config, env), clock)
}

fn log_in(proxy: &Proxy) -> Result<String, ServerError> {
    Client::log_in(proxy.address(), &[("user", "x")])
        .map(|mut client| client.value("select current_user"))
}

/// How many calls AWS accepted. A call whose signature has the wrong time is refused and then
/// repeated.
fn good_calls(aws: &Aws, action: &str) -> usize {
    aws.requests()
        .iter()
        .filter(|request| request.action == action && request.access_key_id.is_some())
        .count()
}

#[test]
fn after_sleep_an_expired_password_is_replaced_and_the_new_one_is_cached_by_the_clock_of_aws() {
    let bed = Testbed::shared();
    let aws = bed.aws();
    bed.redshift().create_user("sleeper");
    let (proxy, clock) = start(
        &aws,
        &redshift_config(&aws, "db_user = \"sleeper\"\ndatabase = \"dev\""),
    );
    assert_eq!(log_in(&proxy).unwrap(), "IAM:sleeper");
    assert_eq!(log_in(&proxy).unwrap(), "IAM:sleeper");
    assert_eq!(good_calls(&aws, "GetClusterCredentials"), 1);
    clock.set_ahead(HOUR);
    for _ in 0..3 {
        assert_eq!(log_in(&proxy).unwrap(), "IAM:sleeper");
    }
    // By the proxy's clock, the new password had expired before it was issued.
    assert_eq!(good_calls(&aws, "GetClusterCredentials"), 2);
    proxy.log_line(&[
        "WARN",
        "this machine's clock is 360",
        " s ahead of AWS's; servers refuse authentication tokens",
    ]);
    clock.set_ahead(0);
    assert_eq!(log_in(&proxy).unwrap(), "IAM:sleeper");
    assert_eq!(
        good_calls(&aws, "GetClusterCredentials"),
        2,
        "nothing changes when the clock is set right"
    );
    assert!(!proxy.log().contains("refuses a cached credential"));
}

#[test]
fn setting_the_clock_back_does_not_extend_the_life_of_a_credential() {
    let bed = Testbed::shared();
    let aws = bed.aws();
    let life = Duration::from_secs(1);
    aws.set_credential_life(life);
    bed.redshift().create_user("set_back");
    let (proxy, clock) = start(
        &aws,
        &redshift_config(&aws, "db_user = \"set_back\"\ndatabase = \"dev\""),
    );
    assert_eq!(log_in(&proxy).unwrap(), "IAM:set_back");
    // The first credential is in use, so it is renewed once. Nobody uses the second one, so it
    // expires.
    wait_for("the renewal", || {
        (proxy.log().matches("got a credential").count() == 2).then_some(())
    });
    clock.set_ahead(-HOUR);
    let set_back = Instant::now();
    wait_for("the second one's end", || {
        (set_back.elapsed() > life).then_some(())
    });
    assert_eq!(log_in(&proxy).unwrap(), "IAM:set_back");
    assert_eq!(good_calls(&aws, "GetClusterCredentials"), 3);
    assert!(
        !proxy.log().contains("refuses a cached credential"),
        "{}",
        proxy.log()
    );
}

#[test]
fn tokens_signed_with_a_wrong_clock_are_refused_and_the_log_says_why() {
    let bed = Testbed::shared();
    for (user, ahead, words) in [
        ("forward", HOUR, "s ahead of AWS's"),
        ("backward", -HOUR, "s behind AWS's"),
    ] {
        let aws = bed.aws();
        bed.rds().create_user(user).unwrap();
        let keys = format!(
            "db_user = \"{user}\"\ndatabase = \"postgres\"\nendpoint_url = \"{}\"",
            aws.endpoint_url()
        );
        let (proxy, clock) = start(&aws, &rds_config(&keys));
        clock.set_ahead(ahead);
        let error = log_in(&proxy).unwrap_err();
        let message = format!("LDAP authentication failed for user \"{user}\"");
        assert_eq!(
            (error.sqlstate(), error.message()),
            ("28000", &*message),
            "these are the server's own words"
        );
        proxy.log_line(&[
            "WARN",
            "this machine's clock is 3",
            words,
            "servers refuse authentication tokens whose time is wrong",
        ]);
        wait_for("AWS's time", || {
            (good_calls(&aws, "GetCallerIdentity") == 1).then_some(())
        });
        assert_eq!(log_in(&proxy).unwrap_err().sqlstate(), "08004");
        assert_eq!(
            good_calls(&aws, "GetCallerIdentity"),
            1,
            "AWS is not asked for the time at each refusal"
        );
        // The cached token was signed an hour off. The server refuses it, and the client does not
        // notice that it is replaced.
        clock.set_ahead(0);
        assert_eq!(log_in(&proxy).unwrap(), user);
        proxy.log_line(&["the server refuses a cached credential; trying a fresh one"]);
    }
}

#[test]
fn a_token_signed_before_sleep_is_not_used_afterwards() {
    let bed = Testbed::shared();
    let aws = bed.aws();
    bed.rds().create_user("laptop").unwrap();
    let (proxy, clock) = start(
        &aws,
        &rds_config("db_user = \"laptop\"\ndatabase = \"postgres\""),
    );
    assert_eq!(log_in(&proxy).unwrap(), "laptop");
    clock.set_ahead(HOUR);
    bed.rds().set_clock_ahead_of("laptop", HOUR);
    assert_eq!(log_in(&proxy).unwrap(), "laptop");
    assert!(
        bed.rds().refusals_of("laptop").is_empty(),
        "the server has not seen the old token again"
    );
}

#[test]
fn dsql_tokens_signed_with_a_wrong_clock_are_refused_too() {
    let bed = Testbed::shared();
    let aws = bed.aws();
    let keys = format!(
        "db_user = \"dsql_reader\"\nendpoint_url = \"{}\"",
        aws.endpoint_url()
    );
    let (proxy, clock) = start(&aws, &dsql_config(&keys));
    assert_eq!(log_in(&proxy).unwrap(), "dsql_reader");
    clock.set_ahead(HOUR);
    assert_eq!(log_in(&proxy).unwrap_err().sqlstate(), "28000");
    proxy.log_line(&["WARN", "this machine's clock is 3", "s ahead of AWS's"]);
    clock.set_ahead(0);
    assert_eq!(log_in(&proxy).unwrap(), "dsql_reader");
}

#[test]
fn a_token_that_only_the_server_considers_expired_is_replaced_once() {
    let bed = Testbed::shared();
    let aws = bed.aws();
    bed.rds().create_user("expired").unwrap();
    let (proxy, clock) = start(
        &aws,
        &rds_config("db_user = \"expired\"\ndatabase = \"postgres\""),
    );
    assert_eq!(log_in(&proxy).unwrap(), "expired");
    // By the proxy's clock the token is in its last minutes, and by the server's clock it has
    // expired.
    clock.set_ahead(800);
    bed.rds().set_clock_ahead_of("expired", 1_000);
    assert_eq!(log_in(&proxy).unwrap(), "expired");
    assert_eq!(bed.rds().refusals_of("expired").len(), 1);
    bed.rds().set_clock_ahead_of("expired", 2 * HOUR);
    let error = log_in(&proxy).unwrap_err();
    let message = "the database server refused the temporary password twice: LDAP authentication \
        failed for user \"expired\"";
    assert_eq!((error.sqlstate(), error.message()), ("08004", message));
    assert_eq!(bed.rds().refusals_of("expired").len(), 3);
}

#[test]
fn a_token_is_cached_for_less_than_the_remaining_life_of_its_role_session() {
    let bed = Testbed::shared();
    let aws = bed.aws();
    bed.rds().create_user("thirty").unwrap();
    aws.set_role_life(Duration::from_secs(30));
    let keys = format!(
        "db_user = \"thirty\"\ndatabase = \"postgres\"\nrole_arn = \"{}\"\nendpoint_url = \"{}\"",
        aws.add_role("thirty", None),
        aws.endpoint_url()
    );
    let (proxy, clock) = start(&aws, &rds_config(&keys));
    let move_on = |seconds| {
        clock.set_ahead(seconds);
        bed.rds().set_clock_ahead_of("thirty", seconds);
    };
    assert_eq!(log_in(&proxy).unwrap(), "thirty");
    aws.set_fault(Fault::InternalError);
    move_on(15);
    assert_eq!(log_in(&proxy).unwrap(), "thirty", "nobody was asked");
    // A token is not used in the last quarter of its role session, although it would be valid for
    // fifteen minutes by itself.
    move_on(23);
    let error = log_in(&proxy).unwrap_err();
    assert_eq!(
        (error.sqlstate(), error.message()),
        ("57P03", "sts:AssumeRole: AWS fails")
    );
    aws.set_fault(None);
    assert_eq!(wait_for("AWS", || log_in(&proxy).ok()), "thirty");
    assert_eq!(
        bed.rds().refusals_of("thirty"),
        Vec::<String>::new(),
        "no token was used after its role session had ended"
    );
}
