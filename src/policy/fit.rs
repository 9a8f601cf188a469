//! A policy that IAM takes: without names that a wildcard covers already, and within its limit,
//! with wildcards where need be.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::document::Policy;
use super::grants::{Grants, Permission};

/// Characters of a managed policy, white space not counted:
/// <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_iam-quotas.html>.
const LIMIT: usize = 6_144;
/// Where an ARN has its region, its account and the kind of resource.
const REGION: usize = 3;
const ACCOUNT: usize = 4;
const KIND: usize = 5;

/// Takes out what is covered. Then, while the policy is too long, names that differ in their last
/// part only, then in their last two, then in more, become one with a wildcard; those first that
/// save most. Gives a note when it did.
pub fn fit(grants: &mut Grants) -> Option<String> {
    for resources in grants.values_mut() {
        let all = resources.clone();
        resources.retain(|resource| {
            !all.iter()
                .any(|other| other != resource && covers(other, resource))
        });
    }
    let before = size(grants);
    if before <= LIMIT {
        return None;
    }
    let exact = grants.clone();
    for differing in [1, 2, usize::MAX] {
        let mut groups = groups(grants, differing);
        groups.sort_by_key(|(_, names)| Reverse(names.iter().map(String::len).sum::<usize>()));
        for (permission, names) in groups {
            if size(grants) <= LIMIT {
                break;
            }
            let resources = grants.entry(permission).or_default();
            resources.retain(|resource| !names.contains(resource));
            resources.insert(merge(&names));
        }
    }
    let new = grants
        .iter()
        .flat_map(|(permission, resources)| resources.difference(&exact[permission]));
    let new: BTreeSet<&str> = new.map(String::as_str).collect();
    let wildcards = new.into_iter().collect::<Vec<_>>().join(", ");
    let after = size(grants);
    let rest = if after > LIMIT {
        format!("; it still has {after}: split it")
    } else {
        String::new()
    };
    Some(format!(
        "had {before} characters where IAM takes {LIMIT}, so that names became wildcards: {wildcards}{rest}"
    ))
}

fn size(grants: &Grants) -> usize {
    Policy::allowing(grants).size()
}

/// Resources of a permission that are alike but for their last parts. The kind of resource is never
/// among those.
fn groups(grants: &Grants, differing: usize) -> Vec<(Permission, Vec<String>)> {
    let mut groups: BTreeMap<_, Vec<String>> = BTreeMap::new();
    for (permission, resources) in grants {
        for resource in resources {
            let (parts, separators) = parts(resource);
            let alike = parts
                .len()
                .saturating_sub(differing)
                .max(REGION.min(parts.len()));
            let kind = parts.get(KIND).copied().unwrap_or_default();
            let key = (
                *permission,
                parts[..alike].join(":"),
                kind.to_string(),
                separators,
            );
            groups.entry(key).or_default().push(resource.clone());
        }
    }
    groups
        .into_iter()
        .filter(|(_, names)| names.len() > 1)
        .map(|((permission, ..), names)| (permission, names))
        .collect()
}

/// One resource that covers all of these, which have the same separators.
fn merge(names: &[String]) -> String {
    let (first, separators) = parts(&names[0]);
    let all: Vec<Vec<&str>> = names.iter().map(|name| parts(name).0).collect();
    let mut merged = String::new();
    for index in 0..first.len() {
        let values: BTreeSet<&str> = all.iter().map(|parts| parts[index]).collect();
        match values.into_iter().collect::<Vec<_>>()[..] {
            [same] => merged += same,
            _ if index == REGION || index == ACCOUNT => merged += "*",
            ref values => {
                merged += common_prefix(values);
                merged += "*";
            }
        }
        merged.extend(separators.chars().nth(index));
    }
    merged
}

/// Neither ends within a variable (`${*}`), nor goes on behind a wildcard.
fn common_prefix<'a>(values: &[&'a str]) -> &'a str {
    let first = values[0];
    let longest = values[1..].iter().fold(first.len(), |longest, other| {
        let same = first
            .chars()
            .zip(other.chars())
            .take_while(|(a, b)| a == b)
            .map(|(a, _)| a.len_utf8())
            .sum();
        longest.min(same)
    });
    let mut prefix = &first[..longest];
    if let Some(start) = prefix
        .rfind('$')
        .filter(|&start| !prefix[start..].contains('}'))
    {
        prefix = &prefix[..start];
    }
    prefix
}

