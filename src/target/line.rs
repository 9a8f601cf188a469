//! Who is next at a database server? Whoever wants a connection there waits in a line.
//!
//! A turn is taken only when it is due, and only by the head of the line. So whoever leaves the
//! line, at whatever moment, leaves nothing behind: turns that are taken in advance and not used
//! would add up to a time in which nobody is served.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Mutex, Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep_until, timeout};

/// How long one may wait in line.
const MAX_WAIT: Duration = Duration::from_secs(10);
/// What has not been used lately may be used at once, up to this much time's worth: a pool that
/// opens its connections together does not wait, whereas a storm does.
const BURST: Duration = Duration::from_millis(100);

/// A line that is served in order, at equal intervals, and by a limited number at a time.
pub(super) struct Line {
    interval: Duration,
    /// The moment from which on the next turn is due. Who holds the lock is the head of the line;
    /// tokio hands it on in the order of arrival.
    due: Mutex<Instant>,
    in_flight: Semaphore,
    waiting: AtomicUsize,
    max_waiting: usize,
}

/// Counts as one that is in flight until it is dropped.
#[derive(Debug)]
pub(super) struct Turn<'a>(
    #[expect(dead_code, reason = "it is held for what its drop does")] Option<SemaphorePermit<'a>>,
);

/// The line is too long, or has moved too slowly.
#[derive(Debug)]
pub(super) struct TooLong;

/// A place in line, which is free again when it is dropped.
struct Place<'a>(&'a AtomicUsize);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Line {
    /// Creates a line that lets this many a second begin, and this many be in flight at a time. No
    /// more than `max_waiting` wait, and no more than can be served in time.
    pub fn new(per_second: NonZeroU32, in_flight: usize, max_waiting: usize) -> Self {
        let interval = Duration::from_secs(1) / per_second.get();
        // The next turn may be a whole interval away, so the last in line waits that much longer.
        let in_time = MAX_WAIT.as_secs() * u64::from(per_second.get()) - 1;
        Self {
            interval,
            due: Mutex::new(Instant::now()),
            in_flight: Semaphore::new(in_flight),
            waiting: AtomicUsize::new(0),
            max_waiting: usize::try_from(in_time).map_or(max_waiting, |all| all.min(max_waiting)),
        }
    }

