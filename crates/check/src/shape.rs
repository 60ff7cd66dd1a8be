//! What lies in a stretch of bytes: zeroes, a pattern, text, a file system, compressed data. Says what overwrote a
//! table.
//!
//! Pure functions of the bytes. A format's own tables are recognised by that format (`qcow2::shape`), which asks here
//! for the rest. Nothing is certain but zeroes and repetition: whatever else can be made by chance is `Likely` at best.

use crate::bytes::{be_u32, is_zero, le_u16, le_u32};
use crate::finding::Confidence;

/// What a stretch of bytes is, as far as it can be told without knowing who wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Shape {
    Zeroes,
    /// One word over and over: what `dd`, test programs and wiping programs leave.
    Repeated {
        word: [u8; 8],
    },
    /// Something with a magic number, by name.
    Magic(&'static str),
    Text(Text),
    /// Runs of set and clear bits.
    Bits,
    /// Every byte value about equally often.
    Dense,
    Other,
}

/// A kind of text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Text {
    Log,
    Json,
    Xml,
    Source,
    Plain,
}

impl Shape {
    /// As in "overwritten by …".
    pub(crate) fn words(&self) -> String {
        match self {
            Self::Zeroes => "zeroes".to_owned(),
            Self::Repeated { word } => {
                let [first, second, ..] = *word;
                if word.iter().all(|byte| *byte == first) {
                    format!("the byte {first:#04x} over and over")
                } else if word.as_chunks::<2>().0.iter().all(|pair| *pair == [first, second]) {
                    format!("the bytes {first:02x} {second:02x} over and over")
                } else {
                    format!("the word {:#018x} over and over", u64::from_be_bytes(*word))
                }
            }
            Self::Magic(name) => (*name).to_owned(),
            Self::Text(Text::Log) => "text (a log)".to_owned(),
            Self::Text(Text::Json) => "text (JSON)".to_owned(),
            Self::Text(Text::Xml) => "text (XML or HTML)".to_owned(),
            Self::Text(Text::Source) => "text (source code or settings)".to_owned(),
            Self::Text(Text::Plain) => "text".to_owned(),
            Self::Bits => "a bitmap".to_owned(),
            Self::Dense => "compressed or encrypted data".to_owned(),
            Self::Other => "other data".to_owned(),
        }
    }
}

/// Recognises a stretch that begins where something may begin (a cluster, a sector). Less than 64 bytes say little.
pub(crate) fn judge(bytes: &[u8]) -> (Shape, Confidence) {
    if is_zero(bytes) {
        return (Shape::Zeroes, Confidence::Certain);
    }
    if let Some((name, confidence)) = magic(bytes) {
        return (Shape::Magic(name), confidence);
    }
    if let Some(word) = repeated(bytes) {
        return (Shape::Repeated { word }, Confidence::Certain);
    }
    if let Some(text) = text(bytes) {
        return (Shape::Text(text), Confidence::Likely);
    }
    if is_bits(bytes) {
        return (Shape::Bits, Confidence::Possible);
    }
    if is_dense(bytes) {
        return (Shape::Dense, Confidence::Likely);
    }
    (Shape::Other, Confidence::Possible)
}

/// The word of eight bytes the whole stretch repeats.
fn repeated(bytes: &[u8]) -> Option<[u8; 8]> {
    let (words, rest) = bytes.as_chunks::<8>();
    let (first, more) = words.split_first()?;
    let all = more.len() >= 3 && more.iter().all(|word| word == first) && first.starts_with(rest);
    all.then_some(*first)
}

