//! What do the clients do? This process reads jobs as lines of JSON and answers each with one line.

use std::io::{BufRead, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
use rustls::ClientConfig;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::backend::PIECE;
use crate::leg::{self, Leg};
use crate::threads::{Threads, join};
use crate::wire;

/// The address of a server, and the user to log in as.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Server {
    pub address: SocketAddr,
    pub tls: Tls,
    pub user: String,
    pub database: String,
    pub password: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Tls {
    None,
    /// TLS begins with the first byte.
    Direct,
    /// The client asks for TLS with SSLRequest, as drivers do.
    SslRequest,
}

#[derive(Debug, Serialize, Deserialize)]
pub enum Job {
    /// Logs sessions in, `clients` at a time, and keeps them.
    Open {
        server: Server,
        sessions: usize,
        clients: usize,
    },
    /// Ends this many of the sessions that are kept, the newest first.
    Close { sessions: usize },
    /// Runs a statement on each of the newest sessions at once, again and again, and throws the
    /// answers away.
    Down {
        statement: String,
        sessions: usize,
        milliseconds: u64,
    },
    /// Does the same, and sends `pieces` of CopyData each time.
    Up {
        statement: String,
        pieces: usize,
        sessions: usize,
        milliseconds: u64,
    },
    /// Runs `select 1` again and again on each of the newest sessions.
    Trips { sessions: usize, milliseconds: u64 },
    /// Moves this many pieces down and up on every session that is kept. Each of `clients` takes
    /// one session after another.
    Burst { pieces: usize, clients: usize },
    /// Logs in and closes the connection, again and again, with a pause in between.
    Logins {
        server: Server,
        clients: usize,
        milliseconds: u64,
        pause_milliseconds: u64,
    },
    /// Logs in this many sessions at once, each with a client of its own.
    Rush { server: Server, sessions: usize },
}

/// What a job has achieved. `count` is what it counts: sessions, bytes, round trips or logins.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub struct Done {
    pub seconds: f64,
    pub count: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub error: Option<String>,
}

struct Load {
    config: Arc<ClientConfig>,
    threads: Threads,
    sessions: Vec<Session>,
}

/// A connection stays with the thread that has made it, because that thread is the one it wakes.
struct Session {
    leg: Leg,
    thread: usize,
}

/// What one task counted, how long each item took, and the sessions that it keeps.
#[derive(Default)]
struct Share {
    count: u64,
    nanoseconds: Vec<u64>,
    sessions: Vec<Session>,
}

pub fn run(authority: &str) -> Result<()> {
    let mut load = Load {
        config: leg::client_config(&std::fs::read(authority)?)?,
        threads: Threads::start(2),
        sessions: Vec::new(),
    };
    for line in std::io::stdin().lock().lines() {
        let job = serde_json::from_str(&line?)?;
        let done = load.perform(job).unwrap_or_else(|error| Done {
            error: Some(format!("{error:#}")),
            ..Done::default()
        });
        println!("{}", serde_json::to_string(&done)?);
        std::io::stdout().flush()?;
    }
    Ok(())
}

impl Load {
    fn perform(&mut self, job: Job) -> Result<Done> {
        let started = Instant::now();
        let after = |milliseconds| started + Duration::from_millis(milliseconds);
        let shares = match job {
            Job::Open {
                server,
                sessions,
                clients,
            } => {
                let left = Arc::new(AtomicUsize::new(sessions));
                self.each(clients, |thread| {
                    open(self.config.clone(), server.clone(), left.clone(), thread)
                })?
            }
            Job::Close { sessions } => self.with_last(sessions, |mut session| async move {
                let _ = session.leg.write(&wire::TERMINATE).await;
                Ok(Share::default())
            })?,
            Job::Down {
                statement,
                sessions,
                milliseconds,
            } => {
                let (query, end) = (wire::query(&statement), after(milliseconds));
                self.with_last(sessions, move |session| {
                    bulk(session, query.clone(), None, end)
                })?
            }
            Job::Up {
                statement,
                pieces,
                sessions,
                milliseconds,
            } => {
                let (query, end) = (wire::query(&statement), after(milliseconds));
                self.with_last(sessions, move |session| {
                    bulk(session, query.clone(), Some(pieces), end)
                })?
            }
            Job::Trips {
                sessions,
                milliseconds,
            } => {
                let end = after(milliseconds);
                self.with_last(sessions, move |session| trips(session, end))?
            }
            Job::Burst { pieces, clients } => self.burst(pieces, clients)?,
            Job::Logins {
                server,
                clients,
                milliseconds,
                pause_milliseconds,
            } => {
                let (end, pause) = (
                    after(milliseconds),
                    Duration::from_millis(pause_milliseconds),
                );
                self.each(clients, |_| {
                    logins(self.config.clone(), server.clone(), end, pause)
                })?
            }
            Job::Rush { server, sessions } => self.each(sessions, |_| {
                logins(self.config.clone(), server.clone(), started, Duration::ZERO)
            })?,
        };
        let seconds = started.elapsed().as_secs_f64();
        let mut times: Vec<u64> = shares
            .iter()
            .flat_map(|share| share.nanoseconds.iter().copied())
            .collect();
        times.sort_unstable();
        let at = |share: usize| {
            times
                .get(times.len() * share / 100)
                .map_or(0.0, |time| *time as f64 / 1e3)
        };
        let count = shares.iter().map(|share| share.count).sum::<u64>() as f64;
        let done = Done {
            seconds,
            count,
            p50_us: at(50),
            p99_us: at(99),
            error: None,
        };
        self.keep(shares.into_iter().flat_map(|share| share.sessions));
        Ok(done)
    }

