//! Do dependencies between the modules point one way, and do a few things exist in one place only?
//!
//! Every source file is parsed as a whole. Items under `#[cfg(test)]` are left out wherever they
//! stand, since tests may use what they test with.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use syn::visit::{self, Visit};

/// What each module may use, from the top down. A module that is not listed may not exist, and a
/// permission that nobody uses may not be listed.
const MAY_USE: [(&str, &[&str]); 33] = [
    ("main", &[]),
    ("lib", &[]),
    (
        "cli",
        &[
            "address",
            "check",
            "config",
            "iam",
            "nearest",
            "policy",
            "random",
            "runtime",
            "secret",
            "server",
            "telemetry",
            "verifier",
            "wire",
        ],
    ),
    (
        "fuzzing",
        &[
            "cancel", "client", "config", "secret", "splice", "tls", "verifier", "wire",
        ],
    ),
    ("telemetry", &["config"]),
    (
        "server",
        &[
            "address", "admin", "config", "error", "limits", "random", "runtime", "session", "tls",
        ],
    ),
    (
        "session",
        &[
            "address", "cancel", "client", "config", "error", "excerpt", "limits", "metrics",
            "registry", "route", "runtime", "splice", "status", "target", "tls", "wire",
        ],
    ),
    ("policy", &["config", "credentials", "iam", "route"]),
    (
        "check",
        &[
            "address",
            "config",
            "credentials",
            "error",
            "iam",
            "route",
            "tls",
            "upstream",
            "wire",
        ],
    ),
    ("admin", &["metrics", "runtime", "telemetry"]),
    (
        "runtime",
        &[
            "address",
            "cancel",
            "client",
            "config",
            "credentials",
            "limits",
            "metrics",
            "registry",
            "secret",
            "status",
            "target",
            "verifier",
        ],
    ),
    (
        "target",
        &[
            "address",
            "config",
            "credentials",
            "error",
            "excerpt",
            "limits",
            "metrics",
            "route",
            "status",
            "tls",
            "upstream",
            "wire",
        ],
    ),
    (
        "upstream",
        &[
            "address", "config", "error", "random", "secret", "tls", "wire",
        ],
    ),
    ("registry", &["address", "random", "splice", "status"]),
    ("splice", &["tls", "wire"]),
    ("limits", &["address", "error", "metrics"]),
    (
        "credentials",
        &[
            "config", "error", "excerpt", "iam", "metrics", "nearest", "random", "route", "secret",
        ],
    ),
    ("route", &["config", "error", "excerpt"]),
    ("iam", &["config"]),
    (
        "client",
        &[
            "address", "config", "error", "excerpt", "random", "secret", "tls", "verifier", "wire",
        ],
    ),
    (
        "config",
        &["address", "error", "nearest", "secret", "tls", "verifier"],
    ),
    ("verifier", &["secret"]),
    ("cancel", &["address", "random", "secret", "wire"]),
    ("metrics", &["status"]),
    ("error", &["excerpt", "wire"]),
    ("status", &["address"]),
    ("address", &[]),
    ("wire", &["secret"]),
    ("tls", &[]),
    ("secret", &[]),
    ("excerpt", &[]),
    ("nearest", &[]),
    ("random", &[]),
];

/// A file below `src`.
struct Source {
    /// Relative to `src`.
    path: PathBuf,
    /// Module path of the file: `["client", "stream"]`, empty for `lib.rs`.
    module: Vec<String>,
    /// Code without tests.
    file: syn::File,
}

impl Source {
    /// The first folder, or the file's own name.
    fn top_module(&self) -> String {
        match &self.module[..] {
            [] => "lib".to_string(),
            [first, ..] => first.clone(),
        }
    }

    /// Modules that the file declares, whose names begin paths too.
    fn children(&self) -> BTreeSet<String> {
        let declared = self.file.items.iter().filter_map(|item| match item {
            syn::Item::Mod(item) => Some(item.ident.to_string()),
            _ => None,
        });
        declared.collect()
    }

    /// Every path that the file names; those of this crate begin with `crate`.
    fn paths(&self) -> BTreeSet<Vec<String>> {
        let mut paths = Paths {
            module: &self.module,
            children: self.children(),
            found: BTreeSet::new(),
        };
        paths.visit_file(&self.file);
        paths.found
    }
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders = vec![root.clone()];
    let mut sources = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            if path.extension().is_none_or(|extension| extension != "rs") {
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let mut file = syn::parse_file(&text).unwrap();
            file.items.retain(|item| !is_test(item));
            let path = path.strip_prefix(&root).unwrap().to_path_buf();
            let module = path
                .with_extension("")
                .iter()
                .map(|part| part.to_str().unwrap().to_string())
                .filter(|part| !["mod", "lib"].contains(&part.as_str()))
                .collect();
            sources.push(Source { path, module, file });
        }
    }
    let test_modules: BTreeSet<_> = test_modules();
    sources.retain(|source| !test_modules.contains(&source.module));
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(sources.len() > 100, "{} sources", sources.len());
    sources
}

