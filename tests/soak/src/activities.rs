//! What do the clients of the soak do, all at once?

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{Context, SHA256, digest};
use bench::process::pause;

use crate::client::{Client, Door, Failure, Outcome, Version};
use crate::faults::Faults;
use crate::proxy::Target;
use crate::tally::Tally;

/// A row of COPY has a number, a tab, and this many times the SHA-256 of the number, in hexadecimal.
const REPEATS: usize = 16;
/// The rows of one COPY down, and of one up, which the server has to hold.
const ROWS_DOWN: u64 = 16_384;
const ROWS_UP: u64 = 8_192;
/// The bytes of a value that goes there and back.
const ECHO: usize = 200_000;

/// What all activities share while they run.
pub struct Scene<'a> {
    pub doors: &'a [Door],
    pub faults: &'a Faults,
    pub tally: &'a Tally,
    pub end: Instant,
    /// How many bytes are copied each way until then.
    pub bytes: u64,
}

/// What one turn of an activity moved.
struct Turn {
    bytes: u64,
    /// How long the client stays away until the next turn.
    pause: Duration,
}

static NUMBER: AtomicU64 = AtomicU64::new(1);

/// Runs everything until the end of the scene.
pub fn run(scene: &Scene<'_>) {
    std::thread::scope(|scope| {
        for turn in 0..4 {
            scope.spawn(move || log_in(scene, turn));
        }
        for (target, door) in [
            (Target::App, 3),
            (Target::Kept, 0),
            (Target::Warm, 2),
            (Target::Warehouse, 1),
        ] {
            scope.spawn(move || query(scene, target, &scene.doors[door]));
        }
        for (target, door) in [(Target::App, 0), (Target::Warehouse, 3)] {
            scope.spawn(move || copy_down(scene, target, &scene.doors[door]));
        }
        for (target, door) in [(Target::App, 3), (Target::Warehouse, 0)] {
            scope.spawn(move || copy_up(scene, target, &scene.doors[door]));
        }
        for (target, door) in [(Target::Kept, 0), (Target::Warehouse, 5), (Target::App, 4)] {
            scope.spawn(move || cancel(scene, target, &scene.doors[door]));
        }
        for (target, door) in [(Target::App, 3), (Target::Warehouse, 4)] {
            scope.spawn(move || update_keys(scene, target, &scene.doors[door]));
        }
    });
}

impl Scene<'_> {
    /// Takes turns until the end. What fails is explained by a fault or fails the run.
    fn repeat(&self, activity: &'static str, mut turn: impl FnMut() -> (Target, Outcome<Turn>)) {
        while Instant::now() < self.end {
            self.once(activity, &mut turn);
        }
    }

    fn once(&self, activity: &'static str, turn: &mut impl FnMut() -> (Target, Outcome<Turn>)) {
        let begun = Instant::now();
        let (target, outcome) = turn();
        match outcome {
            Ok(turn) => {
                self.tally.done(activity, turn.bytes, begun.elapsed());
                pause(turn.pause);
            }
            Err(failure) => {
                let fault = self.faults.explain(target, begun, Instant::now(), &failure);
                self.tally.failed(activity, target, &failure, fault);
                pause(Duration::from_millis(100));
            }
        }
    }

    /// Copies a worker's half of all bytes, as evenly as they were spread over the time. What
    /// faults have cost is made up for after the end, for as long again at most.
    fn copy(&self, activity: &'static str, target: Target, mut turn: impl FnMut() -> Outcome<u64>) {
        let begun = Instant::now();
        let (time, share) = (self.end - begun, self.bytes / 2);
        let mut moved = 0;
        while moved < share && begun.elapsed() < 2 * time {
            self.once(activity, &mut || {
                let outcome = turn().map(|bytes| {
                    moved += bytes;
                    Turn {
                        bytes,
                        pause: Duration::ZERO,
                    }
                });
                (target, outcome)
            });
            #[allow(clippy::cast_precision_loss, reason = "it is a share")]
            let due = time.mul_f64(moved as f64 / share as f64);
            pause(due.saturating_sub(begun.elapsed()).min(time));
        }
        if moved < share {
            let text = format!("{moved} of {share} bytes were copied in time");
            self.tally
                .failed(activity, target, &Failure::Wrong(text), None);
        }
    }
}

