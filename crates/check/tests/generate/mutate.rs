//! What goes wrong with an image: fields set to what breaks parsers, counts off by one, blocks in the wrong place, a
//! cut.

use super::dice::Dice;
use super::sparse::Sparse;
use super::{Base, Field, Kind};

/// Values for a field: the edges of its width, its neighbours, single bits, places in and past the file.
pub fn values(base: &Base, field: &Field) -> Vec<u64> {
    let old = base.image.number(field.at, field.width, base.big);
    let top = u64::MAX >> (64 - 8 * field.width as u32);
    let end = base.image.len;
    let mut all = vec![
        0,
        1,
        2,
        top,
        top - 1,
        top >> 1,
        (top >> 1) + 1,
        old.wrapping_add(1),
        old.wrapping_sub(1),
        old.wrapping_mul(2),
        old | 0x1ff,
        old.wrapping_add(base.unit),
        old.wrapping_add(512),
        base.unit,
        end,
        end / 512,
        end.next_multiple_of(base.unit),
        end.wrapping_sub(base.unit),
        old.wrapping_add(end),
        1 << 55,
        1 << 62,
        0x7fff_ffff_ffff_fe00,
    ];
    all.extend((0..field.width as u32 * 8).map(|bit| old ^ (1 << bit)));
    for value in &mut all {
        *value &= top;
    }
    all.sort_unstable();
    all.dedup();
    all.retain(|value| *value != old);
    all
}

/// One to three changes; what they were.
pub fn mutate(base: &Base, other: &Base, dice: &mut Dice) -> (Sparse, String) {
    let mut image = base.image.clone();
    let mut told = Vec::new();
    let changes = match dice.below(10) {
        0..6 => 1,
        6..9 => 2,
        _ => 3,
    };
    for _ in 0..changes {
        told.push(change(base, other, &mut image, dice));
    }
    (image, told.join("; "))
}

fn change(base: &Base, other: &Base, image: &mut Sparse, dice: &mut Dice) -> String {
    match dice.below(100) {
        0..78 => set_field(base, image, dice),
        78..84 => {
            let len = match dice.below(3) {
                0 => dice.below(image.len.max(1)),
                1 => image.len.saturating_sub(base.unit * (1 + dice.below(4))),
                _ => image.len + base.unit * dice.below(3) + dice.below(2) * 512,
            };
            image.set_len(len);
            format!("length {len:#x}")
        }
        84..90 => {
            // A block of this image or another one, where it does not belong.
            let (from, whose) = if dice.percent(70) { (&base.image, "own") } else { (&other.image, "foreign") };
            let size = *dice.of(&[512, base.unit.min(65536), base.unit.min(4096)]);
            let (source, target) = (place(from, size, dice), place(image, size, dice));
            let bytes = from.bytes(source, size as usize);
            image.put(target, &bytes);
            format!("{size:#x} {whose} bytes of {source:#x} put at {target:#x}")
        }
        90..95 => {
            let size = *dice.of(&[512, base.unit.min(65536)]);
            let at = place(image, size, dice);
            image.put(at, &vec![0; size as usize]);
            format!("{size:#x} bytes at {at:#x} zeroed")
        }
        _ => {
            let size = *dice.of(&[512usize, 4096]);
            let at = place(image, size as u64, dice);
            let noise: Vec<u8> = match dice.below(3) {
                0 => (0..size).map(|_| dice.next() as u8).collect(),
                1 => b"the quick brown fox jumps over the lazy dog\n".iter().copied().cycle().take(size).collect(),
                _ => [0, 1].into_iter().cycle().take(size).collect(),
            };
            image.put(at, &noise[..size.min((image.len.saturating_sub(at)) as usize)]);
            format!("{size:#x} bytes at {at:#x} overwritten")
        }
    }
}

/// Where a block of `size` begins in an image; rather where something is.
fn place(image: &Sparse, size: u64, dice: &mut Dice) -> u64 {
    let used: Vec<u64> = image.sectors().map(|(at, _)| at / size * size).collect();
    if used.is_empty() || dice.percent(20) {
        return dice.below((image.len / size).max(1)) * size;
    }
    *dice.of(&used)
}

fn set_field(base: &Base, image: &mut Sparse, dice: &mut Dice) -> String {
    let mut kinds: Vec<Kind> = base.fields.iter().map(|field| field.kind).collect();
    kinds.sort_unstable();
    kinds.dedup();
    // Mappings and counts are what most of an image is.
    if dice.percent(55) && kinds.contains(&Kind::Map) {
        kinds.retain(|kind| matches!(kind, Kind::Map | Kind::Counts));
    }
    let kind = *dice.of(&kinds);
    let of_kind: Vec<&Field> = base.fields.iter().filter(|field| field.kind == kind).collect();
    let field = **dice.of(&of_kind);
    let old = image.number(field.at, field.width, base.big);
    let value = if kind == Kind::Counts && dice.percent(60) {
        *dice.of(&[0, 1, 2, old.wrapping_add(1), old.wrapping_sub(1)])
    } else if dice.percent(25) {
        // What another field of the kind holds: two pointers to one place.
        let twin = **dice.of(&of_kind);
        image.number(twin.at, twin.width, base.big)
    } else if dice.percent(20) {
        // Some other place of the file, with the flags of the old value.
        let place = dice.below((image.len / base.unit).max(1)) * base.unit;
        (old & 0xc000_0000_0000_0001) | place
    } else {
        *dice.of(&values(base, &field))
    };
    let value = value & (u64::MAX >> (64 - 8 * field.width as u32));
    image.set_number(field.at, field.width, base.big, value);
    format!("{} at {:#x} from {old:#x} to {value:#x}", field.what, field.at)
}
