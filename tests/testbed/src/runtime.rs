//! Where do the stand-ins run? They have threads of their own, so that tests on any runtime, or on
//! none, can share a testbed.

use std::future::Future;
use std::sync::mpsc;

use anyhow::Result;
use tokio::runtime::{Handle, Runtime};
use tokio::task::JoinHandle;

/// A runtime that ends the stand-ins' tasks when it is dropped.
pub struct OwnRuntime(Option<Runtime>);

#[derive(Clone)]
pub struct Background(Handle);

/// A task that ends when its owner is dropped.
pub struct Guard(JoinHandle<()>);

impl OwnRuntime {
    pub fn start() -> Result<OwnRuntime> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("testbed")
            .enable_all()
            .build()?;
        Ok(OwnRuntime(Some(runtime)))
    }

    pub fn background(&self) -> Background {
        Background(
            self.0
                .as_ref()
                .expect("there until dropped")
                .handle()
                .clone(),
        )
    }
}

impl Drop for OwnRuntime {
    fn drop(&mut self) {
        // An ordinary drop blocks, which panics inside another runtime.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl Background {
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> Guard {
        Guard(self.0.spawn(task))
    }

    /// Waits for a future by blocking the calling thread, which `block_on` would refuse inside
    /// another runtime.
    pub fn wait<T: Send + 'static>(&self, future: impl Future<Output = T> + Send + 'static) -> T {
        let (sender, receiver) = mpsc::sync_channel(1);
        self.0.spawn(async move {
            let _ = sender.send(future.await);
        });
        receiver
            .recv()
            .expect("the testbed's runtime is there as long as the testbed")
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.abort();
    }
}
