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

/// Text out of an image, safe to print: at most `max` characters, control and direction characters and what is no UTF-8
/// escaped.
#[allow(dead_code)]
pub(crate) fn printable(bytes: &[u8], max: usize) -> String {
    let mut text = String::new();
    // A character has 4 bytes at most: what lies beyond can not be shown.
    let shown = bytes.get(..max.saturating_mul(4)).unwrap_or(bytes);
    let mut count = 0usize;
    for chunk in shown.utf8_chunks() {
        for character in chunk.valid().chars() {
            if count >= max {
                text.push('…');
                return text;
            }
            count = count.saturating_add(1);
            let steers = matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}');
            if character.is_control() || steers {
                text.extend(character.escape_unicode());
            } else {
                text.push(character);
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
            count = count.saturating_add(1);
        }
    }
    if shown.len() < bytes.len() {
        text.push('…');
    }
    text
}
