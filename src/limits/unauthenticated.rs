//! How many clients may there be that have not proved who they are, and which of them goes when
//! there are too many?
//!
//! The oldest goes, as the newest may be a good one, and a good one does not stay for long. Where
//! one network holds more than a tenth of the places, the oldest of that network goes.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::descriptors;
use crate::address::{ClientAddr, network};
use crate::metrics::Metrics;

/// A network that holds more than one in this many places loses its own oldest client.
const LARGE_SHARE: usize = 10;
/// The time without a client that had to go after which the crowd is over.
const QUIET: Duration = Duration::from_secs(10);

/// The clients that have not proved who they are.
pub struct UnauthenticatedClients {
    bounds: Bounds,
    metrics: Arc<Metrics>,
    /// What is not needed for the crowd to be reported.
    table: Arc<Mutex<Table>>,
}

/// A client that has not proved who it is. Dropping it frees its place.
pub struct UnauthenticatedClient {
    id: u64,
    table: Arc<Mutex<Table>>,
    must_go: CancellationToken,
}

#[derive(Debug, Clone, Copy)]
struct Bounds {
    /// The most clients at a time.
    all: usize,
    /// The most clients of one source.
    source: usize,
}

/// What an attacker has one of, or a few.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Source {
    Network(IpAddr),
    /// A user of this operating system.
    User(u32),
}

#[derive(Default)]
struct Table {
    last_id: u64,
    /// The clients, the oldest first.
    clients: BTreeMap<u64, Client>,
    sources: HashMap<Source, BTreeSet<u64>>,
    /// The sources, the one with the most clients first.
    by_size: BTreeSet<(Reverse<usize>, Source)>,
    crowd: Option<Crowd>,
}

struct Client {
    source: Source,
    must_go: CancellationToken,
}

/// Clients that had to go, one soon after the other.
struct Crowd {
    closed: u64,
    last: Instant,
}

impl Bounds {
    /// The bounds where there may be this many sessions: a quarter of that, and no fewer than a
    /// thousand clients that come back at once after an outage, if there may be as many sessions.
    fn new(max_sessions: usize) -> Self {
        let all = (max_sessions / 4).max(max_sessions.clamp(100, 1_000));
        // Everybody behind a load balancer may have one address.
        let source = (all / 4 * 3).max(all.min(1_000));
        Self { all, source }
    }
}

impl UnauthenticatedClients {
    /// Creates the places where there may be this many sessions.
    pub fn new(max_sessions: usize, metrics: Arc<Metrics>) -> Self {
        Self {
            bounds: Bounds::new(max_sessions),
            metrics,
            table: Arc::default(),
        }
    }

    /// Gives a place to a client that has just been accepted, for which another may have to go.
    pub fn admit(&self, address: ClientAddr) -> UnauthenticatedClient {
        let source = Source::of(address);
        let mut table = self.table.lock();
        let is_full = table.clients.len() >= self.bounds.all;
        let leaves = if table.held_by(source) >= self.bounds.source {
            table.oldest_of(source)
        } else if is_full || descriptors::are_scarce(table.clients.len()) {
            table.next_to_go(self.bounds)
        } else {
            None
        };
        if let Some(id) = leaves {
            self.close(&mut table, id);
        }
        table.last_id += 1;
        let id = table.last_id;
        let must_go = CancellationToken::new();
        let client = Client {
            source,
            must_go: must_go.clone(),
        };
        table.clients.insert(id, client);
        table.enter(source, id);
        drop(table);
        UnauthenticatedClient {
            id,
            table: self.table.clone(),
            must_go,
        }
    }

    /// Closes a client, because the process has run out of file descriptors. Returns whether there
    /// was one.
    pub fn make_room(&self) -> bool {
        let mut table = self.table.lock();
        let id = table.next_to_go(self.bounds);
        if let Some(id) = id {
            self.close(&mut table, id);
        }
        id.is_some()
    }

