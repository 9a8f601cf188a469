//! Which rules does a listener have to follow: its address, targets, TLS and authentication?

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;

use ipnet::IpNet;
use toml::Spanned;

use super::{Checker, Head, NamedFile, Place};
use crate::address::ListenerAddr;
use crate::config::keys::{self, TlsMode};
use crate::config::tables::Keys;
use crate::config::{
    Auth, CertificateMapping, ClientTls, ListenerSettings, Location, NamePattern, Rule,
    TargetSettings,
};

/// A listener that has been checked, before its certificates have been read.
pub(in crate::config) struct UnloadedListener {
    /// Its address; `None` when the key is missing or wrong.
    pub address: Option<ListenerAddr>,
    /// The names of its targets, whether or not such targets exist.
    pub targets: Vec<String>,
    /// Whether every name is the name of a target, so that no other target can be meant.
    pub targets_are_known: bool,
    /// The files for TLS; `None` when TLS is off.
    pub tls_files: Option<TlsFiles>,
    /// The keys that make it ask for a password, which is a mistake if no user has one.
    pub asks_for_password: Vec<Place>,
    /// Builds the listener from its targets and its TLS. `None` when the address is wrong.
    pub build: Option<BuildListener>,
}

type BuildListener = Box<dyn FnOnce(Vec<Arc<TargetSettings>>, ClientTls) -> ListenerSettings>;

/// The files that a listener needs for TLS.
pub(in crate::config) struct TlsFiles {
    /// Whether sessions without TLS are refused.
    pub required: bool,
    pub certificate: Option<NamedFile>,
    pub key: Option<NamedFile>,
    pub client_ca: Option<NamedFile>,
    pub client_crl: Option<NamedFile>,
}

/// What decides whether a way to authenticate is possible on a listener.
struct Circumstances<'a> {
    raw: &'a keys::Listener,
    address: Option<&'a ListenerAddr>,
    /// `None` when the key is wrong.
    tls: Option<TlsMode>,
    /// Whether somebody's PROXY headers say where clients are.
    believes_headers: bool,
}