/// The parts between `:` and `/`, and these separators.
fn parts(resource: &str) -> (Vec<&str>, String) {
    (
        resource.split([':', '/']).collect(),
        resource
            .chars()
            .filter(|c| matches!(c, ':' | '/'))
            .collect(),
    )
}

/// Whether one allows all that the other does, part by part.
fn covers(wildcard: &str, resource: &str) -> bool {
    let ((of_wildcard, its_separators), (of_resource, separators)) =
        (parts(wildcard), parts(resource));
    its_separators == separators
        && of_wildcard
            .iter()
            .zip(of_resource)
            .all(|(wildcard, part)| *wildcard == part || *wildcard == "*")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grants(permission: Permission, resources: impl IntoIterator<Item = String>) -> Grants {
        [(permission, resources.into_iter().collect())].into()
    }

    fn resources(grants: &Grants) -> Vec<&str> {
        grants.values().flatten().map(String::as_str).collect()
    }

    fn user(server: &str, name: &str) -> String {
        format!("arn:aws:rds-db:us-west-2:123456789012:dbuser:{server}/{name}")
    }

    #[test]
    fn a_name_that_a_wildcard_covers_is_not_repeated() {
        let mut all = grants(
            Permission::RdsConnect,
            [user("db-A", "*"), user("db-A", "ana"), user("db-B", "ana")],
        );
        assert_eq!(fit(&mut all), None);
        assert_eq!(resources(&all), [user("db-A", "*"), user("db-B", "ana")]);
        let mut all = grants(
            Permission::RdsConnect,
            [user("*", "ana"), user("db-A", "ana")],
        );
        assert_eq!(fit(&mut all), None);
        assert_eq!(resources(&all), [user("*", "ana")]);
    }

    #[test]
    fn the_names_that_save_most_become_one_with_what_they_share() {
        let people = (0..200).map(|number| user("db-A", &format!("bi_{number:03}")));
        let mut all = grants(
            Permission::RdsConnect,
            people.chain([user("db-B", "ana"), user("db-B", "bob")]),
        );
        let note = fit(&mut all).unwrap();
        assert_eq!(
            resources(&all),
            [
                user("db-A", "bi_*"),
                user("db-B", "ana"),
                user("db-B", "bob")
            ]
        );
        assert!(
            note.ends_with(&format!(
                "so that names became wildcards: {}",
                user("db-A", "bi_*")
            )),
            "{note}"
        );
    }

    #[test]
    fn servers_and_then_regions_and_accounts_become_one() {
        let mut servers = grants(
            Permission::RdsConnect,
            (0..200).map(|number| user(&format!("db-{number:03}"), "ana")),
        );
        assert!(fit(&mut servers).is_some());
        assert_eq!(resources(&servers), [user("db-*", "ana")]);
        let roles = (0..200).map(|number| {
            format!(
                "arn:aws:iam::{:012}:role/reports",
                100_000_000_000_u64 + number
            )
        });
        let mut roles = grants(Permission::AssumeRoles, roles);
        assert!(fit(&mut roles).is_some());
        assert_eq!(resources(&roles), ["arn:aws:iam::*:role/reports"]);
    }

    #[test]
    fn kinds_of_resources_are_never_mixed() {
        let mixed = (0..200).flat_map(|number| {
            let arn = |kind: &str| {
                format!("arn:aws:redshift:us-west-2:123456789012:{kind}:c{number:03}/x{number:03}")
            };
            [arn("dbname"), arn("dbuser")]
        });
        let mut all = grants(Permission::RedshiftCredentials, mixed);
        assert!(fit(&mut all).is_some());
        let arn = |kind: &str| format!("arn:aws:redshift:us-west-2:123456789012:{kind}:c*/x*");
        assert_eq!(resources(&all), [arn("dbname"), arn("dbuser")]);
    }

    #[test]
    fn a_shared_beginning_does_not_end_within_a_variable() {
        assert_eq!(common_prefix(&["a${*}b", "a${?}c"]), "a");
        assert_eq!(common_prefix(&["a${*}b", "a${*}c"]), "a${*}");
        assert_eq!(common_prefix(&["äb", "äc"]), "ä");
        assert_eq!(common_prefix(&["*", "ana"]), "");
    }
}
