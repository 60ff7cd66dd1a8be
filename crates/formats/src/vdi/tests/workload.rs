//! Random concurrent requests with faults, cancels and power cuts, over many seeds; and the same for each mutant, which
//! must be found.

use std::rc::Rc;

use blkproof_block::align::Aligned;
use blkproof_block::testing::workload::{Config, Outcome, run};
use blkproof_block::testing::{TestDisk, block_on};
use blkproof_block::{BlockDevice, Limits, Preallocation, WriteFlags};

use super::{Mutant, Setup, check_image, content, open, recover, shared};
use crate::vdi::Vdi;

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
    let config = Config { seed, ops, fua_rate: if seed.is_multiple_of(2) { 250 } else { 50 }, ..Config::default() };
    // An image can not outgrow a file of fixed length.
    let config = Config { resizes: if setup.grows && !seed.is_multiple_of(3) { 4 } else { 0 }, ..config };
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
    let mut resized = 0;
    for seed in 0..20 {
        for hostile in [false, true] {
            let crashes = if hostile == (seed % 2 == 0) { (8, 6) } else { (0, 0) };
            let outcome = judge(seed, 120, hostile, None, crashes).unwrap_or_else(|error| panic!("{error}"));
            resized += u32::from(outcome.size != setup(seed).size);
            if hostile {
                ended.iter_mut().zip(outcome.ended).for_each(|(sum, n)| *sum += n);
            }
        }
    }
    assert!(ended.iter().all(|&n| n > 40), "the set-up bites: succeeded, failed, dropped: {ended:?}");
    assert!(resized > 10, "the set-up bites: {resized} images have another size at the end");
}

/// Over a file that grows and takes whole blocks alone, as with `O_DIRECT`: header, map and data share blocks, the file
/// ends at odd places, and the node in between reads, modifies and writes.
#[test]
fn grows_over_a_file_that_takes_whole_blocks_alone() {
    for seed in 0..12 {
        let setup = setup(seed % 2);
        let alignment = [1024, 4096, 512][usize::try_from(seed).unwrap() % 3];
        let limits = Limits {
            alignment,
            memory_alignment: 512,
            max_transfer: 2 * alignment,
            zero_alignment: alignment * 2,
            ..Limits::NONE
        };
        let disk = setup.disk().with_limits(limits);
        let begin = disk.info().size;
        let file = Rc::new(Aligned::new(disk.clone()));
        let image = Rc::new(block_on(Vdi::open(Rc::clone(&file), false)).unwrap());
        let config = Config { seed, ops: 100, discards: 0, ..Config::default() };
        let mut outcome = run(if seed % 3 == 0 { config } else { config.hostile() }, Rc::clone(&image), &disk);
        outcome.assert_clean();
        let what = format!("seed {seed}, blocks of {alignment} bytes");
        block_on(image.resize(setup.size * 4, Preallocation::Off)).unwrap_or_else(|error| panic!("{what}: {error}"));
        let far = setup.size * 4 - 512;
        block_on(image.write(far, &[7; 300], WriteFlags::empty())).unwrap_or_else(|error| panic!("{what}: {error}"));
        block_on(image.close()).unwrap_or_else(|error| panic!("{what}: close: {error}"));
        assert!(disk.info().size > begin, "{what}: the file has grown");
        check_image(&disk.image(), true).unwrap_or_else(|error| panic!("{what}: {error}"));
        let again = open(&TestDisk::growing_from_bytes(disk.image())).unwrap();
        block_on(outcome.check_reopened(&again)).unwrap_or_else(|error| panic!("{what}: {error}"));
        let found = content(&again).unwrap();
        assert!(found[usize::try_from(far).unwrap()..][..300].iter().all(|&byte| byte == 7), "{what}");
        let found = outcome.check_crashes(4, 4, |bytes| recover(bytes, true));
        assert_eq!(found, [], "{what}");
    }
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
