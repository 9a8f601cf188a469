//! Do AWS, the database and the log learn which person a session belongs to, even behind a load
//! balancer?

use std::io::Write;

use postgres_protocol::authentication::md5_hash;
use testbed::Testbed;

use crate::support::client::{
    Client, Reply, V3_0, connect, error_fields, packet, read_reply, startup_packet,
};
use crate::support::proxy::{Proxy, md5_verifier, rds_config, redshift_config};

#[test]
fn the_clients_name_becomes_the_session_name_the_source_identity_and_a_tag() {
    let bed = Testbed::shared();
    let aws = bed.aws();
    let role = aws.add_role("named", None);
    let keys = format!(
        "host = \"localhost\"\nport = {}\napi = \"get-cluster-credentials-with-iam\"\n\
         database = \"dev\"\nrole_arn = \"{role}\"\nsession_name = \"{{user}}-bi\"",
        bed.redshift().port()
    );
    let proxy = Proxy::with_config(&aws, &redshift_config(&aws, &keys));
    for user in ["ana", "bob smith", "bob-smith", "ana"] {
        let mut client = Client::log_in(proxy.address(), &[("user", user)]).unwrap();
        assert_eq!(client.value("select current_user"), "IAMR:named");
    }
    let requests: Vec<_> = aws
        .requests()
        .into_iter()
        .filter(|request| request.action == "AssumeRole")
        .collect();
    let of = |name: &str| {
        requests
            .iter()
            .map(|request| request.params.get(name).cloned().unwrap_or_default())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        of("RoleSessionName"),
        ["ana-bi", "bob-smith=7e50351d-bi", "bob-smith-bi"],
        "there is one role session per person, however often they log in"
    );
    assert_eq!(
        of("SourceIdentity"),
        ["ana", "bob-smith=7e50351d", "bob-smith"],
        "AWS tells apart whom we tell apart"
    );
    assert_eq!(of("Tags.member.1.Key"), ["pg-iam-proxy:user"; 3]);
    assert_eq!(
        of("Tags.member.1.Value"),
        ["ana", "bob smith", "bob-smith"],
        "a tag takes blanks"
    );
    assert_eq!(
        aws.calls("GetClusterCredentialsWithIAM"),
        3,
        "two people never share a credential"
    );
}

#[test]
fn a_fixed_session_name_names_nobody_and_is_shared_by_all_clients() {
    let bed = Testbed::shared();
    let aws = bed.aws();
    let role = aws.add_role("shared", None);
    let keys = format!(
        "db_user = \"ana\"\ndatabase = \"dev\"\nrole_arn = \"{role}\"\nsession_name = \"bi-server\""
    );
    let proxy = Proxy::with_config(&aws, &redshift_config(&aws, &keys));
    for user in ["ana", "bob"] {
        assert!(Client::log_in(proxy.address(), &[("user", user)]).is_ok());
    }
    let requests: Vec<_> = aws
        .requests()
        .into_iter()
        .filter(|request| request.action == "AssumeRole")
        .collect();
    assert_eq!(requests.len(), 1);
    assert_eq!(
        requests[0]
            .params
            .get("RoleSessionName")
            .map(String::as_str),
        Some("bi-server")
    );
    assert_eq!(requests[0].params.get("SourceIdentity"), None);
    assert_eq!(aws.calls("GetClusterCredentials"), 1);
}

#[test]
fn a_user_can_have_a_role_of_its_own() {
    let bed = Testbed::shared();
    let aws = bed.aws();
    let (role, own) = (
        aws.add_role("everybody", None),
        aws.add_role("only_ana", None),
    );
    let keys = format!(
        "api = \"get-cluster-credentials-with-iam\"\ndatabase = \"dev\"\nrole_arn = \"{role}\""
    );
    let config = format!(
        "{}[user.ana]\nrole_arn = \"{own}\"\n",
        redshift_config(&aws, &keys)
    );
    let proxy = Proxy::with_config(&aws, &config);
    for (user, expected) in [("ana", "IAMR:only_ana"), ("bob", "IAMR:everybody")] {
        let mut client = Client::log_in(proxy.address(), &[("user", user)]).unwrap();
        assert_eq!(client.value("select current_user"), expected);
    }
}

#[test]
fn application_name_tells_the_database_who_the_client_is_and_where() {
    let aws = Testbed::shared().aws();
    let proxy = Proxy::with_config(
        &aws,
        &rds_config(
            "db_user = \"jane_doe\"\ndatabase = \"postgres\"\napplication_name_suffix = true",
        ),
    );
    let name = |parameters: &[(&str, &str)]| {
        Client::log_in(proxy.address(), parameters)
            .unwrap()
            .value("show application_name")
    };
    assert_eq!(
        name(&[("user", "ana"), ("application_name", "report")]),
        "report ana@127.0.0.1"
    );
    assert_eq!(name(&[("user", "ana")]), "ana@127.0.0.1");
    for last in ["Application_Name", "application_name"] {
        let names = [("application_name", "x"), (last, "report bob@10.0.0.7")];
        assert_eq!(
            name(&[&[("user", "ana")], &names[..]].concat()),
            "report bob@10.0.0.7 ana@127.0.0.1",
            "the name that the server takes has the person"
        );
    }
    let long = "x".repeat(80);
    assert_eq!(
        name(&[("user", "ana"), ("application_name", &long)]),
        format!("{} ana@127.0.0.1", "x".repeat(49)),
        "the suffix is never truncated"
    );
}

