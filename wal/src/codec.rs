//! Little-endian, fixed-width bytes in and out. Reading never panics and names what ended too early.

use bytes::Bytes;

use crate::{Epoch, LogError};

/// Appends numbers to a buffer.
#[derive(Debug)]
pub(crate) struct Encoder {
    out: Vec<u8>,
}

impl Encoder {
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Self { out: Vec::with_capacity(capacity) }
    }

    pub(crate) fn u8(&mut self, value: u8) {
        self.out.push(value);
    }

    pub(crate) fn u16(&mut self, value: u16) {
        self.out.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn u32(&mut self, value: u32) {
        self.out.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn u64(&mut self, value: u64) {
        self.out.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn i64(&mut self, value: i64) {
        self.out.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn epoch(&mut self, epoch: Epoch) {
        self.u32(epoch.counter);
        self.u32(epoch.nonce);
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    pub(crate) fn zeros(&mut self, count: usize) {
        self.out.resize(self.out.len() + count, 0);
    }

    pub(crate) fn len(&self) -> usize {
        self.out.len()
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.out
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.out
    }

    /// The bytes so far, filled up with zeros to `N`.
    pub(crate) fn array<const N: usize>(&self) -> [u8; N] {
        debug_assert!(self.out.len() <= N, "{} bytes do not fit {N}", self.out.len());
        let mut array = [0; N];
        let len = self.out.len().min(N);
        array[..len].copy_from_slice(&self.out[..len]);
        array
    }
}

/// Takes numbers from a slice.
#[derive(Debug)]
pub(crate) struct Decoder<'a> {
    from: &'a [u8],
    taken: usize,
    what: &'static str,
}

impl<'a> Decoder<'a> {
    /// `what` is being read; errors say so.
    pub(crate) fn new(from: &'a [u8], what: &'static str) -> Self {
        Self { from, taken: 0, what }
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Result<&'a [u8], LogError> {
        let Some((head, rest)) = self.from.split_at_checked(count) else {
            return Err(LogError::Invalid { reason: format!("the {} ends after {} bytes", self.what, self.end()) });
        };
        self.from = rest;
        self.taken += count;
        Ok(head)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], LogError> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(N)?);
        Ok(array)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, LogError> {
        self.array().map(u8::from_le_bytes)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, LogError> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, LogError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, LogError> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn i64(&mut self) -> Result<i64, LogError> {
        self.array().map(i64::from_le_bytes)
    }

    pub(crate) fn epoch(&mut self) -> Result<Epoch, LogError> {
        Ok(Epoch { counter: self.u32()?, nonce: self.u32()? })
    }

    /// Reserved bytes must be zero, or a newer version wrote them.
    pub(crate) fn reserved(&mut self, count: usize) -> Result<(), LogError> {
        if self.bytes(count)?.iter().any(|byte| *byte != 0) {
            return Err(LogError::Invalid { reason: format!("reserved bytes of the {} are in use", self.what) });
        }
        Ok(())
    }

    /// Bytes not yet taken.
    pub(crate) fn remaining(&self) -> usize {
        self.from.len()
    }

    /// Bytes taken.
    pub(crate) fn taken(&self) -> usize {
        self.taken
    }

    fn end(&self) -> usize {
        self.taken + self.from.len()
    }
}

/// Copies a slice of `whole` at `range` without copying bytes; empty if out of range.
pub(crate) fn slice(whole: &Bytes, from: usize, len: usize) -> Bytes {
    match from.checked_add(len) {
        Some(end) if end <= whole.len() => whole.slice(from..end),
        _ => Bytes::new(),
    }
}
