//! What does the Redshift API answer? It hands out temporary database credentials, and tells where
//! the cluster is.

use std::time::Duration;

use super::Call;
use super::answer::{ApiError, element};
use crate::accounts::ACCOUNT_ID;
use crate::redshift::{CLUSTER, CUSTOM_DOMAIN, Issued, STALE_CUSTOM_DOMAIN, Wanted};
use crate::{REGION, timestamp};

/// A few of the words that Redshift reserves.
const RESERVED: [&str; 8] = [
    "public", "user", "select", "table", "group", "all", "default", "order",
];

pub async fn cluster_credentials(call: &Call<'_>) -> Result<String, ApiError> {
    let user = call.required("DbUser")?;
    check_name("DbUser", user, char::is_alphanumeric)?;
    check_db_name(call)?;
    let groups = db_groups(call)?;
    let life = life(call)?;
    check_cluster(call)?;

    let create = call
        .param("AutoCreate")
        .is_some_and(|value| value == "true");
    let redshift = &call.endpoint.redshift;
    let db_user = match (create, &groups[..]) {
        (false, _) => format!("IAM:{user}"),
        (true, []) => format!("IAMA:{user}"),
        (true, groups) => format!("IAMA:{user}:{}", groups.join(",")),
    };
    if create {
        redshift.add_user(user).await;
    }
    let user_exists = redshift.user_exists(user).await;
    let encryption = call.settings.encryption;
    let issued = redshift
        .issue(&Wanted {
            db_user: db_user.clone(),
            groups,
            life,
            encryption,
            user_exists,
        })
        .await
        .map_err(|error| internal(&error))?;
    Ok(credentials(call, &db_user, &issued))
}

pub async fn cluster_credentials_with_iam(call: &Call<'_>) -> Result<String, ApiError> {
    let db_user = call.signer()?.principal.db_user();
    check_db_name(call)?;
    let life = life(call)?;
    check_cluster(call)?;

    let wanted = Wanted {
        db_user,
        groups: Vec::new(),
        life,
        encryption: call.settings.encryption,
        user_exists: true,
    };
    let issued = call
        .endpoint
        .redshift
        .issue(&wanted)
        .await
        .map_err(|error| internal(&error))?;
    let refresh = timestamp(call.told(issued.expires - life / 2));
    Ok(credentials(call, &wanted.db_user, &issued) + &element("NextRefreshTime", &refresh))
}

pub fn describe_clusters(call: &Call<'_>) -> Result<String, ApiError> {
    if call
        .param("ClusterIdentifier")
        .is_some_and(|identifier| identifier != CLUSTER)
    {
        return Err(cluster_not_found(call));
    }
    let redshift = &call.endpoint.redshift;
    let endpoint =
        element("Address", redshift.host()) + &element("Port", &redshift.port().to_string());
    Ok(format!(
        "<Clusters><Cluster>{}{}{}<MasterUsername>awsuser</MasterUsername>\
         <DBName>dev</DBName><Endpoint>{endpoint}</Endpoint>{}</Cluster></Clusters>",
        element("ClusterIdentifier", CLUSTER),
        element("ClusterStatus", "available"),
        element("ClusterAvailabilityStatus", "Available"),
        element("CustomDomainName", CUSTOM_DOMAIN),
    ))
}

pub fn describe_custom_domain_associations(call: &Call<'_>) -> Result<String, ApiError> {
    let name = call.param("CustomDomainName").unwrap_or(CUSTOM_DOMAIN);
    // A domain name that its cluster no longer has is still on record.
    if name != CUSTOM_DOMAIN && name != STALE_CUSTOM_DOMAIN {
        let text = format!("The custom domain association {name} was not found.");
        return Err(ApiError::new(
            404,
            "CustomDomainAssociationNotFoundFault",
            text,
        ));
    }
    let association = element("CustomDomainName", name) + &element("ClusterIdentifier", CLUSTER);
    Ok(format!(
        "<Associations><Association>{}<CertificateAssociations>\
         <CertificateAssociation>{association}</CertificateAssociation>\
         </CertificateAssociations></Association></Associations>",
        element(
            "CustomDomainCertificateArn",
            &format!("arn:aws:acm:{REGION}:{ACCOUNT_ID}:certificate/testbed")
        ),
    ))
}

