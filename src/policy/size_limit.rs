//! How does a policy stay within the size that IAM accepts?
//!
//! Resources that another resource of the same permission covers are left out. Where that is not
//! enough, resources with similar names are merged into one with a wildcard.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::document::PolicyDocument;
use super::permissions::{Permission, Permissions};

/// How many characters a managed policy may have, not counting white space:
/// <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_iam-quotas.html>.
const LIMIT: usize = 6_144;
/// Where the parts of an ARN have its region, its account and the kind of resource.
const REGION: usize = 3;
const ACCOUNT: usize = 4;
const KIND: usize = 5;

/// Makes the permissions fit into one policy, and returns a note when that took wildcards.
///
/// While the policy is too long, resources that differ in their last part only are merged, then
/// those that differ in their last two parts, then all others; among these, the group that saves
/// the most characters comes first. The roles to assume are never merged: a role with a similar
/// name, or in another account, is another kind of width than a database user with a similar name.
pub fn fit(permissions: &mut Permissions) -> Option<String> {
    for resources in permissions.values_mut() {
        let all = resources.clone();
        resources.retain(|resource| {
            !all.iter()
                .any(|other| other != resource && covers(other, resource))
        });
    }
    let before = size(permissions);
    if before <= LIMIT {
        return None;
    }
    let exact = permissions.clone();
    for differing in [1, 2, usize::MAX] {
        let mut groups = groups(permissions, differing);
        groups.sort_by_key(|(_, names)| Reverse(names.iter().map(String::len).sum::<usize>()));
        for (permission, names) in groups {
            if size(permissions) <= LIMIT {
                break;
            }
            let resources = permissions.entry(permission).or_default();
            resources.retain(|resource| !names.contains(resource));
            resources.insert(merge(&names));
        }
    }
    let new = permissions
        .iter()
        .flat_map(|(permission, resources)| resources.difference(&exact[permission]));
    let new: BTreeSet<&str> = new.map(String::as_str).collect();
    let wildcards = new.into_iter().collect::<Vec<_>>().join(", ");
    let after = size(permissions);
    let limit = format!("{before} characters where IAM takes {LIMIT}");
    Some(match (wildcards.is_empty(), after > LIMIT) {
        (true, _) => format!("has {limit}: split it, as roles never become wildcards"),
        (false, false) => format!("had {limit}, so that names became wildcards: {wildcards}"),
        (false, true) => format!(
            "had {limit}, so that names became wildcards: {wildcards}; it still has {after}: \
             split it"
        ),
    })
}

fn size(permissions: &Permissions) -> usize {
    PolicyDocument::allowing(permissions).size()
}

/// Groups of resources of one permission that differ in their last parts only. The resources of a
/// group are always of the same kind.
fn groups(permissions: &Permissions, differing: usize) -> Vec<(Permission, Vec<String>)> {
    let mut groups: BTreeMap<_, Vec<String>> = BTreeMap::new();
    let may_widen = |permission: &Permission| {
        !matches!(permission, Permission::AssumeRoles | Permission::NamePeople)
    };
    for (permission, resources) in permissions
        .iter()
        .filter(|(permission, _)| may_widen(permission))
    {
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

/// One resource that covers all of these. They must have the same separators.
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

/// What all the values begin with. It does not end within a policy variable such as `${*}`.
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

/// Splits a resource at each `:` and `/`; these separators are the second value.
fn parts(resource: &str) -> (Vec<&str>, String) {
    (
        resource.split([':', '/']).collect(),
        resource
            .chars()
            .filter(|c| matches!(c, ':' | '/'))
            .collect(),
    )
}

/// Whether the first resource matches everything that the second one does. Only parts that are a
/// wildcard as a whole are compared as such.
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

    fn permissions(
        permission: Permission,
        resources: impl IntoIterator<Item = String>,
    ) -> Permissions {
        [(permission, resources.into_iter().collect())].into()
    }

    fn resources(permissions: &Permissions) -> Vec<&str> {
        permissions.values().flatten().map(String::as_str).collect()
    }

    fn user(server: &str, name: &str) -> String {
        format!("arn:aws:rds-db:us-west-2:123456789012:dbuser:{server}/{name}")
    }

    #[test]
    fn a_name_that_a_wildcard_covers_is_not_repeated() {
        let mut all = permissions(
            Permission::RdsConnect,
            [user("db-A", "*"), user("db-A", "ana"), user("db-B", "ana")],
        );
        assert_eq!(fit(&mut all), None);
        assert_eq!(resources(&all), [user("db-A", "*"), user("db-B", "ana")]);
        let mut all = permissions(
            Permission::RdsConnect,
            [user("*", "ana"), user("db-A", "ana")],
        );
        assert_eq!(fit(&mut all), None);
        assert_eq!(resources(&all), [user("*", "ana")]);
    }

    #[test]
    fn the_names_that_save_most_become_one_with_what_they_share() {
        let people = (0..200).map(|number| user("db-A", &format!("bi_{number:03}")));
        let mut all = permissions(
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
    fn similar_servers_become_one() {
        let mut servers = permissions(
            Permission::RdsConnect,
            (0..200).map(|number| user(&format!("db-{number:03}"), "ana")),
        );
        assert!(fit(&mut servers).is_some());
        assert_eq!(resources(&servers), [user("db-*", "ana")]);
    }

    #[test]
    fn neither_the_account_nor_the_name_of_a_role_becomes_a_wildcard() {
        let roles = || (0..200).map(|n| format!("arn:aws:iam::{:012}:role/bi_{n:03}", n + 1));
        for permission in [Permission::AssumeRoles, Permission::NamePeople] {
            let mut all = permissions(permission, roles());
            let exact = all.clone();
            let note = fit(&mut all).unwrap();
            assert_eq!(all, exact);
            assert!(
                note.starts_with("has ") && note.contains(": split it"),
                "{note}"
            );
            let users = (0..200).map(|number| user("db-A", &format!("bi_{number:03}")));
            all.extend(permissions(Permission::RdsConnect, users));
            let note = fit(&mut all).unwrap();
            assert_eq!(all[&permission], exact[&permission]);
            assert!(note.ends_with(": split it"), "{note}");
        }
    }

    #[test]
    fn kinds_of_resources_are_never_mixed() {
        let mixed = (0..200).flat_map(|number| {
            let arn = |kind: &str| {
                format!("arn:aws:redshift:us-west-2:123456789012:{kind}:c{number:03}/x{number:03}")
            };
            [arn("dbname"), arn("dbuser")]
        });
        let mut all = permissions(Permission::RedshiftCredentials, mixed);
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
