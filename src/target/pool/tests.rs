//! Does the pool hand out, watch, reset and end sessions as it should?

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::{Instant, sleep};

use super::members::{FILL_DELAY, RESET_WAIT};
use super::{LogIn, LoginFailure, Pool, PoolKey, Session};
use crate::address::UpstreamAddr;
use crate::config::{AwsIdentity, Config, load};
use crate::limits::{Limit, Permit};
use crate::route::DbUser;
use crate::wire::frontend::TERMINATE;

const MAX_STARTING: usize = 25;

/// A server whose ends of the sessions are held by the test.
#[derive(Clone)]
struct FakeServer(Arc<Inner>);

struct Inner {
    logins: AtomicUsize,
    failure: Mutex<Option<LoginFailure>>,
    addresses: Mutex<Vec<UpstreamAddr>>,
    ends: Mutex<Vec<DuplexStream>>,
}

#[derive(Debug)]
struct FakeSession {
    stream: DuplexStream,
    number: usize,
    logged_in_at: Instant,
}

impl Session for FakeSession {
    type Stream = DuplexStream;

    fn stream(&mut self) -> &mut DuplexStream {
        &mut self.stream
    }

    fn address(&self) -> UpstreamAddr {
        address(1)
    }

    fn logged_in_at(&self) -> Instant {
        self.logged_in_at
    }

    fn adopt(self) -> io::Result<Self> {
        Ok(self)
    }

    /// The server's next byte says whether the session can be reset.
    async fn reset(&mut self) -> Result<(), String> {
        match self.stream.read_u8().await {
            Ok(b'Z') => Ok(()),
            answer => Err(format!("{answer:?}")),
        }
    }
}

impl LogIn for FakeServer {
    type Session = FakeSession;

    async fn log_in(&self) -> Result<FakeSession, LoginFailure> {
        let number = self.0.logins.fetch_add(1, SeqCst);
        tokio::task::yield_now().await;
        if let Some(failure) = &*self.0.failure.lock().unwrap() {
            return Err(failure.clone());
        }
        let (stream, end) = duplex(64);
        self.0.ends.lock().unwrap().push(end);
        Ok(FakeSession {
            stream,
            number,
            logged_in_at: Instant::now(),
        })
    }

    async fn addresses(&self) -> Option<Vec<UpstreamAddr>> {
        Some(self.0.addresses.lock().unwrap().clone())
    }
}

impl FakeServer {
    fn new() -> Self {
        Self(Arc::new(Inner {
            logins: AtomicUsize::new(0),
            failure: Mutex::default(),
            addresses: Mutex::new(vec![address(1), address(2)]),
            ends: Mutex::default(),
        }))
    }

    fn logins(&self) -> usize {
        self.0.logins.load(SeqCst)
    }

    fn fail(&self, refused: bool) {
        *self.0.failure.lock().unwrap() = Some(LoginFailure {
            is_permanent: refused,
            text: "no".to_string(),
        });
    }

    /// The server's end of the newest session.
    fn newest_end(&self) -> DuplexStream {
        self.0.ends.lock().unwrap().pop().unwrap()
    }

    /// The server's end of the oldest session.
    fn oldest_end(&self) -> DuplexStream {
        self.0.ends.lock().unwrap().remove(0)
    }
}

fn address(last: u8) -> UpstreamAddr {
    UpstreamAddr(SocketAddr::from(([10, 0, 0, last], 5432)))
}

fn key(application_name: &'static str) -> PoolKey {
    PoolKey {
        aws: AwsIdentity {
            profile: None,
            role: None,
            endpoint_url: None,
            sts_endpoint_url: None,
        },
        db_user: DbUser::Named("jane_doe".to_string()),
        db_groups: Vec::new(),
        parameters: vec![(
            Bytes::from("application_name"),
            Bytes::from(application_name),
        )],
    }
}

