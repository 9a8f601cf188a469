//! How many bytes has a session moved? Anybody may ask while it runs.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Bytes of one session, which its own thread writes and others read.
#[derive(Debug, Default)]
pub struct Traffic {
    pub(super) sent: ByteCount,
    pub(super) received: ByteCount,
}

impl Traffic {
    /// Bytes from client to upstream.
    pub fn sent(&self) -> u64 {
        self.sent.0.load(Relaxed)
    }

    /// Bytes from upstream to client.
    pub fn received(&self) -> u64 {
        self.received.0.load(Relaxed)
    }
}

/// One direction's bytes.
#[derive(Debug, Default)]
pub(super) struct ByteCount(AtomicU64);

impl ByteCount {
    /// Nobody else adds, so this need not be one atomic step, which would lock the bus.
    pub(super) fn add(&self, bytes: u64) {
        self.0.store(self.0.load(Relaxed) + bytes, Relaxed);
    }
}
