//! Does any secret of a whole day appear in anything that the proxy writes, and in any form?

use std::collections::BTreeSet;
use std::io::Write;
use std::net::SocketAddr;
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use bytes::Bytes;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use testbed::{Aws, Fault, FaultRule, Testbed};

use crate::admin::{admin_address, scrape};
use crate::support::client::{Client, ServerError, V3_0, V3_2, cancel};
use crate::support::pki::{Authority, Identity};
use crate::support::proxy::{Proxy, command, config_file, hash_password};
use crate::support::tls_client::TlsClient;
use crate::support::tls_files::TlsFiles;

const PASSWORD: &str = "correct-horse-battery";
const WRONG_PASSWORD: &str = "incorrect-zebra-staple";
const CANCEL_KEY_FILE: &str = "c4nc3l-k3y-0123456789abcdef-0123456789abcdef";

/// What URLs and tokens have as it is.
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// Every kind of secret that such a day has, and one of that kind. None of them may get lost, or
/// nothing would be looked for.
const KINDS: [(&str, &[u8]); 15] = [
    ("a client's password", PASSWORD.as_bytes()),
    (
        "a client's wrong password",
        b"quo\"ted \\ p\xc3\xa4ssword\t",
    ),
    ("the cancel key file", CANCEL_KEY_FILE.as_bytes()),
    (
        "a key of a SCRAM verifier",
        b"wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=",
    ),
    (
        "a key of a SCRAM verifier as bytes",
        &[0, 7, 0x7f, 0x80, 0xff, b'"', b'\'', b'\\', b'\n', 200],
    ),
    ("an MD5 verifier", b"5d41402abc4b2a76b9719d911017c592"),
    (
        "a private key",
        b"MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg+/abcdefghijklmn",
    ),
    (
        "a sealed cancel key",
        &[0xde, 0xad, 0, 0xef, b'a', b'b', 9, 13, 250, 251],
    ),
    ("a cancel key", &[0xfe, 0xdc, 0, 0x98]),
    (
        "an AWS secret key",
        b"wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    ),
    (
        "an AWS secret key or session token",
        b"IQoJb3JpZ2luX2VjEA+/==",
    ),
    ("a temporary password", b"amzn/redshift+temporary=password"),
    (
        "the signature of a token",
        b"fe5f80f77d5fa3beca038a248ff027d0445342fe2855ddc963176630326f1024",
    ),
    (
        "the session token in a token",
        b"IQoJb3JpZ2luX2VjEA%2B%2F%3D%3D",
    ),
    (
        "a token",
        b"db.example.com:5432/?Action=connect&DBUser=ana&X-Amz-Signature=fe5f80f7",
    ),
];

/// What was written anywhere, and what must not be in it.
#[derive(Default)]
struct Day {
    written: String,
    secrets: Vec<(&'static str, Vec<u8>)>,
}

impl Day {
    fn secret(&mut self, what: &'static str, secret: impl AsRef<[u8]>) {
        self.secrets.push((what, secret.as_ref().to_vec()));
    }

    fn refusal(&mut self, result: Result<Client, ServerError>, expected: &str) {
        let error = result.err().expect("the login is refused");
        assert_eq!(error.sqlstate(), expected, "{error:?}");
        for field in error.0.values() {
            self.written += field;
            self.written.push('\n');
        }
    }

    fn output(&mut self, command: &mut Command) -> bool {
        let output = command.output().expect("it starts");
        self.written += &String::from_utf8_lossy(&output.stdout);
        self.written += &String::from_utf8_lossy(&output.stderr);
        output.status.success()
    }

    /// Logs in with psql to a listener of the proxy.
    fn psql(&mut self, proxy: &Proxy, listener: usize, user: &str, password: &str) -> bool {
        let uri = format!(
            "postgresql://{user}@{}/app?sslmode=prefer",
            proxy.addresses[listener]
        );
        let mut psql = Command::new("psql");
        psql.args(["-XAtw", &uri, "-c", "select current_user"]);
        self.output(psql.env("PGPASSWORD", password))
    }

    fn assert_nothing_leaked(&self) {
        assert!(self.secrets.len() > 50, "{} secrets", self.secrets.len());
        let found: BTreeSet<_> = self.secrets.iter().map(|(what, _)| *what).collect();
        assert_eq!(found, KINDS.map(|(what, _)| what).into());
        if let Some((what, form)) = self.leaks().next() {
            panic!("{what} leaked as {form:?} in:\n{}", self.written);
        }
    }

    /// Which secrets were written, and in which forms.
    fn leaks(&self) -> impl Iterator<Item = (&'static str, String)> {
        self.secrets.iter().flat_map(|(what, secret)| {
            let forms = forms(secret).into_iter();
            forms
                .filter(|form| self.written.contains(form))
                .map(|form| (*what, form))
        })
    }
}

/// The ways in which these bytes are likely to be written.
fn forms(secret: &[u8]) -> Vec<String> {
    assert!(secret.len() >= 4, "too short to be looked for");
    let hex: Vec<_> = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    let decimal: Vec<_> = secret.iter().map(ToString::to_string).collect();
    let mut forms: Vec<_> = ["", " ", ":", ", "].map(|between| hex.join(between)).into();
    forms.extend([
        STANDARD_NO_PAD.encode(secret),
        URL_SAFE_NO_PAD.encode(secret),
        decimal.join(", "),
        decimal.join(","),
        secret.escape_ascii().to_string(),
        inner(&format!("{:?}", Bytes::copy_from_slice(secret))),
        percent_encode(secret, UNRESERVED).to_string(),
    ]);
    forms.extend(forms.clone().iter().map(|form| form.to_uppercase()));
    if let Ok(number) = <[u8; 4]>::try_from(secret) {
        forms.push(u32::from_be_bytes(number).to_string());
        forms.push(i32::from_be_bytes(number).to_string());
    }
    if let Ok(text) = str::from_utf8(secret) {
        forms.extend([text.to_string(), inner(&format!("{text:?}"))]);
        forms.push(inner(&serde_json::to_string(text).unwrap()));
    }
    forms
}

/// What is between the quotation marks.
fn inner(quoted: &str) -> String {
    let (_, rest) = quoted.split_once('"').unwrap();
    rest.strip_suffix('"').unwrap().to_string()
}

/// What is secret in a verifier: the hashes, as they are written and as bytes.
fn verifier_secrets(day: &mut Day, verifier: &str) {
    let (_, keys) = verifier.rsplit_once('$').unwrap();
    for key in keys.split(':') {
        day.secret("a key of a SCRAM verifier", key);
        let bytes = STANDARD.decode(key).unwrap();
        day.secret("a key of a SCRAM verifier as bytes", bytes);
    }
}

fn private_key(day: &mut Day, identity: &Identity) {
    for line in identity.key.lines().filter(|line| !line.starts_with('-')) {
        day.secret("a private key", line);
    }
}

fn configuration(aws: &Aws, files: &TlsFiles, verifier: &str, md5: &str) -> String {
    let bed = Testbed::shared();
    let listener = |auth: &str, more: &str| {
        format!(
            "[[listener]]\naddress = \"127.0.0.1:0\"\nauth = \"{auth}\"\n{more}\
             targets = [\"app\", \"warehouse\", \"serverless\", \"closed\"]\n"
        )
    };
    let (ca, url) = (bed.ca_file().display(), aws.endpoint_url());
    let target = |name: &str, keys: &str| {
        format!(
            "[target.{name}]\nregion = \"us-west-2\"\nca_file = \"{ca}\"\n\
             endpoint_url = \"{url}\"\n{keys}\n"
        )
    };
    let role = aws.add_role("a_whole_day", None);
    let rds = format!(
        "engine = \"rds\"\nhost = \"localhost\"\nport = {}\ndatabase = \"postgres\"\n\
         role_arn = \"{role}\"\nsession_name = \"{{user}}\"\n",
        bed.rds().port()
    );
    [
        format!(
            "cancel_key_file = \"{}\"\n",
            files.write("cancel.key", &format!("{CANCEL_KEY_FILE}\n"))
        ),
        listener(
            "scram-sha-256",
            &format!(
                "{}client_ca = \"{}\"\n",
                files.keys("optional"),
                files.path("clients.pem")
            ),
        ),
        listener("md5", ""),
        listener("password", ""),
        listener("trust", ""),
        listener(
            "cert",
            &format!(
                "{}client_ca = \"{}\"\n",
                files.keys("required"),
                files.path("clients.pem")
            ),
        ),
        target("app", &format!("{rds}db_user = \"jane_doe\"\n")),
        target("closed", &rds),
        target(
            "warehouse",
            "engine = \"redshift\"\ncluster_identifier = \"examplecluster\"\ndatabase = \"dev\"\n",
        ),
        target(
            "serverless",
            "engine = \"redshift-serverless\"\nworkgroup_name = \"myworkgroup\"\n\
             database = \"dev\"\n",
        ),
        format!("[user.ana]\npassword = \"{verifier}\"\n[user.mia]\npassword = \"{md5}\"\n"),
        "[admin]\nhttp = \"127.0.0.1:0\"\n".to_string(),
    ]
    .concat()
}

fn live(format: &str) -> Day {
    let bed = Testbed::shared();
    let aws = bed.aws();
    let mut day = Day::default();
    let (clients, files) = (Authority::new("client CA"), TlsFiles::new());
    files.write("clients.pem", &clients.certificate);
    let (server, client) = (files.authority.server(), clients.client("ana"));
    files.write_pair(&server);
    private_key(&mut day, &server);
    private_key(&mut day, &client);
    day.secret("a client's password", PASSWORD);
    day.secret("a client's wrong password", WRONG_PASSWORD);
    day.secret("the cancel key file", CANCEL_KEY_FILE);
    let verifier = hash_password(PASSWORD);
    verifier_secrets(&mut day, &verifier);
    // `printf %s "$password$user" | md5sum`
    let md5 = "md5".to_string() + &md5_of(&format!("{PASSWORD}mia"));
    day.secret("an MD5 verifier", &md5[3..]);

    let config = configuration(&aws, &files, &verifier, &md5);
    let file = config_file(&config);
    let mut run = command();
    run.args(["run", "--log-level", "trace", "--log-format", format])
        .arg("--config")
        .arg(&file)
        .envs(aws.env());
    let proxy = Proxy::start(run, 5);

    log_in_by_all_methods(&mut day, &proxy, &files, &client);
    let trusting = proxy.addresses[3];
    cancel_queries(&mut day, trusting);
    meet_refusals(&mut day, &aws, trusting, format);
    day.written += &scrape(admin_address(&proxy).unwrap());
    run_other_commands(&mut day, &aws, &config, &files, &verifier);

    // Lines are written in their order, so this one is the last.
    let parameters = [("user", "the-end"), ("database", "nowhere")];
    day.refusal(Client::log_in(trusting, &parameters), "3D000");
    proxy.log_line(&["login refused", "the-end"]);
    day.written += &proxy.log();
    day.written += &proxy.printed;

    add_issued_secrets(&mut day, &aws);
    day
}

/// Uses all methods, with right and wrong passwords.
fn log_in_by_all_methods(day: &mut Day, proxy: &Proxy, files: &TlsFiles, client: &Identity) {
    for (listener, user) in [(0, "ana"), (1, "mia"), (2, "ana")] {
        assert!(day.psql(proxy, listener, user, PASSWORD), "{}", day.written);
        assert!(!day.psql(proxy, listener, user, WRONG_PASSWORD));
        assert!(!day.psql(proxy, listener, "nobody", WRONG_PASSWORD));
    }
    let shown = TlsClient::showing(&files.authority.certificate, client);
    let stream = shown.ssl_request(proxy.addresses[4]).unwrap();
    let parameters = [("user", "ana"), ("database", "app")];
    let mut over_tls = Client::log_in_over(stream, V3_2, &parameters).unwrap();
    assert_eq!(over_tls.value("select current_user"), "jane_doe");
    day.secret("a sealed cancel key", &over_tls.key[4..]);
}

/// Sends right keys, and some that are wrong in their last byte.
fn cancel_queries(day: &mut Day, trusting: SocketAddr) {
    for version in [V3_0, V3_2] {
        let parameters = [("user", "x"), ("database", "app")];
        let mut client = Client::log_in_with(trusting, version, &parameters).unwrap();
        let mut observer = Client::log_in_with(trusting, version, &parameters).unwrap();
        client.sleep_on_server(&mut observer);
        let mut wrong = client.key.clone();
        *wrong.last_mut().unwrap() ^= 1;
        cancel(trusting, &wrong);
        cancel(trusting, &client.key);
        assert_eq!(client.read_rows().err().unwrap().sqlstate(), "57014");
        for key in [&client.key, &observer.key, &wrong] {
            day.secret("a cancel key", &key[4..]);
        }
    }
}

/// Asks for credentials that AWS makes, for some that it does not make, and has servers refuse some.
fn meet_refusals(day: &mut Day, aws: &Aws, trusting: SocketAddr, format: &str) {
    let bed = Testbed::shared();
    let log_in = |user: &str, database: &str| {
        Client::log_in(trusting, &[("user", user), ("database", database)])
    };
    drop(log_in("ana", "warehouse").unwrap());
    drop(log_in("ana", "serverless").unwrap());
    for (fault, sqlstate) in [
        (Fault::Deny, "28000"),
        (Fault::Malformed, "57P03"),
        (Fault::InternalError, "57P03"),
    ] {
        aws.set_fault(fault);
        let user = format!("{fault:?}").to_lowercase();
        day.refusal(log_in(&user, "warehouse"), sqlstate);
        aws.set_fault(None);
    }
    aws.add_fault(
        FaultRule::new(Fault::Deny)
            .for_action("AssumeRole")
            .times(1),
    );
    day.refusal(log_in("denied", "app"), "28000");
    let user = format!("secretive_{format}");
    bed.rds().create_user(&user).unwrap();
    bed.rds().refuse_next_of(&user, 1);
    day.refusal(log_in(&user, "closed"), "28000");
    drop(log_in(&user, "closed").unwrap());
    bed.rds().refuse_next_of(&user, 2);
    day.refusal(log_in(&user, "closed"), "08004");
    day.refusal(log_in("x", "nowhere"), "3D000");
}

/// Checks the configuration, and others with mistakes in them.
fn run_other_commands(day: &mut Day, aws: &Aws, config: &str, files: &TlsFiles, verifier: &str) {
    let file = config_file(config);
    for arguments in [&["--offline"][..], &["--json", "--user", "ana"]] {
        let mut check = command();
        check
            .arg("check")
            .args(arguments)
            .arg("--config")
            .arg(&file);
        // It says of one of the targets that ana has no account there.
        day.output(check.envs(aws.env()));
    }
    let mut policy = command();
    assert!(day.output(policy.arg("policy").arg("--config").arg(&file)));
    let mistakes = [
        config.replace(verifier, PASSWORD),
        config.replace(verifier, &verifier[..verifier.len() - 2]),
        config.replace(verifier, &format!("{verifier}\"x")),
        config.replace(&files.path("cancel.key"), &files.path("server.key")),
        config.replace("[user.mia]", "[user.ana]"),
        config.replace(&files.path("server.key"), &files.path("server.pem")),
        config.replace(&files.path("clients.pem"), &files.path("server.key")),
    ];
    for text in &mistakes {
        let file = config_file(text);
        let mut check = command();
        day.output(check.args(["check", "--offline", "--config"]).arg(&file));
    }
    let mut userlist = tempfile::NamedTempFile::new().unwrap();
    writeln!(userlist, "\"ana\" \"{PASSWORD}\"\nana {WRONG_PASSWORD}").unwrap();
    let users = format!("users_file = \"{}\"\n{config}", userlist.path().display());
    let mut check = command();
    assert!(
        !day.output(
            check
                .args(["check", "--offline", "--config"])
                .arg(&*config_file(&users))
        )
    );
}

/// Adds what AWS has given out meanwhile.
fn add_issued_secrets(day: &mut Day, aws: &Aws) {
    let bed = Testbed::shared();
    day.secret("an AWS secret key", aws.secret_access_key());
    for secret in bed.accounts().secrets() {
        day.secret("an AWS secret key or session token", secret);
    }
    for password in bed.redshift().passwords() {
        day.secret("a temporary password", password);
    }
    for token in bed.rds().tokens() {
        for (what, name) in [
            ("the signature of a token", "X-Amz-Signature="),
            ("the session token in a token", "X-Amz-Security-Token="),
        ] {
            if let Some((_, rest)) = token.split_once(name) {
                let value = rest.split('&').next().unwrap();
                day.secret(what, value);
            }
        }
        day.secret("a token", token);
    }
}

fn md5_of(text: &str) -> String {
    let mut child = Command::new("md5sum")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    String::from_utf8(output.stdout).unwrap()[..32].to_string()
}

#[test]
fn no_secret_of_a_whole_day_is_written_anywhere_as_text() {
    live("text").assert_nothing_leaked();
}

#[test]
fn no_secret_of_a_whole_day_is_written_anywhere_as_json() {
    live("json").assert_nothing_leaked();
}

/// A finder that overlooks a form would let the other tests pass.
#[test]
fn each_kind_of_secret_is_found_however_it_is_written() {
    for (what, secret) in KINDS {
        for written in ways_to_write(secret) {
            let day = Day {
                written: format!("a line before\nlogin refused key={written} sqlstate=\"28000\"\n"),
                secrets: vec![(what, secret.to_vec())],
            };
            assert!(day.leaks().next().is_some(), "{what} as {written}");
        }
        let day = Day {
            written: "a line with nothing in it".to_string(),
            secrets: vec![(what, secret.to_vec())],
        };
        assert_eq!(day.leaks().next(), None);
    }
}

/// What code that leaks might do, as it would be done there.
fn ways_to_write(secret: &[u8]) -> Vec<String> {
    let vector = secret.to_vec();
    let mut written = vec![
        format!("{vector:?}"),
        format!("{vector:02x?}"),
        format!("{vector:02X?}"),
        format!("{:?}", Bytes::from(vector.clone())),
        serde_json::to_string(&vector).unwrap(),
        format!("\"{}\"", secret.escape_ascii()),
        secret.iter().map(|byte| format!("{byte:02x}")).collect(),
        secret.iter().map(|byte| format!("{byte:02X}")).collect(),
        secret.iter().map(|byte| format!("{byte:02x} ")).collect(),
        STANDARD.encode(secret),
        STANDARD_NO_PAD.encode(secret),
        URL_SAFE.encode(secret),
    ];
    if let Ok(number) = <[u8; 4]>::try_from(secret) {
        let number = u32::from_be_bytes(number);
        written.extend([number.to_string(), number.cast_signed().to_string()]);
        written.push(format!("{number:08x}"));
    }
    if let Ok(text) = str::from_utf8(secret) {
        written.extend([text.to_string(), format!("{text:?}")]);
        written.push(serde_json::to_string(&[text]).unwrap());
        let url = url::form_urlencoded::byte_serialize(secret).collect::<String>();
        written.push(url.replace('+', "%20"));
    }
    written
}