    fn each<F: Future<Output = Result<Share>> + Send + 'static>(
        &self,
        tasks: usize,
        task: impl Fn(usize) -> F,
    ) -> Result<Vec<Share>> {
        collect(
            (0..tasks)
                .map(|index| self.threads.spawn(index, task(index)))
                .collect(),
        )
    }

    fn with_last<F>(&mut self, sessions: usize, task: impl Fn(Session) -> F) -> Result<Vec<Share>>
    where
        F: Future<Output = Result<Share>> + Send + 'static,
    {
        ensure!(
            sessions <= self.sessions.len(),
            "{sessions} sessions of {}",
            self.sessions.len()
        );
        let sessions = self.sessions.split_off(self.sessions.len() - sessions);
        collect(
            sessions
                .into_iter()
                .map(|session| self.threads.spawn(session.thread, task(session)))
                .collect(),
        )
    }

    /// Keeps sessions of the two threads in turn, so that the newest ones always belong to both.
    fn keep(&mut self, sessions: impl Iterator<Item = Session>) {
        let (mut even, mut odd): (Vec<_>, Vec<_>) =
            sessions.partition(|session| session.thread % 2 == 0);
        while !even.is_empty() || !odd.is_empty() {
            self.sessions.extend(even.pop());
            self.sessions.extend(odd.pop());
        }
    }

    fn burst(&mut self, pieces: usize, clients: usize) -> Result<Vec<Share>> {
        let mut parts: Vec<Vec<Session>> = Vec::new();
        parts.resize_with(clients, Vec::new);
        for (index, session) in self.sessions.drain(..).enumerate() {
            parts[index % clients].push(session);
        }
        let (down, up) = (
            wire::query(&format!("down {pieces}")),
            wire::query(&format!("up {pieces}")),
        );
        let tasks = parts.into_iter().enumerate().map(|(index, part)| {
            let (down, up) = (down.clone(), up.clone());
            self.threads.spawn(index, async move {
                let mut share = Share::default();
                for session in part {
                    let downed = bulk(session, down.clone(), None, Instant::now()).await?;
                    for session in downed.sessions {
                        let done = bulk(session, up.clone(), Some(pieces), Instant::now()).await?;
                        share.count += downed.count + done.count;
                        share.sessions.extend(done.sessions);
                    }
                }
                Ok(share)
            })
        });
        collect(tasks.collect())
    }
}

fn collect(handles: Vec<JoinHandle<Result<Share>>>) -> Result<Vec<Share>> {
    join(handles)?.into_iter().collect()
}

async fn open(
    config: Arc<ClientConfig>,
    server: Server,
    left: Arc<AtomicUsize>,
    thread: usize,
) -> Result<Share> {
    let mut share = Share::default();
    let take = || {
        left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            left.checked_sub(1)
        })
        .is_ok()
    };
    while take() {
        share.sessions.push(Session {
            leg: open_session(&config, &server).await?,
            thread,
        });
        share.count += 1;
    }
    Ok(share)
}

async fn logins(
    config: Arc<ClientConfig>,
    server: Server,
    end: Instant,
    pause: Duration,
) -> Result<Share> {
    let mut share = Share::default();
    loop {
        let started = Instant::now();
        let mut leg = open_session(&config, &server).await?;
        share.nanoseconds.push(nanoseconds(started));
        share.count += 1;
        leg.write(&wire::TERMINATE).await?;
        drop(leg);
        if Instant::now() >= end {
            return Ok(share);
        }
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
    }
}

async fn trips(mut session: Session, end: Instant) -> Result<Share> {
    let query = wire::query("select 1");
    let mut share = Share::default();
    while Instant::now() < end {
        let started = Instant::now();
        session.leg.write(&query).await?;
        until_ready(&mut session.leg).await?;
        share.nanoseconds.push(nanoseconds(started));
        share.count += 1;
    }
    share.sessions.push(session);
    Ok(share)
}

