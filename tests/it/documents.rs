//! What README, `docs/`, `deploy/` and the pages for contributors print is true: configurations are
//! accepted, commands understood, links and paths lead somewhere, and what the program can say is
//! explained.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use testbed::Testbed;

use crate::support::client::Client;
use crate::support::proxy::{Proxy, command, config_file, hash_password, output, rds_config};

/// As a reader has it in front of them: README first, and not longer than somebody reads.
const LONGEST_README: usize = 150;
/// Folders of which pages name files.
const FOLDERS: [&str; 6] = ["src/", "tests/", "docs/", "deploy/", "certs/", ".ci/"];
const SCHEMES: [&str; 5] = [
    "redshift://",
    "redshift-serverless://",
    "rds://",
    "dsql://",
    "jdbc:redshift:iam://",
];

struct Page {
    /// Relative to the repository.
    name: String,
    text: String,
}

/// A block of code: what stands behind its fence, and what is in it.
struct Block<'a> {
    info: &'a str,
    text: String,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn pages() -> Vec<Page> {
    let mut names: Vec<PathBuf> = ["README.md", "CONTRIBUTING.md", "SECURITY.md"]
        .map(PathBuf::from)
        .to_vec();
    let mut folders = vec![PathBuf::from("docs"), PathBuf::from("deploy")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(root().join(&folder)).unwrap() {
            let entry = entry.unwrap();
            let name = folder.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                folders.push(name);
            } else if name.extension().is_some_and(|extension| extension == "md") {
                names.push(name);
            }
        }
    }
    names.sort();
    let read = |name: PathBuf| Page {
        text: std::fs::read_to_string(root().join(&name)).unwrap(),
        name: name.display().to_string(),
    };
    names.into_iter().map(read).collect()
}

impl Page {
    fn blocks(&self) -> Vec<Block<'_>> {
        let mut blocks: Vec<Block<'_>> = Vec::new();
        let mut open = false;
        for line in self.text.lines() {
            if let Some(info) = line.strip_prefix("```") {
                open = !open;
                if open {
                    let text = String::new();
                    blocks.push(Block { info, text });
                }
            } else if open {
                let block = blocks.last_mut().expect("it was opened");
                block.text += line;
                block.text.push('\n');
            }
        }
        assert!(!open, "{}: a block has no end", self.name);
        blocks
    }

    /// Without blocks of code.
    fn prose(&self) -> String {
        let mut open = false;
        let mut prose = String::new();
        for line in self.text.lines() {
            if line.starts_with("```") {
                open = !open;
            } else if !open {
                prose += line;
                prose.push('\n');
            }
        }
        prose
    }

    /// What stands between backticks in prose. It may be wrapped.
    fn inline_code(&self) -> Vec<String> {
        let pieces = self.prose();
        let pieces = pieces.split('`').skip(1).step_by(2);
        pieces.map(|code| code.replace('\n', " ")).collect()
    }

    /// Lines of code, in blocks or inline.
    fn code(&self) -> Vec<String> {
        let mut lines = self.inline_code();
        for block in self.blocks() {
            lines.extend(block.text.lines().map(str::to_string));
        }
        lines
    }

    /// Where its links lead, without those to other sites.
    fn links(&self) -> Vec<String> {
        let prose = self.prose();
        let targets = prose
            .split("](")
            .skip(1)
            .map(|rest| rest.split(')').next().unwrap_or_default());
        targets
            .filter(|target| !target.contains("://"))
            .map(str::to_string)
            .collect()
    }

    /// Names of its headings in links, as GitHub makes them.
    fn anchors(&self) -> BTreeSet<String> {
        let headings = self.prose();
        let headings = headings
            .lines()
            .filter_map(|line| line.trim_start_matches('#').strip_prefix(' ').map(|_| line))
            .filter(|line| line.starts_with('#'));
        let slug = |heading: &str| -> String {
            let heading = heading.trim_start_matches('#').trim().to_lowercase();
            let kept = heading
                .chars()
                .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
            kept.map(|c| if c == ' ' { '-' } else { c }).collect()
        };
        headings.map(slug).collect()
    }
}

