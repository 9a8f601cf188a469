//! What does a running proxy hold on to? File descriptors, memory, and the sessions that it counts.

use super::proxy::Proxy;
use super::wait_for;
use crate::admin::{admin_address, scrape};

/// How many file descriptors the proxy has open.
pub fn descriptors(proxy: &Proxy) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", proxy.id()))
        .unwrap()
        .count()
}

/// How many file descriptors the proxy has open when nothing is going on.
pub fn descriptors_at_rest(proxy: &Proxy) -> usize {
    let mut before = descriptors(proxy);
    // The last descriptors of a session are closed a moment after its end.
    wait_for("the number of descriptors to settle", || {
        let now = descriptors(proxy);
        std::mem::replace(&mut before, now).eq(&now).then_some(now)
    })
}

/// Waits until the proxy has no connection left but those of its listeners and of its own.
pub fn assert_nothing_is_left(proxy: &Proxy, before: usize) {
    wait_for("all connections to be closed", || {
        (descriptors(proxy) <= before).then_some(())
    });
}

/// Waits until the proxy counts no session as open, at any target. It needs an `[admin]` address.
pub fn assert_no_session_is_counted(proxy: &Proxy) {
    let admin = admin_address(proxy).expect("it is printed");
    wait_for("all sessions to be over", || {
        let scrape = scrape(admin);
        let mut open = scrape
            .lines()
            .filter(|line| line.starts_with("pg_iam_proxy_sessions_open{"))
            .peekable();
        assert!(open.peek().is_some(), "the metric is there: {scrape}");
        open.all(|line| line.ends_with(" 0")).then_some(())
    });
}

/// The resident memory of the proxy, in kB.
pub fn memory(proxy: &Proxy) -> u64 {
    status(proxy, "VmRSS:")
}

/// The most resident memory that the proxy has had since [`forget_peak_memory`], in kB.
pub fn peak_memory(proxy: &Proxy) -> u64 {
    status(proxy, "VmHWM:")
}

pub fn forget_peak_memory(proxy: &Proxy) {
    // 5 resets the peak: proc_pid_clear_refs(5).
    std::fs::write(format!("/proc/{}/clear_refs", proxy.id()), "5").unwrap();
}

fn status(proxy: &Proxy, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", proxy.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