/// Name, offset, bytes. Short ones need more evidence, below.
const MAGICS: &[(&str, usize, &[u8])] = &[
    ("a qcow2 header", 0, b"QFI\xfb\0\0\0"),
    ("a VMDK header", 0, b"KDMV"),
    ("a VMDK descriptor", 0, b"# Disk DescriptorFile"),
    ("a VDI header", 0x40, &[0x7f, 0x10, 0xda, 0xbe]),
    ("a VHDX header", 0, b"vhdxfile"),
    ("a VHDX region table", 0, b"regi"),
    ("a VHD footer", 0, b"conectix"),
    ("a VHD dynamic header", 0, b"cxsparse"),
    ("a Parallels header", 0, b"WithoutFreeSpace"),
    ("a Parallels header", 0, b"WithouFreSpacExt"),
    ("a QED header", 0, b"QED\0"),
    ("a LUKS header", 0, b"LUKS\xba\xbe"),
    ("a GPT header", 0, b"EFI PART"),
    ("a partition table (GPT)", 512, b"EFI PART"),
    ("an NTFS boot sector", 3, b"NTFS    "),
    ("an exFAT boot sector", 3, b"EXFAT   "),
    ("a FAT boot sector", 82, b"FAT32   "),
    ("a FAT boot sector", 54, b"FAT16   "),
    ("NTFS file records", 0, b"FILE0\0"),
    ("NTFS index records", 0, b"INDX(\0"),
    ("an XFS superblock", 0, b"XFSB\0\0"),
    ("a btrfs superblock", 0x40, b"_BHRfS_M"),
    ("a btrfs superblock", 0x1_0040, b"_BHRfS_M"),
    ("an LVM label", 512, b"LABELONE"),
    ("swap space", 4086, b"SWAPSPACE2"),
    ("an ISO 9660 file system", 0x8001, b"CD001"),
    ("a squashfs file system", 0, b"hsqs"),
    ("an ext4 journal block", 0, &[0xc0, 0x3b, 0x39, 0x98, 0, 0, 0]),
    ("an SQLite database", 0, b"SQLite format 3\0"),
    ("an ELF program", 0, b"\x7fELF"),
    ("a systemd journal", 0, b"LPKSHHRH"),
    ("a PDF document", 0, b"%PDF-"),
    ("a PNG picture", 0, b"\x89PNG\r\n\x1a\n"),
    ("a JPEG picture", 0, &[0xff, 0xd8, 0xff]),
    ("a ZIP archive", 0, b"PK\x03\x04"),
    ("a gzip file", 0, &[0x1f, 0x8b, 0x08]),
    ("an xz file", 0, b"\xfd7zXZ\0"),
    ("a zstd file", 0, &[0x28, 0xb5, 0x2f, 0xfd]),
    ("a tar archive", 257, b"ustar"),
    ("a 7z archive", 0, b"7z\xbc\xaf\x27\x1c"),
    ("an MPEG-4 film", 4, b"ftyp"),
];

/// Something that begins here and says what it is.
pub(crate) fn magic(bytes: &[u8]) -> Option<(&'static str, Confidence)> {
    let is = |at: usize, magic: &[u8]| {
        at.checked_add(magic.len()).and_then(|end| bytes.get(at..end)).is_some_and(|there| there == magic)
    };
    if let Some((name, _, magic)) = MAGICS.iter().find(|(_, at, magic)| is(*at, magic)) {
        let sure = if magic.len() >= 6 { Confidence::Likely } else { Confidence::Possible };
        return Some((name, sure));
    }
    if ext_superblock(bytes.get(1024..).unwrap_or_default()) {
        return Some(("an ext4 file system", Confidence::Likely));
    }
    if ext_superblock(bytes) {
        return Some(("a copy of an ext4 superblock", Confidence::Likely));
    }
    boot_sector(bytes).then_some(("a boot sector or partition table", Confidence::Likely))
}

/// Superblock of ext2, ext3, ext4: magic at 56, and fields that could be.
fn ext_superblock(bytes: &[u8]) -> bool {
    bytes.len() >= 256
        && le_u16(bytes, 56) == 0xef53
        && le_u32(bytes, 0) != 0
        && le_u32(bytes, 4) != 0
        && le_u32(bytes, 24) <= 6
        && matches!(le_u16(bytes, 58), 0..=7)
}

/// 55 AA at the end of the sector, and four partition entries that are active, inactive, or empty.
fn boot_sector(bytes: &[u8]) -> bool {
    let flags = [446, 462, 478, 494].map(|at| bytes.get(at).copied());
    bytes.get(510..512) == Some(&[0x55, 0xaa]) && flags.iter().all(|flag| matches!(flag, Some(0 | 0x80)))
}

/// Whether a stretch is text, up to the zeroes at its end, and of which kind. It may begin and end in the middle of a
/// line.
pub(crate) fn text(bytes: &[u8]) -> Option<Text> {
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last.saturating_add(1));
    let bytes = bytes.get(..end).unwrap_or_default();
    if bytes.len() < 32 {
        return None;
    }
    let share = |of: &dyn Fn(u8) -> bool| bytes.iter().filter(|byte| of(**byte)).count();
    let plain = share(&|byte| matches!(byte, b'\t' | b'\n' | b'\r' | b' '..=b'~'));
    // Beyond ASCII only what is UTF-8; a character cut off at either end does no harm.
    let wide: usize = bytes
        .utf8_chunks()
        .map(|chunk| chunk.valid().bytes().filter(|byte| *byte >= 0x80).count())
        .fold(0, usize::saturating_add);
    if plain.saturating_add(wide).saturating_mul(100) < bytes.len().saturating_mul(98) || plain < wide {
        return None;
    }
    // Letters and spaces: a hash or a pattern of one printable byte is no text.
    let letters = share(&|byte| byte.is_ascii_alphabetic() || byte == b' ');
    if letters.saturating_mul(4) < plain {
        return None;
    }
    let distinct = (0..=127u8).filter(|letter| bytes.contains(letter)).count();
    (distinct >= 8).then(|| kind_of_text(bytes))
}