/// A folder with every file that the printed configurations name.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    for (name, key) in [
        ("server.crt", "server.key"),
        ("people-ca.pem", "people-ca.key"),
    ] {
        let made = std::process::Command::new("openssl")
            .args("req -x509 -newkey rsa:2048 -nodes -days 7 -subj /CN=example.com".split(' '))
            .arg("-keyout")
            .arg(path(key))
            .arg("-out")
            .arg(path(name))
            .output()
            .expect("openssl starts");
        assert!(made.status.success(), "{made:?}");
    }
    let scram = hash_password("correct horse");
    let md5 = format!("md5{}", "0".repeat(32));
    let users = [
        ("superset", &scram),
        ("tableau", &scram),
        ("crystal", &scram),
        ("airflow", &scram),
        ("ana", &scram),
        ("old_reports", &md5),
    ];
    let users: String = users
        .iter()
        .map(|(name, verifier)| format!("\"{name}\" \"{verifier}\"\n"))
        .collect();
    std::fs::write(path("userlist.txt"), users).unwrap();
    std::fs::write(path("cancel.key"), "0123456789abcdef".repeat(4)).unwrap();
    folder
}

/// Fails unless `check --offline` takes it.
fn assert_good(folder: &Path, name: &str, text: &str) {
    let file = folder.join("pg-iam-proxy.toml");
    std::fs::write(&file, text).unwrap();
    let output = output(&["check", "--offline", "--config", file.to_str().unwrap()]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{name}: {error}\n{text}");
}

/// A part of a configuration, with what it takes to be a whole one.
fn completed(fragment: &str) -> String {
    let own: Vec<&str> = fragment
        .lines()
        .filter_map(|line| line.strip_prefix("[target.")?.strip_suffix(']'))
        .collect();
    let mut text = fragment.to_string();
    if !fragment.contains("users_file") {
        text.insert_str(0, "users_file = \"userlist.txt\"\n");
    }
    let mut wanted: Vec<&str> = fragment
        .lines()
        .filter_map(|line| line.strip_prefix("targets = "))
        .flat_map(|names| names.split('"').skip(1).step_by(2))
        .collect();
    if !fragment.contains("[[listener]]") {
        let targets = if own.is_empty() {
            vec!["warehouse"]
        } else {
            own.clone()
        };
        text += &format!(
            "[[listener]]\naddress = \"127.0.0.1:5439\"\ntargets = {targets:?}\nauth = \"trust\"\n"
        );
        wanted.extend(targets);
    }
    let wanted: BTreeSet<&str> = wanted
        .into_iter()
        .filter(|name| !own.contains(name))
        .collect();
    for name in wanted {
        text += &format!(
            "[target.{name}]\nengine = \"redshift\"\ncluster_identifier = \"examplecluster\"\n\
             region = \"us-west-2\"\n"
        );
    }
    text
}

#[test]
fn every_printed_configuration_is_good() {
    let folder = folder();
    for page in pages() {
        for block in page.blocks() {
            let text = match block.info {
                "toml" => block.text,
                "toml fragment" => completed(&block.text),
                info => {
                    assert!(!info.starts_with("toml"), "{}: {info}", page.name);
                    continue;
                }
            };
            assert_good(folder.path(), &page.name, &text);
        }
    }
}

#[test]
fn the_example_is_good_as_it_stands_and_with_everything_switched_on() {
    let name = "deploy/pg-iam-proxy.example.toml";
    let text = std::fs::read_to_string(root().join(name)).unwrap();
    let folder = folder();
    assert_good(folder.path(), name, &text);
    let switched_on: String = text
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(rest) if !rest.is_empty() && !rest.starts_with(' ') => format!("{rest}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    assert!(!switched_on.lines().any(|line| line.starts_with("#[")));
    assert_good(folder.path(), name, &switched_on);
}

#[test]
fn every_printed_target_url_is_taken() {
    let mut urls = 0;
    for page in pages() {
        for code in page.code() {
            let words = code.split(|c: char| c.is_whitespace() || matches!(c, '\'' | '"'));
            for url in words.filter(|word| SCHEMES.iter().any(|scheme| word.starts_with(scheme))) {
                if url.contains('…') || url.ends_with("//") {
                    continue;
                }
                let output = output(&["check", "--offline", url]);
                let error = String::from_utf8_lossy(&output.stderr);
                assert_eq!(output.status.code(), Some(0), "{}: {error}", page.name);
                urls += 1;
            }
        }
    }
    assert!(urls >= 5, "{urls} URLs");
}

#[test]
fn every_printed_command_is_understood() {
    let mut commands = BTreeSet::new();
    for page in pages() {
        for code in page.code() {
            let Some((before, rest)) = code.split_once("pg-iam-proxy ") else {
                continue;
            };
            let is_command =
                before.ends_with('(') || before.split_whitespace().all(|word| word.contains('='));
            let end = rest.find(['>', '|', ')', '#']).unwrap_or(rest.len());
            let arguments: Vec<String> = rest[..end]
                .split_whitespace()
                .map(|word| word.trim_matches('\'').to_string())
                .collect();
            if is_command {
                commands.insert(arguments);
            }
        }
    }
    assert!(commands.len() > 10, "{commands:?}");
    for mut arguments in commands {
        arguments.push("--help".to_string());
        let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let output = output(&words);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words:?}: {error}");
    }
}

#[test]
fn every_make_target_is_there() {
    let makefile = std::fs::read_to_string(root().join("Makefile")).unwrap();
    for page in pages() {
        for code in page.code() {
            let Some(target) = code.strip_prefix("make ") else {
                continue;
            };
            let target = target.split_whitespace().next().unwrap_or_default();
            assert!(
                makefile.contains(&format!("\n{target}:")),
                "{}: make {target}",
                page.name
            );
        }
    }
}

#[test]
fn every_link_leads_somewhere() {
    let pages = pages();
    for page in &pages {
        for link in page.links() {
            let (file, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let folder = Path::new(&page.name).parent().unwrap();
            let file = if file.is_empty() {
                PathBuf::from(&page.name)
            } else {
                folder.join(file)
            };
            let full = root()
                .join(&file)
                .canonicalize()
                .unwrap_or_else(|error| panic!("{}: {link}: {error}", page.name));
            if anchor.is_empty() {
                continue;
            }
            let name = full.strip_prefix(root().canonicalize().unwrap()).unwrap();
            let target = pages
                .iter()
                .find(|page| Path::new(&page.name) == name)
                .unwrap_or_else(|| panic!("{}: {link} is no page", page.name));
            assert!(
                target.anchors().contains(anchor),
                "{}: {link}: it has {:?}",
                page.name,
                target.anchors()
            );
        }
    }
}

#[test]
fn every_file_that_a_page_names_is_there() {
    let mut missing = BTreeSet::new();
    for page in pages() {
        for code in page.inline_code() {
            let named = FOLDERS.iter().any(|folder| code.starts_with(folder));
            let path = code.split_whitespace().next().unwrap_or_default();
            if named && !root().join(path).exists() {
                missing.insert(format!("{}: {path}", page.name));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn the_readme_is_short() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let lines = readme.lines().count();
    assert!(lines <= LONGEST_README, "{lines} lines");
}

#[test]
fn every_sqlstate_of_the_proxy_is_explained_and_no_other() {
    let mut source = String::new();
    for file in ["src/error.rs", "src/wire/sqlstate.rs"] {
        let text = std::fs::read_to_string(root().join(file)).unwrap_or_default();
        source += text.split("#[cfg(test)]").next().unwrap_or_default();
    }
    let is_one = |text: &&str| {
        text.len() == 5
            && text.contains(|c: char| c.is_ascii_digit())
            && text
                .bytes()
                .all(|byte| byte.is_ascii_digit() || byte.is_ascii_uppercase())
    };
    // What servers send is compared as bytes; it is theirs to explain.
    let pieces: Vec<&str> = source.split('"').collect();
    let known: BTreeSet<&str> = pieces
        .windows(2)
        .filter(|pair| !pair[0].ends_with('b'))
        .map(|pair| pair[1])
        .filter(is_one)
        .collect();
    assert!(known.len() > 10, "{known:?}");
    let page = std::fs::read_to_string(root().join("docs/errors.md")).unwrap();
    let headings = page.lines().filter_map(|line| line.strip_prefix("## "));
    let explained: BTreeSet<&str> = headings.filter(is_one).collect();
    assert_eq!(known, explained);
    for sqlstate in known {
        let row = format!("\n| [{sqlstate}](#{}) | ", sqlstate.to_lowercase());
        assert!(
            page.contains(&row),
            "{sqlstate} does not stand in the table"
        );
    }
}

#[test]
fn the_extensions_that_keep_nothing_are_listed() {
    let source = std::fs::read_to_string(root().join("src/upstream/kept_state.rs")).unwrap();
    let (_, list) = source.split_once("const KEEP_NOTHING: ").unwrap();
    let (list, _) = list.split_once("];").unwrap();
    let known: Vec<&str> = list.split('"').skip(1).step_by(2).collect();
    assert!(known.len() > 10, "{known:?}");
    let page = std::fs::read_to_string(root().join("docs/pool.md")).unwrap();
    let page = page.split_whitespace().collect::<Vec<_>>().join(" ");
    let (_, names) = page.split_once("Known to keep nothing are ").unwrap();
    let (names, _) = names.split_once(". ").unwrap();
    let names = names.replace(" and ", ", ");
    assert_eq!(names.split(", ").collect::<Vec<_>>(), known);
}

#[test]
fn every_field_of_the_log_is_explained() {
    let aws = Testbed::shared().aws();
    let config = rds_config("db_user = \"jane_doe\"\ndatabase = \"postgres\"\nmax_sessions = 1");
    let file = config_file(&format!("{config}[log]\nformat = \"json\"\n"));
    let mut command = command();
    command.args(["run", "--config"]).arg(&file).envs(aws.env());
    let proxy = Proxy::start(command, 1);
    let client = Client::log_in(proxy.address(), &[("user", "x")]).unwrap();
    assert!(Client::log_in(proxy.address(), &[("user", "x")]).is_err());
    proxy.log_line(&["login refused"]);
    drop(client);
    proxy.log_line(&["session ended"]);

    let page = std::fs::read_to_string(root().join("docs/operations.md")).unwrap();
    for line in proxy.log().lines() {
        let fields: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        // Libraries have fields of their own.
        if !fields.contains_key("session") {
            continue;
        }
        for name in fields.keys() {
            assert!(
                page.contains(&format!("`{name}`")),
                "{name} is not in docs/operations.md"
            );
        }
    }
}

#[test]
fn every_key_of_the_json_of_check_is_explained() {
    let aws = Testbed::shared().aws();
    let file = config_file(&rds_config(
        "db_user = \"jane_doe\"\ndatabase = \"postgres\"",
    ));
    let mut command = command();
    command
        .args(["check", "--json", "--config"])
        .arg(&file)
        .envs(aws.env());
    let output = command.output().unwrap();
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["ok"], true, "{json}");

    let page = std::fs::read_to_string(root().join("docs/check.md")).unwrap();
    let mut left = vec![&json];
    while let Some(value) = left.pop() {
        match value {
            serde_json::Value::Array(values) => left.extend(values),
            serde_json::Value::Object(fields) => {
                for (name, value) in fields {
                    assert!(
                        page.contains(&format!("`{name}`"))
                            || page.contains(&format!("`{name}[]`")),
                        "{name} is not in docs/check.md"
                    );
                    left.push(value);
                }
            }
            _ => {}
        }
    }
}
