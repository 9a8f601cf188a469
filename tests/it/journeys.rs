//! The journeys that `docs/` and `deploy/` describe, done as a reader would: what is printed is
//! what is run.
//!
//! Only what is the reader's own is put in its place: ports that are free, networks that these
//! clients come from, and the authority of the testbed's servers.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use testbed::{Aws, Testbed};

use crate::support::proxy::{Proxy, command};
use crate::support::python;

const PASSWORD: &str = "correct horse";
/// Shows who the client is to the server.
const WHO: &str = "select current_user, current_database()";

struct Journey {
    page: String,
    folder: tempfile::TempDir,
    aws: Aws,
}

impl Journey {
    /// A page of the repository, and an empty folder.
    fn from_page(page: &str) -> Self {
        let page =
            std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(page)).unwrap();
        Self {
            page,
            folder: tempfile::tempdir().unwrap(),
            aws: Testbed::shared().aws(),
        }
    }

    /// The first block of this language.
    fn block(&self, language: &str) -> &str {
        let start = format!("```{language}\n");
        self.page
            .split_once(&start)
            .and_then(|(_, rest)| rest.split_once("```"))
            .expect("the page has such a block")
            .0
    }

    /// The first inline code that begins so.
    fn pasted(&self, beginning: &str) -> &str {
        let at = self
            .page
            .find(&format!("`{beginning}"))
            .unwrap_or_else(|| panic!("the page has no {beginning}"))
            + 1;
        self.page[at..].split('`').next().unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write_config(&self, name: &str) {
        std::fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        std::fs::write(self.path(name), self.block("toml")).unwrap();
    }

    /// Runs these lines in the folder, each with the password as its standard input; returns what
    /// the last one printed.
    fn run<'a>(&self, lines: impl IntoIterator<Item = &'a str>) -> String {
        let mut printed = String::new();
        for line in lines {
            let (output, error) = self.shell(line, &[]);
            printed = output.unwrap_or_else(|| panic!("{line}: {error}"));
        }
        printed
    }

    /// What a line printed, if it succeeded, and what it said besides.
    fn shell(&self, line: &str, environment: &[(&str, &str)]) -> (Option<String>, String) {
        let binary = Path::new(env!("CARGO_BIN_EXE_pg-iam-proxy"));
        let path = format!(
            "{}:{}",
            binary.parent().unwrap().display(),
            std::env::var("PATH").unwrap()
        );
        let input = self.path(".input");
        std::fs::write(&input, format!("{PASSWORD}\n")).unwrap();
        let mut bash = Command::new("bash");
        for (name, _) in
            std::env::vars().filter(|(name, _)| name.starts_with("AWS_") || name.starts_with("PG"))
        {
            bash.env_remove(name);
        }
        bash.args(["-c", line])
            .current_dir(self.folder.path())
            .env("HOME", self.folder.path())
            .env("PATH", path);
        bash.envs(environment.iter().copied())
            .stdin(Stdio::from(std::fs::File::open(input).unwrap()));
        let output = bash.output().expect("bash starts");
        let [stdout, stderr] = [output.stdout, output.stderr]
            .map(|text| String::from_utf8_lossy(&text).trim().to_string());
        (output.status.success().then_some(stdout), stderr)
    }

    /// `run` with the configuration, in which the reader has put these in the place of those.
    fn start(&self, config: &str, replacements: &[(&str, &str)], tcp_listeners: usize) -> Proxy {
        let mut text = std::fs::read_to_string(self.path(config)).unwrap();
        for (printed, own) in replacements {
            assert!(text.contains(printed), "the configuration has no {printed}");
            text = text.replace(printed, own);
        }
        let ca_file = format!(
            "ca_file = \"{}\"\nengine = ",
            Testbed::shared().ca_file().display()
        );
        std::fs::write(self.path(config), text.replace("engine = ", &ca_file)).unwrap();
        let mut command = command();
        command
            .args(["run", "--log-level", "debug", "--config"])
            .arg(self.path(config))
            .envs(self.aws.env());
        Proxy::start(command, tcp_listeners)
    }

    /// Runs a psql command line as printed, with this query, against a proxy at this port whatever
    /// host it names.
    fn psql(&self, line: &str, query: &str, port: u16) -> Result<String, String> {
        let environment = [
            ("PGHOSTADDR", "127.0.0.1"),
            ("PGPORT", &port.to_string()),
            ("PGPASSWORD", PASSWORD),
        ];
        let (output, error) = self.shell(&format!("{line} -XAtw -c \"{query}\""), &environment);
        output.ok_or(error)
    }
}