/// Files that are modules for tests only, and those below them.
fn test_modules() -> BTreeSet<Vec<String>> {
    // Their parents declare them with `#[cfg(test)]`; the names say so too.
    [
        "splice/tests",
        "target/pool/tests",
        "tls/record/tests",
        "tls/testing",
    ]
    .into_iter()
    .chain([
        "splice/tests/ends",
        "splice/tests/upstream_left_open",
        "tls/record/tests/peers",
    ])
    .map(|path| path.split('/').map(str::to_string).collect())
    .collect()
}

fn attributes(item: &syn::Item) -> &[syn::Attribute] {
    match item {
        syn::Item::Const(item) => &item.attrs,
        syn::Item::Enum(item) => &item.attrs,
        syn::Item::Fn(item) => &item.attrs,
        syn::Item::Impl(item) => &item.attrs,
        syn::Item::Mod(item) => &item.attrs,
        syn::Item::Static(item) => &item.attrs,
        syn::Item::Struct(item) => &item.attrs,
        syn::Item::Type(item) => &item.attrs,
        syn::Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

fn is_test(item: &syn::Item) -> bool {
    attributes(item).iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute
                .parse_args::<syn::Path>()
                .is_ok_and(|condition| condition.is_ident("test"))
    })
}

/// Collects paths, also those that macros are given.
struct Paths<'a> {
    module: &'a [String],
    children: BTreeSet<String>,
    found: BTreeSet<Vec<String>>,
}

impl Paths<'_> {
    fn add(&mut self, path: &[String]) {
        let absolute = match path.first().map(String::as_str) {
            Some("crate") => path[1..].to_vec(),
            Some("self") => [self.module, &path[1..]].concat(),
            Some("super") => {
                let up = path.iter().take_while(|part| *part == "super").count();
                let kept = self.module.len().saturating_sub(up);
                [&self.module[..kept], &path[up..]].concat()
            }
            Some(child) if self.children.contains(child) => [self.module, path].concat(),
            _ => {
                self.found.insert(path.to_vec());
                return;
            }
        };
        self.found
            .insert([vec!["crate".to_string()], absolute].concat());
    }

    fn add_tree(&mut self, prefix: &[String], tree: &syn::UseTree) {
        let with = |name: &syn::Ident| [prefix, &[name.to_string()]].concat();
        match tree {
            syn::UseTree::Path(path) => self.add_tree(&with(&path.ident), &path.tree),
            syn::UseTree::Name(name) if name.ident == "self" => self.add(prefix),
            syn::UseTree::Name(name) => self.add(&with(&name.ident)),
            syn::UseTree::Rename(rename) => self.add(&with(&rename.ident)),
            syn::UseTree::Glob(_) => self.add(prefix),
            syn::UseTree::Group(group) => {
                for tree in &group.items {
                    self.add_tree(prefix, tree);
                }
            }
        }
    }
}

impl<'a> Visit<'a> for Paths<'_> {
    fn visit_item_use(&mut self, item: &'a syn::ItemUse) {
        self.add_tree(&[], &item.tree);
    }

    fn visit_path(&mut self, path: &'a syn::Path) {
        let parts: Vec<_> = path
            .segments
            .iter()
            .map(|segment| segment.ident.to_string())
            .collect();
        self.add(&parts);
        visit::visit_path(self, path);
    }

    /// What a macro is given is tokens; a path in them is names with colons between.
    fn visit_macro(&mut self, invocation: &'a syn::Macro) {
        let tokens = invocation.tokens.to_string().replace(" :: ", "::");
        let is_in_path = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
        for path in tokens
            .split(|c| !is_in_path(c))
            .filter(|path| path.contains("::"))
        {
            let parts: Vec<_> = path.split("::").map(str::to_string).collect();
            self.add(&parts);
        }
        visit::visit_macro(self, invocation);
    }
}

/// The top-level modules that a file uses besides its own.
fn used_top_modules(source: &Source, top_modules: &BTreeSet<String>) -> BTreeSet<String> {
    let top_module = source.top_module();
    source
        .paths()
        .into_iter()
        .filter(|path| path[0] == "crate")
        .filter_map(|path| path.get(1).cloned())
        .filter(|used| *used != top_module && top_modules.contains(used))
        .collect()
}

