//! ARNs: in which partition, of which account, and how a name is written that IAM must take
//! literally.

/// Regions that are not in `aws`, by how they begin.
const PARTITIONS: [(&str, &str); 5] = [
    ("cn-", "aws-cn"),
    ("us-gov-", "aws-us-gov"),
    ("us-isob-", "aws-iso-b"),
    ("us-iso-", "aws-iso"),
    ("eusc-", "aws-eusc"),
];

/// A name in an ARN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Name<'a> {
    /// Whatever it is.
    Any,
    /// This one.
    Exactly(&'a str),
}

impl std::fmt::Display for Name<'_> {
    /// In a resource `*` and `?` are wildcards and `$` begins a variable; as variables they are
    /// themselves.
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

/// Partition of a region.
pub fn partition(region: &str) -> &'static str {
    PARTITIONS
        .iter()
        .find(|(prefix, _)| region.starts_with(prefix))
        .map_or("aws", |(_, partition)| partition)
}

/// Partition of an ARN.
pub fn partition_of(arn: &str) -> &str {
    arn.split(':').nth(1).unwrap_or("aws")
}

/// Account of an ARN, where one stands there.
pub fn account_of(arn: &str) -> Option<&str> {
    arn.split(':').nth(4).filter(|account| is_account(account))
}

/// Whether it is an account number.
pub fn is_account(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|c| c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_region_tells_the_partition() {
        let regions = [
            "us-west-2",
            "cn-north-1",
            "us-gov-west-1",
            "us-iso-east-1",
            "us-isob-east-1",
            "eusc-de-east-1",
        ];
        assert_eq!(
            regions.map(partition),
            [
                "aws",
                "aws-cn",
                "aws-us-gov",
                "aws-iso",
                "aws-iso-b",
                "aws-eusc"
            ]
        );
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
