//! What happens to logins and to open sessions when the proxy is told to stop?

use std::io::Write;

use testbed::Testbed;

use crate::support::client::{
    Client, Reply, V3_0, connect, read_refusal, read_reply, startup_packet,
};
use crate::support::proxy::{Proxy, hash_password, rds_config};
use crate::support::server;
use crate::support::tls_client::assert_close_notify;
use crate::support::tls_files::TlsFiles;

const TARGET: &str = "db_user = \"jane_doe\"\ndatabase = \"postgres\"";

#[test]
fn a_stop_signal_refuses_unfinished_logins_and_lets_open_sessions_finish() {
    let aws = Testbed::shared().aws();
    let silent = server::answer_ssl_request(b"");
    let config = format!(
        "{}[[listener]]\naddress = \"127.0.0.1:0\"\ntargets = [\"silent\"]\nauth = \"trust\"\n\
         [target.silent]\nengine = \"rds\"\nregion = \"us-west-2\"\nhost = \"127.0.0.1\"\n\
         port = {silent}\n",
        rds_config(TARGET)
    );
    let mut proxy = Proxy::with_config(&aws, &config);
    let mut session = Client::log_in(proxy.address(), &[("user", "x")]).unwrap();
    let mut under_way = connect(proxy.addresses[1]);
    under_way
        .write_all(&startup_packet(V3_0, &[("user", "x")]))
        .unwrap();
    // The proxy accepts connections in order, so once this one is refused, the other login has
    // begun.
    assert!(Client::log_in(proxy.addresses[1], &[]).is_err());
    proxy.signal("-TERM");
    let error = read_refusal(&mut under_way);
    assert_eq!(
        (error.sqlstate(), error.message()),
        ("57P03", "the proxy is shutting down")
    );
    proxy.log_line(&["stopping: waiting for sessions to end"]);
    assert_eq!(session.value("select 1"), "1", "an open session goes on");
    session.send(b'X', b"");
    assert_eq!(read_reply(&mut session.stream), Reply::Closed);
    assert!(proxy.wait().success());
}

#[test]
fn clients_that_have_not_proved_who_they_are_do_not_hold_up_a_stop() {
    let aws = Testbed::shared().aws();
    let config = rds_config(TARGET).replace("\"trust\"", "\"password\"");
    let user = format!("[user.x]\npassword = \"{}\"\n", hash_password("secret"));
    let limits = "[limits]\nstartup_timeout = \"5min\"\n";
    let mut proxy = Proxy::with_config(&aws, &format!("{config}{user}{limits}"));
    let mut silent = connect(proxy.address());
    let mut at_the_prompt = connect(proxy.address());
    at_the_prompt
        .write_all(&startup_packet(V3_0, &[("user", "x")]))
        .unwrap();
    assert_eq!(
        read_reply(&mut at_the_prompt),
        Reply::Message(b'R', vec![0, 0, 0, 3])
    );
    proxy.signal("-TERM");
    let error = read_refusal(&mut at_the_prompt);
    assert_eq!(
        (error.sqlstate(), error.message()),
        ("57P03", "the proxy is shutting down")
    );
    assert_eq!(read_reply(&mut silent), Reply::Closed);
    drop((silent, at_the_prompt));
    assert!(proxy.wait().success());
    let log = proxy.log();
    assert!(!log.contains("stopped with sessions open"), "{log}");
}

#[test]
fn a_second_stop_signal_ends_sessions_at_once() {
    let aws = Testbed::shared().aws();
    let mut proxy = Proxy::with_config(&aws, &rds_config(TARGET));
    let mut session = Client::log_in(proxy.address(), &[("user", "x")]).unwrap();
    proxy.signal("-INT");
    proxy.log_line(&["stopping: waiting for sessions to end"]);
    proxy.signal("-INT");
    assert!(proxy.wait().success());
    assert_eq!(read_reply(&mut session.stream), Reply::Closed);
}

#[test]
fn sessions_that_outlive_the_drain_are_named_in_the_log_and_ended_by_the_proxy() {
    let files = TlsFiles::new();
    let config = rds_config(TARGET).replace(
        "auth = \"trust\"\n",
        &format!("auth = \"trust\"\n{}", files.keys("optional")),
    );
    let mut proxy = Proxy::with_config(&Testbed::shared().aws(), &config);
    let mut clear = Client::log_in(proxy.address(), &[("user", "in_clear")]).unwrap();
    let mut tls = files.client().log_in(proxy.address(), "over_tls").unwrap();
    // A session with a query under way is ended just like one that is idle.
    let mut busy = Client::log_in(proxy.address(), &[("user", "busy")]).unwrap();
    busy.sleep_on_server(&mut clear);
    proxy.signal("-TERM");
    proxy.log_line(&["stopping: waiting for sessions to end"]);
    assert_eq!(clear.value("select 1"), "1", "open sessions go on");
    assert_eq!(tls.value("select 1"), "1", "open sessions go on");
    proxy.signal("-TERM");
    assert!(proxy.wait().success());
    assert_eq!(read_reply(&mut clear.stream), Reply::Closed);
    assert_close_notify(&mut tls.stream);
    assert_eq!(busy.read_rows().unwrap_err().sqlstate(), "");
    for user in ["in_clear", "over_tls", "busy"] {
        let line = proxy.log_line(&["session still open", &format!(" user=\"{user}\"")]);
        for field in [
            " target=\"app\"",
            " state=\"open\"",
            " db_user=\"jane_doe\"",
        ] {
            assert!(line.contains(field), "{field} in {line}");
        }
        let id = field(&line, " session=");
        let line = proxy.log_line(&["session ended", id]);
        assert!(
            line.contains(" ended_by=proxy") && line.contains(" target=\"app\""),
            "{line}"
        );
    }
    assert_eq!(proxy.log().matches("session ended").count(), 3);
    assert_eq!(proxy.log().matches("session still open").count(), 3);
}

/// The value of a field in a line of the log.
fn field<'a>(line: &'a str, name: &str) -> &'a str {
    let (_, rest) = line.split_once(name).expect("the field is there");
    rest.split(' ').next().expect("a value").trim_matches('"')
}
