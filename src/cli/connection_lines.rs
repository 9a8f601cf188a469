//! What does a person paste into psql or into a JDBC tool to reach a listener?

use std::path::Path;

use crate::address::ListenerAddr;
use crate::config::{Auth, Choice, Engine, ListenerSettings};

/// What a person pastes into psql and into a JDBC tool.
pub(super) fn connection_lines(address: &ListenerAddr, listener: &ListenerSettings) -> Vec<String> {
    let (psql_options, jdbc_redshift, jdbc_postgresql) = if listener.tls.is_required() {
        ("?sslmode=require", "ssl=true", "sslmode=require")
    } else {
        ("", "ssl=false", "sslmode=disable")
    };
    let everybody = listener.rules.iter().all(|rule| rule.auth == Auth::Trust);
    // The driver wants a password, whatever it is.
    let password = if everybody { "none" } else { "PASSWORD" };
    let mut lines = Vec::new();
    for target in &listener.targets {
        let user = match &target.db_user {
            // Clients are let in under any name, so the best one to print is the one that the
            // server will see.
            Choice::Fixed(user) if everybody => encoded(user),
            Choice::Fixed(_) | Choice::Client => "USER".to_string(),
        };
        let own_database = match &target.database {
            Choice::Fixed(database) => encoded(database),
            Choice::Client => target
                .engine
                .only_database()
                .unwrap_or("DATABASE")
                .to_string(),
        };
        let database = match (&listener.targets[..], &target.database) {
            ([_], _) => own_database,
            (_, Choice::Fixed(_)) => encoded(&target.name),
            (_, Choice::Client) => format!("{}%2F{own_database}", encoded(&target.name)),
        };
        let redshift = format!(
            "jdbc:redshift://{address}/{database}?UID={user}&PWD={password}&{jdbc_redshift}"
        );
        let postgresql =
            format!("jdbc:postgresql://{address}/{database}?user={user}&{jdbc_postgresql}");
        let jdbc = match target.engine {
            Engine::Redshift(_) | Engine::RedshiftServerless(_) => redshift,
            Engine::Rds(_) | Engine::Dsql(_) => postgresql,
        };
        lines.push(format!(
            "{} ({}, {}) on {address}",
            target.name,
            target.engine.name(),
            target.region
        ));
        match address {
            ListenerAddr::Tcp(_) => {
                lines.push(format!(
                    "  psql  postgresql://{user}@{address}/{database}{psql_options}"
                ));
                lines.push(format!("  JDBC  {jdbc}"));
            }
            // The JDBC drivers do not support unix sockets.
            ListenerAddr::Unix(path) => lines.push(unix_line(path, &user, &database)),
        }
    }
    lines
}

/// libpq finds a socket by its folder and the port in its name.
fn unix_line(path: &Path, user: &str, database: &str) -> String {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let folder = encoded(
        &path
            .parent()
            .unwrap_or(Path::new("/"))
            .display()
            .to_string(),
    );
    let port = path
        .extension()
        .and_then(|port| port.to_str())
        .unwrap_or("5432");
    format!("  psql  postgresql://{user}@/{database}?host={folder}&port={port}")
}

fn encoded(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC)
        .to_string()
        .replace("%2D", "-")
        .replace("%5F", "_")
}
