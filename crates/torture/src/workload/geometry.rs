//! Disks, odd on purpose.

use super::dice::{Dice, Stream};
use super::info::{TargetInfo, Variant};
use crate::plan::SIZE_MAX;

/// The disk of a plan.
#[derive(Clone, Debug)]
pub(super) struct Geometry {
    pub(super) variant: Variant,
    pub(super) size: u64,
    pub(super) base: Option<u64>,
}

pub(super) fn draw(seed: u64, target: &TargetInfo) -> Geometry {
    let dice = Dice::new(seed, Stream::Geometry, 0);
    let index = usize::try_from(dice.below(0, target.variants.len() as u64)).unwrap_or(0);
    let variant = target.variants.get(index).cloned().unwrap_or_else(plain);
    let size = size(Dice::new(seed, Stream::Geometry, 1), &variant, variant.size);
    let base = variant.base.then(|| base(Dice::new(seed, Stream::Geometry, 2), &variant, size));
    Geometry { variant, size, base }
}

/// For a target that names none.
fn plain() -> Variant {
    Variant {
        options: Vec::new(),
        size: 1 << 20,
        size_alignment: 512,
        alignment: 1,
        cluster: 4096,
        spans: Vec::new(),
        hot: Vec::new(),
        base: false,
        features: super::Features::NONE,
    }
}

/// A size of at most `most`: that, a little less, a few clusters and a bit, or anything.
pub(super) fn size(dice: Dice, variant: &Variant, most: u64) -> u64 {
    let cluster = variant.cluster.max(1);
    let size = match dice.below(0, 8) {
        0..=2 => most,
        3 => most.saturating_sub(dice.below(1, cluster.saturating_mul(2))),
        4 | 5 => {
            let clusters = dice.below(2, 12).saturating_add(1);
            clusters.saturating_mul(cluster).saturating_add(dice.below(1, cluster))
        }
        6 => {
            // Just around the end of what one table covers.
            let span = dice.pick(3, &variant.spans).unwrap_or(cluster);
            span.saturating_add(dice.below(1, cluster.saturating_mul(2))).saturating_sub(cluster)
        }
        _ => dice.below(1, most),
    };
    aligned(size.min(most), variant.size_alignment)
}

/// A multiple, of at least one.
fn aligned(size: u64, alignment: u64) -> u64 {
    let alignment = alignment.max(1);
    (size / alignment).max(1).saturating_mul(alignment)
}

/// The size of a backing file: none of it is a multiple of anything, as often as not.
fn base(dice: Dice, variant: &Variant, size: u64) -> u64 {
    let cluster = variant.cluster.max(1);
    let around = match dice.below(0, 6) {
        0 => return size,
        // Ends within the cluster in which the overlay ends, before or behind.
        1 => size.saturating_sub(dice.below(1, cluster)),
        2 => size.saturating_add(dice.below(1, cluster.saturating_mul(2))),
        // Ends within the first clusters, in the middle, far behind.
        3 => dice.below(1, cluster.saturating_mul(4)),
        4 => dice.below(1, size),
        _ => size.saturating_add(dice.below(1, size.min(cluster.saturating_mul(64)))),
    };
    // Also a backing file is made of sectors, more often than not.
    let around = around.min(SIZE_MAX);
    if dice.chance(2, 600) { aligned(around, 512) } else { around.max(1) }
}