/// The lines of a block up to the one that serves.
fn before_run(block: &str) -> Vec<&str> {
    let lines: Vec<&str> = block.lines().collect();
    let run = lines
        .iter()
        .position(|line| line.contains("pg-iam-proxy run"))
        .expect("a line that serves");
    lines[..run].to_vec()
}

#[test]
fn five_commands_lead_from_nothing_to_a_tls_and_scram_login() {
    let journey = Journey::from_page("docs/getting-started.md");
    let block = journey.block("sh");
    let (script, rest) = block
        .split_once("pg-iam-proxy run --config pg-iam-proxy.toml\n")
        .expect("the fourth command");
    let (head, document) = script.split_once("<<END\n").expect("the third command");
    assert!(document.ends_with("END\n") && document.matches("END").count() == 1);
    assert_eq!(
        (head.lines().count(), rest.lines().count()),
        (3, 1),
        "five commands"
    );

    journey.run([
        script,
        "pg-iam-proxy check --offline --config pg-iam-proxy.toml",
    ]);
    let proxy = journey.start("pg-iam-proxy.toml", &[("127.0.0.1:5439", "127.0.0.1:0")], 1);
    let port = proxy.address().port();
    let psql = rest.trim_end().replace(":5439", &format!(":{port}"));
    assert_eq!(
        journey.psql(&psql, WHO, port).unwrap(),
        "IAM:temp_creds_user|dev"
    );
    proxy.log_line(&["session opened", "user=\"ana\""]);
}

#[test]
fn the_laptop_page_leads_to_a_login_through_socket_and_loopback() {
    let config = ".pg-iam-proxy/pg-iam-proxy.toml";
    let journey = Journey::from_page("deploy/laptop.md");
    journey.write_config(config);
    assert!(
        journey
            .run(before_run(journey.block("sh")))
            .ends_with("good, 3 listener(s)")
    );

    let own_ports = [
        ("127.0.0.1:5439", "127.0.0.1:0"),
        ("127.0.0.1:5432", "127.0.0.1:0"),
    ];
    let proxy = journey.start(config, &own_ports, 2);
    for (name, expected) in [
        ("warehouse", "IAM:temp_creds_user|dev"),
        ("app", "jane_doe|postgres"),
    ] {
        let line = journey
            .pasted("psql \"host=$HOME")
            .replace("warehouse", name);
        assert!(journey.page.contains(&line));
        let (output, error) = journey.shell(&format!("{line} -XAtw -c '{WHO}'"), &[]);
        assert_eq!(output.as_deref(), Some(expected), "{error}");
    }
    for (address, expected) in proxy
        .addresses
        .iter()
        .zip(["IAM:temp_creds_user|dev", "jane_doe|postgres"])
    {
        assert_eq!(
            journey
                .psql("psql -h 127.0.0.1 -U me", WHO, address.port())
                .unwrap(),
            expected
        );
    }
}

#[test]
fn the_laptop_pages_listener_for_several_people_is_good() {
    let journey = Journey::from_page("deploy/laptop.md");
    let listener = journey.block("toml fragment");
    assert!(listener.contains("auth = \"peer\""));
    let target = journey
        .block("toml")
        .split("\n[")
        .find(|table| table.starts_with("target.warehouse]"))
        .unwrap();
    std::fs::write(
        journey.path("pg-iam-proxy.toml"),
        format!("{listener}\n[{target}"),
    )
    .unwrap();
    assert!(
        journey
            .run(["pg-iam-proxy check --offline --config pg-iam-proxy.toml"])
            .ends_with("good, 1 listener(s)")
    );
}