impl Checker<'_> {
    pub(super) fn listener(&mut self, raw: &Spanned<keys::Listener>) -> UnloadedListener {
        let head = Head::new(raw);
        let raw = raw.as_ref();
        let (targets, targets_are_known) = self.listener_targets(&head, raw);
        let address = self.address(&head, raw);
        let tls = match raw.tls.as_ref() {
            Some(mode) => Some(*mode.as_ref()),
            None if head.has_wrong(&["tls"]) => None,
            None => Some(TlsMode::Off),
        };
        let tls_files = self.tls_files(&head, raw, tls);
        let rules = self.rules(&head, raw);
        let certificate_map = self.certificate_map(raw);
        let proxy_protocol_from = self.proxy_protocol(&head, raw);
        let max_sessions = raw.max_sessions.limit();
        let circumstances = Circumstances {
            raw,
            address: address.as_ref(),
            tls,
            believes_headers: !proxy_protocol_from.is_empty(),
        };
        let mut asks_for_password = Vec::new();
        for (rule, span) in &rules {
            self.proof_is_possible(&circumstances, rule, span);
            if matches!(rule.auth, Auth::ScramSha256 | Auth::Md5 | Auth::Password) {
                asks_for_password.push(self.place(span));
            }
        }
        let build = address.clone().map(|address| {
            let rules = rules.into_iter().map(|(rule, _)| rule).collect();
            let build = move |targets, tls| ListenerSettings {
                address,
                targets,
                tls,
                rules,
                certificate_map,
                proxy_protocol_from,
                max_sessions,
            };
            Box::new(build) as BuildListener
        });
        UnloadedListener {
            address,
            targets,
            targets_are_known,
            tls_files,
            asks_for_password,
            build,
        }
    }

    /// The names, and whether each of them is the name of a target.
    fn listener_targets(&mut self, head: &Head<'_>, raw: &keys::Listener) -> (Vec<String>, bool) {
        let before = self.problems.count();
        match raw.targets.as_ref() {
            Some(names) if !names.as_ref().is_empty() => {
                for name in names.as_ref() {
                    self.unknown_target("listener.targets", name);
                }
            }
            other => {
                let text =
                    "listener.targets: name at least one target, as in targets = [\"warehouse\"]";
                match other {
                    Some(names) => self.problem(&names.span(), text),
                    None => self.missing(head, &["targets"], text),
                }
            }
        }
        let known = self.problems.count() == before && !head.has_wrong(&["targets"]);
        (raw.targets.texts().unwrap_or_default(), known)
    }

    fn address(&mut self, head: &Head<'_>, raw: &keys::Listener) -> Option<ListenerAddr> {
        let remedy = "say where to listen, as in address = \"127.0.0.1:5439\"";
        let address = self.required(head, ("listener.", "address"), &raw.address, remedy)?;
        let text = address.as_ref();
        if text.contains('/') {
            return Some(ListenerAddr::Unix(self.sources[self.source].path(text)));
        }
        let parsed = text.parse::<SocketAddr>().ok();
        if parsed.is_none() {
            self.value(
                "listener.address",
                address,
                "must be an IP address and a port, as in \"127.0.0.1:5439\", or the path of a \
                 unix socket",
            );
        }
        parsed.map(ListenerAddr::Tcp)
    }

    fn tls_files(
        &mut self,
        head: &Head<'_>,
        raw: &keys::Listener,
        tls: Option<TlsMode>,
    ) -> Option<TlsFiles> {
        if tls? == TlsMode::Off {
            for (key, value) in [
                ("certificate", &raw.certificate),
                ("key", &raw.key),
                ("client_ca", &raw.client_ca),
                ("client_crl", &raw.client_crl),
            ] {
                self.foreign(
                    &format!("listener.{key}"),
                    value,
                    "goes with tls = \"optional\" or tls = \"required\": add that, or delete it",
                );
            }
            return None;
        }
        let say = "say which, as in certificate = \"server.crt\" (PEM)";
        let certificate = self.required(head, ("listener.", "certificate"), &raw.certificate, say);
        let say = "say which, as in key = \"server.key\" (PEM)";
        let key = self.required(head, ("listener.", "key"), &raw.key, say);
        if let (Some(crl), None, false) = (
            raw.client_crl.as_ref(),
            raw.client_ca.as_ref(),
            head.has_wrong(&["client_ca"]),
        ) {
            self.problem(
                &crl.span(),
                "listener.client_crl: goes with client_ca: add that, or delete it",
            );
        }
        let file = |key, value: Option<&Spanned<String>>| value.map(|value| self.file(key, value));
        Some(TlsFiles {
            required: tls? == TlsMode::Required,
            certificate: file("listener.certificate", certificate),
            key: file("listener.key", key),
            client_ca: file("listener.client_ca", raw.client_ca.as_ref()),
            // The list is of no use without the authorities, which has been reported above.
            client_crl: file("listener.client_crl", raw.client_crl.as_ref())
                .filter(|_| !raw.client_ca.is_none()),
        })
    }

    /// The rules in their order, each with the place of its key `auth`.
    fn rules(&mut self, head: &Head<'_>, raw: &keys::Listener) -> Vec<(Rule, Range<usize>)> {
        let mut rules = Vec::new();
        for rule in raw.rule.items() {
            let head = Head::new(rule);
            let rule = rule.as_ref();
            let remedy = "say which proof, as in auth = \"scram-sha-256\", or \"reject\"";
            let auth = self.required(&head, ("listener.rule.", "auth"), &rule.auth, remedy);
            let from = self.location(rule.from.as_ref());
            if let (Some(auth), Some(from)) = (auth, from) {
                let checked = Rule {
                    from,
                    users: rule.users.texts(),
                    auth: auth.as_ref().0,
                };
                rules.push((checked, auth.span()));
            }
        }
        match raw.auth.as_ref() {
            Some(auth) => {
                let last = Rule {
                    from: Location::Anywhere,
                    users: None,
                    auth: auth.as_ref().0,
                };
                rules.push((last, auth.span()));
            }
            // A client that no rule fits is refused, as in pg_hba.conf.
            None if raw
                .rule
                .as_ref()
                .is_some_and(|rules| !rules.as_ref().is_empty()) => {}
            None => self.missing(
                head,
                &["auth", "rule"],
                "listener.auth: say what a client must prove: \"scram-sha-256\", \"md5\", \
                 \"password\", \"cert\", \"peer\", or \"trust\" (whoever reaches this address is \
                 let in)",
            ),
        }
        rules
    }

    /// The clients that a rule covers; `None` when `from` is wrong.
    fn location(&mut self, from: Option<&Spanned<String>>) -> Option<Location> {
        let Some(from) = from else {
            return Some(Location::Anywhere);
        };
        if from.as_ref() == "local" {
            return Some(Location::Local);
        }
        let network = network(from.as_ref());
        if network.is_none() {
            let form = "must be a network as in \"10.0.0.0/8\", an IP address, or \"local\" for \
                        unix sockets";
            self.value("listener.rule.from", from, form);
        }
        network.map(Location::Network)
    }

    /// Refuses an `auth` that no client of this listener could satisfy, or that everybody could.
    fn proof_is_possible(
        &mut self,
        circumstances: &Circumstances<'_>,
        rule: &Rule,
        at: &Range<usize>,
    ) {
        let Circumstances {
            raw,
            address,
            tls,
            believes_headers,
        } = *circumstances;
        // Behind a load balancer on this machine, clients may be anywhere.
        let is_remote = believes_headers || address.is_some_and(|address| !address.is_local());
        let is_tcp = matches!(address, Some(ListenerAddr::Tcp(_)));
        let text = match rule.auth {
            Auth::Trust if believes_headers => {
                "auth = \"trust\" is for loopback only, and with proxy_protocol clients may be \
                 anywhere: use another method"
            }
            Auth::Trust if is_remote => {
                return self.trust_is_local(raw);
            }
            Auth::Password if is_remote && tls.is_some_and(|tls| tls != TlsMode::Required) => {
                "auth = \"password\" sends the password itself: set tls = \"required\", or use \
                 loopback"
            }
            Auth::Cert if raw.client_ca.is_none() && !raw.wrong().contains("client_ca") => {
                "auth = \"cert\" needs tls and client_ca, whose certificates clients show"
            }
            Auth::Peer if is_tcp => {
                "auth = \"peer\" is for unix sockets: give a path as address, or use another method"
            }
            _ => return,
        };
        self.problem(at, text);
    }

    fn trust_is_local(&mut self, raw: &keys::Listener) {
        if let Some(address) = raw.address.as_ref() {
            self.value(
                "listener.address",
                address,
                "auth = \"trust\" is for loopback only, since it lets in whoever reaches the \
                 address: use 127.0.0.1 or [::1], or another method",
            );
        }
    }

    fn certificate_map(&mut self, raw: &keys::Listener) -> Vec<CertificateMapping> {
        let mut map = Vec::new();
        for mapping in raw.certificate_map.items() {
            let head = Head::new(mapping);
            let keys::CertificateMap {
                certificate, user, ..
            } = mapping.as_ref();
            let prefix = "listener.certificate_map.";
            let remedy = "give certificate = \"name\", or \"/expression\"";
            let certificate = self.required(&head, (prefix, "certificate"), certificate, remedy);
            let remedy = "give user = \"name\"; \\\\1 is what the expression's group matched";
            let user = self.required(&head, (prefix, "user"), user, remedy);
            let Some(certificate) = certificate else {
                continue;
            };
            let pattern = match certificate.as_ref().strip_prefix('/') {
                None => Some(NamePattern::Exact(certificate.as_ref().clone())),
                // The expression is anchored: if it could match in the middle of a name, it would
                // let in names that nobody thought of.
                Some(expression) => regex_lite::Regex::new(&format!("^(?:{expression})$"))
                    .ok()
                    .map(NamePattern::Expression),
            };
            match (pattern, user) {
                (Some(certificate), Some(user)) => map.push(CertificateMapping {
                    certificate,
                    user: user.as_ref().clone(),
                }),
                (Some(_), None) => {}
                (None, _) => self.value(
                    "listener.certificate_map.certificate",
                    certificate,
                    "is not a regular expression",
                ),
            }
        }
        map
    }

    fn proxy_protocol(&mut self, head: &Head<'_>, raw: &keys::Listener) -> Vec<IpNet> {
        let wanted = raw.proxy_protocol.as_ref();
        let mut networks = Vec::new();
        for from in raw.proxy_protocol_from.items() {
            match network(from.as_ref()) {
                Some(network) => {
                    if network.prefix_len() == 0 {
                        self.warnings.push(format!(
                            "listener.proxy_protocol_from: \"{network}\" lets everybody say in a \
                             PROXY header where it comes from: name the load balancer's networks"
                        ));
                    }
                    networks.push(network);
                }
                None => self.value(
                    "listener.proxy_protocol_from",
                    from,
                    "must be a network as in \"10.0.0.0/8\", or an IP address",
                ),
            }
        }
        let is_wanted = wanted.is_some_and(|value| *value.as_ref());
        match (wanted, raw.proxy_protocol_from.as_ref()) {
            (Some(value), None) if is_wanted && !head.has_wrong(&["proxy_protocol_from"]) => {
                self.problem(
                    &value.span(),
                    "listener.proxy_protocol: say whose headers are believed, as in \
                     proxy_protocol_from = [\"10.0.0.0/8\"]",
                );
            }
            (_, Some(value)) if !is_wanted && !head.has_wrong(&["proxy_protocol"]) => {
                self.problem(
                    &value.span(),
                    "listener.proxy_protocol_from: goes with proxy_protocol = true: add that, or \
                     delete it",
                );
            }
            _ => {}
        }
        networks
    }
}

fn network(text: &str) -> Option<IpNet> {
    text.parse()
        .ok()
        .or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}
