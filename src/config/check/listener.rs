//! The rules of one listener: its address, its targets, its TLS, and who proves what.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use ipnet::IpNet;
use toml::Spanned;

use super::{Checker, Targets, Users};
use crate::config::raw;
use crate::config::{
    Address, Auth, CertificateMapping, ClientTls, Listener, Location, NamePattern, Rule, Target,
};
use crate::error::chain;
use crate::tls::listener::{ListenerFiles, ListenerTls};

impl<'a> Checker<'a> {
    pub(super) fn listener(
        &mut self,
        raw: &'a Spanned<raw::Listener>,
        targets: &Targets,
        users: &Users,
        used: &mut BTreeSet<&'a str>,
    ) -> Option<Listener> {
        let span = raw.span();
        let raw = raw.as_ref();
        let chosen = self.listener_targets(&span, raw, targets, used);
        let address = self.address(&span, raw);
        let tls = self.client_tls(&span, raw);
        let rules = self.rules(&span, raw);
        let certificate_map = self.certificate_map(raw);
        let proxy_protocol_from = self.proxy_protocol(raw);
        let max_sessions = self.max_sessions("listener.max_sessions", raw.max_sessions.as_ref());
        let listener = Listener {
            address: address?,
            targets: chosen,
            tls: tls?,
            rules,
            certificate_map,
            proxy_protocol_from,
            max_sessions,
        };
        for rule in &listener.rules {
            self.proof_is_possible(&span, raw, &listener, rule, users);
        }
        Some(listener)
    }

    fn listener_targets(
        &mut self,
        span: &Range<usize>,
        raw: &'a raw::Listener,
        targets: &Targets,
        used: &mut BTreeSet<&'a str>,
    ) -> Vec<Arc<Target>> {
        let mut chosen = Vec::new();
        match &raw.targets {
            Some(names) if !names.as_ref().is_empty() => {
                for name in names.as_ref() {
                    used.insert(name.as_ref());
                    match targets.get(name.as_ref()) {
                        Some(target) => chosen.extend(target.clone()),
                        None => self.problem(
                            &name.span(),
                            unknown_target("listener.targets", name.as_ref(), targets),
                        ),
                    }
                }
            }
            other => {
                let at = other.as_ref().map_or(span.clone(), Spanned::span);
                self.problem(
                    &at,
                    "listener.targets: name at least one target, as in targets = [\"warehouse\"]"
                        .to_string(),
                );
            }
        }
        chosen
    }

    fn address(&mut self, span: &Range<usize>, raw: &raw::Listener) -> Option<Address> {
        let remedy = "say where to listen, as in address = \"127.0.0.1:5439\"";
        let address = self.required(span, "listener.address", raw.address.as_ref(), remedy)?;
        let text = address.as_ref();
        if text.contains('/') {
            return Some(Address::Unix(self.path(text)));
        }
        let parsed = text.parse::<SocketAddr>().ok();
        if parsed.is_none() {
            self.value(
                "listener.address",
                address,
                "must be an IP address and a port, as in \"127.0.0.1:5439\", or the path of a unix socket",
            );
        }
        parsed.map(Address::Tcp)
    }

    fn client_tls(&mut self, span: &Range<usize>, raw: &raw::Listener) -> Option<ClientTls> {
        let tls: fn(Arc<ListenerTls>) -> ClientTls = match raw
            .tls
            .as_ref()
            .map(|tls| tls.as_ref().as_str())
        {
            None | Some("off") => {
                for (key, value) in [
                    ("certificate", &raw.certificate),
                    ("key", &raw.key),
                    ("client_ca", &raw.client_ca),
                    ("client_crl", &raw.client_crl),
                ] {
                    self.foreign(
                        &format!("listener.{key}"),
                        value.as_ref(),
                        "goes with tls = \"optional\" or tls = \"required\": add that, or delete it",
                    );
                }
                return Some(ClientTls::Off);
            }
            Some("optional") => ClientTls::Optional,
            Some("required") => ClientTls::Required,
            Some(_) => {
                self.value(
                    "listener.tls",
                    raw.tls.as_ref()?,
                    "must be \"off\", \"optional\" or \"required\"",
                );
                return None;
            }
        };
        let file = |checker: &Self, value: &Option<Spanned<String>>| {
            value.as_ref().map(|value| checker.path(value.as_ref()))
        };
        let certificate = self.required(
            span,
            "listener.certificate",
            raw.certificate.as_ref(),
            "say which, as in certificate = \"server.crt\" (PEM)",
        );
        let key = self.required(
            span,
            "listener.key",
            raw.key.as_ref(),
            "say which, as in key = \"server.key\" (PEM)",
        );
        let (certificate, key) = (certificate?, key?);
        if let (Some(crl), None) = (&raw.client_crl, &raw.client_ca) {
            self.problem(
                &crl.span(),
                "listener.client_crl: goes with client_ca: add that, or delete it".to_string(),
            );
        }
        let files = ListenerFiles {
            certificate: self.path(certificate.as_ref()),
            key: self.path(key.as_ref()),
            client_ca: file(self, &raw.client_ca),
            client_crl: file(self, &raw.client_crl),
        };
        match ListenerTls::load(files) {
            Ok(loaded) => Some(tls(Arc::new(loaded))),
            Err(error) => {
                self.problem(
                    &certificate.span(),
                    format!("listener.certificate: {}", chain(&error)),
                );
                None
            }
        }
    }

