//! Payloads on their way into the records of the leg that sends them.

use std::io::{self, IoSliceMut};

use super::leg::Leg;
use crate::tls::record::{MAX_CONTROL, MAX_PAYLOAD, RecordOverhead};
use crate::tls::stream::PayloadSink;

/// Collects what is received where it will be sealed and sent from: nothing is moved in memory on
/// the way.
///
/// Short payloads share a record; each record is sealed as soon as it is full.
pub(super) struct RecordBuffer<'a, W, P> {
    out: &'a mut [u8],
    writer: &'a mut W,
    layout: RecordOverhead,
    /// Most bytes of payload between two seals.
    most: usize,
    /// Ready to be sent.
    sealed: usize,
    /// Bytes of the record that is being filled, behind `sealed` and the space in front of a
    /// payload.
    filled: usize,
    /// All payload so far.
    bytes: u64,
    /// How many of the bytes just received are for the writer: those behind them are dropped.
    pass: P,
    goodbye: bool,
}

impl<'a, W: Leg, P: FnMut(&[u8]) -> usize> RecordBuffer<'a, W, P> {
    pub(super) fn new(out: &'a mut [u8], writer: &'a mut W, pass: P) -> Self {
        let (layout, most) = writer
            .record_overhead()
            .map_or((RecordOverhead::default(), usize::MAX), |layout| {
                (layout, MAX_PAYLOAD)
            });
        Self {
            out,
            writer,
            layout,
            most,
            sealed: 0,
            filled: 0,
            bytes: 0,
            pass,
            goodbye: false,
        }
    }

    /// Whether something was received that is not for the writer.
    pub(super) fn goodbye(&self) -> bool {
        self.goodbye
    }

    /// Seals the last record: how many bytes of payload there are, and how long that is to be sent.
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

    /// Whether a payload of `length` can stand behind what is there, with one byte more for its
    /// opening.
    fn fits(&self, length: usize) -> bool {
        let RecordOverhead { before, after } = self.layout;
        self.sealed + before + self.filled + length + after + 1 + MAX_CONTROL <= self.out.len()
    }
}

impl<W: Leg, P: FnMut(&[u8]) -> usize> PayloadSink for RecordBuffer<'_, W, P> {
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
        self.take(self.sealed + self.layout.before + self.filled, length)
    }

    fn spaces(&mut self) -> Vec<IoSliceMut<'_>> {
        let used = self.sealed + self.filled;
        let end = self.out.len() - MAX_CONTROL;
        let (stride, before) = (self.stride(), self.layout.before);
        let slots = self.out[used..end].chunks_exact_mut(stride);
        slots
            .map(|slot| IoSliceMut::new(&mut slot[before..before + MAX_PAYLOAD]))
            .collect()
    }

    fn filled_spaces(&mut self, mut length: usize) -> io::Result<()> {
        let mut slot = self.sealed + self.filled;
        while length > 0 {
            let payload = length.min(MAX_PAYLOAD);
            self.take(slot + self.layout.before, payload)?;
            slot += self.stride();
            length -= payload;
        }
        Ok(())
    }
}

impl<W: Leg, P: FnMut(&[u8]) -> usize> RecordBuffer<'_, W, P> {
    /// From one full record to the next.
    fn stride(&self) -> usize {
        self.layout.before + MAX_PAYLOAD + self.layout.after
    }

    /// Takes what stands at `start`, which is where the record that is being filled goes on.
    fn take(&mut self, start: usize, length: usize) -> io::Result<()> {
        let passed = (self.pass)(&self.out[start..start + length]);
        self.goodbye |= passed < length;
        self.filled += passed;
        self.bytes += passed as u64;
        if self.filled >= self.most {
            self.seal()
        } else {
            Ok(())
        }
    }
}
