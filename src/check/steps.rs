//! The steps of a login, each with its time, up to the first that fails.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use serde_json::{Value, json};

use super::explain::{self, Attempt};
use super::render::Screen;
use super::{Client, Failure, Status, Step, StepReport, engine};
use crate::config::{Choice, Endpoint, EndpointSource, Target, User};
use crate::credentials::{AwsErrorReason, Broker, Caller, Lease, Request};
use crate::route::{Asked, Route, to_target};
use crate::upstream::Connection;
use crate::upstream::connect::{Reached, reach, resolve, server_name};
use crate::upstream::log_in::{LoggedIn, log_in};
use crate::upstream::query::select_1;
use crate::upstream::startup_parameters::forward;

/// What the server's own views call the session.
const APPLICATION_NAME: &str = "pg-iam-proxy check";
const DAY: Duration = Duration::from_hours(24);

/// One target to walk to.
pub struct Walk<'a> {
    pub target: &'a Arc<Target>,
    pub users: &'a HashMap<String, Arc<User>>,
    pub client: &'a Client,
    pub broker: &'a Broker,
    pub screen: &'a Screen,
}

/// A step's result for the next one, and what to tell of it.
type Outcome<T> = Result<(T, Found), Failure>;

struct Found {
    status: Status,
    text: String,
    facts: Value,
}

impl Found {
    fn new(text: impl Into<String>, facts: Value) -> Self {
        Self {
            status: Status::Ok,
            text: text.into(),
            facts,
        }
    }
}

/// A step has failed, and its report says why.
struct Stopped;

