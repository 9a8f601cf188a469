//! Dependencies between the modules point one way, and a few things exist in one place only.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// What each module may use. A module that is not here may not exist.
const MAY_USE: [(&str, &[&str]); 26] = [
    ("main", &["cli"]),
    ("lib", &[]),
    (
        "cli",
        &[
            "check",
            "config",
            "hash_password",
            "nearest",
            "policy",
            "server",
            "telemetry",
            "workers",
        ],
    ),
    (
        "check",
        &["config", "credentials", "error", "route", "tls", "upstream"],
    ),
    ("hash_password", &["secret", "verifier", "wire"]),
    ("policy", &["config", "credentials", "route"]),
    ("telemetry", &["config"]),
    (
        "server",
        &[
            "admin",
            "session",
            "cancel",
            "client",
            "config",
            "credentials",
            "governor",
            "metrics",
            "places",
            "secret",
            "tls",
            "verifier",
            "workers",
        ],
    ),
    ("workers", &[]),
    ("admin", &["metrics"]),
    (
        "session",
        &[
            "cancel",
            "client",
            "config",
            "credentials",
            "error",
            "governor",
            "metrics",
            "places",
            "route",
            "splice",
            "tls",
            "upstream",
            "wire",
            "workers",
        ],
    ),
    (
        "client",
        &["config", "error", "secret", "tls", "verifier", "wire"],
    ),
    ("places", &["config", "error"]),
    ("governor", &["config", "error"]),
    ("route", &["config", "error"]),
    (
        "credentials",
        &["config", "error", "metrics", "nearest", "secret"],
    ),
    (
        "upstream",
        &["config", "error", "places", "secret", "tls", "wire"],
    ),
    ("cancel", &["secret", "wire"]),
    ("splice", &["tls", "wire"]),
    ("config", &["nearest", "secret", "tls", "verifier"]),
    ("nearest", &[]),
    ("verifier", &["secret"]),
    ("error", &["wire"]),
    ("wire", &["secret"]),
    ("tls", &[]),
    ("metrics", &[]),
];

fn sources() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders = vec![root.clone()];
    let mut sources = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let text = std::fs::read_to_string(&path).unwrap();
                sources.push((path.strip_prefix(&root).unwrap().to_path_buf(), text));
            }
        }
    }
    sources
}

/// The code of a file, without its unit tests.
fn code(text: &str) -> &str {
    text.split("#[cfg(test)]").next().unwrap()
}

/// First folder, or the file's own name.
fn module(path: &Path) -> String {
    path.components()
        .next()
        .unwrap()
        .as_os_str()
        .to_str()
        .unwrap()
        .trim_end_matches(".rs")
        .to_string()
}

fn used(text: &str) -> BTreeSet<String> {
    let names = text.split("crate::").skip(1);
    let name = |rest: &str| {
        rest.chars()
            .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
            .collect()
    };
    let grouped = text
        .split("use crate::{")
        .skip(1)
        .flat_map(|rest| rest.split('}').next().unwrap().split(','));
    names
        .map(name)
        .chain(grouped.map(|part| name(part.trim())))
        .filter(|name: &String| !name.is_empty())
        .collect()
}

#[test]
fn modules_use_only_what_is_below_them() {
    for (path, text) in sources() {
        let module = module(&path);
        if module == "secret" {
            assert_eq!(used(code(&text)), BTreeSet::new());
            continue;
        }
        let (_, allowed) = MAY_USE
            .iter()
            .find(|(name, _)| *name == module)
            .unwrap_or_else(|| panic!("{module} has no place in the architecture"));
        for name in used(code(&text)) {
            assert!(
                name == module || allowed.contains(&name.as_str()),
                "{} uses {name}",
                path.display()
            );
        }
    }
}

#[test]
fn only_credentials_names_the_aws_sdk() {
    for (path, text) in sources()
        .into_iter()
        .filter(|(path, _)| !path.starts_with("credentials"))
    {
        for name in [
            "aws_config",
            "aws_sdk",
            "aws_types",
            "aws_sigv4",
            "aws_smithy",
            "aws_credential",
        ] {
            assert!(
                !code(&text).contains(name),
                "{} names {name}",
                path.display()
            );
        }
    }
}

#[test]
fn only_tls_builds_rustls_configurations() {
    for (path, text) in sources()
        .into_iter()
        .filter(|(path, _)| !path.starts_with("tls"))
    {
        for name in [
            "ClientConfig",
            "ServerConfig",
            "RootCertStore",
            "CryptoProvider",
        ] {
            assert!(
                !code(&text).contains(name),
                "{} names {name}",
                path.display()
            );
        }
    }
}

#[test]
fn only_reject_writes_an_error_response_of_ours() {
    for (path, text) in sources() {
        let writes = code(&text).contains("ErrorResponse::from_fields(");
        assert!(
            !writes || path == Path::new("client/reject.rs"),
            "{} writes an ErrorResponse",
            path.display()
        );
    }
}

#[test]
fn the_tree_has_one_tls_stack_and_one_crypto_provider() {
    let tree = std::process::Command::new(env!("CARGO"))
        .args([
            "tree",
            "--workspace",
            "--edges",
            "normal,build,dev",
            "--prefix",
            "none",
            "--offline",
            "--locked",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo tree runs");
    assert!(
        tree.status.success(),
        "{}",
        String::from_utf8_lossy(&tree.stderr)
    );
    let tree = String::from_utf8(tree.stdout).unwrap();
    let versions = |name: &str| {
        tree.lines()
            .filter_map(|line| line.strip_prefix(&format!("{name} v")))
            .map(|rest| rest.split(' ').next().unwrap())
            .collect::<BTreeSet<_>>()
    };
    for banned in ["ring", "openssl", "openssl-sys", "native-tls", "boring"] {
        assert_eq!(versions(banned), BTreeSet::new(), "{banned} is in the tree");
    }
    assert_eq!(versions("rustls").len(), 1);
    assert_eq!(versions("aws-lc-rs").len(), 1);
}
