//! Why does a server refuse a temporary password that was made a moment ago?
//!
//! The engines differ: Redshift keeps the password that AWS has made, whereas RDS and DSQL verify a
//! token, and give one answer for all the reasons why they do not accept it.

use crate::check::login::{CheckedLogin, SET_THE_CLOCK};
use crate::check::report::Advice;
use crate::config::{Engine, Redshift, RedshiftApi, region_of_host};
use crate::iam::{Action, dsql_connect_action};
use crate::wire::sqlstate::SqlState;

/// Explains a refusal of the password or the token itself.
pub fn password_refused(login: CheckedLogin<'_>, sqlstate: SqlState) -> Advice {
    match (&login.target.engine, login.db_user()) {
        (
            Engine::Redshift(Redshift {
                api:
                    RedshiftApi::GetClusterCredentials {
                        auto_create: false, ..
                    },
                ..
            }),
            Some(db_user),
        ) => no_such_redshift_user(login, db_user),
        // RDS never asks a user who has rds_iam for a password that could be wrong, so 28P01 is
        // about all others.
        (Engine::Rds(_), Some(db_user)) if sqlstate == SqlState::InvalidPassword => {
            no_rds_iam(db_user)
        }
        (Engine::Rds(_), _) => visible_reason(login).unwrap_or_else(|| rds_token_refused(login)),
        (Engine::Dsql(_), Some(db_user)) => {
            visible_reason(login).unwrap_or_else(|| dsql_token_refused(login, db_user))
        }
        (Engine::Redshift(_) | Engine::RedshiftServerless(_) | Engine::Dsql(_), _) => Advice::new(
            "the cluster refuses a password that AWS made for it a moment ago",
            "see whether host is this cluster's own; SELECT * FROM sys_connection_log says why",
        ),
    }
}

/// A name as SQL writes it, in double quotes.
pub fn quoted(name: &str) -> String {
    postgres_protocol::escape::escape_identifier(name)
}

fn no_such_redshift_user(login: CheckedLogin<'_>, db_user: &str) -> Advice {
    let user = quoted(db_user);
    let action = Action::RedshiftCreateClusterUser;
    Advice::new(
        format!(
            "auto_create is false and user {user} does not exist: AWS gives passwords for such \
             users, too"
        ),
        format!(
            "CREATE USER {user} PASSWORD DISABLE; or set auto_create = true and allow {action} \
             on {}",
            login.resources(action.name())
        ),
    )
}

fn no_rds_iam(db_user: &str) -> Advice {
    let user = quoted(db_user);
    Advice::new(
        format!(
            "user {user} does not exist, or does not have rds_iam: the server asked for a \
             password and not for a token"
        ),
        format!(
            "GRANT rds_iam TO {user}; before it CREATE USER {user}; where the user is missing; \
             and see that IAM database authentication is enabled"
        ),
    )
}

/// A reason that can be seen from this machine: a wrong region, or else a wrong clock.
fn visible_reason(login: CheckedLogin<'_>) -> Option<Advice> {
    login.wrong_region().or_else(|| {
        let clock_skew = login.clock_skew()?;
        Some(Advice::new(
            format!("{clock_skew}, and a token is good for 15 minutes from the time it is signed"),
            SET_THE_CLOCK,
        ))
    })
}

fn dsql_token_refused(login: CheckedLogin<'_>, db_user: &str) -> Advice {
    let (user, caller) = (quoted(db_user), login.caller_arn());
    let action = dsql_connect_action(db_user);
    Advice::new(
        format!(
            "DSQL does not say why; most often {caller} may not use {action}, or is not granted \
             the role {user}"
        ),
        format!(
            "allow {action} on {} to {caller}; for a role of your own, AWS IAM GRANT {user} TO \
             that identity's ARN",
            login.resources(action.name())
        ),
    )
}

fn rds_token_refused(login: CheckedLogin<'_>) -> Advice {
    if let Some(endpoint) = login.signing_endpoint()
        && region_of_host(&endpoint.host).is_none()
    {
        return Advice::new(
            format!("the token is signed for {endpoint}, which is no name of an RDS endpoint"),
            "set signing_host to the name and port that RDS gives the endpoint",
        );
    }
    let (caller, action) = (login.caller_arn(), Action::RdsDbConnect);
    Advice::new(
        format!("RDS does not say why; most often {caller} may not use {action}"),
        format!(
            "allow {action} on {} to {caller} (the * may be narrowed to the resource id, db-… \
             or cluster-…)",
            login.resources(action.name())
        ),
    )
}
