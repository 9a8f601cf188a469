//! Phase 4: which target is meant, and as which database user does the login go there?

use std::sync::Arc;

use super::prove::Proven;
use super::record::Record;
use super::{Context, Permits};
use crate::error::LoginError;
use crate::route::{LoginRequest, route as choose};
use crate::target::{Target, UpstreamLogin};
use crate::wire::startup::StartupMessage;

/// A login whose target and database user are known.
pub(super) struct Routed {
    pub startup: StartupMessage,
    pub target: Arc<Target>,
    pub login: UpstreamLogin,
    pub permits: Permits,
}

/// Chooses the target, and counts the session against its user's limit.
///
/// # Errors
/// SQLSTATE 3D000 or 28000, or 53300 at the user's limit.
pub(super) fn route(
    context: &Context<'_>,
    proven: Proven,
    record: &mut Record,
) -> Result<Routed, LoginError> {
    let Proven {
        startup,
        identity,
        mut permits,
    } = proven;
    let user = context.snapshot.user(&identity.user);
    let request = LoginRequest {
        user: &identity.user,
        settings: user.map(|user| &*user.settings),
        database: startup.database()?,
        server_name: startup.security.server_name.as_deref(),
    };
    let (target, route) = choose(&context.listener.targets, &request)?;
    record.routed(target, &route);
    permits.user = user.map(|user| user.limit.acquire()).transpose()?;
    let person = target
        .settings
        .application_name_suffix
        .then(|| record.person());
    let message = startup.message;
    Ok(Routed {
        login: target.login(route, message.parameters.clone(), person),
        target: target.clone(),
        startup: message,
        permits,
    })
}
