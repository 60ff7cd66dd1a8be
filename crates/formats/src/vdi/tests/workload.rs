//! Random concurrent requests with faults, cancels and power cuts, over many seeds; and the same for each mutant, which
//! must be found.

use blkproof_block::BlockDevice;
use blkproof_block::testing::block_on;
use blkproof_block::testing::workload::{Config, Outcome, run};

use super::{Mutant, Setup, check_image, content, open, recover, shared};

fn setup(seed: u64) -> Setup {
    let setups = [
        Setup::small(),
        Setup { block_size: 512, size: 40_000, room: 79, ..Setup::small() },
        Setup { grows: false, ..Setup::small() },
        Setup { fixed: true, ..Setup::small() },
        Setup { block_size: 16384, size: 200 * 1024, ..Setup::small() },
    ];
    setups[usize::try_from(seed).unwrap() % setups.len()]
}

/// One seed, judged in every way there is: reads on the way, close, reopen, the map, power cuts.
fn judge(
    seed: u64,
    ops: u64,
    hostile: bool,
    mutant: Option<Mutant>,
    crashes: (usize, usize),
) -> Result<Outcome, String> {
    let setup = setup(seed);
    let disk = setup.disk();
    let image = shared(&disk, mutant);
    // Zeroes with FUA over unallocated blocks complete without any request to the disk. The oracle of power cuts knows a
    // moment only by its place in the disk's log, and can not tell that such a request was both sent and completed there:
    // so a run has zeroes, or FUA.
    let config = match seed % 4 {
        0 | 3 => Config { seed, ops, fua_rate: 0, ..Config::default() },
        _ => Config { seed, ops, zeroes: 0, fua_rate: 250, ..Config::default() },
    };
    let mut outcome = run(if hostile { config.hostile() } else { config }, image.clone(), &disk);
    if let Some(finding) = outcome.findings.first() {
        return Err(finding.to_string());
    }
    block_on(image.close()).map_err(|error| format!("seed {seed}: close: {error}"))?;
    check_image(&disk.image(), true).map_err(|error| format!("seed {seed}: after close: {error}"))?;
    let again = open(&disk)?;
    block_on(outcome.check_reopened(&again)).map_err(|error| format!("seed {seed}: after reopening: {error}"))?;
    content(&again)?;
    let found = outcome.check_crashes(crashes.0, crashes.1, |bytes| recover(bytes, setup.grows));
    match found.first() {
        Some(finding) => Err(finding.to_string()),
        None => Ok(outcome),
    }
}

#[test]
fn survives_faults_cancels_and_power_cuts() {
    let mut ended = [0; 3];
    for seed in 0..40 {
        for hostile in [false, true] {
            let crashes = if seed % 4 < 2 { (12, 10) } else { (0, 0) };
            let outcome = judge(seed, 120, hostile, None, crashes).unwrap_or_else(|error| panic!("{error}"));
            if hostile {
                ended.iter_mut().zip(outcome.ended).for_each(|(sum, n)| *sum += n);
            }
        }
    }
    assert!(ended.iter().all(|&n| n > 40), "the set-up bites: succeeded, failed, dropped: {ended:?}");
}

#[test]
fn a_seed_means_the_same_every_time() {
    let first = judge(7, 150, true, None, (0, 0)).unwrap().fingerprint;
    assert_eq!(judge(7, 150, true, None, (0, 0)).unwrap().fingerprint, first);
}

#[test]
fn every_mutant_is_found() {
    let mutants = [
        Mutant::MapBeforeWrite,
        Mutant::PadsWithoutLock,
        Mutant::KeepsStaleBytes,
        Mutant::MapBeforeData,
        Mutant::ForgetsDirty,
    ];
    for mutant in mutants {
        let found = (0..60).find_map(|seed| judge(seed, 120, true, Some(mutant), (12, 10)).err());
        assert!(found.is_some(), "{mutant:?} survived 60 seeds");
    }
}
