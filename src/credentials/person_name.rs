//! How is a person named to AWS, so that no two people have the same name there?
//!
//! CloudTrail, conditions on `sts:SourceIdentity` and `aws:PrincipalTag` know people by these names
//! alone. A name that AWS takes is left as it is. Of every other name, what AWS does not take is
//! replaced, the end is cut off where it is too long, and a part of the hash of the whole name is
//! appended, which tells `josé` from `josè`. A name that already looks as if it had such an end is
//! given one too, or it could be chosen in order to be taken for somebody else.

use aws_lc_rs::digest;
use unicode_properties::{GeneralCategoryGroup, UnicodeGeneralCategory};

/// How long the names of sessions and people may be in STS, in characters:
/// <https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html>.
const SHORTEST: usize = 2;
const LONGEST: usize = 64;
/// How long the value of a session tag may be.
const LONGEST_TAG: usize = 256;
/// What the hash is appended with. Names of people and services often end in `-` and a date or a
/// number, and hardly ever in `=` and eight digits.
const BEFORE_HASH: char = '=';
/// How many hexadecimal digits of the hash there are.
const DIGITS: usize = 8;
/// Where the name of the person goes in a session name.
const PLACE: &str = "{user}";

/// `SourceIdentity`.
pub fn source_identity(name: &str) -> String {
    fitted(name, LONGEST, is_sts_name)
}

/// `RoleSessionName`, by a pattern that has `{user}` once. The pattern's own text is always kept.
pub fn role_session_name(pattern: &str, name: &str) -> String {
    let longest = LONGEST.saturating_sub(pattern.len() - PLACE.len());
    pattern.replace(PLACE, &fitted(name, longest, is_sts_name))
}

/// The value of the session tag, whose alphabet is larger.
pub fn tag(name: &str) -> String {
    fitted(name, LONGEST, is_tag)
}

fn fitted(name: &str, longest: usize, takes: impl Fn(&str, usize) -> bool) -> String {
    if takes(name, longest) && !ends_like_a_hash(name) {
        return name.to_string();
    }
    let hash: String = digest::digest(&digest::SHA256, name.as_bytes()).as_ref()[..DIGITS / 2]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let kept: String = name
        .chars()
        .map(|c| if is_in_both_alphabets(c) { c } else { '-' })
        .take(longest.saturating_sub(DIGITS + 1))
        .collect();
    format!("{kept}{BEFORE_HASH}{hash}")
}

fn is_sts_name(name: &str, longest: usize) -> bool {
    (SHORTEST..=longest).contains(&name.len())
        && name.chars().all(|c| c == ',' || is_in_both_alphabets(c))
}

/// AWS keeps values that begin with `aws:` to itself. Blanks at the ends might get lost.
fn is_tag(name: &str, _: usize) -> bool {
    use GeneralCategoryGroup::{Letter, Number, Separator};
    let reserved = name
        .get(..4)
        .is_some_and(|start| start.eq_ignore_ascii_case("aws:"));
    let takes = |c: char| {
        is_in_both_alphabets(c)
            || ":/".contains(c)
            || matches!(c.general_category_group(), Letter | Number | Separator)
    };
    (1..=LONGEST_TAG).contains(&name.chars().count())
        && name.trim() == name
        && !reserved
        && name.chars().all(takes)
}

/// Whether STS takes a character both in names and in tags.
fn is_in_both_alphabets(c: char) -> bool {
    c.is_ascii_alphanumeric() || "_=.@+-".contains(c)
}

fn ends_like_a_hash(name: &str) -> bool {
    name.rsplit_once(BEFORE_HASH).is_some_and(|(_, end)| {
        end.len() == DIGITS && end.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// Names that differ in nothing but what STS does not take, what it cuts off, or what makes
    /// another one long enough.
    fn lookalikes() -> Vec<String> {
        let mut names: Vec<String> = [
            "ana/b", "ana b", "ana-b", "ana,b", "ana:b", "josé", "josè", "jos-", "a", "a-", "a--",
            "b", "ana ", " ana", "ana", "ana*", "ana-", "aws:x", "aws-x", "", "-",
        ]
        .map(str::to_string)
        .into();
        let long = "x".repeat(64);
        names.extend([
            long.clone(),
            format!("{long}y"),
            format!("{long}z"),
            "x".repeat(55),
            "ñ".repeat(256),
            "ñ".repeat(257),
        ]);
        // Somebody may choose the very names that the others are given.
        let chosen: Vec<_> = names
            .iter()
            .flat_map(|name| [source_identity(name), tag(name)])
            .filter(|name| ends_like_a_hash(name))
            .collect();
        names.extend(chosen);
        let mut seen = HashSet::new();
        names.retain(|name| seen.insert(name.clone()));
        names
    }

    #[test]
    fn no_two_people_have_one_name_at_aws() {
        let names = lookalikes();
        let session_name = |name: &str| role_session_name("proxy-{user}-reports", name);
        for fit in [
            &source_identity as &dyn Fn(&str) -> String,
            &session_name,
            &tag,
        ] {
            let fitted: HashSet<_> = names.iter().map(|name| fit(name)).collect();
            assert_eq!(fitted.len(), names.len(), "{fitted:?}");
        }
    }

    #[test]
    fn every_name_fits_what_aws_takes() {
        for name in lookalikes() {
            for name in [
                source_identity(&name),
                role_session_name("{user}", &name),
                role_session_name("eight-and-twenty-characters-{user}-end", &name),
            ] {
                assert!(is_sts_name(&name, LONGEST), "{name}");
            }
            assert!(is_tag(&tag(&name), LONGEST), "{name}");
        }
    }

    #[test]
    fn a_name_that_aws_takes_is_left_as_it_is() {
        for name in [
            "ana",
            "ana@example.com",
            "a_b=c,d.e+f-g",
            "svc-20240101",
            "ana-deadbeef",
            "ana=deadbee",
            &"x".repeat(64),
        ] {
            assert_eq!(source_identity(name), name);
        }
        for name in [
            "ana",
            "josé",
            "Ana Muñoz",
            "ana/b:c",
            "安娜",
            &"ñ".repeat(256),
        ] {
            assert_eq!(tag(name), name);
        }
    }

    #[test]
    fn a_name_that_aws_does_not_take_ends_in_a_hash_of_it() {
        assert_eq!(source_identity("ana/b"), "ana-b=f5c7097c");
        assert_eq!(tag("ana*"), "ana-=d40d17b2");
    }

    #[test]
    fn the_text_around_the_name_is_kept() {
        assert_eq!(role_session_name("{user}-reports", "ana"), "ana-reports");
        let long = role_session_name("{user}-reports", &"x".repeat(64));
        assert_eq!(long.len(), LONGEST);
        assert!(long.ends_with("-reports"), "{long}");
    }
}
