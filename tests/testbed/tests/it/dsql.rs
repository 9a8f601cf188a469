//! What does the DSQL flavour refuse before it asks for a token?

use testbed::Testbed;

use crate::raw::{Raw, error_field};

async fn first_answer(parameters: &[(&str, &str)]) -> Vec<(u8, Vec<u8>)> {
    let testbed = Testbed::shared();
    let mut client = Raw::connect(testbed.dsql().port(), testbed.ca_file())
        .await
        .unwrap();
    client.startup(parameters).await;
    vec![client.receive().await]
}

#[tokio::test]
async fn only_known_startup_parameters_are_accepted() {
    let base = [
        ("user", "admin"),
        ("database", "postgres"),
        ("application_name", "x"),
        ("datestyle", "ISO"),
    ];
    assert_eq!(
        first_answer(&base).await,
        [(b'R', vec![0, 0, 0, 3])],
        "a cleartext password is asked for"
    );
    for refused in [
        "statement_timeout",
        "client_min_messages",
        "driver_version",
        "_pq_.compression",
    ] {
        let answer = first_answer(&[&base[..], &[(refused, "1")]].concat()).await;
        assert_eq!(
            error_field(&answer, b'M'),
            format!("setting configuration parameter \"{refused}\" not supported")
        );
    }
}
