//! Buffers that are used again, so that a mirrored read allocates nothing once it is warm.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

/// Buffers kept at most, and the longest one worth keeping.
const KEPT: usize = 64;
const KEPT_LEN: usize = 2 << 20;

#[derive(Default)]
pub(crate) struct Buffers {
    free: RefCell<Vec<Vec<u8>>>,
}

impl Buffers {
    /// A buffer of `len` bytes with unspecified content.
    pub(crate) fn take(&self, len: usize) -> Buffer<'_> {
        let mut bytes = self.free.borrow_mut().pop().unwrap_or_default();
        if bytes.len() < len {
            bytes.resize(len, 0);
        }
        Buffer { pool: self, bytes, len }
    }
}

/// A buffer that returns to its pool when dropped.
pub(crate) struct Buffer<'a> {
    pool: &'a Buffers,
    bytes: Vec<u8>,
    len: usize,
}

impl Deref for Buffer<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl DerefMut for Buffer<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.len]
    }
}

impl Drop for Buffer<'_> {
    fn drop(&mut self) {
        let mut free = self.pool.free.borrow_mut();
        if free.len() < KEPT && self.bytes.len() <= KEPT_LEN {
            free.push(std::mem::take(&mut self.bytes));
        }
    }
}