/// Runs the statement at least once, and sends data if there are `pieces`.
async fn bulk(
    mut session: Session,
    query: Vec<u8>,
    pieces: Option<usize>,
    end: Instant,
) -> Result<Share> {
    let piece = pieces.map(|_| wire::rows(PIECE)).unwrap_or_default();
    let mut share = Share::default();
    let leg = &mut session.leg;
    loop {
        leg.write(&query).await?;
        if let Some(pieces) = pieces {
            // The server answers that it is ready to receive.
            ensure!(leg.read(|_| ()).await?, "closed");
            for _ in 0..pieces {
                leg.write(&piece).await?;
            }
            leg.write(&wire::COPY_DONE).await?;
            share.count += (pieces * piece.len()) as u64;
            until_ready(leg).await?;
        } else {
            share.count += until_ready(leg).await?;
        }
        if Instant::now() >= end {
            share.sessions.push(session);
            return Ok(share);
        }
    }
}

/// Reads an answer to its end, and returns its length.
async fn until_ready(leg: &mut Leg) -> Result<u64> {
    let mut tail = Tail::default();
    while !tail.is_ready() {
        ensure!(
            leg.read(|bytes| tail.push(bytes)).await?,
            "closed in the middle of an answer"
        );
        ensure!(tail.first != Some(b'E'), "the server says no");
    }
    Ok(tail.length)
}

/// The last bytes of an answer, which tell whether it is complete.
#[derive(Default)]
struct Tail {
    first: Option<u8>,
    last: [u8; 6],
    length: u64,
}

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        self.first = self.first.or(bytes.first().copied());
        self.length += bytes.len() as u64;
        if let Some(last) = bytes.last_chunk() {
            self.last = *last;
        } else {
            let keep = self.last;
            let all: Vec<u8> = keep.iter().chain(bytes).copied().collect();
            self.last = *all.last_chunk().expect("six and more");
        }
    }

    fn is_ready(&self) -> bool {
        self.last == wire::READY
    }
}

/// Logs in and waits until the first query is answered, because pgbouncer completes a login before
/// it has a server for it.
async fn open_session(config: &Arc<ClientConfig>, server: &Server) -> Result<Leg> {
    let mut leg = log_in(config, server).await?;
    leg.write(&wire::query("select 1")).await?;
    until_ready(&mut leg).await?;
    Ok(leg)
}

async fn log_in(config: &Arc<ClientConfig>, server: &Server) -> Result<Leg> {
    let mut stream = TcpStream::connect(server.address)
        .await
        .context("connect")?;
    stream.set_nodelay(true)?;
    let mut leg = match server.tls {
        Tls::None => Leg::plain(stream),
        Tls::Direct => Leg::connect(stream, config).await?,
        Tls::SslRequest => {
            stream.write_all(&wire::SSL_REQUEST).await?;
            ensure!(stream.read_u8().await? == b'S', "no TLS");
            Leg::connect(stream, config).await?
        }
    };
    leg.write(&wire::startup(&server.user, &server.database))
        .await?;
    let mut inbox = Vec::new();
    let mut scram = ScramSha256::new(server.password.as_bytes(), ChannelBinding::unsupported());
    loop {
        while let Some((kind, body, length)) = first_message(&inbox) {
            let answer = match (kind, body.get(..4)) {
                (b'Z', _) => return Ok(leg),
                (b'E', _) => bail!(
                    "refused: {}",
                    String::from_utf8_lossy(body).replace('\0', " ")
                ),
                (b'R', Some([0, 0, 0, 3])) => Some([server.password.as_bytes(), &[0]].concat()),
                (b'R', Some([0, 0, 0, 10])) => {
                    let first = scram.message();
                    let length = u32::try_from(first.len())?.to_be_bytes();
                    Some([&b"SCRAM-SHA-256\0"[..], &length, first].concat())
                }
                (b'R', Some([0, 0, 0, 11])) => {
                    scram.update(&body[4..])?;
                    Some(scram.message().to_vec())
                }
                _ => None,
            };
            inbox.drain(..length);
            if let Some(answer) = answer {
                leg.write(&wire::message(b'p', &answer)).await?;
            }
        }
        ensure!(
            leg.read(|bytes| inbox.extend_from_slice(bytes)).await?,
            "closed during login"
        );
    }
}

fn first_message(inbox: &[u8]) -> Option<(u8, &[u8], usize)> {
    let length = 1 + u32::from_be_bytes(inbox.get(1..5)?.try_into().ok()?) as usize;
    Some((inbox[0], inbox.get(5..length)?, length))
}

fn nanoseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_ends_with_ready_for_query_however_it_is_cut() {
        let answer = wire::answer("select 1");
        for cut in 0..answer.len() {
            let mut tail = Tail::default();
            tail.push(&answer[..cut]);
            assert!(!tail.is_ready(), "{cut}");
            tail.push(&answer[cut..]);
            assert!(tail.is_ready(), "{cut}");
            assert_eq!(tail.length, answer.len() as u64);
        }
    }
}
