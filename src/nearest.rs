//! Which known name did a person probably mean?

/// How similar two names must be, by Jaro and Winkler (0: not at all, 1: equal), for one to be
/// suggested in place of the other. A slip of the finger scores above 0.9 and a forgotten ending
/// (`cert` for `certificate`) above 0.85; names that share no more than a few letters stay below
/// 0.75.
const SIMILAR: f64 = 0.8;

/// The known name that is most similar to `name`, whatever their case. `None` when no known name
/// is similar enough: a wild guess would only mislead.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let name = name.to_lowercase();
    known
        .into_iter()
        .map(|candidate| {
            let similarity = strsim::jaro_winkler(&name, &candidate.to_lowercase());
            (similarity, candidate)
        })
        .filter(|(similarity, _)| *similarity >= SIMILAR)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_and_forgotten_endings_are_recognised() {
        let known = ["address", "targets", "auth", "certificate", "key"];
        for (name, meant) in [
            ("adress", "address"),
            ("target", "targets"),
            ("Address", "address"),
            ("cert", "certificate"),
            ("certifcate", "certificate"),
        ] {
            assert_eq!(nearest(name, known), Some(meant), "{name}");
        }
    }

    #[test]
    fn a_name_like_no_other_has_no_suggestion() {
        assert_eq!(nearest("nosuch", ["w"]), None);
        assert_eq!(nearest("console", ["http"]), None);
        assert_eq!(nearest("w", ["warehouse"]), None);
        assert_eq!(nearest("password", ["port", "profile", "database"]), None);
        assert_eq!(nearest("anything", []), None);
    }
}
