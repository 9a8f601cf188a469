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
//! The side where the proxy speaks as the server is the *client* leg, the side where it speaks as
//! the client is the *upstream* leg. They do not know each other; `session` is the only file that
//! sees both.
//!
//! ## One connection
//!
//! | # | phase | takes → gives | module | on failure the client reads |
//! |---|---|---|---|---|
//! | 1 | accept | listener → stream, peer address | `server` | 53300 over a limit of `places` |
//! | 2 | negotiate | PROXY header, SSLRequest or TLS, StartupMessage or CancelRequest → protected stream, session or cancel | `client::negotiate` | 08P01, 0A000, 28000 |
//! | 3 | authenticate | user name, the listener's rules → the client is who it says | `session::identify`, `client::authenticate` | 28P01, 28000, 57014 |
//! | 4 | route | user, database name, TLS server name → target, AWS identity, database user, database | `route` | 3D000, 28000 |
//! | 5 | credentials | target, identity, user, database → user, temporary password | `credentials` | 57P03 when it may pass, 28000 or 58000 when not |
//! | 6 | connect | host → TCP → verified TLS | `upstream::connect` | 08001 |
//! | 7 | log in | startup parameters, password → settings, cancel key, ReadyForQuery | `upstream::log_in` | the server's own error, 08004, 08006, 0A000 |
//! | 8 | welcome | AuthenticationOk … ReadyForQuery, in one write | `client::welcome` | |
//! | 9 | splice | both streams → bytes, who ended it | `splice` | nothing: no byte is ever injected |
//!
//! A credential from the cache that the server refuses in phase 7 is replaced once by a fresh one,
//! and phases 5 to 7 run again, unseen by the client. Where a target has `warm_sessions`, phases 5
//! to 7 may have been done before the client came: `upstream::warm` hands its session out, once, to
//! a login of exactly the same kind. Where it has `reuse_sessions`, a session that its client
//! leaves idle goes there after phase 9, reset by `upstream::reset`. A CancelRequest leaves the
//! path after phase 2: `cancel` knows which server it means, `upstream::cancel` takes it there.
//!
//! ## Code map
//!
//! | module | the question it answers |
//! |---|---|
//! | `cli` | What did the person ask for, and with which exit code does it end? |
//! | `check` | Does every step of a login to each target work, and what is to be done where one does not? |
//! | `config` | What may be configured? `keys` is the table of keys, `check` holds the rules, `load` reads what the file names, `target_url` turns a URL into a file |
//! | `server` | Who is accepted, and how does everything stop? |
//! | `admin` | What do operators see of a running proxy, and how little can that cost? |
//! | `workers` | Which thread serves a session? |
//! | `session` | What happens to one connection, from top to bottom? |
//! | `client` | What do clients say first, how do they prove who they are, and what are they told? |
//! | `governor` | How fast may logins reach a server? |
//! | `places` | How many sessions may there be, of whom and to what? |
//! | `route` | Where does a login go? A pure function |
//! | `credentials` | How is AWS asked, as whom, and how long are its answers good for? One file for each kind of credential |
//! | `upstream` | How is a server connected, verified and logged in to? |
//! | `cancel` | Which session does a CancelRequest mean? |
//! | `splice` | How do bytes move? |
//! | `wire` | What do the messages of the startup phase look like? |
//! | `tls` | Whom do we trust, and what exactly was wrong with a certificate? Below it, the record layer of open connections. |
//! | `verifier` | What is stored instead of a password? |
//! | `error` | Who is to blame, with which SQLSTATE, and what may the client read? |
//! | `hash_password` | How does a password become a verifier? |
//! | `policy` | What must AWS allow, and whom? |
//! | `metrics` | What is counted? |
//! | `nearest` | Which known name did a person probably mean? |
//! | `secret`, `telemetry` | What must never be printed, and where do log lines go? |
//!
//! Dependencies point one way: `cli → server → session → {client, route, credentials, upstream,
//! cancel, governor, places, workers, splice} → {config, error, wire, tls, verifier, metrics,
//! secret}`; and `cli → policy → {route, credentials, config}`, `cli → check → {route, credentials,
//! upstream}`, `server → admin → metrics`. The test `architecture` in `tests/it` reads the imports
//! and fails on another edge.
//!
//! ## Invariants
//!
//! - **There is no unencrypted or unverified upstream.** `upstream::Connection` holds a TLS stream
//!   and no other; the TCP stream lives inside `upstream::connect` and cannot leave it. No flag
//!   changes this.
//! - **Nothing is read ahead.** Each message is read to its last byte and no further, and the
//!   answer to SSLRequest must come alone: so no byte that came in clear can be taken for one that
//!   came over TLS (CVE-2021-23214, CVE-2021-23222), and the splice starts with nothing left over.
//! - **Lengths are checked before they allocate.** The limits are PostgreSQL's and libpq's own and
//!   stand beside the parser.
//! - **Only `client::reject` writes an ErrorResponse of ours.** A server's own passes through byte
//!   for byte.
//! - **Only `credentials` names the AWS SDK, only `tls` builds rustls configurations.** The crypto
//!   provider is aws-lc-rs, named wherever it is needed; there is no other in the tree.
//! - **Secrets are `secret::Secret`**, which prints as `…`. Other crates never log below WARN: the
//!   SDK's own lines hold passwords.
//! - **A target's troubles are its own.** AWS identities, endpoints and credentials are made at the
//!   first login that needs them. A panic ends one session.
//! - **A spare session has never had a client, or has been reset since.** It is handed out once;
//!   whatever its server says meanwhile ends it, and so does any doubt whether it is what it was
//!   after its login.
//! - **Deliberately absent:** pooling of statements, rewriting of queries, any knowledge of the
//!   protocol after `ReadyForQuery` (but for where messages end, in sessions that may be used
//!   again: `splice::Boundaries`), any way to hand a credential to a client.
//!
//! ## Where things could surprise
//!
//! - A client is told the server's real process id, since tools show it. Its cancel key is sealed
//!   in protocol 3.2 and the server's own in 3.0; `cancel` says why, and what is different where
//!   sessions are used again.
//! - Each thread has a runtime of its own, and a session stays where it was seated at its accept
//!   (`workers`). A spare that another thread watches changes over when it is handed out.
//! - rustls shakes hands, verifies and derives keys; records are opened and sealed by
//!   `tls::record`, from one buffer of the thread into another. What that makes ours (key updates,
//!   alerts, `close_notify`) stands in its head and is tested against rustls and OpenSSL.
//! - The upstream leg always speaks protocol 3.0, whatever the client leg speaks: 3.2 differs in
//!   the length of cancel keys only.
//! - What AWS gives ends by the wall clock or by the monotonic one, whichever is first: the one
//!   goes on while a machine sleeps, the other stays when the clock is set. Expiries are counted by
//!   the `Date` of the answer that tells them. Tokens are dated by our clock alone, and when a
//!   server refuses a fresh one AWS is asked for the time.
//! - Startup parameters are forwarded in the client's order. Each engine refuses some that others
//!   need; `upstream::startup_parameters` has the lists.
//! - When the server closes, the client's side is half-closed and read until its end, for five
//!   seconds: closing at once with bytes unread would make the kernel throw away the server's last
//!   message.

mod admin;
mod cancel;
mod check;
pub mod cli;
mod client;
mod config;
mod credentials;
mod error;
mod governor;
mod hash_password;
mod metrics;
mod nearest;
mod places;
mod policy;
mod route;
mod secret;
mod server;
mod session;
mod splice;
mod telemetry;
mod tls;
mod upstream;
mod verifier;
pub mod wire;
mod workers;

// For tests/fuzz.
pub use splice::{Boundaries, Watch};
