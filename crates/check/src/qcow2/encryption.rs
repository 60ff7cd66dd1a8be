//! The LUKS header inside the image, as far as it can be judged without a key (Q-H8, Q-X4).
//!
//! LUKS1 on-disk format: 592 bytes (`phdr`: magic, version, cipher, payload offset, master key digest, 8 key slots of
//! 48 bytes), then the key material of each slot. All fields are big endian; offsets are in sectors from the header's
//! start. Key material is indistinguishable from noise: a sector of zeroes in that of an active slot means that it was
//! destroyed.

use crate::bytes::{be_u16, be_u32, is_zero, printable};
use crate::context::Context;
use crate::finding::Finding;
use crate::map::Class;

use super::codes::structure as codes;
use super::extensions::Extensions;
use super::header::Head;
use super::side::{Claims, Window};

const LUKS: u32 = 2;
/// Bytes of the phdr.
const PHDR_LEN: u64 = 592;
const SLOTS: u64 = 8;
const SLOT_LEN: u64 = 48;
const SLOT_AT: u64 = 208;
const ACTIVE: u32 = 0x00ac_71f3;
const INACTIVE: u32 = 0x0000_dead;
const SECTOR: u64 = 512;
/// Longest header: eight slots of the largest keys and stripes, with room to spare.
const LEN_MAX: u64 = 128 << 20;
/// Longest key and most stripes a program would read.
const KEY_MAX: u32 = 1024;
const STRIPES_MAX: u32 = 10_000;

/// Judges the encryption header; a fact about it.
pub(crate) fn judge(cx: &mut Context<'_>, head: &Head, extensions: &Extensions, claims: &mut Claims) -> Option<String> {
    let method = head.header.crypt_method;
    let Some((offset, len)) = extensions.encryption else {
        if method == LUKS && extensions.whole {
            let words = "crypt_method is 2 (LUKS), but there is no encryption header extension";
            cx.find(Finding::new(codes::ENCRYPTION_MISSING, words).host(32..36));
            lose_all(cx, head);
        }
        return match method {
            0 => None,
            1 => Some("AES (legacy)".to_owned()),
            2 => Some("LUKS".to_owned()),
            other => Some(format!("unknown method {other}")),
        };
    };
    if method != LUKS {
        let words = format!("there is an encryption header at {offset:#x}, but crypt_method is {method}");
        cx.find(Finding::new(codes::ENCRYPTION_UNEXPECTED, words).host(32..36));
    }
    let cluster = head.geometry?.cluster_size();
    let file_len = cx.file_len();
    let end = offset.saturating_add(len);
    let words = if offset == 0 || !offset.is_multiple_of(cluster) {
        Some("is no multiple of the cluster size, or 0")
    } else if offset >= file_len {
        Some("is past the end of the file")
    } else if end > file_len.checked_next_multiple_of(cluster).unwrap_or(u64::MAX)
        || !(PHDR_LEN..=LEN_MAX).contains(&len)
    {
        Some("has a length that can not be")
    } else {
        None
    };
    if let Some(why) = words {
        let words = format!("the encryption header {offset:#x}..{end:#x} {why} (the file has {file_len:#x} bytes)");
        cx.find(Finding::new(codes::ENCRYPTION_PLACE, words).host(offset..end));
        if offset == 0 || !offset.is_multiple_of(cluster) || offset >= file_len {
            if method == LUKS {
                lose_all(cx, head);
            }
            return Some("LUKS (header not found)".to_owned());
        }
    }
    claims.complete &= len <= LEN_MAX;
    claims.add(cx, offset, len.min(LEN_MAX), Class::Encryption, 0);
    Some(judge_luks(cx, head, offset, len))
}

/// Nothing can be decrypted any more.
fn lose_all(cx: &mut Context<'_>, head: &Head) {
    if let Some(geometry) = head.geometry {
        cx.lose(0..geometry.size);
    }
}

