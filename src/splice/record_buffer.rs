//! Where are received bytes put, so that they can be sealed and sent from the same place?

use std::io::{self, IoSliceMut};

use super::leg::Leg;
use crate::tls::record::{MAX_CONTROL, MAX_PAYLOAD, RecordOverhead};
use crate::tls::stream::PayloadSink;

/// Collects received payloads in the records in which they will be sent on. The bytes are not moved
/// in memory on the way.
///
/// Short payloads share a record, and each record is sealed as soon as it is full.
pub(super) struct RecordBuffer<'a, W, P> {
    out: &'a mut [u8],
    writer: &'a mut W,
    overhead: RecordOverhead,
    /// The most payload bytes that one record takes.
    max_payload: usize,
    /// How many bytes at the beginning of `out` are sealed and ready to be sent.
    sealed: usize,
    /// How many payload bytes the record has that is being filled. They stand behind `sealed` and
    /// the space for what precedes a payload.
    filled: usize,
    /// How many payload bytes have been taken in so far.
    bytes: u64,
    /// Is shown the bytes just received and returns how many of them are for the writer. Those
    /// behind them are dropped.
    observe: P,
    has_terminate: bool,
}

impl<'a, W: Leg, P: FnMut(&[u8]) -> usize> RecordBuffer<'a, W, P> {
    pub(super) fn new(out: &'a mut [u8], writer: &'a mut W, observe: P) -> Self {
        let (overhead, max_payload) = writer
            .record_overhead()
            .map_or((RecordOverhead::default(), usize::MAX), |overhead| {
                (overhead, MAX_PAYLOAD)
            });
        Self {
            out,
            writer,
            overhead,
            max_payload,
            sealed: 0,
            filled: 0,
            bytes: 0,
            observe,
            has_terminate: false,
        }
    }

    /// Whether the observer has seen a `Terminate`, which is not for the writer.
    pub(super) fn has_terminate(&self) -> bool {
        self.has_terminate
    }

    /// Seals the last record. Returns how many payload bytes there were, and how many bytes at the
    /// beginning of the buffer are to be sent.
    ///
    /// # Errors
    /// The writer's key cannot seal any more.
    pub(super) fn finish(mut self) -> io::Result<(u64, usize)> {
        self.seal()?;
        if self.sealed > 0 {
            self.sealed += self.writer.end_batch(&mut self.out[self.sealed..])?;
        }
        Ok((self.bytes, self.sealed))
    }

    fn seal(&mut self) -> io::Result<()> {
        if self.filled > 0 {
            self.sealed += self
                .writer
                .seal(&mut self.out[self.sealed..], self.filled)?;
            self.filled = 0;
        }
        Ok(())
    }

    /// Whether a payload of `length` bytes has room behind what is there, with the one byte more
    /// that opening a record needs.
    fn fits(&self, length: usize) -> bool {
        let RecordOverhead { before, after } = self.overhead;
        self.sealed + before + self.filled + length + after + 1 + MAX_CONTROL <= self.out.len()
    }
}

impl<W: Leg, P: FnMut(&[u8]) -> usize> PayloadSink for RecordBuffer<'_, W, P> {
    fn space(&mut self, length: usize) -> Option<&mut [u8]> {
        if self.filled.saturating_add(length) > self.max_payload && self.seal().is_err() {
            return None;
        }
        if !self.fits(length) {
            return None;
        }
        let start = self.sealed + self.overhead.before + self.filled;
        Some(&mut self.out[start..=start + length])
    }

    fn filled(&mut self, length: usize) -> io::Result<()> {
        self.take(self.sealed + self.overhead.before + self.filled, length)
    }

    fn spaces(&mut self) -> Vec<IoSliceMut<'_>> {
        let used = self.sealed + self.filled;
        let end = self.out.len() - MAX_CONTROL;
        let (stride, before) = (self.stride(), self.overhead.before);
        let slots = self.out[used..end].chunks_exact_mut(stride);
        slots
            .map(|slot| IoSliceMut::new(&mut slot[before..before + MAX_PAYLOAD]))
            .collect()
    }

    fn filled_spaces(&mut self, mut length: usize) -> io::Result<()> {
        let mut slot = self.sealed + self.filled;
        while length > 0 {
            let payload = length.min(MAX_PAYLOAD);
            self.take(slot + self.overhead.before, payload)?;
            slot += self.stride();
            length -= payload;
        }
        Ok(())
    }
}

impl<W: Leg, P: FnMut(&[u8]) -> usize> RecordBuffer<'_, W, P> {
    /// The distance from the beginning of a full record to the next one's.
    fn stride(&self) -> usize {
        self.overhead.before + MAX_PAYLOAD + self.overhead.after
    }

    /// Takes in the bytes at `start`, which is where the record that is being filled goes on.
    fn take(&mut self, start: usize, length: usize) -> io::Result<()> {
        let passed = (self.observe)(&self.out[start..start + length]);
        self.has_terminate |= passed < length;
        self.filled += passed;
        self.bytes += passed as u64;
        if self.filled >= self.max_payload {
            self.seal()
        } else {
            Ok(())
        }
    }
}