    /// Waits until it is one's turn. Dropping the future leaves the line.
    ///
    /// # Errors
    /// At once, if the line is so long that one would wait in vain; after ten seconds, if those in
    /// flight take that long.
    pub async fn turn(&self) -> Result<Turn<'_>, TooLong> {
        let _place = self.place()?;
        timeout(MAX_WAIT, self.wait()).await.map_err(|_| TooLong)
    }

    fn place(&self) -> Result<Place<'_>, TooLong> {
        let ahead = self.waiting.fetch_add(1, Ordering::Relaxed);
        let place = Place(&self.waiting);
        if ahead < self.max_waiting {
            Ok(place)
        } else {
            Err(TooLong)
        }
    }

    /// The head waits for the time first and for the permit second, and takes the turn third: so a
    /// permit never waits for the time, and a turn never waits for a permit.
    async fn wait(&self) -> Turn<'_> {
        let mut due = self.due.lock().await;
        if *due > Instant::now() {
            sleep_until(*due).await;
        }
        // The semaphore is never closed, so this is never `None`.
        let permit = self.in_flight.acquire().await.ok();
        let now = Instant::now();
        *due = (*due).max(now.checked_sub(BURST).unwrap_or(now)) + self.interval;
        Turn(permit)
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::Arc;
    use std::task::{Context, Poll, Waker};

    use tokio::task::JoinSet;
    use tokio::time::{advance, sleep};

    use super::*;

    fn line(per_second: u32, in_flight: usize) -> Line {
        let per_second = NonZeroU32::new(per_second).unwrap();
        Line::new(per_second, in_flight, usize::MAX)
    }

    /// The seconds that pass until it is one's turn.
    async fn wait_of(line: &Line) -> f64 {
        let started = Instant::now();
        line.turn().await.expect("a turn");
        started.elapsed().as_secs_f64()
    }

    #[tokio::test(start_paused = true)]
    async fn turns_come_at_intervals_after_a_burst_of_a_tenth_of_a_second() {
        let line = line(20, 100);
        advance(Duration::from_mins(1)).await;
        let started = Instant::now();
        let mut turns = Vec::new();
        for _ in 0..5 {
            line.turn().await.unwrap();
            turns.push(started.elapsed().as_millis());
        }
        assert_eq!(turns, [0, 0, 0, 50, 100]);
        advance(Duration::from_mins(1)).await;
        assert!(wait_of(&line).await < 0.001, "a pause is a fresh beginning");
    }

    #[tokio::test(start_paused = true)]
    async fn ten_thousand_who_leave_the_line_leave_nothing_behind() {
        for per_second in [1, 20] {
            let line = line(per_second, 100);
            line.turn().await.unwrap();
            for leaves_at_head in [true, false] {
                let mut head = pin!(line.turn());
                let mut context = Context::from_waker(Waker::noop());
                if !leaves_at_head {
                    assert!(head.as_mut().poll(&mut context).is_pending());
                }
                for _ in 0..10_000 {
                    let mut turn = pin!(line.turn());
                    match turn.as_mut().poll(&mut context) {
                        Poll::Pending => {}
                        Poll::Ready(Ok(_)) => panic!("none is due"),
                        Poll::Ready(Err(TooLong)) => panic!("all others have left"),
                    }
                }
            }
            assert!(wait_of(&line).await <= 1.001);
            assert_eq!(line.waiting.load(Ordering::Relaxed), 0);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn ten_times_as_many_as_can_be_served_do_not_slow_the_line_down() {
        const CLIENTS: usize = 500;
        for (in_flight, login) in [(100, 100), (1, 150), (5, 900)] {
            let line = Arc::new(line(5, in_flight));
            let served = Arc::new(AtomicUsize::new(0));
            let mut clients = JoinSet::new();
            for _ in 0..CLIENTS {
                let (line, served) = (line.clone(), served.clone());
                clients.spawn(async move {
                    loop {
                        if let Ok(turn) = line.turn().await {
                            sleep(Duration::from_millis(login)).await;
                            served.fetch_add(1, Ordering::Relaxed);
                            drop(turn);
                        }
                        sleep(Duration::from_millis(100)).await;
                    }
                });
            }
            for seconds in (10..=60).step_by(10) {
                sleep(Duration::from_secs(10)).await;
                let served = served.load(Ordering::Relaxed);
                assert!(
                    (seconds * 5 - 5..=seconds * 5 + 1).contains(&served),
                    "{served} in {seconds} s"
                );
            }
            clients.shutdown().await;
            assert!(wait_of(&line).await <= 1.0);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_line_is_served_in_order() {
        let line = Arc::new(line(10, 100));
        let order = Arc::new(parking_lot::Mutex::new(Vec::new()));
        let mut clients = JoinSet::new();
        for client in 0..50 {
            let (line, order) = (line.clone(), order.clone());
            clients.spawn(async move {
                line.turn().await.unwrap();
                order.lock().push(client);
            });
            tokio::task::yield_now().await;
        }
        clients.join_all().await;
        assert_eq!(*order.lock(), (0..50).collect::<Vec<_>>());
    }

    #[tokio::test(start_paused = true)]
    async fn who_would_wait_in_vain_is_told_at_once() {
        let line = Arc::new(line(5, 100));
        let mut clients = JoinSet::new();
        for _ in 0..200 {
            let line = line.clone();
            clients.spawn(async move {
                let started = Instant::now();
                let turn = line.turn().await.map(drop);
                (turn.is_ok(), started.elapsed())
            });
        }
        let (served, refused): (Vec<_>, Vec<_>) = clients
            .join_all()
            .await
            .into_iter()
            .partition(|(is_served, _)| *is_served);
        // One is served at once, and the last of 49 in line after 9.8 s.
        assert_eq!((served.len(), refused.len()), (50, 150));
        assert!(served.iter().all(|(_, wait)| *wait < MAX_WAIT));
        assert!(refused.iter().all(|(_, wait)| wait.is_zero()));
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_wait_than_the_bound() {
        let line = Line::new(NonZeroU32::new(100).unwrap(), 2, 3);
        let _in_flight = (line.turn().await.unwrap(), line.turn().await.unwrap());
        let mut context = Context::from_waker(Waker::noop());
        let mut waiting: Vec<_> = (0..3).map(|_| Box::pin(line.turn())).collect();
        for turn in &mut waiting {
            assert!(turn.as_mut().poll(&mut context).is_pending());
        }
        assert!(matches!(
            pin!(line.turn()).poll(&mut context),
            Poll::Ready(Err(TooLong))
        ));
        waiting.pop();
        assert!(pin!(line.turn()).poll(&mut context).is_pending());
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_waited_for_ten_seconds_is_told() {
        let line = line(100, 1);
        let _in_flight = line.turn().await.unwrap();
        let started = Instant::now();
        assert!(line.turn().await.is_err());
        assert_eq!(started.elapsed().as_secs(), 10);
    }
}
