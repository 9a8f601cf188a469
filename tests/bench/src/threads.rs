//! Which thread does what? Threads share nothing and have a runtime each, so that this is decided
//! here rather than by the scheduler.

use std::future::Future;

use anyhow::{Context, Result};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

pub struct Threads(Vec<Handle>);

impl Threads {
    pub fn start(count: usize) -> Threads {
        let start = || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime starts");
            let handle = runtime.handle().clone();
            std::thread::spawn(move || runtime.block_on(std::future::pending::<()>()));
            handle
        };
        Threads((0..count).map(|_| start()).collect())
    }

    /// Spawns a task on thread `index`, counted in a circle.
    pub fn spawn<T: Send + 'static>(
        &self,
        index: usize,
        task: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.0[index % self.0.len()].spawn(task)
    }
}

/// Waits for tasks. It must be called on a thread that runs none of them.
pub fn join<T>(handles: Vec<JoinHandle<T>>) -> Result<Vec<T>> {
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    handles
        .into_iter()
        .map(|handle| runtime.block_on(handle).context("a task panicked"))
        .collect()
}
