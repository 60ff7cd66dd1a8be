//! Fields out of bytes. Beyond the end there are zeroes: who needs to know checks the length first.

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let there = at.checked_add(N).and_then(|end| bytes.get(at..end));
    there.and_then(|there| there.try_into().ok()).unwrap_or([0; N])
}

macro_rules! fields {
    ($($be:ident, $le:ident: $int:ty;)*) => {
        $(
            #[allow(dead_code)]
            pub(crate) fn $be(bytes: &[u8], at: usize) -> $int {
                <$int>::from_be_bytes(array(bytes, at))
            }

            #[allow(dead_code)]
            pub(crate) fn $le(bytes: &[u8], at: usize) -> $int {
                <$int>::from_le_bytes(array(bytes, at))
            }
        )*
    };
}

fields! {
    be_u16, le_u16: u16;
    be_u32, le_u32: u32;
    be_u64, le_u64: u64;
}

/// Whether there is nothing but zeroes.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(64).all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
}