    fn close(&self, table: &mut Table, id: u64) {
        if let Some(client) = table.remove(id) {
            client.must_go.cancel();
        }
        self.metrics.unauthenticated_client_closed();
        let now = Instant::now();
        if let Some(crowd) = &mut table.crowd {
            crowd.closed += 1;
            crowd.last = now;
            return;
        }
        table.crowd = Some(Crowd {
            closed: 1,
            last: now,
        });
        tracing::warn!(
            open = table.clients.len() + 1,
            limit = self.bounds.all,
            limit_of_one_network = self.bounds.source,
            "too many clients that have not proved who they are, or too few file descriptors: \
             closing the oldest"
        );
        tokio::spawn(report_end(self.table.clone()));
    }
}

/// Waits until the crowd is over, and logs how many clients had to go.
async fn report_end(table: Arc<Mutex<Table>>) {
    loop {
        let quiet = match &table.lock().crowd {
            Some(crowd) => crowd.last + QUIET,
            None => return,
        };
        sleep_until(quiet).await;
        let mut table = table.lock();
        if let Some(crowd) = table.crowd.take_if(|crowd| crowd.last + QUIET <= quiet) {
            tracing::warn!(
                closed = crowd.closed,
                "no more clients are closed for others that have not proved who they are"
            );
            return;
        }
    }
}

impl UnauthenticatedClient {
    /// Counts the client as coming from another address, which a PROXY header has told.
    pub fn comes_from(&self, address: ClientAddr) {
        let (source, mut table) = (Source::of(address), self.table.lock());
        let Some(client) = table.clients.get_mut(&self.id) else {
            return;
        };
        let before = std::mem::replace(&mut client.source, source);
        table.leave(before, self.id);
        table.enter(source, self.id);
    }

    /// Completes when the client has to go.
    pub async fn must_go(&self) {
        self.must_go.cancelled().await;
    }

    /// Frees the place, because the client has proved who it is, or counts elsewhere.
    pub fn free(&self) {
        self.table.lock().remove(self.id);
    }
}

impl Drop for UnauthenticatedClient {
    fn drop(&mut self) {
        self.free();
    }
}

impl Source {
    fn of(address: ClientAddr) -> Self {
        match address {
            ClientAddr::Network(address) => Self::Network(network(address.ip())),
            ClientAddr::Local(user) => Self::User(user),
        }
    }
}

impl Table {
    fn held_by(&self, source: Source) -> usize {
        self.sources.get(&source).map_or(0, BTreeSet::len)
    }

    fn oldest_of(&self, source: Source) -> Option<u64> {
        self.sources.get(&source)?.first().copied()
    }

    fn next_to_go(&self, bounds: Bounds) -> Option<u64> {
        let &(Reverse(size), source) = self.by_size.first()?;
        if size > bounds.all / LARGE_SHARE {
            return self.oldest_of(source);
        }
        self.clients.first_key_value().map(|(id, _)| *id)
    }

    fn remove(&mut self, id: u64) -> Option<Client> {
        let client = self.clients.remove(&id)?;
        self.leave(client.source, id);
        Some(client)
    }

    fn enter(&mut self, source: Source, id: u64) {
        let clients = self.sources.entry(source).or_default();
        self.by_size.remove(&(Reverse(clients.len()), source));
        clients.insert(id);
        self.by_size.insert((Reverse(clients.len()), source));
    }

