//! Payloads on their way into the records of the leg that sends them.

use std::io;

use super::leg::Leg;
use crate::tls::record::{Layout, MAX_CONTROL, MAX_PAYLOAD};
use crate::tls::stream::Sink;

/// Collects what is received where it will be sealed and sent from: nothing is moved in memory on the way.
///
/// Short payloads share a record; each record is sealed as soon as it is full.
pub(super) struct Outlet<'a, W> {
    out: &'a mut [u8],
    writer: &'a mut W,
    layout: Layout,
    /// Most bytes of payload between two seals.
    most: usize,
    /// Ready to be sent.
    sealed: usize,
    /// Bytes of the record that is being filled, behind `sealed` and the space in front of a payload.
    filled: usize,
    /// All payload so far.
    bytes: u64,
}

impl<'a, W: Leg> Outlet<'a, W> {
    pub(super) fn new(out: &'a mut [u8], writer: &'a mut W) -> Self {
        let (layout, most) = writer.layout().map_or((Layout::default(), usize::MAX), |layout| (layout, MAX_PAYLOAD));
        Self { out, writer, layout, most, sealed: 0, filled: 0, bytes: 0 }
    }

    /// Seals the last record: how many bytes of payload there are, and how long that is to be sent.
    pub(super) fn finish(mut self) -> io::Result<(u64, usize)> {
        self.seal()?;
        Ok((self.bytes, self.sealed))
    }

    fn seal(&mut self) -> io::Result<()> {
        if self.filled > 0 {
            self.sealed += self.writer.seal(&mut self.out[self.sealed..], self.filled)?;
            self.filled = 0;
        }
        Ok(())
    }

    /// Whether a payload of `length` can stand behind what is there, with one byte more for its opening.
    fn fits(&self, length: usize) -> bool {
        let Layout { before, after } = self.layout;
        self.sealed + before + self.filled + length + after + 1 + MAX_CONTROL <= self.out.len()
    }
}

impl<W: Leg> Sink for Outlet<'_, W> {
    fn space(&mut self, length: usize) -> Option<&mut [u8]> {
        if self.filled.saturating_add(length) > self.most && self.seal().is_err() {
            return None;
        }
        if !self.fits(length) {
            return None;
        }
        let start = self.sealed + self.layout.before + self.filled;
        Some(&mut self.out[start..=start + length])
    }

    fn filled(&mut self, length: usize) -> io::Result<()> {
        self.filled += length;
        self.bytes += length as u64;
        if self.filled >= self.most { self.seal() } else { Ok(()) }
    }
}
