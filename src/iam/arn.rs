//! How is an ARN written: in which partition, of which account, and with which names?
//!
//! <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference-arns.html>

/// The partitions other than `aws`, each with the prefix that the names of its regions have. They
/// are those of the file `partitions.json` that AWS's SDKs share, for example
/// <https://github.com/boto/botocore/blob/develop/botocore/data/partitions.json>.
const PARTITIONS: [(&str, &str); 7] = [
    ("cn-", "aws-cn"),
    ("us-gov-", "aws-us-gov"),
    ("us-iso-", "aws-iso"),
    ("us-isob-", "aws-iso-b"),
    ("eu-isoe-", "aws-iso-e"),
    ("us-isof-", "aws-iso-f"),
    ("eusc-", "aws-eusc"),
];

/// A part of an ARN in a policy that a wildcard may stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Name<'a> {
    /// The policy matches every name.
    Any,
    /// The policy matches this name only.
    Exactly(&'a str),
}

impl<'a> From<Option<&'a str>> for Name<'a> {
    /// A name that is not known is written as a wildcard.
    fn from(known: Option<&'a str>) -> Self {
        known.map_or(Self::Any, Self::Exactly)
    }
}

impl std::fmt::Display for Name<'_> {
    /// In a resource, `*` and `?` are wildcards and `$` begins a policy variable. The variables
    /// `${*}`, `${?}` and `${$}` stand for the characters themselves:
    /// <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_variables.html>.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Exactly(name) => name.chars().try_for_each(|c| match c {
                '*' | '?' | '$' => write!(f, "${{{c}}}"),
                c => write!(f, "{c}"),
            }),
        }
    }
}

/// The partition that a region belongs to: `aws-us-gov` for `us-gov-west-1`.
pub fn partition_of_region(region: &str) -> &'static str {
    PARTITIONS
        .iter()
        .find(|(prefix, _)| region.starts_with(prefix))
        .map_or("aws", |(_, partition)| partition)
}

/// The partition that an ARN names.
pub fn partition_of(arn: &str) -> &str {
    arn.split(':').nth(1).unwrap_or("aws")
}

/// The account that an ARN names; `None` when it names none, or a wildcard.
pub fn account_of(arn: &str) -> Option<&str> {
    arn.split(':').nth(4).filter(|text| is_account_id(text))
}

/// Whether the text is an AWS account id, which has twelve digits.
pub fn is_account_id(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|c| c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_region_tells_the_partition() {
        for (region, partition) in [
            ("us-west-2", "aws"),
            ("eu-central-1", "aws"),
            ("mx-central-1", "aws"),
            ("cn-north-1", "aws-cn"),
            ("us-gov-west-1", "aws-us-gov"),
            ("us-iso-east-1", "aws-iso"),
            ("us-isob-east-1", "aws-iso-b"),
            ("eu-isoe-west-1", "aws-iso-e"),
            ("us-isof-south-1", "aws-iso-f"),
            ("eusc-de-east-1", "aws-eusc"),
        ] {
            assert_eq!(partition_of_region(region), partition, "{region}");
        }
    }

    #[test]
    fn a_name_is_never_a_wildcard() {
        assert_eq!(Name::Exactly("a*b?c$d").to_string(), "a${*}b${?}c${$}d");
        assert_eq!(Name::Any.to_string(), "*");
    }

    #[test]
    fn accounts_have_twelve_digits() {
        assert_eq!(
            account_of("arn:aws:iam::123456789012:role/reports"),
            Some("123456789012")
        );
        assert_eq!(account_of("arn:aws:iam::1234:role/reports"), None);
    }
}
