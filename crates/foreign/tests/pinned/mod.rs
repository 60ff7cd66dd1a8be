//! Random numbers of the operating system that are always the same (CM 9.4).
//!
//! `std` draws the keys of its `HashMap` with `getrandom`, by its name in the C library, once for each thread. The linker
//! takes a function of that name from the program before one from a library: this one. With it, and with a thread for each
//! run, maps have the same order in every run. It holds for the whole binary and is therefore in none but those that repeat
//! runs; temporary files, whose names are drawn as well, are better made in others.

/// Fills a buffer with a fixed pattern, and says that it is random.
///
/// # Safety
/// `buffer` is valid for writes of `len` bytes, as the function that it stands for demands of its callers.
#[allow(unsafe_code, reason = "a symbol of the C library, with its signature")]
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(buffer: *mut u8, len: usize, _flags: u32) -> isize {
    // SAFETY: the caller promises that `len` bytes from `buffer` on may be written to, whatever they hold, and 0x5a is a
    // byte.
    unsafe { buffer.write_bytes(0x5a, len) };
    isize::try_from(len).unwrap_or(isize::MAX)
}