fn proxy_behind_a_load_balancer(from: &str) -> Proxy {
    let aws = Testbed::shared().aws();
    let listener =
        format!("auth = \"md5\"\nproxy_protocol = true\nproxy_protocol_from = [\"{from}\"]\n");
    let config = rds_config(
        "db_user = \"jane_doe\"\ndatabase = \"postgres\"\napplication_name_suffix = true",
    );
    let verifier = md5_verifier("ana", "secret");
    Proxy::with_config(
        &aws,
        &format!(
            "{}\n[user.ana]\npassword = \"{verifier}\"\n",
            config.replace("auth = \"trust\"\n", &listener)
        ),
    )
}

fn application_name(proxy: &Proxy, header: &[u8]) -> Result<String, String> {
    let mut stream = connect(proxy.address());
    // Load balancers send the header and the client's first bytes in one segment.
    stream
        .write_all(&[header, &startup_packet(V3_0, &[("user", "ana")])].concat())
        .unwrap();
    loop {
        match read_reply(&mut stream) {
            Reply::Message(b'S', body) if body.starts_with(b"application_name\0") => {
                return Ok(String::from_utf8(body[17..body.len() - 1].to_vec()).unwrap());
            }
            Reply::Message(b'E', body) => {
                return Err(format!(
                    "{}: {}",
                    error_fields(&body).sqlstate(),
                    error_fields(&body).message()
                ));
            }
            Reply::Message(b'R', request) if request.starts_with(&[0, 0, 0, 5]) => {
                let salt = request[4..].try_into().unwrap();
                let answer = md5_hash(b"ana", b"secret", salt) + "\0";
                stream
                    .write_all(&[&b"p"[..], &packet(answer.as_bytes())].concat())
                    .unwrap();
            }
            Reply::Message(..) => {}
            Reply::Closed => return Err("closed".to_string()),
        }
    }
}

#[test]
fn a_proxy_header_from_a_configured_network_says_who_the_client_is() {
    let proxy = proxy_behind_a_load_balancer("127.0.0.0/8");
    assert_eq!(
        application_name(&proxy, b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 5439\r\n").unwrap(),
        "ana@192.0.2.7"
    );
    proxy.log_line(&["session opened", "client=192.0.2.7:4711"]);
    let v2 = [
        &b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x26"[..],
        &[192, 0, 2, 8, 198, 51, 100, 1, 0x12, 0x67, 0x15, 0x3f],
        b"\xea\0\x17\x01vpce-08d2bf15fac5001c9",
    ]
    .concat();
    assert_eq!(application_name(&proxy, &v2).unwrap(), "ana@192.0.2.8");
    proxy.log_line(&[
        "session opened",
        "client=192.0.2.8:4711",
        "vpc_endpoint=\"vpce-08d2bf15fac5001c9\"",
    ]);
    assert_eq!(
        application_name(&proxy, b"PROXY UNKNOWN\r\n").unwrap(),
        "ana@127.0.0.1",
        "with UNKNOWN, the load balancer is the client"
    );
}

#[test]
fn a_connection_without_the_required_proxy_header_is_closed() {
    let proxy = proxy_behind_a_load_balancer("127.0.0.0/8");
    assert_eq!(application_name(&proxy, b"").unwrap_err(), "closed");
    proxy.log_line(&["expected a PROXY header"]);
    let mut stream = connect(proxy.address());
    stream
        .write_all(&crate::support::client::SSL_REQUEST)
        .unwrap();
    assert_eq!(
        read_reply(&mut stream),
        Reply::Closed,
        "the close comes at once, although an SSLRequest is shorter than any header"
    );
}

#[test]
fn believing_everybodys_proxy_header_is_warned_of() {
    let proxy = proxy_behind_a_load_balancer("0.0.0.0/0");
    proxy.log_line(&[
        "WARN",
        "proxy_protocol_from",
        "0.0.0.0/0",
        "lets everybody say",
    ]);
}

#[test]
fn a_proxy_header_from_another_network_is_not_believed() {
    let proxy = proxy_behind_a_load_balancer("192.0.2.0/24");
    assert_eq!(application_name(&proxy, b"").unwrap(), "ana@127.0.0.1");
    let error =
        application_name(&proxy, b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 5439\r\n").unwrap_err();
    assert_eq!(error, "closed");
    proxy.log_line(&["invalid length of startup packet"]);
}