    fn rules(&mut self, span: &Range<usize>, raw: &raw::Listener) -> Vec<Rule> {
        let mut rules = Vec::new();
        for rule in &raw.rule {
            let at = rule.span();
            let rule = rule.as_ref();
            let remedy = "say which proof, as in auth = \"scram-sha-256\", or \"reject\"";
            let Some(auth) = self
                .required(&at, "listener.rule.auth", rule.auth.as_ref(), remedy)
                .and_then(|auth| self.auth("listener.rule.auth", auth, true))
            else {
                continue;
            };
            let from = match rule
                .from
                .as_ref()
                .map(|from| (from, from.as_ref().as_str()))
            {
                None => Some(Location::Anywhere),
                Some((_, "local")) => Some(Location::Local),
                Some((from, text)) => {
                    let network = network(text);
                    if network.is_none() {
                        let form = "must be a network as in \"10.0.0.0/8\", an IP address, or \"local\" for unix sockets";
                        self.value("listener.rule.from", from, form);
                    }
                    network.map(Location::Network)
                }
            };
            let Some(from) = from else { continue };
            rules.push(Rule {
                from,
                users: rule.users.clone(),
                auth,
            });
        }
        match &raw.auth {
            Some(auth) => {
                let auth = self.auth("listener.auth", auth, false);
                rules.extend(auth.map(|auth| Rule { from: Location::Anywhere, users: None, auth }));
            }
            None if raw.rule.is_empty() => self.problem(
                span,
                "listener.auth: say what a client must prove: \"scram-sha-256\", \"md5\", \"password\", \"cert\", \"peer\", or \"trust\" (whoever \
                 reaches this address is let in)"
                    .to_string(),
            ),
            // Whom no rule fits is refused, as in pg_hba.conf.
            None => {}
        }
        rules
    }

    fn auth(&mut self, key: &str, value: &Spanned<String>, in_rule: bool) -> Option<Auth> {
        match value.as_ref().as_str() {
            "trust" => Some(Auth::Trust),
            "scram-sha-256" => Some(Auth::ScramSha256),
            "md5" => Some(Auth::Md5),
            "password" => Some(Auth::Password),
            "cert" => Some(Auth::Cert),
            "peer" => Some(Auth::Peer),
            "reject" if in_rule => Some(Auth::Reject),
            _ => {
                let reject = if in_rule { " or \"reject\"" } else { "" };
                self.value(
                    key,
                    value,
                    &format!("must be \"trust\", \"scram-sha-256\", \"md5\", \"password\", \"cert\" or \"peer\"{reject}"),
                );
                None
            }
        }
    }

