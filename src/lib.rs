//! # pg-iam-proxy
//!
//! A proxy for the PostgreSQL wire protocol that logs ordinary clients in to Amazon Redshift,
//! RDS/Aurora PostgreSQL and Aurora DSQL with short-lived IAM credentials, which the clients never
//! see. This page is the architecture.
//!
//! ## Bird's-eye view
//!
//! A client connects and says who it wants to be. The proxy decides which *target* is meant, gets
//! that target's temporary password from AWS (or from its cache), opens a TLS connection to the
//! server and verifies it, answers the server's authentication request, and hands the server's
//! greeting to the client. From then on it moves bytes and understands none of them.
//!
//! The side where the proxy speaks as the server is the *client* leg, and the side where it speaks
//! as the client is the *upstream* leg. They do not know each other; `session` is the only folder
//! that sees both.
//!
//! Three things live for different times. The `runtime` lives as long as the process: metrics,
//! cancel keys, penalties and the registry of sessions. A `Snapshot` in it is one configuration as
//! it is used, with its listeners, users and targets; a connection takes it once, when it is
//! accepted. A `target` is one server and everything that belongs to it: settings, limit, pacing,
//! pool, and the caches of its endpoint, addresses and credentials.
//!
//! ## One connection
//!
//! | # | phase | takes → gives | module | on failure the client reads |
//! |---|---|---|---|---|
//! | 1 | accept | listener → `Accepted`, a place among the unauthenticated clients and a worker's slot | `server` | |
//! | 2 | negotiate | PROXY header, SSLRequest or TLS, StartupMessage or CancelRequest → protected stream, `Startup` or a cancel request | `session::negotiate`, `client::negotiate` | 08P01, 0A000, 28000 |
//! | 3 | prove | `Startup`, the listener's rules → `Proven`, who the client is, with a place among the sessions | `session::prove`, `client::authenticate` | 28P01, 28000, 57014, 08P01, 0A000, 53300 |
//! | 4 | route | `Proven` → `Routed`: target, AWS identity, database user, database | `session::route`, `route` | 3D000, 28000, 53300 |
//! | 5 | credentials | AWS identity, user, database → user and temporary password | `target`, `credentials` | 53300; 57P03 when it may pass, 28000 or 58000 when it does not |
//! | 6 | connect | host → TCP → verified TLS | `target`, `upstream::connect` | 57P03 when too many wait, 08001 |
//! | 7 | log in | startup parameters, password → settings, cancel key, ReadyForQuery | `target`, `upstream::log_in` | the server's own error, 08004, 08006, 08P01, 0A000 |
//! | 8 | welcome | `Acquired` → `Welcomed`: AuthenticationOk … ReadyForQuery, in one write | `session::welcome`, `client::welcome` | |
//! | 9 | splice | `Established` → who ended it | `session::established`, `splice` | nothing: no byte is ever injected |
//!
//! `session::acquire` is phases 5 to 7 in one: it asks the target for a session, and answers 57P03
//! when the proxy stops meanwhile. A credential from the cache that the server refuses in phase 7
//! is replaced once by a fresh one, and phases 5 to 7 run again, unseen by the client. Where a
//! target has `warm_sessions`, they may have been done before the client came: `target::pool` hands
//! such a session out, once, to a login of exactly the same kind. Where it has `reuse_sessions`, a
//! session that its client leaves idle goes back there after phase 9, reset by `upstream::reset`. A
//! CancelRequest leaves the path after phase 2: `cancel` knows which session it means, and the
//! session's target takes it to the server.
//!
//! ## Code map
//!
//! | module | the question it answers |
//! |---|---|
//! | `cli` | What did the person ask for, and with which exit code does it end? |
//! | `check` | Does every step of a login to each target work, and what is to be done where one does not? |
//! | `policy` | What must AWS allow, and to which identity? |
//! | `config` | What may be configured? `keys` is the one table of keys; a file is read (`read`), checked (`check`) and what it names is loaded (`load`) |
//! | `server` | Who is accepted, on which thread is a session served (`workers`), and how does everything stop? |
//! | `admin` | What do operators see of a running proxy over HTTP, and how little can that cost? |
//! | `session` | What happens to one connection, from its first byte to its last? One file per phase |
//! | `runtime` | What lives as long as the process, and what as long as a configuration? |
//! | `registry`, `status` | Which sessions are there, and what can be seen of them? |
//! | `target` | What belongs to one server? `pacing` bounds its logins, `pool` keeps sessions ready |
//! | `limits` | How many sessions may there be, and how many clients that have proved nothing? |
//! | `client` | What do clients say first, how do they prove who they are, and what are they told? |
//! | `route` | Where does a login go, and as which user? A pure function |
//! | `credentials` | How is AWS asked, with which identity, and how long are its answers good for? One file per engine |
//! | `iam` | What do ARNs, actions and resources look like? |
//! | `upstream` | How is a server connected, verified and logged in to? |
//! | `cancel` | Which session does a CancelRequest mean, and how many may one source send? |
//! | `splice` | How do bytes move? |
//! | `wire` | What do the messages of the startup phase look like, and what does a SQLSTATE mean? |
//! | `tls` | Whom do we trust, and what exactly was wrong with a certificate? Below it, the record layer of open connections |
//! | `verifier` | What is stored instead of a password? |
//! | `error` | Who is to blame, with which SQLSTATE, and what may the client read? |
//! | `metrics`, `telemetry` | What is counted, and where do log lines go? |
//! | `nearest` | Which known name did a person probably mean? |
//! | `fuzzing` | What do the fuzz targets call that nobody else outside does? |
//! | `excerpt` | How much of a text that somebody else chose is shown? |
//! | `address`, `random`, `secret` | Whose address is it, where do random bytes come from, and what must never be printed? |
//!
//! Dependencies point one way: `cli → server → session → {runtime, target, route, client} →
//! {credentials, upstream, cancel, splice} → {config, error, wire, tls, secret}`. The test
//! `architecture` in `tests/it` has every edge that is allowed, and fails on any other edge, on a
//! permission that nobody uses, and on files that use each other in a cycle. `docs/decisions` says
//! why the larger choices were made.
//!
//! ## Invariants
//!
//! - **There is no unencrypted or unverified upstream.** `upstream::Connection` holds a TLS stream
//!   and no other; the TCP stream lives inside `upstream::connect` and cannot leave it. No flag
//!   changes this.
//! - **Nothing is read ahead.** Each message is read to its last byte and no further, and the
//!   answer to SSLRequest must come alone: so no byte that came in the clear can be taken for one
//!   that came over TLS (CVE-2021-23214, CVE-2021-23222), and the splice starts with nothing left
//!   over.
//! - **Lengths are checked before anything is allocated.** The limits are PostgreSQL's and libpq's
//!   own and are defined beside the parser.
//! - **Only `client::reject` writes an ErrorResponse of ours.** A server's own passes through byte
//!   for byte.
//! - **Only `credentials` names the AWS SDK, only `tls` builds rustls configurations.** The crypto
//!   provider is aws-lc-rs, named wherever it is needed; there is no other in the tree.
//! - **Secrets are `secret::Secret`**, which prints as `…`. Other crates never log below WARN: the
//!   SDK's own lines hold passwords.
//! - **A target's troubles are its own.** Everything that belongs to a target is in
//!   `target::Target`; only the line of those who want a connection is shared, by the targets of one
//!   server. AWS identities, endpoints and credentials are made at the first login that
//!   needs them. A panic ends one session.
//! - **A request is its own cache key.** The request for a credential holds everything that can
//!   change the answer, and the call is made from it alone, so nobody is given what was made for
//!   another question.
//! - **A pooled session has never had a client, or has been reset since.** It is handed out once;
//!   whatever its server says meanwhile ends it, and so does any doubt whether it is what it was
//!   after its login.
//! - **Deliberately absent:** pooling of statements, rewriting of queries, any knowledge of the
//!   protocol after `ReadyForQuery` (but for where messages end, in sessions that may be used
//!   again: `splice::IdleTracker`), any way to hand a credential to a client.
//!
//! ## Where things could surprise
//!
//! - A client is told the server's real process id, since tools show it. Its cancel key is sealed in
//!   protocol 3.2, and it is the server's own in 3.0; `cancel` says why, and what is different where
//!   sessions are used again.
//! - Each thread has a runtime of its own, and a session stays on the thread that it got at its
//!   accept (`server::workers`). A pooled session that another thread watches changes over when it
//!   is handed out.
//! - rustls shakes hands, verifies and derives keys, whereas records are opened and sealed by
//!   `tls::record`, from one buffer of the thread into another. What we are responsible for because
//!   of that (key updates, alerts, `close_notify`) is listed at the top of that module and tested
//!   against rustls and OpenSSL.
//! - The upstream leg always speaks protocol 3.0, whatever the client leg speaks: 3.2 differs only
//!   in the length of cancel keys.
//! - What AWS gives expires by the wall clock or by the monotonic one, whichever comes first: the
//!   former goes on while a machine sleeps, and the latter does not move when the clock is set.
//!   Expiries are counted from the `Date` of the answer that contains them. Tokens are dated by our
//!   clock alone, and when a server refuses a fresh one, AWS is asked for the time.
//! - Startup parameters are forwarded in the client's order. Each engine refuses some that others
//!   need; `upstream::startup_parameters` has the lists.
//! - When the server closes, the client's side is half-closed and read until its end, for five
//!   seconds. If it were closed at once with bytes unread, the kernel would throw away the server's
//!   last message.

mod address;
mod admin;
mod cancel;
mod check;
pub mod cli;
mod client;
mod config;
mod credentials;
mod error;
mod excerpt;
pub mod fuzzing;
mod iam;
mod limits;
mod metrics;
mod nearest;
mod policy;
mod random;
mod registry;
mod route;
mod runtime;
mod secret;
mod server;
mod session;
mod splice;
mod status;
mod target;
mod telemetry;
mod tls;
mod upstream;
mod verifier;
mod wire;