fn judge_luks(cx: &mut Context<'_>, head: &Head, offset: u64, len: u64) -> String {
    let phdr = cx.read(offset, usize::try_from(PHDR_LEN).unwrap_or(0), "the LUKS header");
    let mut flaw = |words: String| {
        let end = offset.saturating_add(PHDR_LEN);
        cx.find(Finding::new(codes::ENCRYPTION_HEADER, words).host(offset..end));
        lose_all(cx, head);
        "LUKS (header damaged)".to_owned()
    };
    if phdr.get(..6) != Some(b"LUKS\xba\xbe".as_slice()) {
        let bytes = phdr.get(..6).unwrap_or_default();
        return flaw(format!("at {offset:#x} there is no LUKS magic but {bytes:02x?}"));
    }
    let version = be_u16(&phdr, 6);
    if version != 1 {
        return flaw(format!("the LUKS header at {offset:#x} has version {version}; inside qcow2 there is only 1"));
    }
    let text = |at: usize| {
        let field = phdr.get(at..at.saturating_add(32)).unwrap_or_default();
        printable(field.split(|byte| *byte == 0).next().unwrap_or_default(), 32)
    };
    let (cipher, mode, hash) = (text(8), text(40), text(72));
    if cipher.is_empty() || mode.is_empty() || hash.is_empty() {
        return flaw(format!(
            "the LUKS header at {offset:#x} names no cipher, mode or hash ('{cipher}', '{mode}', '{hash}')"
        ));
    }
    let payload = u64::from(be_u32(&phdr, 104)).saturating_mul(SECTOR);
    let key_len = be_u32(&phdr, 108);
    if key_len == 0 || key_len > KEY_MAX {
        return flaw(format!("the LUKS header at {offset:#x} has a master key of {key_len} bytes"));
    }
    if is_zero(phdr.get(112..132).unwrap_or_default()) {
        return flaw(format!("the LUKS header at {offset:#x} has no master key digest"));
    }
    if payload < PHDR_LEN || payload > len.max(PHDR_LEN).checked_next_multiple_of(SECTOR).unwrap_or(len) {
        // Within qcow2 the payload is the guest's clusters, not what follows: the field only tells how long the header
        // is.
        let words =
            format!("the LUKS header at {offset:#x} says it has {payload:#x} bytes, the extension says {len:#x}");
        cx.find(
            Finding::new(codes::ENCRYPTION_PLACE, words)
                .severity(crate::code::Severity::Warning)
                .host(offset..offset.saturating_add(PHDR_LEN)),
        );
    }
    judge_slots(cx, head, offset, len, &phdr, key_len);
    format!("LUKS ({cipher}-{mode}, {} bit key, {hash})", key_len.saturating_mul(8))
}

/// Each active slot has its key material inside the header's area, and it is no zeroes.
fn judge_slots(cx: &mut Context<'_>, head: &Head, offset: u64, len: u64, phdr: &[u8], key_len: u32) {
    let (mut sound, mut flaws) = (0u64, Vec::new());
    for slot in 0..SLOTS {
        let at = usize::try_from(SLOT_AT.saturating_add(slot.saturating_mul(SLOT_LEN))).unwrap_or(0);
        let field = |from: usize| be_u32(phdr, at.saturating_add(from));
        let place = offset.saturating_add(at as u64)..offset.saturating_add(at as u64).saturating_add(SLOT_LEN);
        match field(0) {
            INACTIVE => continue,
            ACTIVE => {}
            other => {
                flaws.push((format!("key slot {slot} is neither active nor inactive ({other:#010x})"), place));
                continue;
            }
        }
        let start = u64::from(field(40)).saturating_mul(SECTOR);
        let stripes = field(44);
        let material = u64::from(stripes).saturating_mul(u64::from(key_len));
        if stripes == 0 || stripes > STRIPES_MAX || start < PHDR_LEN || start.saturating_add(material) > len {
            let words = format!(
                "key slot {slot} has its key material at {start:#x}..{:#x} of a header of {len:#x} bytes",
                start.saturating_add(material)
            );
            flaws.push((words, place));
            continue;
        }
        match zero_sectors(cx, offset.saturating_add(start), material) {
            0 => sound = sound.saturating_add(1),
            count => {
                let words = format!("{count} sectors of the key material of slot {slot} are zero");
                flaws
                    .push((words, offset.saturating_add(start)..offset.saturating_add(start).saturating_add(material)));
            }
        }
    }
    let none = sound == 0;
    for (words, place) in flaws {
        let code = if none { codes::ENCRYPTION_HEADER } else { codes::ENCRYPTION_SLOT };
        cx.find(Finding::new(code, words).host(place));
    }
    if none {
        if cx.findings.errors_of(codes::ENCRYPTION_HEADER) == 0 {
            let words = format!("the LUKS header at {offset:#x} has no active key slot");
            cx.find(Finding::new(codes::ENCRYPTION_HEADER, words).host(offset..offset.saturating_add(PHDR_LEN)));
        }
        lose_all(cx, head);
    }
}

fn zero_sectors(cx: &mut Context<'_>, start: u64, len: u64) -> u64 {
    let mut window = Window::new("LUKS key material");
    let mut zero = 0u64;
    for sector in 0..len / SECTOR {
        let at = start.saturating_add(sector.saturating_mul(SECTOR));
        // What is past the end of the file reads as nothing, which is zeroes too.
        zero = zero.saturating_add(u64::from(is_zero(window.get(cx, at, 512))));
    }
    zero
}