    /// Refuses a proof that could not be given here, or that would be none.
    fn proof_is_possible(
        &mut self,
        span: &Range<usize>,
        raw: &raw::Listener,
        listener: &Listener,
        rule: &Rule,
        users: &Users,
    ) {
        let at = raw.auth.as_ref().map_or(span.clone(), Spanned::span);
        let has_passwords = users.values().any(|user| user.verifier.is_some());
        match rule.auth {
            Auth::Trust if !listener.address.is_local() => {
                let at = raw.address.as_ref().map_or(span.clone(), Spanned::span);
                self.problem(
                    &at,
                    format!(
                        "listener.address = \"{}\": auth = \"trust\" is for loopback only, since it lets in whoever reaches the address: use \
                         127.0.0.1 or [::1], or another method",
                        listener.address
                    ),
                );
            }
            Auth::Password if !listener.address.is_local() && !listener.tls.is_required() => {
                self.problem(&at, "auth = \"password\" sends the password itself: set tls = \"required\", or use loopback".to_string());
            }
            Auth::ScramSha256 | Auth::Md5 | Auth::Password if !has_passwords => {
                self.problem(
                    &at,
                    "this method asks for a password, and no user has one: add [user.NAME] with password = \"…\" (see `pg-iam-proxy \
                     hash-password`), or users_file"
                        .to_string(),
                );
            }
            Auth::Cert if raw.client_ca.is_none() => {
                self.problem(
                    &at,
                    "auth = \"cert\" needs tls and client_ca, whose certificates clients show"
                        .to_string(),
                );
            }
            Auth::Peer if !matches!(listener.address, Address::Unix(_)) => {
                self.problem(&at, "auth = \"peer\" is for unix sockets: give a path as address, or use another method".to_string());
            }
            _ => {}
        }
    }

    fn certificate_map(&mut self, raw: &raw::Listener) -> Vec<CertificateMapping> {
        let mut map = Vec::new();
        for mapping in &raw.certificate_map {
            let span = mapping.span();
            let raw::CertificateMap { certificate, user } = mapping.as_ref();
            let key = "listener.certificate_map";
            let certificate = self.required(
                &span,
                key,
                certificate.as_ref(),
                "give certificate = \"name\", or \"/expression\"",
            );
            let user = self.required(
                &span,
                key,
                user.as_ref(),
                "give user = \"name\"; \\\\1 is what the expression's group matched",
            );
            let (Some(certificate), Some(user)) = (certificate, user) else {
                continue;
            };
            let pattern = match certificate.as_ref().strip_prefix('/') {
                None => Some(NamePattern::Exact(certificate.as_ref().clone())),
                // Anchored: an expression that matches in the middle of a name would let in names
                // that nobody thought of.
                Some(expression) => regex_lite::Regex::new(&format!("^(?:{expression})$"))
                    .ok()
                    .map(NamePattern::Expression),
            };
            match pattern {
                Some(certificate) => map.push(CertificateMapping {
                    certificate,
                    user: user.as_ref().clone(),
                }),
                None => self.value(key, certificate, "is not a regular expression"),
            }
        }
        map
    }

    fn proxy_protocol(&mut self, raw: &raw::Listener) -> Vec<IpNet> {
        let wanted = raw
            .proxy_protocol
            .as_ref()
            .is_some_and(|value| *value.as_ref());
        let mut networks = Vec::new();
        for from in raw.proxy_protocol_from.iter().flat_map(Spanned::as_ref) {
            match network(from.as_ref()) {
                Some(network) => networks.push(network),
                None => self.value(
                    "listener.proxy_protocol_from",
                    from,
                    "must be a network as in \"10.0.0.0/8\", or an IP address",
                ),
            }
        }
        match (&raw.proxy_protocol, &raw.proxy_protocol_from) {
            (Some(value), None) if wanted => self.problem(
                &value.span(),
                "listener.proxy_protocol: say whose headers are believed, as in proxy_protocol_from = [\"10.0.0.0/8\"]".to_string(),
            ),
            (_, Some(value)) if !wanted => {
                self.problem(
                    &value.span(),
                    "listener.proxy_protocol_from: goes with proxy_protocol = true: add that, or delete it".to_string(),
                );
            }
            _ => {}
        }
        networks
    }

    /// A path as the file's author meant it.
    pub(super) fn path(&self, text: &str) -> PathBuf {
        self.sources[self.source].path(text)
    }
}

pub(super) fn unknown_target(key: &str, name: &str, targets: &Targets) -> String {
    match targets
        .keys()
        .max_by(|a, b| strsim::jaro_winkler(name, a).total_cmp(&strsim::jaro_winkler(name, b)))
    {
        Some(nearest) => {
            format!("{key}: there is no target \"{name}\"; did you mean \"{nearest}\"?")
        }
        None => format!("{key}: there is no target \"{name}\": add [target.{name}]"),
    }
}

fn network(text: &str) -> Option<IpNet> {
    text.parse()
        .ok()
        .or_else(|| text.parse::<std::net::IpAddr>().ok().map(IpNet::from))
}
