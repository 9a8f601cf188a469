//! What goes wrong during the soak, when, and which errors of clients does it explain?

use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::Result;
use bench::process::pause;
use testbed::{Aws, Fault, Stop, Testbed};

use crate::client::Failure;
use crate::proxy::Target;

/// How long after a server is back logins may fail: the proxy's own waits and queues have to end.
const GRACE: Duration = Duration::from_secs(10);
/// The same after AWS is back. Requests that hung are given up by then.
const AWS_GRACE: Duration = Duration::from_secs(15);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Aws(Fault),
    Rds(Stop),
    Redshift(Stop),
}

const CYCLE: [Kind; 7] = [
    Kind::Aws(Fault::InternalError),
    Kind::Rds(Stop::Fast),
    Kind::Aws(Fault::Hang),
    Kind::Redshift(Stop::Immediate),
    Kind::Rds(Stop::Kill),
    Kind::Aws(Fault::Throttle),
    Kind::Redshift(Stop::Fast),
];

#[derive(Default)]
pub struct Faults {
    windows: Mutex<Vec<Window>>,
}

struct Window {
    kind: Kind,
    begun: Instant,
    ended: Option<Instant>,
}

impl Faults {
    /// Injects one fault after another, so that the last one is over a tenth of the time before
    /// `end`. Returns how many there were.
    pub fn inject(&self, bed: &Testbed, aws: &Aws, end: Instant) -> Result<usize> {
        let begun = Instant::now();
        let time = (end - begun).mul_f64(0.9);
        let every = (time / 7).clamp(Duration::from_secs(9), Duration::from_mins(1));
        let mut count = 0;
        while begun.elapsed() + every < time {
            let kind = CYCLE[count % CYCLE.len()];
            let quiet = every.mul_f64(0.4);
            pause(quiet);
            let index = self.begin(kind);
            // An outage outlives some credentials, which live for a minute.
            let length = every.mul_f64(0.5);
            match kind {
                Kind::Aws(fault) => {
                    aws.set_fault(fault);
                    pause(length);
                    aws.set_fault(None);
                }
                Kind::Rds(how) => restart(bed.rds_server(), how, length)?,
                Kind::Redshift(how) => restart(bed.redshift_server(), how, length)?,
            }
            self.end(index);
            count += 1;
            let next = every * u32::try_from(count)?;
            pause(next.saturating_sub(begun.elapsed()));
        }
        Ok(count)
    }

    /// Which fault explains that something failed with this target between two times?
    pub fn explain(
        &self,
        target: Target,
        from: Instant,
        to: Instant,
        failure: &Failure,
    ) -> Option<Kind> {
        let windows = self.windows.lock().expect("nobody panics with it");
        let mut windows = windows.iter().rev();
        let window = windows.find(|window| {
            let grace = match window.kind {
                Kind::Aws(_) => AWS_GRACE,
                _ => GRACE,
            };
            window.begun <= to
                && window.ended.is_none_or(|ended| from <= ended + grace)
                && explains(window.kind, target, failure)
        });
        window.map(|window| window.kind)
    }

    fn begin(&self, kind: Kind) -> usize {
        let mut windows = self.windows.lock().expect("nobody panics with it");
        windows.push(Window {
            kind,
            begun: Instant::now(),
            ended: None,
        });
        windows.len() - 1
    }

    fn end(&self, index: usize) {
        self.windows.lock().expect("nobody panics with it")[index].ended = Some(Instant::now());
    }
}

fn restart(server: &testbed::Postgres, how: Stop, length: Duration) -> Result<()> {
    server.stop(how)?;
    pause(length.min(Duration::from_secs(5)));
    server.start_again()
}

fn explains(kind: Kind, target: Target, failure: &Failure) -> bool {
    let stopped = match kind {
        Kind::Aws(_) => false,
        Kind::Rds(_) => !target.is_redshift(),
        Kind::Redshift(_) => target.is_redshift(),
    };
    match failure {
        Failure::Error { sqlstate, .. } => match kind {
            // AWS cannot be asked; nothing else happens to a login, and nothing at all to sessions.
            Kind::Aws(_) => sqlstate == "57P03",
            // The server's own words when it stops and starts, and the proxy's when it cannot be
            // reached, closes during the login, or has too many waiting for it.
            _ => {
                stopped
                    && ["57P01", "57P02", "57P03", "08001", "08006"].contains(&sqlstate.as_str())
            }
        },
        Failure::Closed(_) => stopped,
        Failure::Hung | Failure::Wrong(_) => false,
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Kind::Aws(fault) => write!(f, "AWS {fault:?}"),
            Kind::Rds(how) => write!(f, "RDS stopped, {how:?}"),
            Kind::Redshift(how) => write!(f, "Redshift stopped, {how:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(sqlstate: &str) -> Failure {
        Failure::Error {
            sqlstate: sqlstate.to_owned(),
            message: String::new(),
        }
    }

    #[test]
    fn an_error_is_explained_by_a_fault_of_its_kind_at_its_time_and_by_no_other() {
        let faults = Faults::default();
        let now = Instant::now();
        let explain = |target, at, failure: &Failure| faults.explain(target, at, at, failure);
        let closed = Failure::Closed(String::new());
        assert_eq!(explain(Target::App, now, &closed), None, "no fault yet");
        let kind = Kind::Rds(Stop::Fast);
        let index = faults.begin(kind);
        let during = Instant::now();
        assert_eq!(explain(Target::App, during, &closed), Some(kind));
        assert_eq!(explain(Target::App, during, &error("57P01")), Some(kind));
        assert_eq!(explain(Target::App, now, &closed), None, "too early");
        assert_eq!(explain(Target::Warehouse, during, &closed), None);
        assert_eq!(explain(Target::App, during, &error("XX000")), None);
        assert_eq!(explain(Target::App, during, &Failure::Hung), None);
        faults.end(index);
        let late = Instant::now() + GRACE + Duration::from_secs(1);
        assert_eq!(explain(Target::App, late, &closed), None, "too late");
    }

    #[test]
    fn an_outage_of_aws_explains_no_end_of_a_session() {
        let faults = Faults::default();
        faults.begin(Kind::Aws(Fault::Hang));
        let now = Instant::now();
        let explain = |failure: &Failure| faults.explain(Target::App, now, now, failure);
        assert!(explain(&error("57P03")).is_some());
        assert!(explain(&error("57P01")).is_none());
        assert!(explain(&Failure::Closed(String::new())).is_none());
    }
}