#[test]
fn the_recipes_of_libpq_lead_to_logins() {
    let journey = Journey::from_page("docs/recipes.md");
    journey.write_config("pg-iam-proxy.toml");
    journey.run([
        "openssl req -x509 -newkey rsa:2048 -nodes -days 7 -subj /CN=db.example.com -addext \
         subjectAltName=DNS:db.example.com -keyout server.key -out server.crt",
        concat!(
            "verifier=$(pg-iam-proxy hash-password); ",
            r#"printf '"ana" "%s"\n"old_reports" "%s"\n' "$verifier" "$verifier" >userlist.txt"#
        ),
    ]);
    let own = [
        ("127.0.0.1:5432", "127.0.0.1:0"),
        ("0.0.0.0:6432", "127.0.0.1:0"),
    ];
    let proxy = journey.start("pg-iam-proxy.toml", &own, 2);
    let [here, network] = [proxy.addresses[0].port(), proxy.addresses[1].port()];
    let with_own_ports = |text: &str| {
        text.replace(":5432/", &format!(":{here}/"))
            .replace("6432", &network.to_string())
    };

    let lines: Vec<String> = journey.block("sh").lines().map(with_own_ports).collect();
    let old_reports = lines[1].replace("//ana@", "//old_reports@");
    let expected = [
        "jane_doe|postgres",
        "jane_doe|postgres",
        "IAM:temp_creds_user|dev",
        "jane_doe|postgres",
    ];
    for (line, expected) in lines.iter().chain([&old_reports]).zip(expected) {
        assert_eq!(
            journey.psql(line, WHO, network).unwrap(),
            expected,
            "{line}"
        );
    }

    std::fs::write(
        journey.path("recipe.py"),
        with_own_ports(journey.block("python")),
    )
    .unwrap();
    let python = python::interpreter();
    let environment = [("PGHOSTADDR", "127.0.0.1"), ("PGPASSWORD", PASSWORD)];
    let (output, error) = journey.shell(&format!("{} recipe.py", python.display()), &environment);
    assert_eq!(
        output.as_deref(),
        Some("('jane_doe', 'postgres')"),
        "{error}"
    );
}

#[test]
fn the_bi_server_page_leads_to_logins_of_modern_and_of_old_tools() {
    let journey = Journey::from_page("deploy/bi-server.md");
    journey.write_config("pg-iam-proxy.toml");
    assert!(
        journey
            .run(before_run(journey.block("sh")))
            .ends_with("good, 2 listener(s)")
    );

    let own = [
        ("127.0.0.1:5439", "127.0.0.1:0"),
        ("0.0.0.0:5432", "127.0.0.1:0"),
        ("10.20.0.0/16", "127.0.0.0/8"),
    ];
    let proxy = journey.start("pg-iam-proxy.toml", &own, 2);
    let [here, network] = [proxy.addresses[0].port(), proxy.addresses[1].port()];

    let uri = journey
        .pasted("postgresql://superset@")
        .replace(":5432", &format!(":{network}"));
    assert_eq!(
        journey
            .psql(
                &format!("psql '{uri}&channel_binding=require'"),
                WHO,
                network
            )
            .unwrap(),
        "jane_doe|postgres"
    );

    let tableau = uri.replace("superset@", "tableau@");
    assert_eq!(
        journey
            .psql(
                &format!("psql '{}'", tableau.replace("/app", "/warehouse")),
                WHO,
                network
            )
            .unwrap(),
        "IAM:bi_tableau|dev"
    );
    let refusal = journey
        .psql(&format!("psql '{tableau}'"), WHO, network)
        .unwrap_err();
    assert!(
        refusal.contains("user \"tableau\" may not use target \"app\""),
        "{refusal}"
    );
    let refusal = journey
        .psql(
            "psql 'host=bi.example.com user=superset sslmode=disable'",
            WHO,
            network,
        )
        .unwrap_err();
    assert!(
        refusal.contains("this address takes encrypted connections only"),
        "{refusal}"
    );

    for user in ["old_reports", "crystal"] {
        let line = format!("psql 'host=localhost user={user} sslmode=disable'");
        assert_eq!(
            journey.psql(&line, WHO, here).unwrap(),
            "IAM:temp_creds_user|dev",
            "{user}"
        );
    }
    proxy.log_line(&[
        "session opened",
        "user=\"tableau\"",
        "db_user=\"IAM:bi_tableau\"",
    ]);
}