#[test]
fn modules_use_only_what_is_below_them() {
    let sources = sources();
    let top_modules: BTreeSet<_> = sources.iter().map(Source::top_module).collect();
    let listed: BTreeSet<_> = MAY_USE
        .iter()
        .map(|(top_module, _)| (*top_module).to_string())
        .collect();
    assert_eq!(top_modules, listed, "every module has its place in MAY_USE");
    for (top_module, allowed) in MAY_USE {
        let mut unused: BTreeSet<_> = allowed.iter().map(ToString::to_string).collect();
        for source in sources
            .iter()
            .filter(|source| source.top_module() == *top_module)
        {
            for used in used_top_modules(source, &top_modules) {
                let path = source.path.display();
                assert!(allowed.contains(&used.as_str()), "{path} uses {used}");
                unused.remove(&used);
            }
        }
        assert!(
            unused.is_empty(),
            "{top_module} does not use {unused:?}, which it may"
        );
    }
}

#[test]
fn modules_can_be_put_in_an_order() {
    let edges = |top_module: &&str| {
        let (_, used) = MAY_USE.iter().find(|(name, _)| name == top_module).unwrap();
        used.to_vec()
    };
    let top_modules: Vec<_> = MAY_USE.iter().map(|(top_module, _)| *top_module).collect();
    assert_eq!(cycle(&top_modules, edges), None);
}

#[test]
fn files_do_not_use_each_other_in_a_cycle() {
    let sources = sources();
    let files: BTreeMap<&[String], &Source> = sources
        .iter()
        .map(|source| (&source.module[..], source))
        .collect();
    // The longest module path that is a file: what is behind it are items.
    let file_of = |path: &[String]| -> Option<&[String]> {
        let path = &path[1..];
        (0..=path.len()).rev().find_map(|length| {
            files
                .get_key_value(&path[..length])
                .map(|(module, _)| *module)
        })
    };
    let edges: BTreeMap<&[String], Vec<&[String]>> = sources
        .iter()
        .map(|source| {
            let used = source.paths();
            let used: BTreeSet<_> = used
                .iter()
                .filter(|path| path[0] == "crate")
                .filter_map(|path| file_of(path))
                // A file is a part of the modules that it lies in, and may use what they share.
                .filter(|used| !source.module.starts_with(used))
                .collect();
            (&source.module[..], used.into_iter().collect())
        })
        .collect();
    let all: Vec<_> = edges.keys().copied().collect();
    let found = cycle(&all, |module| edges[module].clone());
    assert_eq!(found, None, "files that use each other in a cycle");
}

/// A cycle that can be reached from these nodes.
fn cycle<T: Copy + Ord>(nodes: &[T], edges: impl Fn(&T) -> Vec<T>) -> Option<Vec<T>> {
    let mut done = BTreeSet::new();
    for &start in nodes {
        let mut path = vec![start];
        let mut waiting = vec![edges(&start)];
        while let Some(next) = waiting.last_mut() {
            match next.pop() {
                Some(node) if done.contains(&node) => {}
                Some(node) => {
                    if let Some(begin) = path.iter().position(|on_path| *on_path == node) {
                        return Some(path[begin..].to_vec());
                    }
                    path.push(node);
                    waiting.push(edges(&node));
                }
                None => {
                    waiting.pop();
                    done.extend(path.pop());
                }
            }
        }
    }
    None
}

/// Fails where a file outside of `allowed` names one of these as a part of a path.
fn only(allowed: impl Fn(&Path) -> bool, is_named: impl Fn(&str) -> bool) {
    let mut used = false;
    for source in sources() {
        for path in source.paths() {
            if let Some(name) = path.iter().find(|part| is_named(part)) {
                used |= allowed(&source.path);
                assert!(
                    allowed(&source.path),
                    "{} names {name}",
                    source.path.display()
                );
            }
        }
    }
    assert!(used, "nobody names it, not even who may");
}

#[test]
fn only_credentials_names_the_aws_sdk() {
    let names = [
        "aws_config",
        "aws_sdk",
        "aws_types",
        "aws_sigv4",
        "aws_smithy",
        "aws_credential",
    ];
    only(
        |path| path.starts_with("credentials"),
        |part| names.iter().any(|name| part.starts_with(name)),
    );
}

#[test]
fn only_tls_builds_rustls_configurations() {
    let names = [
        "ClientConfig",
        "ServerConfig",
        "RootCertStore",
        "CryptoProvider",
    ];
    only(|path| path.starts_with("tls"), |part| names.contains(&part));
}

#[test]
fn only_reject_writes_an_error_response_of_ours() {
    only(
        |path| path == Path::new("client/reject.rs"),
        |part| part == "from_fields",
    );
}

#[test]
fn only_the_session_knows_both_legs() {
    for source in sources() {
        let top_modules = BTreeSet::from(["client".to_string(), "upstream".to_string()]);
        let both = used_top_modules(&source, &top_modules).len() == 2;
        assert!(
            !both || source.top_module() == "session",
            "{}",
            source.path.display()
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