fn kind_of_text(bytes: &[u8]) -> Text {
    let lines: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).take(500).collect();
    let of_lines =
        |is: &dyn Fn(&[u8]) -> bool| lines.iter().filter(|line| is(line)).count().saturating_mul(3) >= lines.len();
    let count = |byte: u8| bytes.iter().filter(|there| **there == byte).count();
    let (tags, quotes) = (count(b'<').min(count(b'>')), count(b'"'));
    let many = bytes.len() / 100;
    if of_lines(&has_stamp) {
        Text::Log
    } else if tags > many && bytes.windows(2).any(|two| two == b"</" || two == b"/>") {
        Text::Xml
    } else if quotes > many.saturating_mul(2)
        && count(b':') > many / 2
        && of_lines(&|line| matches!(line.trim_ascii_start().first(), Some(b'"' | b'{' | b'[')))
    {
        Text::Json
    } else if of_lines(&|line| {
        let line = line.trim_ascii_end();
        matches!(line.last(), Some(b';' | b'{' | b'}' | b')' | b':' | b'\\'))
            || line.starts_with(b"#")
            || line.contains(&b'=')
    }) {
        Text::Source
    } else {
        Text::Plain
    }
}

/// Whether a line begins with a date or a time, as those of logs do.
fn has_stamp(line: &[u8]) -> bool {
    let head = line.get(..40).unwrap_or(line);
    let like = |pattern: &[u8]| {
        head.windows(pattern.len()).any(|there| {
            there
                .iter()
                .zip(pattern)
                .all(|(byte, want)| if *want == b'd' { byte.is_ascii_digit() } else { byte == want })
        })
    };
    like(b"dd:dd:dd") || like(b"dddd-dd-dd") || (head.starts_with(b"[") && like(b"d.dddddd]"))
}

/// Nearly only 00 and FF, both of them, in long runs.
fn is_bits(bytes: &[u8]) -> bool {
    let count = |of: u8| bytes.iter().filter(|byte| **byte == of).count();
    let (clear, set) = (count(0), count(0xff));
    let changes = bytes.windows(2).filter(|two| two.first() != two.last()).count();
    set.saturating_mul(50) > bytes.len()
        && clear.saturating_add(set).saturating_mul(100) >= bytes.len().saturating_mul(97)
        && changes.saturating_mul(16) < bytes.len()
}

/// How often two bytes picked from the stretch are equal: 1 in 256 if it was compressed or encrypted.
fn is_dense(bytes: &[u8]) -> bool {
    if bytes.len() < 512 {
        return false;
    }
    let mut histogram = [0u64; 256];
    for byte in bytes {
        if let Some(count) = histogram.get_mut(usize::from(*byte)) {
            *count = count.saturating_add(1);
        }
    }
    let n = bytes.len() as u64;
    let squares = histogram.iter().fold(0u64, |all, count| all.saturating_add(count.saturating_mul(*count)));
    // n * n / 256 + n is what chance makes of it. Compressors leave up to half more; programs and pictures are far
    // above.
    let chance = n.saturating_mul(n).saturating_mul(3) / 512;
    squares <= chance.saturating_add(n.saturating_mul(5) / 4)
}

