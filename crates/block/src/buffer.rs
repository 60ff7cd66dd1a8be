//! Buffers at a memory alignment, without unsafe code.

use std::ops::{Deref, DerefMut};

/// A zeroed buffer whose first byte lies on a multiple of `alignment` in memory, as `O_DIRECT` wants it.
#[derive(Debug)]
pub struct AlignedBuffer {
    storage: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuffer {
    /// Allocates `len` zero bytes; `alignment` is a power of two.
    pub fn zeroed(len: usize, alignment: usize) -> Self {
        let storage = vec![0; len.saturating_add(alignment)];
        let start = storage.as_ptr().align_offset(alignment);
        assert!(start <= alignment, "the standard library can tell the alignment of heap memory");
        Self { storage, start, len }
    }
}

impl Deref for AlignedBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.storage[self.start..self.start + self.len]
    }
}

impl DerefMut for AlignedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        let range = self.start..self.start + self.len;
        &mut self.storage[range]
    }
}

/// Whether every byte of `data` is zero. Compiles to wide comparisons.
pub fn is_zero(data: &[u8]) -> bool {
    // The fold has no early exit, which lets the compiler use vector instructions; the outer one stops at a chunk.
    let chunks = data.chunks_exact(64);
    let tail = chunks.remainder();
    let mut chunks = chunks;
    chunks.all(|chunk| chunk.iter().fold(0, |seen, byte| seen | byte) == 0) && tail.iter().all(|&b| b == 0)
}
