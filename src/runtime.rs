//! What lives as long as the process, and what lives as long as a configuration?
//!
//! Architecture invariant: a connection takes the [`Snapshot`] once, when it is accepted, and never
//! looks at the configuration again, so a new configuration changes nothing for existing sessions.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU32;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::address::ListenerAddr;
use crate::cancel::CancelKeys;
use crate::client::authenticate::PasswordChecker;
use crate::client::turns::Turns;
use crate::config::{Config, Limits as LimitSettings, ListenerSettings, UserSettings};
use crate::credentials::{Identities, read_system_authorities};
use crate::limits::{Limit, UnauthenticatedClients};
use crate::metrics::Metrics;
use crate::registry::Registry;
use crate::secret::Secret;
use crate::status::TargetStatus;
use crate::target::{DatabaseServers, Target};
use crate::verifier::{DEFAULT_ITERATIONS, Verifier};

/// What lives as long as the process.
pub struct Runtime {
    /// The metrics that operators see.
    pub metrics: Arc<Metrics>,
    /// The cancel keys of sessions.
    pub cancel_keys: Arc<CancelKeys<Arc<Target>>>,
    /// When logins are told whether they are right, after repeated failures.
    pub turns: Turns,
    /// Clients that have not proved who they are.
    pub unauthenticated_clients: UnauthenticatedClients,
    /// Every session.
    pub sessions: Arc<Registry>,
    /// How the running process is told to stop or to reload.
    pub lifecycle: Lifecycle,
    current: ArcSwap<Snapshot>,
}

/// How a running process is told to stop or to reload.
#[derive(Clone, Default)]
pub struct Lifecycle {
    /// Accept no more connections, refuse logins in progress, and let sessions end.
    pub stop: CancellationToken,
    /// End all sessions now.
    pub now: CancellationToken,
    /// Read certificates again, whether their files have changed or not.
    pub reload: Arc<Notify>,
}

/// One configuration, as it is used. It is immutable, except for what its parts count and remember.
pub struct Snapshot {
    /// The listeners, in the configuration's order.
    pub listeners: Vec<Arc<Listener>>,
    /// The users that the configuration names, by name.
    users: HashMap<String, User>,
    /// The targets, by name.
    targets: BTreeMap<String, Arc<Target>>,
    /// Bounds on what clients may use.
    pub limits: LimitSettings,
    /// The limit on sessions of the whole proxy.
    pub limit: Limit,
    /// Checks the passwords of clients.
    pub password_checker: PasswordChecker,
}

/// A listening address and the targets behind it.
pub struct Listener {
    /// What the configuration says about it.
    pub settings: ListenerSettings,
    /// The targets, of which there is at least one.
    pub targets: Vec<Arc<Target>>,
    /// The limit on sessions of this listener.
    pub limit: Limit,
}

/// A user that the configuration names.
pub struct User {
    /// What the configuration says about the user.
    pub settings: Arc<UserSettings>,
    /// The limit on sessions of this user.
    pub limit: Limit,
}

impl Runtime {
    /// Creates the runtime of a process that serves this configuration. It must be called on a
    /// tokio runtime, where it starts the tasks that fill the pools.
    pub fn new(config: Config, lifecycle: Lifecycle) -> Self {
        let targets = config
            .listeners
            .iter()
            .flat_map(|listener| &listener.targets);
        let metrics = Arc::new(Metrics::new(targets.map(|target| &*target.name)));
        // No client has been accepted yet, so there are file descriptors.
        read_system_authorities();
        Self {
            cancel_keys: Arc::new(CancelKeys::new(config.cancel_key.as_ref())),
            turns: Turns::default(),
            unauthenticated_clients: UnauthenticatedClients::new(
                config.limits.max_sessions,
                metrics.clone(),
            ),
            sessions: Arc::default(),
            lifecycle,
            current: ArcSwap::from_pointee(Snapshot::new(config, &metrics)),
            metrics,
        }
    }

    /// The configuration for a connection that has just been accepted.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Every target at this moment, by name.
    pub fn target_status(&self) -> Vec<TargetStatus> {
        let snapshot = self.snapshot();
        let targets = snapshot.targets.values();
        targets.map(|target| target.status()).collect()
    }
}