fn pool(parameters: &str) -> (Arc<Pool<FakeServer>>, FakeServer, Arc<Limit>) {
    let url = format!("rds://jane_doe@localhost:5432/postgres?region=us-west-2&{parameters}");
    let config: Config = load(None, &[url]).unwrap();
    let target = config.listeners[0].targets[0].clone();
    let limit = Arc::new(Limit::new("max_sessions", target.max_sessions));
    (
        Pool::start(target, limit.clone(), MAX_STARTING),
        FakeServer::new(),
        limit,
    )
}

/// A permit of a target without a limit.
fn no_limit() -> Permit {
    Limit::new("", None).acquire().unwrap()
}

/// Lets everything happen that takes no longer than the delay before sessions are made.
async fn settle() {
    sleep(FILL_DELAY).await;
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

impl Pool<FakeServer> {
    /// A client's login, and what the pool does about it.
    async fn login(&self, name: &'static str, server: &FakeServer) -> Option<usize> {
        let taken = self.take(&key(name)).await;
        self.note_login(key(name), server.clone());
        settle().await;
        taken.map(|(session, _)| session.number)
    }
}

/// Leaves a client's session to a pool that reuses sessions. Returns the server's end of it, and
/// its number.
async fn leave(
    pool: &Arc<Pool<FakeServer>>,
    server: &FakeServer,
    name: &'static str,
    permit: Permit,
) -> (DuplexStream, usize) {
    let session = server.log_in().await.unwrap();
    let number = session.number;
    let key = pool.note_login(key(name), server.clone());
    pool.give_back(&key, session, permit);
    settle().await;
    (server.newest_end(), number)
}

#[tokio::test(start_paused = true)]
async fn a_session_that_a_client_left_is_pooled_after_its_reset() {
    let (pool, server, _) = pool("reuse_sessions=true");
    let (mut end, number) = leave(&pool, &server, "a", no_limit()).await;
    assert_eq!(pool.status().ready, 0, "not before");
    end.write_all(b"Z").await.unwrap();
    settle().await;
    assert!(pool.take(&key("b")).await.is_none());
    assert_eq!(pool.take(&key("a")).await.unwrap().0.number, number);
    assert_eq!(server.logins(), 1, "none is made");
}

/// A client that logs in while sessions are being reset.
fn comes_back(
    pool: &Arc<Pool<FakeServer>>,
    name: &'static str,
) -> tokio::task::JoinHandle<Option<usize>> {
    let pool = pool.clone();
    tokio::spawn(async move {
        let taken = pool.take(&key(name)).await;
        taken.map(|(session, _)| session.number)
    })
}

#[tokio::test(start_paused = true)]
async fn clients_that_come_back_at_once_wait_in_line_for_sessions_that_are_being_reset() {
    let (pool, server, _) = pool("reuse_sessions=true");
    let (mut slow_end, slow) = leave(&pool, &server, "a", no_limit()).await;
    let (mut quick_end, quick) = leave(&pool, &server, "a", no_limit()).await;
    let begin = Instant::now();
    let first = comes_back(&pool, "a");
    settle().await;
    let second = comes_back(&pool, "a");
    settle().await;
    let waited = begin.elapsed();
    // Every session has its client already, so nobody else waits, and this one is not theirs.
    assert_eq!(comes_back(&pool, "a").await.unwrap(), None);
    assert_eq!(comes_back(&pool, "b").await.unwrap(), None);
    assert_eq!(begin.elapsed(), waited);
    quick_end.write_all(b"Z").await.unwrap();
    assert_eq!(first.await.unwrap(), Some(quick), "who came first is first");
    slow_end.write_all(b"Z").await.unwrap();
    assert_eq!(second.await.unwrap(), Some(slow));
    assert!(begin.elapsed() < RESET_WAIT);
    assert_eq!(server.logins(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_client_waits_no_longer_than_a_login_takes_and_not_for_a_reset_that_failed() {
    let (pool, server, _) = pool("reuse_sessions=true");
    let (mut end, number) = leave(&pool, &server, "a", no_limit()).await;
    let begin = Instant::now();
    assert_eq!(comes_back(&pool, "a").await.unwrap(), None);
    assert_eq!(begin.elapsed(), RESET_WAIT);
    // The session is not lost to the next one.
    end.write_all(b"Z").await.unwrap();
    settle().await;
    assert_eq!(comes_back(&pool, "a").await.unwrap(), Some(number));
    let (mut failing, _) = leave(&pool, &server, "a", no_limit()).await;
    let (mut good_end, good) = leave(&pool, &server, "a", no_limit()).await;
    let begin = Instant::now();
    let first = comes_back(&pool, "a");
    settle().await;
    let second = comes_back(&pool, "a");
    settle().await;
    failing.write_all(b"E").await.unwrap();
    assert_eq!(second.await.unwrap(), None, "it logs in afresh");
    good_end.write_all(b"Z").await.unwrap();
    assert_eq!(first.await.unwrap(), Some(good), "it keeps its place");
    assert!(begin.elapsed() < RESET_WAIT);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_a_client_waits_for_makes_no_room_for_others() {
    let (pool, server, limit) = pool("reuse_sessions=true&max_sessions=1");
    let permit = limit.acquire().unwrap();
    let (mut end, number) = leave(&pool, &server, "a", permit).await;
    let client = comes_back(&pool, "a");
    settle().await;
    assert!(!pool.make_room());
    assert!(limit.acquire().is_err());
    end.write_all(b"Z").await.unwrap();
    assert_eq!(client.await.unwrap(), Some(number));
    limit.acquire().unwrap();
}

#[tokio::test(start_paused = true)]
async fn clients_that_wait_for_a_reset_log_in_afresh_when_the_pool_closes() {
    let (pool, server, _) = pool("reuse_sessions=true");
    leave(&pool, &server, "a", no_limit()).await;
    let begin = Instant::now();
    let client = comes_back(&pool, "a");
    settle().await;
    pool.close().await;
    assert_eq!(client.await.unwrap(), None);
    assert!(begin.elapsed() < RESET_WAIT);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_outlived_its_login_is_pooled_when_the_key_has_newer_logins() {
    let (pool, server, _) = pool("reuse_sessions=true");
    let session = server.log_in().await.unwrap();
    let old = pool.note_login(key("a"), server.clone());
    sleep(Duration::from_mins(10)).await;
    pool.note_login(key("a"), server.clone());
    pool.give_back(&old, session, no_limit());
    let mut end = server.newest_end();
    end.write_all(b"Z").await.unwrap();
    settle().await;
    assert!(pool.take(&key("a")).await.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_session_that_cannot_be_reset_or_is_too_old_is_ended() {
    let (pool, server, _) = pool("reuse_sessions=true&spare_max_age=1min");
    let (mut end, _) = leave(&pool, &server, "a", no_limit()).await;
    end.write_all(b"E").await.unwrap();
    settle().await;
    assert!(is_terminated(end).await);
    let key_a = pool.note_login(key("a"), server.clone());
    let session = server.log_in().await.unwrap();
    sleep(Duration::from_mins(1)).await;
    pool.give_back(&key_a, session, no_limit());
    assert!(is_terminated(server.newest_end()).await);
    // The age counts from the login, so a session that was left at half of it has the other half.
    let session = server.log_in().await.unwrap();
    sleep(Duration::from_secs(30)).await;
    pool.give_back(&key_a, session, no_limit());
    let mut end = server.newest_end();
    end.write_all(b"Z").await.unwrap();
    let begin = Instant::now();
    assert!(is_terminated(end).await);
    assert_eq!(begin.elapsed().as_secs(), 30);
}

#[tokio::test(start_paused = true)]
async fn the_pool_keeps_at_most_ten_left_sessions_and_none_without_a_recent_login() {
    let (pool, server, _) = pool("reuse_sessions=true&warm_sessions=2");
    let mut ends = Vec::new();
    for name in ["a"; 12].into_iter().chain(["b"; 3]) {
        ends.push(leave(&pool, &server, name, no_limit()).await.0);
    }
    let open = tokio::task::unconstrained(async {
        ends.iter_mut().map(is_open).filter(|open| *open).count()
    })
    .await;
    assert!((8..=10).contains(&open), "{open}");
    assert!(pool.make_room());
    pool.note_refusal(&key("a"));
    let session = server.log_in().await.unwrap();
    let other = pool.note_login(key("c"), server.clone());
    pool.note_refusal(&key("c"));
    pool.give_back(&other, session, no_limit());
    assert!(
        is_terminated(server.newest_end()).await,
        "its key has no claim"
    );
}

#[tokio::test(start_paused = true)]
async fn a_session_being_reset_makes_room_for_clients_and_ends_with_the_pool() {
    let (pool, server, limit) = pool("reuse_sessions=true&max_sessions=1");
    let permit = limit.acquire().unwrap();
    let (end, _) = leave(&pool, &server, "a", permit).await;
    assert!(limit.acquire().is_err());
    assert!(pool.make_room());
    let _client = limit.acquire().unwrap();
    assert!(is_terminated(end).await);
    let (end, _) = leave(&pool, &server, "a", no_limit()).await;
    pool.close().await;
    assert!(is_terminated(end).await);
    let (end, _) = leave(&pool, &server, "a", no_limit()).await;
    assert!(is_terminated(end).await);
}

async fn is_terminated(mut end: DuplexStream) -> bool {
    let mut bytes = Vec::new();
    end.read_to_end(&mut bytes).await.is_ok() && bytes == TERMINATE
}

#[tokio::test(start_paused = true)]
async fn a_login_makes_the_pool_log_in_for_the_next_client_with_the_same_key() {
    let (pool, server, _) = pool("warm_sessions=1");
    assert_eq!(pool.login("a", &server).await, None);
    assert_eq!(pool.login("a", &server).await, Some(0));
    assert_eq!(pool.login("a", &server).await, Some(1));
    assert_eq!(server.logins(), 3);
}

#[tokio::test(start_paused = true)]
async fn few_sessions_are_made_at_a_time_and_the_others_right_after_them() {
    let (pool, server, _) = pool("warm_sessions=40");
    for _ in 0..40 {
        pool.note_login(key("a"), server.clone());
    }
    tokio::task::yield_now().await;
    assert_eq!(pool.status().starting, MAX_STARTING);
    let begin = Instant::now();
    for _ in 0..3 {
        settle().await;
    }
    assert_eq!(pool.status().ready, 40);
    assert!(begin.elapsed() < Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn a_login_with_a_different_key_gets_no_pooled_session() {
    let (pool, server, _) = pool("warm_sessions=1");
    pool.login("a", &server).await;
    let like = || key("a");
    let others = [
        PoolKey {
            aws: AwsIdentity {
                profile: Some("p".to_string()),
                ..like().aws
            },
            ..like()
        },
        PoolKey {
            db_user: DbUser::Named("ana".to_string()),
            ..like()
        },
        PoolKey {
            db_groups: vec!["bi".to_string()],
            ..like()
        },
        key("b"),
        PoolKey {
            parameters: like()
                .parameters
                .into_iter()
                .chain([("geqo".into(), "off".into())])
                .collect(),
            ..like()
        },
        PoolKey {
            parameters: Vec::new(),
            ..like()
        },
    ];
    for other in others {
        assert!(pool.take(&other).await.is_none(), "{other:?}");
    }
    assert!(pool.take(&like()).await.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_session_being_made_is_not_handed_out_and_is_made_to_the_end() {
    let (pool, server, _) = pool("warm_sessions=1");
    pool.note_login(key("a"), server.clone());
    sleep(FILL_DELAY).await;
    while server.logins() == 0 {
        tokio::task::yield_now().await;
    }
    assert!(pool.take(&key("a")).await.is_none());
    settle().await;
    assert_eq!(
        pool.take(&key("a"))
            .await
            .map(|(session, _)| session.number),
        Some(0)
    );
}

#[tokio::test(start_paused = true)]
async fn a_pooled_session_ends_when_its_server_sends_anything_and_is_replaced_at_the_next_login() {
    let (pool, server, _) = pool("warm_sessions=2");
    for _ in 0..5 {
        pool.login("a", &server).await;
    }
    let made = server.logins();
    server.0.ends.lock().unwrap().drain(..made - 2);
    let mut noisy = server.oldest_end();
    noisy.write_all(b"N").await.unwrap();
    drop(server.oldest_end());
    sleep(Duration::from_secs(30)).await;
    assert!(is_terminated(noisy).await);
    assert_eq!(server.logins(), made);
    assert_eq!(pool.login("a", &server).await, None);
    assert_eq!(pool.login("a", &server).await, Some(made));
}

#[tokio::test(start_paused = true)]
async fn a_pooled_session_that_is_too_old_is_replaced() {
    let (pool, server, _) = pool("warm_sessions=1&spare_max_age=2min");
    pool.login("a", &server).await;
    let begin = Instant::now();
    assert!(is_terminated(server.oldest_end()).await);
    assert_eq!(begin.elapsed().as_secs(), 120);
    settle().await;
    assert_eq!(pool.login("a", &server).await, Some(1));
}

#[tokio::test(start_paused = true)]
async fn an_idle_target_holds_no_pooled_sessions() {
    let (pool, server, _) = pool("warm_sessions=3");
    for _ in 0..3 {
        pool.login("a", &server).await;
    }
    let begin = Instant::now();
    let mut terminated = Vec::new();
    for _ in 0..5 {
        terminated.push(is_terminated(server.oldest_end()).await);
    }
    assert_eq!(
        terminated.iter().filter(|terminated| **terminated).count(),
        3,
        "the other two were taken by clients, which send no Terminate"
    );
    assert!(
        (300..=305).contains(&begin.elapsed().as_secs()),
        "{:?}",
        begin.elapsed()
    );
    sleep(Duration::from_mins(10)).await;
    assert_eq!(server.logins(), 5, "none is made again");
}

#[tokio::test(start_paused = true)]
async fn pooled_sessions_end_when_their_address_is_no_longer_the_servers() {
    let (pool, server, _) = pool("warm_sessions=1");
    pool.login("a", &server).await;
    sleep(Duration::from_secs(20)).await;
    *server.0.addresses.lock().unwrap() = vec![address(2)];
    let begin = Instant::now();
    assert!(is_terminated(server.oldest_end()).await);
    assert!(begin.elapsed().as_secs() <= 5);
    assert_eq!(pool.login("a", &server).await, None);
}

#[tokio::test(start_paused = true)]
async fn failures_make_the_pool_pause_longer_each_time_until_a_login_succeeds() {
    let (pool, server, _) = pool("warm_sessions=3");
    server.fail(false);
    let mut logins = Vec::new();
    let begin = Instant::now();
    for _ in 0..240 {
        // A client logs in successfully every second.
        pool.note_login(key("a"), server.clone());
        settle().await;
        logins.push(server.logins());
        sleep(Duration::from_secs(1)).await;
    }
    let made = *logins.last().unwrap();
    assert!(
        (7..=12).contains(&made),
        "{made} attempts in {:?}: {logins:?}",
        begin.elapsed()
    );
    *server.0.failure.lock().unwrap() = None;
    for _ in 0..70 {
        pool.note_login(key("a"), server.clone());
        sleep(Duration::from_secs(1)).await;
    }
    settle().await;
    assert_eq!(server.logins(), made + 3, "all of them again");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_ends_the_pooled_sessions_of_its_key_only() {
    let (pool, server, _) = pool("warm_sessions=3");
    for name in ["a", "a", "b"] {
        pool.login(name, &server).await;
    }
    server.fail(true);
    pool.take(&key("a")).await.unwrap();
    pool.note_login(key("a"), server.clone());
    settle().await;
    assert!(pool.take(&key("a")).await.is_none());
    assert!(pool.take(&key("b")).await.is_some());
    let made = server.logins();
    pool.note_refusal(&key("b"));
    sleep(Duration::from_mins(3)).await;
    assert_eq!(server.logins(), made, "nobody has logged in since");
}

#[tokio::test(start_paused = true)]
async fn pooled_sessions_count_against_the_targets_limit_and_make_room_for_clients() {
    let (pool, server, limit) = pool("warm_sessions=5&max_sessions=2");
    for _ in 0..6 {
        pool.note_login(key("a"), server.clone());
    }
    settle().await;
    assert_eq!(server.logins(), 2);
    assert!(limit.acquire().is_err());
    assert!(pool.make_room());
    let _client = limit.acquire().unwrap();
    let (_session, permit) = pool.take(&key("a")).await.unwrap();
    assert!(!pool.make_room(), "none is left");
    assert!(
        limit.acquire().is_err(),
        "the session's permit went with it"
    );
    drop(permit);
    limit.acquire().unwrap();
}

#[tokio::test(start_paused = true)]
async fn concurrent_clients_never_share_a_session_and_the_pool_stays_within_its_size() {
    let (pool, server, _) = pool("warm_sessions=20");
    let mut numbers = HashSet::new();
    for _ in 0..20 {
        let clients: Vec<_> = (0..50)
            .map(|client| {
                let (pool, server) = (pool.clone(), server.clone());
                tokio::spawn(async move { pool.login(["a", "b", "c"][client % 3], &server).await })
            })
            .collect();
        for client in clients {
            assert!(
                client
                    .await
                    .unwrap()
                    .is_none_or(|number| numbers.insert(number)),
                "given twice"
            );
        }
        settle().await;
        // The sessions that the clients were given are dropped by now, so all that are still open
        // are pooled.
        let mut ends = std::mem::take(&mut *server.0.ends.lock().unwrap());
        // These streams are polled by hand, so without Tokio's cooperative budget, which would run
        // out before the streams do.
        let open = tokio::task::unconstrained(async {
            ends.iter_mut().map(is_open).filter(|open| *open).count()
        })
        .await;
        server.0.ends.lock().unwrap().append(&mut ends);
        assert!(open <= 20, "{open}");
    }
    assert!(numbers.len() >= 19 * 20, "{}", numbers.len());
}

fn is_open(end: &mut DuplexStream) -> bool {
    let mut byte = [0];
    let read = std::pin::pin!(end.read(&mut byte));
    read.poll(&mut std::task::Context::from_waker(std::task::Waker::noop()))
        .is_pending()
}

#[tokio::test(start_paused = true)]
async fn closing_ends_all_pooled_sessions_and_no_more_are_made() {
    let (pool, server, _) = pool("warm_sessions=2");
    pool.login("a", &server).await;
    let begin = Instant::now();
    pool.close().await;
    assert!(begin.elapsed().as_secs() < 1, "{:?}", begin.elapsed());
    assert!(is_terminated(server.oldest_end()).await);
    assert_eq!(pool.login("a", &server).await, None);
    assert_eq!(server.logins(), 1);
}

#[test]
fn a_jump_of_the_wall_clock_means_that_the_machine_slept() {
    let now = (Instant::now(), std::time::SystemTime::now());
    assert!(!super::members::machine_slept(now));
    assert!(super::members::machine_slept((
        now.0,
        now.1 - Duration::from_mins(5)
    )));
}