impl Walk<'_> {
    /// Every step in order, those behind a failure as not tried.
    pub async fn run(self) -> Vec<StepReport> {
        let mut journal = Journal {
            screen: self.screen,
            steps: Vec::new(),
        };
        // What stopped it is in the journal.
        let _ = self.walk(&mut journal).await;
        for step in Step::ALL.into_iter().skip(journal.steps.len()) {
            let (text, facts) = (None, json!({}));
            journal.add(StepReport {
                step,
                status: Status::NotTried,
                ms: None,
                text,
                facts,
                explanation: None,
                remedy: None,
            });
        }
        journal.steps
    }

    async fn walk(&self, journal: &mut Journal<'_>) -> Result<(), Stopped> {
        let route = journal.step(Step::Route, async { self.route() }).await?;
        let caller = journal.step(Step::Identity, self.identity(&route)).await?;
        let attempt = Attempt {
            route: &route,
            caller: caller.as_ref(),
            endpoint: None,
        };
        let endpoint = journal.step(Step::Endpoint, self.endpoint(attempt)).await?;
        let attempt = Attempt {
            endpoint: Some(&endpoint),
            ..attempt
        };
        let lease = journal
            .step(Step::Mint, self.mint(attempt, &endpoint))
            .await?;
        let addresses = journal.step(Step::Dns, dns(attempt, &endpoint)).await?;
        let reached = journal.step(Step::Tcp, tcp(attempt, &addresses)).await?;
        let connection = journal
            .step(Step::Tls, self.tls(attempt, reached, &endpoint))
            .await?;
        let session = journal
            .step(Step::Login, self.log_in(attempt, connection, &lease))
            .await?;
        journal.step(Step::Select, select(session)).await
    }

    fn route(&self) -> Outcome<Route> {
        let target = self.target;
        let operating_system =
            || uzers::get_current_username().and_then(|name| name.into_string().ok());
        let user = self
            .client
            .user
            .clone()
            .or_else(operating_system)
            .unwrap_or_default();
        let settings = self
            .client
            .user
            .as_ref()
            .and_then(|user| self.users.get(user))
            .map(|user| &**user);
        let database = self.client.database.as_deref();
        let asked = Asked {
            user: &user,
            settings,
            database,
            server_name: None,
        };
        let route =
            to_target(target, database, &asked).map_err(|refusal| explain::route(&refusal))?;
        let assumed: Vec<&str> = [
            (
                "--user",
                &target.db_user,
                self.client.user.is_none() && !route.db_user.is_empty(),
            ),
            (
                "--database",
                &target.database,
                self.client.database.is_none() && target.engine.only_database().is_none(),
            ),
        ]
        .into_iter()
        .filter_map(|(flag, choice, assumed)| {
            (*choice == Choice::Client && assumed).then_some(flag)
        })
        .collect();
        let db_user = if route.db_user.is_empty() {
            "that of the AWS identity".to_string()
        } else {
            format!("\"{}\"", route.db_user)
        };
        let mut text = format!("user {db_user}, database \"{}\"", route.database);
        if !assumed.is_empty() {
            text += &format!(
                " (the client's own: taken from the operating system's user; see {})",
                assumed.join(", ")
            );
        }
        let facts = json!({ "db_user": route.db_user, "database": route.database });
        Ok((route, Found::new(text, facts)))
    }

    /// `None`: STS does not say, and nothing but explanations needs to know.
    async fn identity(&self, route: &Route) -> Outcome<Option<Caller>> {
        let region = &self.target.region;
        match self.broker.caller(&route.aws, region).await {
            Ok(Ok(caller)) => {
                let clock = explain::clock(&caller)
                    .map(|clock| format!("; {clock}"))
                    .unwrap_or_default();
                let facts = json!({ "arn": caller.arn, "account": caller.account, "clock_ahead_s": caller.clock_ahead });
                let text = format!("{}{clock}", caller.arn);
                Ok((Some(caller), Found::new(text, facts)))
            }
            Ok(Err(error)) if error.is_transient() => {
                let found = Found::new(format!("{error} (logins do not need it)"), json!({}));
                Ok((
                    None,
                    Found {
                        status: Status::Unknown,
                        ..found
                    },
                ))
            }
            Ok(Err(error)) => Err(explain::identity(&error, &route.aws, None).await),
            Err(error) => {
                let mut source = None;
                if matches!(error.reason, AwsErrorReason::AccessDenied { .. })
                    && route.aws.role.is_some()
                {
                    let aws = crate::config::AwsIdentity {
                        role: None,
                        ..route.aws.clone()
                    };
                    source = self
                        .broker
                        .caller(&aws, region)
                        .await
                        .ok()
                        .and_then(Result::ok);
                }
                Err(explain::identity(&error, &route.aws, source.as_ref()).await)
            }
        }
    }

    async fn endpoint(&self, attempt: Attempt<'_>) -> Outcome<Endpoint> {
        let endpoint = self
            .broker
            .endpoint(self.target)
            .await
            .map_err(|error| explain::call(&error, attempt))?;
        let from = match &self.target.endpoint {
            EndpointSource::Fixed(_) => "as configured",
            EndpointSource::Discover { .. } => "found by AWS",
        };
        let found = Found::new(
            format!("{endpoint}, {from}"),
            json!({ "host": endpoint.host, "port": endpoint.port }),
        );
        Ok((endpoint, found))
    }

    async fn mint(&self, attempt: Attempt<'_>, endpoint: &Endpoint) -> Outcome<Lease> {
        let Route {
            target,
            aws,
            db_user,
            db_groups,
            database,
        } = attempt.route.clone();
        let request = Request {
            target,
            aws,
            db_user,
            db_groups,
            database,
            endpoint: endpoint.clone(),
        };
        let lease = self
            .broker
            .credential(&request)
            .await
            .map_err(|error| explain::call(&error, attempt))?;
        let db_user = &lease.credential.db_user;
        let found = Found::new(
            engine::minted(attempt, db_user),
            json!({ "db_user": db_user }),
        );
        Ok((lease, found))
    }

    async fn tls(
        &self,
        attempt: Attempt<'_>,
        reached: Reached,
        endpoint: &Endpoint,
    ) -> Outcome<Connection> {
        let name =
            server_name(self.target, &endpoint.host).map_err(|refusal| explain::route(&refusal))?;
        let connection = reached
            .secure(name, &self.target.tls)
            .await
            .map_err(|error| explain::connect(&error, attempt))?;
        let found = match connection.certificate.details() {
            Some(certificate) => {
                let left = certificate
                    .not_after
                    .duration_since(SystemTime::now())
                    .unwrap_or_default();
                let days = left.as_secs() / DAY.as_secs();
                let names = some_of(&certificate.names);
                let text = format!(
                    "issuer {}, {days} days left, names {names}",
                    certificate.issuer
                );
                Found::new(
                    text,
                    json!({ "issuer": certificate.issuer, "days_left": days, "names": certificate.names }),
                )
            }
            None => Found::new("verified", json!({})),
        };
        Ok((connection, found))
    }

    async fn log_in(
        &self,
        attempt: Attempt<'_>,
        connection: Connection,
        lease: &Lease,
    ) -> Outcome<LoggedIn> {
        let credential = &lease.credential;
        let own = [
            ("user", credential.db_user.as_str()),
            ("application_name", APPLICATION_NAME),
        ];
        let own = own.map(|(name, value)| {
            (
                Bytes::from_static(name.as_bytes()),
                Bytes::copy_from_slice(value.as_bytes()),
            )
        });
        let parameters = forward(
            self.target,
            &own,
            &credential.db_user,
            &attempt.route.database,
            None,
        )
        .parameters;
        let session = log_in(
            connection,
            &parameters,
            &credential.db_user,
            &credential.password,
        )
        .await
        .map_err(|error| explain::log_in(&error, attempt))?;
        let found = Found::new(
            format!("as {}", credential.db_user),
            json!({ "db_user": credential.db_user }),
        );
        Ok((session, found))
    }
}