impl Snapshot {
    fn new(config: Config, metrics: &Arc<Metrics>) -> Self {
        let identities = Arc::new(Identities::default());
        let all_settings = || {
            let listeners = config.listeners.iter();
            listeners.flat_map(|listener| &listener.targets)
        };
        let servers = DatabaseServers::of(all_settings().map(|settings| &**settings));
        let mut targets = BTreeMap::new();
        for settings in all_settings() {
            targets.entry(settings.name.clone()).or_insert_with(|| {
                let target = Target::new(settings.clone(), &servers, &identities, metrics);
                Arc::new(target)
            });
        }
        let password_checker = PasswordChecker::new(
            mock_secret(config.cancel_key.as_ref(), &config.users),
            usual_iterations(config.users.values()),
        );
        let listeners = config
            .listeners
            .into_iter()
            .map(|settings| Arc::new(Listener::new(settings, &targets)))
            .collect();
        let users = config
            .users
            .into_iter()
            .map(|(name, settings)| (name.clone(), User::new(&name, settings)))
            .collect();
        Self {
            listeners,
            users,
            targets,
            limit: Limit::new("limits.max_sessions", Some(config.limits.max_sessions)),
            limits: config.limits,
            password_checker,
        }
    }

    /// The user with this name, if the configuration names it.
    pub fn user(&self, name: &str) -> Option<&User> {
        self.users.get(name)
    }

    /// The target with this name. The name may come from a cancel key, which any replica may have
    /// sealed.
    pub fn target(&self, name: &str) -> Option<&Arc<Target>> {
        self.targets.get(name)
    }

    /// Ends the sessions of all pools, and waits until their servers have been told.
    pub async fn drain(&self) {
        let targets = self.targets.values().cloned();
        targets
            .map(|target| async move { target.drain().await })
            .collect::<JoinSet<()>>()
            .join_all()
            .await;
    }
}

impl Listener {
    fn new(settings: ListenerSettings, targets: &BTreeMap<String, Arc<Target>>) -> Self {
        Self {
            targets: settings
                .targets
                .iter()
                .map(|target| targets[&target.name].clone())
                .collect(),
            limit: Limit::new(
                format!("max_sessions of listener {}", settings.address),
                settings.max_sessions,
            ),
            settings,
        }
    }

    /// The address that it listens on, as configured.
    pub fn address(&self) -> &ListenerAddr {
        &self.settings.address
    }
}

impl User {
    fn new(name: &str, settings: Arc<UserSettings>) -> Self {
        Self {
            limit: Limit::new(format!("user.{name}.max_sessions"), settings.max_sessions),
            settings,
        }
    }
}

/// The secret that salts for unknown users are derived from. Replicas that share a key derive the
/// same salts, so that these do not reveal which users exist. Without a key, they come from the
/// verifiers, so that they are the same after a restart, as those of real users are.
fn mock_secret(shared: Option<&Secret>, users: &HashMap<String, Arc<UserSettings>>) -> Secret {
    if let Some(key) = shared {
        return Secret::new([b"made-up salts", key.expose()].concat());
    }
    let by_name: BTreeMap<_, _> = users.iter().collect();
    let secrets: Vec<_> = by_name
        .values()
        .filter_map(|user| user.verifier.as_ref())
        .map(|verifier| verifier.secret().expose())
        .collect();
    // Where nobody has a password, nobody is asked for one.
    Secret::new([b"made-up salts", secrets.concat().as_slice()].concat())
}

/// The iteration count that most users' verifiers have. A user who does not exist must not stand
/// out by a different one.
fn usual_iterations<'a>(users: impl Iterator<Item = &'a Arc<UserSettings>>) -> NonZeroU32 {
    let mut counts: HashMap<NonZeroU32, usize> = HashMap::new();
    for user in users {
        if let Some(Verifier::Scram(verifier)) = &user.verifier {
            *counts.entry(verifier.iterations).or_default() += 1;
        }
    }
    counts
        .into_iter()
        .max_by_key(|&(iterations, users)| (users, iterations))
        .map_or(DEFAULT_ITERATIONS, |(iterations, _)| iterations)
}