/// The resource that a policy would have to allow.
pub fn resource(call: &Call<'_>) -> String {
    let cluster = call.param("ClusterIdentifier").unwrap_or(CLUSTER);
    let resource = match call.action {
        "GetClusterCredentials" => {
            format!("dbuser:{cluster}/{}", call.param("DbUser").unwrap_or("*"))
        }
        "GetClusterCredentialsWithIAM" => {
            format!("dbname:{cluster}/{}", call.param("DbName").unwrap_or("*"))
        }
        _ => format!("cluster:{cluster}"),
    };
    format!("arn:aws:redshift:{REGION}:{ACCOUNT_ID}:{resource}")
}

fn credentials(call: &Call<'_>, db_user: &str, issued: &Issued) -> String {
    element("DbUser", db_user)
        + &element("DbPassword", &issued.password)
        + &element("Expiration", &timestamp(call.told(issued.expires)))
}

fn check_cluster(call: &Call<'_>) -> Result<(), ApiError> {
    match (
        call.param("ClusterIdentifier"),
        call.param("CustomDomainName"),
    ) {
        (Some(CLUSTER), None) | (None, Some(CUSTOM_DOMAIN)) => Ok(()),
        (Some(_), None) | (None, Some(_)) => Err(cluster_not_found(call)),
        _ => {
            let text =
                "Exactly one of ClusterIdentifier and CustomDomainName must be given.".to_owned();
            Err(ApiError::new(400, "InvalidParameterCombination", text))
        }
    }
}

fn cluster_not_found(call: &Call<'_>) -> ApiError {
    let name = call
        .param("ClusterIdentifier")
        .or(call.param("CustomDomainName"))
        .unwrap_or_default();
    ApiError::new(404, "ClusterNotFound", format!("Cluster {name} not found."))
}

fn db_groups(call: &Call<'_>) -> Result<Vec<String>, ApiError> {
    let mut groups = Vec::new();
    while let Some(group) = call.param(&format!("DbGroups.DbGroup.{}", groups.len() + 1)) {
        check_name("DbGroups", group, |first| {
            first.is_ascii_lowercase() || first.is_ascii_digit()
        })?;
        if group.chars().any(char::is_uppercase) {
            return Err(invalid("DbGroups", "must be lower case"));
        }
        groups.push(group.to_owned());
    }
    Ok(groups)
}

pub fn check_db_name(call: &Call<'_>) -> Result<(), ApiError> {
    let name = call.param("DbName").or(call.param("dbName"));
    name.map_or(Ok(()), |name| {
        check_name("DbName", name, |first| first.is_ascii_alphabetic())
    })
}

fn check_name(parameter: &str, name: &str, first: impl Fn(char) -> bool) -> Result<(), ApiError> {
    if !(1..=64).contains(&name.len()) {
        return Err(invalid(parameter, "must have 1 to 64 characters"));
    }
    if !name
        .chars()
        .all(|character| character.is_ascii_alphanumeric() || "_+.@-".contains(character))
    {
        return Err(invalid(
            parameter,
            "may have letters, digits and _ + . @ - only",
        ));
    }
    if !name.starts_with(first) {
        return Err(invalid(
            parameter,
            "begins with a character it must not begin with",
        ));
    }
    if RESERVED.contains(&name.to_lowercase().as_str()) {
        return Err(invalid(parameter, "is a reserved word"));
    }
    Ok(())
}

pub fn life(call: &Call<'_>) -> Result<Duration, ApiError> {
    let seconds = call
        .param("DurationSeconds")
        .or(call.param("durationSeconds"))
        .unwrap_or("900");
    let seconds: u64 = seconds
        .parse()
        .map_err(|_| invalid("DurationSeconds", "is not a number"))?;
    if !(900..=3600).contains(&seconds) {
        return Err(invalid("DurationSeconds", "must be between 900 and 3600"));
    }
    Ok(call
        .settings
        .credential_life
        .unwrap_or(Duration::from_secs(seconds)))
}

fn invalid(parameter: &str, what: &str) -> ApiError {
    ApiError::new(
        400,
        "InvalidParameterValue",
        format!("Invalid {parameter}: it {what}."),
    )
}

pub fn internal(error: &anyhow::Error) -> ApiError {
    ApiError::new(500, "InternalFailure", format!("{error:#}"))
}
