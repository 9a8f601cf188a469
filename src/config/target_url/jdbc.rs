//! What does the IAM URL of the Amazon Redshift JDBC driver say, as people paste it from their
//! tools?
//!
//! Source: <https://docs.aws.amazon.com/redshift/latest/mgmt/jdbc20-configuration-options.html>.

use super::{SERVERLESS, TargetUrl, decoded, typed};

/// The driver's own port.
const DEFAULT_PORT: u16 = 5439;

/// Reads `jdbc:redshift:iam://cluster:region/database` or `jdbc:redshift:iam://host:port/database`,
/// with properties behind `?` or `;`. What is the driver's own is added to `ignored`.
///
/// # Errors
/// The URL has another form, or a property that holds a secret.
pub(super) fn read(text: &str, ignored: &mut Vec<String>) -> Result<TargetUrl, String> {
    let form = "write jdbc:redshift:iam://cluster:region/database?DbUser=name";
    let rest = text[18..].strip_prefix("//").ok_or(form)?;
    let (address, properties) = rest.split_once(['?', ';']).unwrap_or((rest, ""));
    let (authority, database) = address.split_once('/').unwrap_or((address, ""));
    let mut parsed = TargetUrl::new("redshift", DEFAULT_PORT);
    match authority.split_once(':') {
        Some((host, port)) if port.bytes().all(|c| c.is_ascii_digit()) && !port.is_empty() => {
            parsed.set("port", typed("port", port));
            parsed.host(host, "cluster_identifier");
        }
        Some((cluster, region)) => {
            parsed.set("cluster_identifier", cluster);
            parsed.set("region", region);
            parsed.name = Some(cluster.to_string());
        }
        None => parsed.host(authority, "cluster_identifier"),
    }
    if !database.is_empty() {
        parsed.set("database", decoded(database));
    }
    let mut lower_case_groups = false;
    let properties = properties.split(['&', ';']);
    for property in properties.filter(|property| !property.is_empty()) {
        let (name, value) = property.split_once('=').unwrap_or((property, ""));
        let value = decoded(value);
        match name.to_ascii_lowercase().as_str() {
            "forcelowercase" => lower_case_groups = is_true(&value),
            name => set_property(&mut parsed, name, &value, ignored)?,
        }
    }
    if lower_case_groups {
        lower_groups(&mut parsed);
    }
    if is_serverless(&parsed) {
        become_serverless(&mut parsed, ignored);
    }
    Ok(parsed)
}

/// Takes a property of the driver, whose name is in lower case, or a parameter of ours.
fn set_property(
    url: &mut TargetUrl,
    name: &str,
    value: &str,
    ignored: &mut Vec<String>,
) -> Result<(), String> {
    let key = match name {
        "groupfederation" if is_true(value) => {
            url.set("api", "get-cluster-credentials-with-iam");
            return Ok(());
        }
        "isserverless" if is_true(value) => {
            url.set("engine", SERVERLESS);
            return Ok(());
        }
        "groupfederation" | "isserverless" => return Ok(()),
        "user" | "uid" if url.target.contains_key("db_user") => return Ok(()),
        "dbuser" | "user" | "uid" => "db_user",
        "autocreate" => "auto_create",
        "dbgroups" => "db_groups",
        "clusterid" => "cluster_identifier",
        "serverlessworkgroup" => "workgroup_name",
        "region" => "region",
        "profile" => "profile",
        "iamduration" => "duration_seconds",
        "endpointurl" => "endpoint_url",
        "stsendpointurl" => "sts_endpoint_url",
        "password" | "pwd" | "accesskeyid" | "secretaccesskey" | "sessiontoken" => {
            return Err(format!(
                "delete {name}: AWS credentials come from the environment, a profile, SSO, a \
                 role or the instance, never from a URL"
            ));
        }
        "plugin_name" => {
            return Err(
                "delete plugin_name: log in with `aws sso login` or a profile and name it \
                 with Profile="
                    .to_string(),
            );
        }
        // The names of the driver have no underscore. A key of ours that no tool has, such as
        // ca_file or tls_server_name, does.
        own if own.contains('_') || matches!(own, "listen" | "name") => {
            return url.parameter(own, value);
        }
        other => {
            ignored.push(format!("{other} is the JDBC driver's own and is ignored"));
            return Ok(());
        }
    };
    url.set(key, typed(key, value));
    Ok(())
}

/// As the driver does it with `ForceLowercase`.
fn lower_groups(url: &mut TargetUrl) {
    if let Some(toml::Value::Array(groups)) = url.target.get_mut("db_groups") {
        for group in groups {
            if let toml::Value::String(name) = group {
                *name = name.to_lowercase();
            }
        }
    }
}

fn is_serverless(url: &TargetUrl) -> bool {
    let text = |key| url.target.get(key).and_then(toml::Value::as_str);
    text("engine") == Some(SERVERLESS)
        || text("host").is_some_and(|host| host.contains(".redshift-serverless."))
}

/// The driver accepts the settings of provisioned clusters here, too, and does nothing with them.
fn become_serverless(url: &mut TargetUrl, ignored: &mut Vec<String>) {
    url.set("engine", SERVERLESS);
    if let Some(name) = url.target.remove("cluster_identifier") {
        url.target.entry("workgroup_name").or_insert(name);
    }
    for key in ["db_user", "api", "auto_create", "db_groups"] {
        if url.target.remove(key).is_some() {
            ignored.push(format!(
                "{key} is ignored: Redshift Serverless maps the AWS identity to the database user"
            ));
        }
    }
}

fn is_true(value: &str) -> bool {
    value.eq_ignore_ascii_case("true") || value == "1"
}
