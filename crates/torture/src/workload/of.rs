//! What follows from a target's own words.

use blkproof_fault::disk::{FlushError, Profile};

use super::info::{Features, TargetInfo, Variant};
use crate::plan::TargetSpec;
use crate::target::Target;

/// Bytes of the smallest and the largest disk that an ordinary variant has: some thousand clusters, if they fit.
const SIZES: (u64, u64) = (4 << 20, 64 << 20);

/// Bytes of the disk on which 32 bits do not count bytes.
const LARGE: u64 = (5 << 30) + (3 << 9);

/// Bytes of the disk that is made to see whether it can be.
const PROBE: u64 = 1 << 20;

/// Bytes of an allocation unit, as far as places go, of a target without one.
const UNIT: u64 = 4096;

impl TargetInfo {
    /// A target as the generator sees it: each of its sets of options alone and, if both go together, over a base, and the first set on a disk larger than 2^32 bytes. `features` is what can be asked of it; power cuts only if it
    /// promises to survive them.
    pub fn of(target: &dyn Target, features: Features) -> Self {
        let mut variants = Vec::new();
        for options in target.variants() {
            for base in [false, true] {
                if (!base || target.takes_base()) && makes(target, &options, base) {
                    variants.push(variant(target, features, options.clone(), None, base));
                }
            }
        }
        let first = target.variants().into_iter().next().unwrap_or_default();
        variants.push(variant(target, features, first, Some(LARGE), false));
        Self {
            name: target.name().to_owned(),
            variants,
            profiles: vec![Profile::Request, Profile::Block, Profile::Block, Profile::Torn],
            blocks: vec![512, 512, 4096],
            flush_errors: vec![FlushError::Keep, FlushError::Forget],
        }
    }
}

/// Whether there is such an image: not all options go with a backing file.
fn makes(target: &dyn Target, options: &[(String, String)], base: bool) -> bool {
    let (options, base) = (options.to_vec(), base.then_some(PROBE));
    target.create(&TargetSpec { name: target.name().to_owned(), options, size: PROBE, base }).is_ok()
}

fn variant(
    target: &dyn Target,
    features: Features,
    options: Vec<(String, String)>,
    size: Option<u64>,
    base: bool,
) -> Variant {
    let mut spec = TargetSpec {
        name: target.name().to_owned(),
        options,
        size: size.unwrap_or(SIZES.1),
        base: base.then_some(SIZES.0),
    };
    // A plan has them by name.
    spec.options.sort();
    let cluster = match target.cluster(&spec) {
        0 => UNIT,
        cluster => cluster,
    };
    let square = cluster.saturating_mul(cluster);
    Variant {
        size: size.unwrap_or_else(|| cluster.saturating_mul(4096).clamp(SIZES.0, SIZES.1)),
        size_alignment: 512,
        alignment: 1,
        cluster,
        // Tables of a cluster, of entries of 16, 8 and 2 bytes, and a sector of a table, of entries of 4 and 8 bytes:
        // what there is of tables in the formats of this project. Others only lose a boundary that is none.
        spans: vec![square / 16, square / 8, square / 2, cluster.saturating_mul(128), cluster.saturating_mul(64)],
        hot: vec![1 << 32],
        base,
        features: Features { cut: features.cut && target.promises(&spec).crash_safe, ..features },
        options: spec.options,
    }
}
