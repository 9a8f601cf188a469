//! Which addresses does a target's server have at the moment? One look-up of its name serves all
//! the logins of a second.
//!
//! Asking the system costs a login another thread and a dozen system calls. So an answer is kept:
//! for [`FRESH`] it is used as it is; up to [`USABLE`] it is used while the next one is on its way,
//! so that a server in use is asked for once a second and no login waits. After a failover by DNS,
//! every login sees the new address within that time. A connection that fails ends the answer at
//! once. Logins that do wait share one look-up, and its failure, which nobody else gets.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::address::UpstreamAddr;
use crate::config::Endpoint;
use crate::upstream::connect::{ResolveError, look_up, resolve_by};

/// How long an answer is used without asking again.
const FRESH: Duration = Duration::from_secs(1);
/// How old an answer may be that is used, counted from the question. Aurora's DNS names may be
/// cached for as long.
const USABLE: Duration = Duration::from_secs(5);

/// The way to the addresses of a name.
pub(super) trait LookUp: Send + Sync + 'static {
    /// Asks for the addresses.
    fn look_up(
        &self,
        endpoint: &Endpoint,
    ) -> impl Future<Output = io::Result<Vec<SocketAddr>>> + Send;
}

/// The system's way, which includes its hosts file.
pub(super) struct SystemResolver;

impl LookUp for SystemResolver {
    async fn look_up(&self, endpoint: &Endpoint) -> io::Result<Vec<SocketAddr>> {
        look_up(endpoint).await
    }
}

/// The addresses of one target's server. The latest answer is kept, and no more.
pub(super) struct Addresses<L = SystemResolver>(Arc<Inner<L>>);

struct Inner<L> {
    resolver: L,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    answer: Option<Arc<Answer>>,
    under_way: Option<UnderWay>,
}

/// The addresses that a name had at one time.
#[derive(Debug)]
pub(super) struct Answer {
    endpoint: Endpoint,
    asked_at: Instant,
    /// At least one.
    pub addresses: Vec<UpstreamAddr>,
}

/// An answer, and whether it was there already.
#[derive(Debug)]
pub(super) struct Found {
    pub answer: Arc<Answer>,
    pub is_kept: bool,
}

/// A look-up that is under way; without a result, it has come to nothing.
struct UnderWay {
    endpoint: Endpoint,
    result: watch::Receiver<Option<LookUpResult>>,
}

type LookUpResult = Result<Arc<Answer>, ResolveError>;

impl Addresses {
    /// Creates the addresses of a server, which are looked up when they are needed.
    pub fn new() -> Self {
        Self::found_by(SystemResolver)
    }
}

impl<L: LookUp> Addresses<L> {
    fn found_by(resolver: L) -> Self {
        Self(Arc::new(Inner {
            resolver,
            state: Mutex::default(),
        }))
    }

    /// Returns addresses that the server had within the last five seconds.
    ///
    /// # Errors
    /// The name cannot be resolved.
    pub async fn find(&self, endpoint: &Endpoint) -> Result<Found, ResolveError> {
        let kept = {
            let mut state = self.0.state.lock();
            let kept = state.usable(endpoint);
            if kept.as_ref().is_some_and(|kept| kept.age() >= FRESH) {
                self.0.begin(&mut state, endpoint);
            }
            kept
        };
        let is_kept = kept.is_some();
        let answer = match kept {
            Some(answer) => answer,
            None => self.ask(endpoint).await?,
        };
        Ok(Found { answer, is_kept })
    }

    /// Returns the addresses that the server has now, as later logins will find them.
    ///
    /// # Errors
    /// The name cannot be resolved.
    pub async fn ask(&self, endpoint: &Endpoint) -> Result<Arc<Answer>, ResolveError> {
        if !is_worth_keeping(endpoint) {
            return self.0.ask(endpoint).await;
        }
        let mut result = self.0.begin(&mut self.0.state.lock(), endpoint);
        match result.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(result)) => result.clone(),
            // Its runtime has ended, so nobody waits for this either.
            _ => Err(ResolveError::interrupted(endpoint)),
        }
    }

    /// Forgets this answer, since a connection to one of its addresses has failed.
    pub fn forget(&self, answer: &Arc<Answer>) {
        let mut state = self.0.state.lock();
        state.answer.take_if(|held| Arc::ptr_eq(held, answer));
    }
}

impl<L: LookUp> Inner<L> {
    /// Begins a look-up, unless the same is under way.
    fn begin(
        self: &Arc<Self>,
        state: &mut State,
        endpoint: &Endpoint,
    ) -> watch::Receiver<Option<LookUpResult>> {
        if let Some(under_way) = &state.under_way
            && under_way.endpoint == *endpoint
            && under_way.result.has_changed().is_ok()
        {
            return under_way.result.clone();
        }
        let (sender, result) = watch::channel(None);
        let endpoint = endpoint.clone();
        state.under_way = Some(UnderWay {
            endpoint: endpoint.clone(),
            result: result.clone(),
        });
        let inner = self.clone();
        // It is a task of its own, because the login that begins it may be abandoned.
        tokio::spawn(async move {
            let result = inner.ask(&endpoint).await;
            let mut state = inner.state.lock();
            if let Ok(answer) = &result {
                state.answer = Some(answer.clone());
            }
            // From now on, a login finds the answer or begins anew.
            sender.send_replace(Some(result));
            drop(sender);
        });
        result
    }