async fn dns(attempt: Attempt<'_>, endpoint: &Endpoint) -> Outcome<Vec<SocketAddr>> {
    let addresses = resolve(endpoint)
        .await
        .map_err(|error| explain::connect(&error, attempt))?;
    let texts: Vec<String> = addresses
        .iter()
        .map(|address| address.ip().to_string())
        .collect();
    Ok((
        addresses,
        Found::new(texts.join(", "), json!({ "addresses": texts })),
    ))
}

async fn tcp(attempt: Attempt<'_>, addresses: &[SocketAddr]) -> Outcome<Reached> {
    let reached = reach(addresses)
        .await
        .map_err(|error| explain::connect(&error, attempt))?;
    let address = reached.address.to_string();
    Ok((reached, Found::new(&address, json!({ "address": address }))))
}

async fn select(session: LoggedIn) -> Outcome<()> {
    let version = session.setting("server_version").unwrap_or_default();
    select_1(session)
        .await
        .map_err(|error| explain::query(&error))?;
    Ok((
        (),
        Found::new(
            format!("SELECT 1, server version {version}"),
            json!({ "server_version": version }),
        ),
    ))
}

/// Certificates of clusters have a dozen names; a line does not need all.
fn some_of(names: &[String]) -> String {
    match names {
        [first, second, others @ ..] if others.len() > 1 => {
            format!("{first}, {second} and {} more", others.len())
        }
        _ => names.join(", "),
    }
}

/// What has been found so far, shown as it comes.
struct Journal<'a> {
    screen: &'a Screen,
    steps: Vec<StepReport>,
}

impl Journal<'_> {
    async fn step<T>(
        &mut self,
        step: Step,
        work: impl Future<Output = Outcome<T>>,
    ) -> Result<T, Stopped> {
        self.screen.begin(step);
        let started = Instant::now();
        // The SDK's futures are large.
        let outcome = Box::pin(work).await;
        let ms = Some((started.elapsed().as_secs_f64() * 1e6).round() / 1e3);
        match outcome {
            Ok((
                result,
                Found {
                    status,
                    text,
                    facts,
                },
            )) => {
                self.add(StepReport {
                    step,
                    status,
                    ms,
                    text: Some(text),
                    facts,
                    explanation: None,
                    remedy: None,
                });
                Ok(result)
            }
            Err(Failure {
                error,
                explanation,
                remedy,
            }) => {
                let (text, explanation, remedy) = (Some(error), Some(explanation), Some(remedy));
                self.add(StepReport {
                    step,
                    status: Status::Failed,
                    ms,
                    text,
                    facts: json!({}),
                    explanation,
                    remedy,
                });
                Err(Stopped)
            }
        }
    }

    fn add(&mut self, report: StepReport) {
        self.screen.end_step(&report);
        self.steps.push(report);
    }
}
