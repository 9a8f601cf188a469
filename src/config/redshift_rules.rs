//! What do the Redshift credential APIs accept? It is checked before they are asked.
//!
//! Source:
//! <https://docs.aws.amazon.com/redshift/latest/APIReference/API_GetClusterCredentials.html>.

use std::ops::RangeInclusive;

/// `DurationSeconds`.
pub(super) const DURATION_SECONDS: RangeInclusive<i64> = 900..=3600;

/// Words that Redshift reserves:
/// <https://docs.aws.amazon.com/redshift/latest/dg/r_pg_keywords.html>.
const RESERVED_WORDS: &str = "aes128 aes256 all allowoverwrite analyse analyze and any array as \
                              asc authorization az64 backup between binary blanksasnull both \
                              bytedict bzip2 case cast check collate column constraint create \
                              credentials cross current_date current_time current_timestamp \
                              current_user current_user_id default deferrable deflate defrag \
                              delta delta32k desc disable distinct do else emptyasnull enable \
                              encode encrypt encryption end except explicit false for foreign \
                              freeze from full globaldict256 globaldict64k grant group gzip \
                              having identity ignore ilike in initially inner intersect interval \
                              into is isnull join language leading left like limit localtime \
                              localtimestamp lun luns lzo lzop minus mostly16 mostly32 mostly8 \
                              natural new not notnull null nulls off offline offset oid old on \
                              only open or order outer overlaps parallel partition percent \
                              permissions pivot placing primary raw readratio recover references \
                              reject rejectlog resort respect restore right select session_user \
                              similar snapshot some sysdate system table tag tdes text255 text32k \
                              then timestamp to top trailing true truncatecolumns union unique \
                              unnest unpivot user using verbose wallet when where with without";

/// Checks a `DbUser`.
///
/// # Errors
/// The rule that it breaks.
pub fn check_db_user(name: &str) -> Result<(), &'static str> {
    check_name(name)?;
    if name.eq_ignore_ascii_case("public") {
        return Err("must not be PUBLIC");
    }
    if RESERVED_WORDS
        .split_ascii_whitespace()
        .any(|word| name.eq_ignore_ascii_case(word))
    {
        return Err("must not be a word that Redshift reserves");
    }
    Ok(())
}

/// Checks a `DbName`.
///
/// # Errors
/// The rule that it breaks.
pub fn check_database(name: &str) -> Result<(), &'static str> {
    check_name(name)?;
    if RESERVED_WORDS
        .split_ascii_whitespace()
        .any(|word| name.eq_ignore_ascii_case(word))
    {
        return Err("must not be a word that Redshift reserves");
    }
    Ok(())
}

/// Checks one of `DbGroups`.
pub(super) fn check_db_group(name: &str) -> Result<(), &'static str> {
    check_length(name)?;
    if name.chars().any(|c| c.is_ascii_uppercase()) {
        return Err("must be in lower case: the API knows no other groups");
    }
    check_alphabet(name)
}

/// Checks a `ClusterIdentifier`.
pub(super) fn check_cluster_identifier(name: &str) -> Result<(), &'static str> {
    match name.len() {
        1..=63 if name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-') => Ok(()),
        1..=63 => Err("may have letters, digits and hyphens only"),
        _ => Err("must have 1 to 63 characters"),
    }
}

/// Checks a `workgroupName`.
pub(super) fn check_workgroup_name(name: &str) -> Result<(), &'static str> {
    match name.len() {
        3..=64
            if name
                .bytes()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-') =>
        {
            Ok(())
        }
        3..=64 => Err("may have lower-case letters, digits and hyphens only"),
        _ => Err("must have 3 to 64 characters"),
    }
}

fn check_name(name: &str) -> Result<(), &'static str> {
    check_length(name)?;
    if !name.starts_with(|c: char| c.is_ascii_alphabetic()) {
        return Err("must begin with a letter");
    }
    check_alphabet(name)
}

fn check_length(name: &str) -> Result<(), &'static str> {
    if (1..=64).contains(&name.len()) {
        Ok(())
    } else {
        Err("must have 1 to 64 characters")
    }
}

fn check_alphabet(name: &str) -> Result<(), &'static str> {
    if name
        .bytes()
        .all(|c| c.is_ascii_alphanumeric() || b"_+.@-".contains(&c))
    {
        Ok(())
    } else {
        Err("may have letters, digits and _ + . @ - only")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn db_users_follow_the_apis_constraints() {
        for good in ["temp_creds_user", "a", "Ana.B+c@d-e_1", &"x".repeat(64)] {
            assert_eq!(check_db_user(good), Ok(()), "{good}");
        }
        assert_eq!(check_db_user(""), Err("must have 1 to 64 characters"));
        assert_eq!(
            check_db_user(&"x".repeat(65)),
            Err("must have 1 to 64 characters")
        );
        assert_eq!(check_db_user("1ana"), Err("must begin with a letter"));
        assert_eq!(
            check_db_user("ana:b"),
            Err("may have letters, digits and _ + . @ - only")
        );
        assert_eq!(check_db_user("Public"), Err("must not be PUBLIC"));
        assert_eq!(
            check_db_user("Select"),
            Err("must not be a word that Redshift reserves")
        );
    }

    #[test]
    fn workgroups_have_three_to_sixty_four_characters_of_lower_case() {
        for good in ["dev", "my-workgroup-2", &"x".repeat(64)] {
            assert_eq!(check_workgroup_name(good), Ok(()), "{good}");
        }
        assert_eq!(
            check_workgroup_name("wg"),
            Err("must have 3 to 64 characters")
        );
        assert_eq!(
            check_workgroup_name(&"x".repeat(65)),
            Err("must have 3 to 64 characters")
        );
        assert_eq!(
            check_workgroup_name("Dev"),
            Err("may have lower-case letters, digits and hyphens only")
        );
    }

    #[test]
    fn groups_are_lower_case_and_may_begin_with_a_digit() {
        assert_eq!(check_db_group("1bi"), Ok(()));
        assert_eq!(
            check_db_group("BI"),
            Err("must be in lower case: the API knows no other groups")
        );
        assert_eq!(
            check_db_group("b/i"),
            Err("may have letters, digits and _ + . @ - only")
        );
    }
}
