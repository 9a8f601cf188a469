//! As which users may the holder of a client certificate log in?

use crate::config::{CertificateMapping, NamePattern};
use crate::tls::CertificateNames;

/// Whether the holder of a certificate with these names may log in as `user`. Without a map, one of
/// the names must be the user's. With a map, a line of it must map one of the names to the user's.
pub fn may_be(names: &CertificateNames, user: &str, map: &[CertificateMapping]) -> bool {
    if map.is_empty() {
        return names.iter().any(|name| name == user);
    }
    names.iter().any(|name| {
        map.iter()
            .any(|mapping| mapped(mapping, name).is_some_and(|mapped| mapped == user))
    })
}

fn mapped(mapping: &CertificateMapping, name: &str) -> Option<String> {
    match &mapping.certificate {
        NamePattern::Exact(expected) => (expected == name).then(|| mapping.user.clone()),
        NamePattern::Expression(expression) => {
            let captures = expression.captures(name)?;
            let first = captures.get(1).map_or("", |group| group.as_str());
            Some(mapping.user.replace("\\1", first))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(common_name: &str, alternative: &str) -> CertificateNames {
        CertificateNames {
            common_name: Some(common_name.to_string()),
            alternative_names: vec![alternative.to_string()],
        }
    }

    fn expression(text: &str, user: &str) -> CertificateMapping {
        let certificate =
            NamePattern::Expression(regex_lite::Regex::new(&format!("^(?:{text})$")).unwrap());
        CertificateMapping {
            certificate,
            user: user.to_string(),
        }
    }

    #[test]
    fn without_a_map_the_names_are_user_names() {
        let certificate = names("ana", "ana@example.com");
        assert!(may_be(&certificate, "ana", &[]));
        assert!(may_be(&certificate, "ana@example.com", &[]));
        assert!(!may_be(&certificate, "an", &[]));
        assert!(!may_be(&CertificateNames::default(), "ana", &[]));
    }

    #[test]
    fn with_a_map_only_its_lines_count() {
        let exact = CertificateMapping {
            certificate: NamePattern::Exact("tableau.example.com".into()),
            user: "tableau".into(),
        };
        let map = [exact, expression(r"(.*)@example\.com", r"\1")];
        assert!(may_be(&names("x", "tableau.example.com"), "tableau", &map));
        assert!(may_be(&names("x", "ana@example.com"), "ana", &map));
        assert!(
            !may_be(&names("ana", "x"), "ana", &map),
            "the bare name is in no line"
        );
        assert!(
            !may_be(&names("x", "ana@example.com.evil.example"), "ana", &map),
            "expressions match whole names"
        );
    }
}