fn number() -> u64 {
    NUMBER.fetch_add(1, Ordering::Relaxed)
}

fn version(number: u64) -> Version {
    if number.is_multiple_of(2) {
        Version::V3_0
    } else {
        Version::V3_2
    }
}

fn open(target: Target, door: &Door) -> Outcome<Client> {
    Client::log_in(door, version(number()), target.database())
}

/// A session that is opened when it is needed, and left for good when it has failed.
fn with<T>(
    held: &mut Option<Client>,
    target: Target,
    door: &Door,
    work: impl FnOnce(&mut Client) -> Outcome<T>,
) -> Outcome<T> {
    let mut client = match held.take() {
        Some(client) => client,
        None => open(target, door)?,
    };
    let done = work(&mut client)?;
    *held = Some(client);
    Ok(done)
}

fn equal(what: &str, got: &str, expected: &str) -> Outcome<()> {
    if got == expected {
        return Ok(());
    }
    let first = |text: &str| text.chars().take(60).collect::<String>();
    Err(Failure::Wrong(format!(
        "{what}: {:?} ({} bytes) instead of {:?} ({} bytes)",
        first(got),
        got.len(),
        first(expected),
        expected.len()
    )))
}

fn log_in(scene: &Scene<'_>, turn: usize) {
    let mut turn = turn;
    scene.repeat("logins", || {
        turn += 1;
        let target = Target::ALL[turn % Target::ALL.len()];
        let door = &scene.doors[turn / Target::ALL.len() % scene.doors.len()];
        let outcome = open(target, door).and_then(|mut client| {
            let number = number();
            let got = client.value(&format!("select current_user || ' ' || {number} * 2"))?;
            equal(
                "a login",
                &got,
                &format!("{} {}", target.user(), number * 2),
            )?;
            // Most clients say goodbye, and some do not.
            if !number.is_multiple_of(8) {
                client.leave()?;
            }
            Ok(Turn {
                bytes: 0,
                pause: Duration::from_millis(40),
            })
        });
        (target, outcome)
    });
}

fn query(scene: &Scene<'_>, target: Target, door: &Door) {
    let mut held = None;
    scene.repeat("queries", || {
        let outcome = with(&mut held, target, door, |client| {
            let number = number();
            let got = client.value(&format!(
                "select md5('{number}') || count(*) from generate_series(1, {})",
                number % 1000
            ))?;
            let own = client.value(&format!("select md5('{number}')"))?;
            equal("a query", &got, &format!("{own}{}", number % 1000))?;
            let length = usize::try_from(number * 7919).unwrap_or_default() % 100_000;
            let echo = "e".repeat(length);
            equal(
                "an echo",
                &client.value(&format!("select '{echo}'"))?,
                &echo,
            )?;
            Ok((number, 2 * length))
        });
        // Every fiftieth time or so it is another session.
        if matches!(outcome, Ok((number, _)) if number % 50 == 0)
            && let Some(client) = held.take()
        {
            let _ = client.leave();
        }
        let turn = outcome.map(|(_, bytes)| Turn {
            bytes: bytes as u64,
            pause: Duration::from_millis(20),
        });
        (target, turn)
    });
}