    async fn ask(&self, endpoint: &Endpoint) -> LookUpResult {
        let asked_at = Instant::now();
        let addresses = resolve_by(endpoint, self.resolver.look_up(endpoint)).await?;
        Ok(Arc::new(Answer {
            endpoint: endpoint.clone(),
            asked_at,
            addresses,
        }))
    }
}

impl State {
    fn usable(&self, endpoint: &Endpoint) -> Option<Arc<Answer>> {
        let answer = self.answer.as_ref()?;
        (answer.endpoint == *endpoint && answer.age() < USABLE).then(|| answer.clone())
    }
}

impl Answer {
    fn age(&self) -> Duration {
        self.asked_at.elapsed()
    }
}

/// An IP address needs no look-up, and where each answer names another server, a kept one would
/// send all the logins of a second to the same.
fn is_worth_keeping(endpoint: &Endpoint) -> bool {
    endpoint.host.parse::<IpAddr>().is_err() && !names_several_servers(endpoint)
}

/// Whether this is one of Aurora's reader and custom endpoints. Each answer of the DNS is one of
/// several servers, and the others are just as good.
pub(super) fn names_several_servers(endpoint: &Endpoint) -> bool {
    [".cluster-ro-", ".cluster-custom-"]
        .iter()
        .any(|label| endpoint.host.contains(label))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use tokio::time::{advance, sleep};

    use super::*;
    use crate::error::chain;

    /// A DNS that the test changes.
    #[derive(Clone, Default)]
    struct FakeDns(Arc<FakeState>);

    #[derive(Default)]
    struct FakeState {
        asked: AtomicUsize,
        /// `None` for a name that does not exist.
        address: Mutex<Option<SocketAddr>>,
        takes: Mutex<Duration>,
    }

    impl FakeDns {
        fn at(address: u8) -> (Self, Addresses<Self>) {
            let dns = Self::default();
            dns.point(address);
            (dns.clone(), Addresses::found_by(dns))
        }

        fn point(&self, address: u8) {
            *self.0.address.lock() = Some(([10, 0, 0, address], 5432).into());
        }

        fn fail(&self) {
            *self.0.address.lock() = None;
        }

        fn delay(&self, by: Duration) {
            *self.0.takes.lock() = by;
        }

        fn asked(&self) -> usize {
            self.0.asked.load(SeqCst)
        }
    }

    impl LookUp for FakeDns {
        async fn look_up(&self, _endpoint: &Endpoint) -> io::Result<Vec<SocketAddr>> {
            self.0.asked.fetch_add(1, SeqCst);
            let address = *self.0.address.lock();
            let takes = *self.0.takes.lock();
            sleep(takes).await;
            Ok(vec![address.ok_or(io::ErrorKind::NotFound)?])
        }
    }

    fn endpoint(host: &str) -> Endpoint {
        Endpoint {
            host: host.to_string(),
            port: 5432,
        }
    }

    const NAME: &str = "db.example.com";

    /// The last byte of the address that a login finds.
    async fn find(addresses: &Addresses<FakeDns>) -> Result<u8, String> {
        let found = addresses.find(&endpoint(NAME)).await;
        let found = found.map_err(|error| chain(&error))?;
        match found.answer.addresses[..] {
            [UpstreamAddr(SocketAddr::V4(address))] => Ok(address.ip().octets()[3]),
            ref other => panic!("{other:?}"),
        }
    }

    /// Lets tasks that could go on do so.
    async fn settle() {
        sleep(Duration::from_millis(1)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn logins_at_the_same_time_share_one_look_up() {
        let (dns, addresses) = FakeDns::at(1);
        dns.delay(Duration::from_millis(30));
        let (one, other, third) =
            tokio::join!(find(&addresses), find(&addresses), find(&addresses));
        assert_eq!([one, other, third], [Ok(1), Ok(1), Ok(1)]);
        assert_eq!(dns.asked(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_up_goes_on_when_the_login_that_began_it_is_abandoned() {
        let (dns, addresses) = FakeDns::at(1);
        dns.delay(Duration::from_millis(30));
        let wait = Duration::from_millis(10);
        let abandoned = tokio::time::timeout(wait, find(&addresses));
        let (abandoned, other) = tokio::join!(abandoned, find(&addresses));
        abandoned.unwrap_err();
        assert_eq!((other, dns.asked()), (Ok(1), 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_in_use_is_asked_for_once_a_second_and_no_login_waits() {
        let (dns, addresses) = FakeDns::at(1);
        dns.delay(Duration::from_millis(30));
        find(&addresses).await.unwrap();
        for _ in 0..100 {
            let begun = Instant::now();
            find(&addresses).await.unwrap();
            assert_eq!(begun.elapsed(), Duration::ZERO);
            sleep(Duration::from_millis(100)).await;
        }
        assert!((9..=11).contains(&dns.asked()), "{}", dns.asked());
    }

    #[tokio::test(start_paused = true)]
    async fn every_login_sees_a_failover_by_dns_within_five_seconds() {
        for pause in [100, 900, 1_500, 2_499, 4_999, 5_000, 60_000].map(Duration::from_millis) {
            let (dns, addresses) = FakeDns::at(1);
            assert_eq!(find(&addresses).await, Ok(1));
            dns.point(2);
            let moved_at = Instant::now();
            while moved_at.elapsed() < 2 * USABLE {
                sleep(pause).await;
                let found = find(&addresses).await.unwrap();
                let late = moved_at.elapsed();
                assert!(found == 2 || late < USABLE, "{pause:?}: {late:?}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_connection_has_failed_the_next_login_asks_afresh() {
        let (dns, addresses) = FakeDns::at(1);
        let first = addresses.find(&endpoint(NAME)).await.unwrap();
        assert!(!first.is_kept);
        let second = addresses.find(&endpoint(NAME)).await.unwrap();
        assert!(second.is_kept);
        dns.point(2);
        addresses.forget(&second.answer);
        assert_eq!(find(&addresses).await, Ok(2));
        // Another login that has failed at the old address says nothing about the new one.
        addresses.forget(&first.answer);
        assert_eq!(find(&addresses).await, Ok(2));
        assert_eq!(dns.asked(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_wait_share_a_failure_and_the_next_login_asks_again() {
        let (dns, addresses) = FakeDns::at(1);
        dns.fail();
        dns.delay(Duration::from_millis(30));
        let (one, other) = tokio::join!(find(&addresses), find(&addresses));
        assert_eq!(one, other);
        assert!(
            one.unwrap_err()
                .starts_with("cannot resolve db.example.com")
        );
        assert_eq!(dns.asked(), 1);
        dns.point(1);
        assert_eq!((find(&addresses).await, dns.asked()), (Ok(1), 2));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_outlives_failing_look_ups_for_five_seconds() {
        let (dns, addresses) = FakeDns::at(1);
        find(&addresses).await.unwrap();
        dns.fail();
        advance(Duration::from_millis(4_900)).await;
        assert_eq!(find(&addresses).await, Ok(1));
        settle().await;
        assert_eq!(
            dns.asked(),
            2,
            "the failure was seen, and kept from the login"
        );
        advance(Duration::from_millis(100)).await;
        find(&addresses).await.unwrap_err();
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_a_dns_that_hangs_longer_than_a_connection_may_take() {
        let (dns, addresses) = FakeDns::at(1);
        dns.delay(Duration::from_hours(1));
        let begun = Instant::now();
        let late = async {
            sleep(Duration::from_secs(7)).await;
            find(&addresses).await
        };
        let (first, late) = tokio::join!(find(&addresses), late);
        assert_eq!(
            first.unwrap_err(),
            "cannot resolve db.example.com: timed out"
        );
        late.unwrap_err();
        assert_eq!(begun.elapsed(), Duration::from_secs(8));
        // With an answer at hand nobody waits at all, and one look-up hangs, however many log in.
        dns.delay(Duration::ZERO);
        find(&addresses).await.unwrap();
        dns.delay(Duration::from_hours(1));
        let asked = dns.asked();
        advance(2 * FRESH).await;
        for _ in 0..20 {
            assert_eq!(find(&addresses).await, Ok(1));
            settle().await;
        }
        assert_eq!(dns.asked(), asked + 1);
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_pool_finds_out_serves_the_logins() {
        let (dns, addresses) = FakeDns::at(1);
        find(&addresses).await.unwrap();
        dns.point(2);
        addresses.ask(&endpoint(NAME)).await.unwrap();
        assert_eq!((find(&addresses).await, dns.asked()), (Ok(2), 2));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_for_one_endpoint() {
        let (dns, addresses) = FakeDns::at(1);
        find(&addresses).await.unwrap();
        let other = Endpoint {
            port: 5433,
            ..endpoint(NAME)
        };
        assert!(!addresses.find(&other).await.unwrap().is_kept);
        assert_eq!(dns.asked(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn every_login_to_readers_asks_so_that_they_share_the_load() {
        let (dns, addresses) = FakeDns::at(1);
        let readers = endpoint("x.cluster-ro-abc.us-west-2.rds.amazonaws.com");
        for _ in 0..3 {
            assert!(!addresses.find(&readers).await.unwrap().is_kept);
        }
        assert_eq!(dns.asked(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_kept_for_an_ip_address() {
        let (_dns, addresses) = FakeDns::at(1);
        for host in ["10.0.0.1", "::1"] {
            addresses.find(&endpoint(host)).await.unwrap();
            assert!(addresses.0.state.lock().answer.is_none());
        }
    }
}