    fn leave(&mut self, source: Source, id: u64) {
        let Some(clients) = self.sources.get_mut(&source) else {
            return;
        };
        self.by_size.remove(&(Reverse(clients.len()), source));
        clients.remove(&id);
        if clients.is_empty() {
            self.sources.remove(&source);
        } else {
            self.by_size.insert((Reverse(clients.len()), source));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    fn clients(max_sessions: usize) -> UnauthenticatedClients {
        UnauthenticatedClients::new(max_sessions, Arc::new(Metrics::new([].into_iter())))
    }

    fn client(address: &str) -> ClientAddr {
        ClientAddr::Network(SocketAddr::new(address.parse().unwrap(), 5432))
    }

    fn must_go(admitted: &UnauthenticatedClient) -> bool {
        admitted.must_go.is_cancelled()
    }

    fn count(clients: &UnauthenticatedClients) -> usize {
        clients.table.lock().clients.len()
    }

    #[test]
    fn there_are_places_for_every_session_up_to_a_thousand_and_for_a_quarter_above() {
        let bounds = |max_sessions| {
            let Bounds { all, source } = Bounds::new(max_sessions);
            (all, source)
        };
        assert_eq!(bounds(1), (100, 100));
        assert_eq!(bounds(500), (500, 500));
        assert_eq!(bounds(1_000), (1_000, 1_000));
        assert_eq!(bounds(10_000), (2_500, 1_875));
    }

    #[tokio::test]
    async fn the_oldest_goes() {
        let clients = clients(100);
        let all: Vec<_> = (0..100)
            .map(|number| clients.admit(client(&format!("192.0.2.{number}"))))
            .collect();
        assert!(!all.iter().any(must_go));
        let newest = clients.admit(client("198.51.100.1"));
        assert!(must_go(&all[0]) && !all[1..].iter().any(must_go));
        assert!(!must_go(&newest));
        assert_eq!(count(&clients), 100);
        drop((all, newest));
        assert_eq!(count(&clients), 0);
        assert!(clients.table.lock().sources.is_empty());
        assert!(clients.table.lock().by_size.is_empty());
    }

    #[tokio::test]
    async fn a_network_with_many_clients_loses_its_own() {
        let clients = clients(100);
        let first = clients.admit(client("192.0.2.1"));
        let crowd: Vec<_> = (0..99)
            .map(|number| clients.admit(client(&format!("2001:db8::{number}"))))
            .collect();
        let _more: Vec<_> = (0..30)
            .map(|_| clients.admit(client("198.51.100.1")))
            .collect();
        assert!(!must_go(&first));
        assert_eq!(
            crowd.iter().filter(|admitted| must_go(admitted)).count(),
            30
        );
    }

    #[tokio::test]
    async fn one_network_does_not_take_all_places_of_a_large_proxy() {
        let clients = clients(10_000);
        let first = clients.admit(client("192.0.2.1"));
        let crowd: Vec<_> = (0..5_000)
            .map(|_| clients.admit(client("198.51.100.1")))
            .collect();
        assert_eq!(count(&clients), 1 + 1_875);
        assert!(!must_go(&first));
        drop(crowd);
    }

    #[tokio::test]
    async fn the_address_of_a_proxy_header_counts_in_place_of_the_balancers() {
        let clients = clients(100);
        let crowd: Vec<_> = (0..90)
            .map(|number| {
                let admitted = clients.admit(client("10.0.0.1"));
                admitted.comes_from(client(&format!("192.0.2.{number}")));
                admitted
            })
            .collect();
        let table = clients.table.lock();
        assert_eq!((table.sources.len(), table.by_size.len()), (90, 90));
        assert_eq!(table.held_by(Source::of(client("10.0.0.1"))), 0);
        drop(table);
        drop(crowd);
        assert_eq!(count(&clients), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_crowd_is_over_when_nobody_had_to_go_for_a_while() {
        let clients = clients(1);
        let mut crowd: Vec<_> = (0..101)
            .map(|_| clients.admit(client("192.0.2.1")))
            .collect();
        tokio::time::sleep(QUIET / 2).await;
        crowd.push(clients.admit(client("192.0.2.1")));
        tokio::time::sleep(QUIET / 2 + Duration::from_secs(1)).await;
        assert_eq!(clients.table.lock().crowd.as_ref().unwrap().closed, 2);
        tokio::time::sleep(QUIET).await;
        assert!(clients.table.lock().crowd.is_none());
    }
}