#[test]
fn the_bastion_page_leads_to_logins_that_cloudtrail_can_name() {
    let journey = Journey::from_page("deploy/bastion.md");
    for role in ["analyst", "pipelines"] {
        let arn = journey.aws.add_role(role, None);
        assert!(journey.page.contains(&arn), "{arn}");
    }
    journey.write_config("pg-iam-proxy.toml");
    assert!(
        journey
            .run(before_run(journey.block("sh")))
            .ends_with("good, 1 listener(s)")
    );
    let proxy = journey.start("pg-iam-proxy.toml", &[("0.0.0.0:5432", "127.0.0.1:0")], 1);
    let port = proxy.address().port();

    let by_host = journey.pasted("psql 'host=warehouse");
    let query = format!("{WHO}, current_setting('application_name')");
    assert_eq!(
        journey.psql(by_host, &query, port).unwrap(),
        "IAMA:ana:bi|dev|psql ana@127.0.0.1"
    );
    let by_database = journey.pasted("psql 'host=db.example.com");
    assert_eq!(
        journey.psql(by_database, WHO, port).unwrap(),
        "jane_doe|postgres"
    );
    let pipeline = format!("psql '{}'", journey.pasted("postgresql://airflow@"));
    assert_eq!(
        journey.psql(&pipeline, WHO, port).unwrap(),
        "IAMA:airflow|dev"
    );

    let somebody_else = by_host.replace("user=ana", "user=bob");
    let refusal = journey.psql(&somebody_else, WHO, port).unwrap_err();
    assert!(
        refusal.contains("certificate authentication failed for user \"bob\""),
        "{refusal}"
    );
    let nobody = by_host.replace("sslcert=ana.crt sslkey=ana.key ", "");
    let refusal = journey.psql(&nobody, WHO, port).unwrap_err();
    assert!(
        refusal.contains("connection requires a valid client certificate"),
        "{refusal}"
    );

    let requests = journey.aws.requests();
    for (person, role) in [("ana", "analyst"), ("airflow", "pipelines")] {
        let asked = requests
            .iter()
            .find(|request| {
                request
                    .params
                    .get("RoleSessionName")
                    .is_some_and(|name| name == person)
            })
            .unwrap();
        let param = |name: &str| {
            asked
                .params
                .get(name)
                .map(String::as_str)
                .unwrap_or_default()
        };
        let tag = (param("Tags.member.1.Key"), param("Tags.member.1.Value"));
        assert_eq!(
            (param("SourceIdentity"), tag),
            (person, ("pg-iam-proxy:user", person))
        );
        assert!(param("RoleArn").ends_with(role), "{asked:?}");
    }
}

#[test]
fn the_trust_policy_of_the_bastion_page_allows_what_the_proxy_asks_for() {
    let journey = Journey::from_page("deploy/bastion.md");
    let policy: serde_json::Value = serde_json::from_str(journey.block("json")).unwrap();
    assert_eq!(
        policy["Statement"][0]["Action"],
        serde_json::json!(["sts:AssumeRole", "sts:SetSourceIdentity", "sts:TagSession"])
    );
}

#[test]
fn the_policy_page_leads_to_the_policy_that_aws_is_given() {
    let journey = Journey::from_page("docs/aws-permissions.md");
    let readme = Journey::from_page("README.md");
    std::fs::write(journey.path("pg-iam-proxy.toml"), readme.block("toml")).unwrap();
    let (print, put) = journey.block("sh").split_once('\n').unwrap();
    let environment = journey.aws.env();
    let environment: Vec<(&str, &str)> = environment
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    let (output, error) = journey.shell(print, &environment);
    assert_eq!(output.as_deref(), Some(""), "{error}");

    // In the place of the command that only AWS could answer: what it is given.
    let (_, document) = put.split_once("--policy-document ").unwrap();
    assert!(
        document.starts_with("\"$(jq '.ProxyPolicy // .' "),
        "{document}"
    );
    let printed = std::fs::read_to_string(journey.path("policy.json")).unwrap();
    let printed: serde_json::Value = serde_json::from_str(&printed).unwrap();
    assert!(printed["ProxyPolicy"]["Statement"].is_array(), "{printed}");
    assert!(printed["Roles"][0]["TrustPolicy"].is_object(), "{printed}");
}