/// The text of a row, which both ends can make.
fn row(number: u64) -> String {
    let hash = digest(&SHA256, number.to_string().as_bytes());
    format!("{number}\t{}\n", hexadecimal(hash.as_ref()).repeat(REPEATS))
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The same in SQL.
const VALUE: &str = "repeat(encode(sha256(convert_to(n::text, 'UTF8')), 'hex'), 16)";

fn copy_down(scene: &Scene<'_>, target: Target, door: &Door) {
    let mut held = None;
    scene.copy("COPY down", target, || {
        with(&mut held, target, door, |client| {
            let first = number() * ROWS_DOWN;
            let last = first + ROWS_DOWN - 1;
            let (mut got, mut bytes) = (Context::new(&SHA256), 0);
            let sql = format!(
                "copy (select n, {VALUE} from generate_series({first}, {last}) n) to stdout"
            );
            client.copy_down(&sql, |row| {
                got.update(row);
                bytes += row.len() as u64;
            })?;
            let mut expected = Context::new(&SHA256);
            for number in first..=last {
                expected.update(row(number).as_bytes());
            }
            let [got, expected] =
                [got, expected].map(|context| hexadecimal(context.finish().as_ref()));
            equal("the checksum of a COPY down", &got, &expected)?;
            client.update_keys()?;
            Ok(bytes)
        })
    });
}

fn copy_up(scene: &Scene<'_>, target: Target, door: &Door) {
    let mut held = None;
    scene.copy("COPY up", target, || {
        with(&mut held, target, door, |client| {
            client.value("create temporary table if not exists up (n bigint, v text)")?;
            client.value("truncate up")?;
            let first = number() * ROWS_UP;
            let rows: String = (first..first + ROWS_UP).map(row).collect();
            client.copy_up("copy up from stdin", rows.as_bytes())?;
            let got = client.value(
                "select encode(sha256(convert_to(string_agg(n || E'\\t' || v || E'\\n', '' order \
                 by n), 'UTF8')), 'hex') from up",
            )?;
            let expected = hexadecimal(digest(&SHA256, rows.as_bytes()).as_ref());
            equal("the checksum of a COPY up", &got, &expected)?;
            client.update_keys()?;
            Ok(rows.len() as u64)
        })
    });
}

/// Cancels a query beside another one of the same kind, which must go on.
fn cancel(scene: &Scene<'_>, target: Target, door: &Door) {
    scene.repeat("cancels", || {
        let outcome = (|| {
            let (mut sleeper, mut neighbour) = (open(target, door)?, open(target, door)?);
            let pid = sleeper.value("select pg_backend_pid()")?;
            sleeper.start("select pg_sleep(120)")?;
            // All users can see the lock that a running transaction holds on its own virtual ID.
            let running = format!(
                "select count(*) from pg_locks where pid = {pid} and locktype = 'virtualxid'"
            );
            while neighbour.value(&running)? != "1" {
                pause(Duration::from_millis(5));
            }
            neighbour.start("select 'mine' from pg_sleep(0.2)")?;
            sleeper.cancel(door)?;
            match sleeper.finish() {
                Err(Failure::Error { sqlstate, .. }) if sqlstate == "57014" => {}
                Err(failure) => return Err(failure),
                Ok(_) => return Err(Failure::Wrong("a query was not cancelled".into())),
            }
            equal("the neighbour", &neighbour.finish()?, "mine")?;
            equal("after a cancel", &sleeper.value("select 'again'")?, "again")?;
            sleeper.leave()?;
            neighbour.leave()?;
            Ok(Turn {
                bytes: 0,
                pause: Duration::from_millis(100),
            })
        })();
        (target, outcome)
    });
}

/// Changes the keys of both directions between queries and answers that span many records.
fn update_keys(scene: &Scene<'_>, target: Target, door: &Door) {
    let mut held = None;
    scene.repeat("key updates", || {
        let outcome = with(&mut held, target, door, |client| {
            let echo = char::from(b'a' + (number() % 26) as u8)
                .to_string()
                .repeat(ECHO);
            client.update_keys()?;
            client.start(&format!("select '{echo}'"))?;
            client.update_keys()?;
            equal("an echo", &client.finish()?, &echo)?;
            Ok(Turn {
                bytes: 2 * echo.len() as u64,
                pause: Duration::from_millis(50),
            })
        });
        (target, outcome)
    });
}