/// Whether a GPT header lies here, and how many sectors it says the disk has.
pub(crate) fn gpt_sectors(sector: &[u8]) -> Option<u64> {
    let fits = sector.starts_with(b"EFI PART") && be_u32(sector, 8) == 0x0000_0100;
    let (own, other) = (crate::bytes::le_u64(sector, 24), crate::bytes::le_u64(sector, 32));
    (fits && own == 1 && other > own && other < 1 << 55).then(|| other.saturating_add(1))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Bytes that look random, always the same.
    pub(crate) fn noise(len: usize, seed: u64) -> Vec<u8> {
        let mut state = seed;
        std::iter::repeat_with(|| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut word = state;
            word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (word ^ (word >> 31)).to_le_bytes()[0]
        })
        .take(len)
        .collect()
    }

    pub(crate) fn repeat(text: &str, len: usize) -> Vec<u8> {
        text.bytes().cycle().take(len).collect()
    }

    fn numbered(line: impl Fn(u64) -> String, len: usize) -> Vec<u8> {
        let mut text = String::new();
        for index in 0.. {
            text.push_str(&line(index));
            if text.len() > len {
                break;
            }
        }
        text.into_bytes()[7..len].to_vec()
    }

    #[test]
    fn each_shape_is_seen() {
        let mut boot = noise(65536, 5);
        boot[446..510].fill(0);
        boot[510..512].copy_from_slice(&[0x55, 0xaa]);
        let mut ext = vec![0u8; 65536];
        ext[1024..1032].copy_from_slice(&[0, 1, 0, 0, 0, 4, 0, 0]);
        ext[1080..1084].copy_from_slice(&[0x53, 0xef, 1, 0]);
        let mut bits = vec![0u8; 4096];
        bits[100..1000].fill(0xff);
        bits[1000] = 0x0f;
        let mut short_text = repeat("the quick brown fox jumps over the lazy dog. ", 300);
        short_text.resize(65536, 0);
        let deflated = {
            use std::io::Write as _;
            let mut deflate = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
            let words =
                numbered(|at| format!("{:x} some words {at} and {}\n", at * 7919 % 1000, at * at % 77), 400_000);
            deflate.write_all(&words).unwrap();
            deflate.finish().unwrap()[..8192].to_vec()
        };
        let cases: Vec<(&str, Vec<u8>, Shape)> = vec![
            ("zeroes", vec![0; 4096], Shape::Zeroes),
            ("a5", vec![0xa5; 65536], Shape::Repeated { word: [0xa5; 8] }),
            ("boot", boot, Shape::Magic("a boot sector or partition table")),
            ("ext4", ext, Shape::Magic("an ext4 file system")),
            ("qcow2", [&b"QFI\xfb\0\0\0\x03"[..], &noise(504, 3)].concat(), Shape::Magic("a qcow2 header")),
            ("bits", bits, Shape::Bits),
            ("noise", noise(65536, 1), Shape::Dense),
            ("noise 512", noise(512, 2), Shape::Dense),
            ("deflate", deflated, Shape::Dense),
            (
                "syslog",
                numbered(|at| format!("Nov 21 17:40:{:02} host kernel: usb {at}: new device\n", at % 60), 9000),
                Shape::Text(Text::Log),
            ),
            ("dmesg", numbered(|at| format!("[{at:5}.123456] eth0: link is up\n"), 9000), Shape::Text(Text::Log)),
            ("json", numbered(|at| format!("{{\"id\": {at}, \"name\": \"n{at}\"}},\n"), 9000), Shape::Text(Text::Json)),
            ("xml", numbered(|at| format!("<row id='{at}'><name>word</name></row>\n"), 9000), Shape::Text(Text::Xml)),
            (
                "source",
                numbered(|at| format!("    let value_{at} = compute({at});\n"), 9000),
                Shape::Text(Text::Source),
            ),
            ("plain", short_text, Shape::Text(Text::Plain)),
            ("umlauts", repeat("Größe übertrifft manches Maß, ein schöner Satz ", 4096), Shape::Text(Text::Plain)),
            ("one letter", [vec![b'x'; 100], vec![0; 100]].concat(), Shape::Other),
        ];
        for (name, bytes, want) in cases {
            assert_eq!(judge(&bytes).0, want, "{name}");
        }
    }

    /// Programs on the machine that runs this: their code is neither text nor compressed nor a bitmap.
    #[test]
    fn real_files() {
        let program = std::fs::read("/proc/self/exe").unwrap();
        assert_eq!(judge(&program[..65536]), (Shape::Magic("an ELF program"), Confidence::Possible));
        let inside = &program[(program.len() / 3) & !0xfff..][..65536];
        assert!(!matches!(judge(inside).0, Shape::Zeroes | Shape::Repeated { .. }), "{:?}", judge(inside));
        let source = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/src/shape.rs")).unwrap();
        assert_eq!(judge(&source[1000..9000]).0, Shape::Text(Text::Source));
    }

    #[test]
    fn nothing_is_too_short() {
        for len in 0..600 {
            judge(&noise(len, 7));
            judge(&repeat("abc ", len));
        }
    }

    #[test]
    fn a_gpt_header_knows_the_size() {
        let mut sector = vec![0u8; 512];
        sector[..12].copy_from_slice(b"EFI PART\0\0\x01\0");
        sector[24] = 1;
        sector[32..36].copy_from_slice(&[0xff, 0xff, 0x1f, 0]);
        assert_eq!(gpt_sectors(&sector), Some(0x20_0000));
        sector[24] = 2;
        assert_eq!(gpt_sectors(&sector), None);
    }
}
