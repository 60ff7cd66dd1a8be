//! The pure cache against the formulas of CM 5.1.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

mod disk_common;

use std::collections::BTreeSet;
use std::rc::Rc;

use blkproof_block::ByteRange;
use blkproof_block::testing::{Choices, hash};
use blkproof_fault::disk::model::{ChangeId, Covered, Model, Request, Sabotage};
use blkproof_fault::disk::{Profile, StateName};

use self::disk_common::{Both, Image, put};

/// Runs workloads until something does not hold.
fn run(seeds: u64, sabotage: Option<Sabotage>) -> Result<u64, String> {
    let mut checked = 0;
    for seed in 0..seeds {
        let mut draws = Choices::new(hash(0x6d6f_6465_6c00, seed));
        let mut both = Both::new(2 + draws.index(3), sabotage);
        for step in 0..24 {
            // Few enough requests for all subsets.
            if both.reference.point().0.len() >= 7 {
                break;
            }
            both.step(&mut draws);
            if step % 3 == 2 {
                both.check(3000).map_err(|error| format!("seed {seed}, step {step}: {error}"))?;
                checked += 1;
            }
        }
    }
    Ok(checked)
}

/// Every state of the model is one of CM 5.1, and every one of those is a state of the model.
#[test]
fn states_are_exactly_the_legal_ones() {
    let checked = run(45, None).unwrap();
    assert!(checked > 150, "{checked}");
}

#[test]
fn mistakes_of_the_model_are_found() {
    for sabotage in [
        Sabotage::FlushSkipsZeroes,
        Sabotage::FlushCoversOpen,
        Sabotage::SettledVersionsStay,
        Sabotage::SettlingTakesNewer,
        Sabotage::BatchHoldsNewestOnly,
        Sabotage::ReadersMissNewest,
    ] {
        let found = run(150, Some(sabotage));
        assert!(found.is_err(), "{sabotage:?} goes unnoticed");
    }
}

fn write(model: &mut Model, at: u64, byte: u8, len: usize) -> ChangeId {
    let id = model.submit(Request::Write { at, data: Rc::from(vec![byte; len]) });
    model.complete(id);
    id
}

fn image(model: &Model, medium: &[u8], name: &str, profile: Profile) -> Image {
    let state = model.state(&name.parse().unwrap(), profile, &Covered::Nothing).unwrap();
    let mut image = medium.to_vec();
    image.resize(state.size as usize, 0);
    state.pieces.iter().for_each(|piece| put(&mut image, piece));
    image
}

/// First byte of each block.
fn heads(image: &Image, block: usize) -> Vec<u8> {
    image.chunks(block).map(|block| block[0]).collect()
}

/// CM 4.6 (3): an interval order, not a list of epochs.
#[test]
fn a_flush_covers_what_completed_before_it_was_sent() {
    let mut model = Model::new(2048, 512);
    let ids: Vec<_> =
        (0..3).map(|i| model.submit(Request::Write { at: i * 512, data: vec![i as u8 + 1; 512].into() })).collect();
    model.complete(ids[2]);
    model.complete(ids[1]);
    let flush = model.begin_flush();
    model.complete(ids[0]);
    let covered = Covered::CompletedBefore(flush);
    let batch = model.batch(&covered);
    assert_eq!(batch.pieces.iter().map(|piece| piece.range.start).collect::<Vec<_>>(), [512, 1024]);
    model.settle(&covered);
    assert_eq!(model.count(Profile::Block).count, 2, "only the first write is in doubt");
}

#[test]
fn states_by_name() {
    let mut model = Model::new(5 * 512, 512);
    let medium = vec![9; 5 * 512];
    let a = write(&mut model, 0, 1, 1536);
    let b = write(&mut model, 1024, 2, 1024);
    let c = model.submit(Request::Zeroes { range: ByteRange { start: 2048, end: 2560 }, unmap: false });
    assert_eq!((a, b, c), (ChangeId(0), ChangeId(1), ChangeId(2)));
    let table: [(&str, [u8; 5]); 13] = [
        ("all-old", [9, 9, 9, 9, 9]),
        ("all-new", [1, 1, 2, 2, 0]),
        ("drop:1", [1, 1, 1, 9, 0]),
        ("drop:0+2", [9, 9, 2, 2, 9]),
        ("keep:0", [1, 1, 1, 9, 9]),
        ("keep:2", [9, 9, 9, 9, 0]),
        ("prefix:completion:0", [9, 9, 9, 9, 9]),
        ("prefix:completion:1", [1, 1, 1, 9, 9]),
        ("prefix:submission:2", [1, 1, 2, 2, 9]),
        ("prefix:submission:77", [1, 1, 2, 2, 0]),
        ("tear:0:first:1", [1, 9, 2, 2, 0]),
        ("tear:1:last:1", [1, 1, 1, 2, 0]),
        ("number:0", [9, 9, 9, 9, 9]),
    ];
    for (name, want) in table {
        assert_eq!(heads(&image(&model, &medium, name, Profile::Torn), 512), want, "{name}");
    }
    for (name, profile, want) in [
        (
            "drop:1",
            Profile::Ordered,
            "a disk of profile 'ordered' is never left in state 'drop:1'; that takes profile 'request'",
        ),
        (
            "tear:1:last:1",
            Profile::Block,
            "a disk of profile 'block' is never left in state 'tear:1:last:1'; that takes profile 'torn'",
        ),
        ("keep:0+7", Profile::Block, "state 'keep:0+7': no request 7 is in the cache"),
        ("number:999", Profile::Block, "state 'number:999': there are 48 states"),
        ("number:8", Profile::Request, "state 'number:8': there are 8 states"),
    ] {
        let error = model.state(&name.parse().unwrap(), profile, &Covered::Nothing).unwrap_err();
        assert_eq!(error.to_string(), want);
    }
}

/// CM 5.4: all, if that is few; else the order in which they are worth trying.
#[test]
fn names_in_the_order_of_their_worth() {
    let mut model = Model::new(4096, 512);
    for i in 0..3 {
        write(&mut model, i * 1024, i as u8, 1024);
    }
    let names =
        |profile, budget| -> Vec<String> { model.names(profile, budget, 0).iter().map(ToString::to_string).collect() };
    assert_eq!(names(Profile::Block, 64).len(), 64);
    assert_eq!(names(Profile::Block, 64)[63], "number:63");
    let few = names(Profile::Block, 13);
    let want = [
        "all-old",
        "all-new",
        "drop:0",
        "drop:1",
        "drop:2",
        "keep:0",
        "keep:1",
        "keep:2",
        "prefix:completion:1",
        "prefix:completion:2",
        "prefix:submission:1",
        "prefix:submission:2",
    ];
    assert_eq!(few[..12], want);
    assert!(few[12].starts_with("seed:0x"), "{few:?}");
    assert_eq!(names(Profile::Torn, 14)[12..], ["tear:0:first:1", "tear:0:last:1"]);
    assert_eq!(names(Profile::Ordered, 99).len(), 6);
    assert_eq!(Model::new(512, 512).names(Profile::Block, 9, 0), [StateName::AllOld]);
}

/// CM 5.4, tier 2: two by two, of the metadata where it is known, of all where they are few.
#[test]
fn names_of_pairs() {
    let mut model = Model::new(1 << 20, 512);
    for i in 0..40 {
        write(&mut model, i * 1024, i as u8, 1024);
    }
    let metadata = BTreeSet::from([ChangeId(3), ChangeId(7), ChangeId(8)]);
    let names = |profile, metadata: Option<&BTreeSet<ChangeId>>| -> Vec<String> {
        model.names_with(profile, 400, 0, metadata).iter().map(ToString::to_string).collect()
    };
    let first_random = 2 + 2 * 40 + 2 * 39;
    assert!(names(Profile::Block, None)[first_random].starts_with("seed:"), "40 requests are not few");
    let pairs = ["drop:3+7", "drop:3+8", "drop:7+8", "keep:3+7", "keep:3+8", "keep:7+8"];
    assert_eq!(names(Profile::Block, Some(&metadata))[first_random..first_random + 6], pairs);
    let torn = names(Profile::Torn, Some(&metadata));
    assert_eq!(torn[first_random + 6..first_random + 8], ["tear:3:first:1", "tear:3:last:1"]);
    assert_eq!(torn.iter().filter(|name| name.starts_with("tear:")).count(), 6);
    assert!(torn[first_random + 12].starts_with("seed:"));
    // A few: each pair once, and nothing twice.
    for (count, pairs) in [(3, 0), (4, 6), (5, 20), (16, 240)] {
        let mut model = Model::new(1 << 20, 512);
        for i in 0..count {
            write(&mut model, i * 4096, i as u8, 4096);
        }
        let names = model.names(Profile::Block, 500, 0);
        let several = |name: &&StateName| matches!(name, StateName::Drop(ids) | StateName::Keep(ids) if ids.len() == 2);
        assert_eq!(names.iter().filter(several).count(), pairs, "{count} requests");
        let distinct: BTreeSet<_> = names.iter().map(ToString::to_string).collect();
        assert_eq!(distinct.len(), names.len());
    }
}

/// A block is cut at a sector, and everything else is as it would be.
#[test]
fn shorn_blocks() {
    let mut model = Model::new(8192, 4096);
    let medium = vec![9; 8192];
    write(&mut model, 0, 1, 8192);
    let sectors = heads(&image(&model, &medium, "shear:0:1:3", Profile::Shorn), 512);
    assert_eq!(sectors, [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 9, 9, 9, 9, 9]);
    let mut shorn = 0;
    for name in model.names(Profile::Shorn, 300, 3) {
        let found = heads(&image(&model, &medium, &name.to_string(), Profile::Shorn), 512);
        assert!(found.iter().all(|byte| [1, 9].contains(byte)));
        shorn += usize::from(found.chunks(8).any(|block| block.iter().any(|byte| *byte != block[0])));
    }
    assert!(shorn > 20, "{shorn}");
}

/// Noise where something was on its way, and nowhere else.
#[test]
fn garbage_only_in_flight() {
    let mut model = Model::new(4096, 512);
    let medium = vec![9; 4096];
    write(&mut model, 0, 1, 1024);
    model.submit(Request::Write { at: 1024, data: vec![2; 1024].into() });
    let moving = write(&mut model, 2048, 3, 512);
    let (mut noisy, mut unreadable) = (BTreeSet::new(), BTreeSet::new());
    for seed in 0..100 {
        let state = model.state(&StateName::Seed(seed), Profile::Garbage, &Covered::one(moving)).unwrap();
        let mut image = medium.clone();
        state.pieces.iter().for_each(|piece| put(&mut image, piece));
        unreadable.extend(state.unreadable.iter().flat_map(|range| range.start / 512..range.end / 512));
        for (block, bytes) in image.chunks(512).enumerate() {
            if bytes.iter().any(|byte| *byte != bytes[0]) {
                noisy.insert(block);
            } else {
                assert!([9, 1, 2, 3].contains(&bytes[0]));
            }
        }
    }
    assert_eq!(noisy, BTreeSet::from([2, 3, 4]));
    assert_eq!(unreadable, BTreeSet::from([2, 3, 4]));
}

/// What each state has lost of what was acknowledged, and of what was promised.
#[test]
fn losses_are_counted() {
    let mut model = Model::new(4096, 512);
    let first = write(&mut model, 0, 1, 1024);
    model.promise(&Covered::one(first));
    write(&mut model, 512, 2, 1024);
    model.submit(Request::Write { at: 3072, data: vec![3; 512].into() });
    for (name, lost, betrayed) in
        [("all-old", 1536, 1024), ("all-new", 0, 0), ("keep:0", 1024, 0), ("keep:1", 512, 512), ("drop:2", 0, 0)]
    {
        let state = model.state(&name.parse().unwrap(), Profile::Block, &Covered::Nothing).unwrap();
        assert_eq!((state.lost, state.betrayed), (lost, betrayed), "{name}");
    }
    assert_eq!(model.promised(), 1024);
}

/// The size is one more block: kept or lost apart from what is behind it, but not if something durable is.
#[test]
fn sizes() {
    let mut model = Model::new(1000, 512);
    let medium = vec![9; 1000];
    let grown = write(&mut model, 2000, 1, 500);
    assert_eq!(model.size(), 2500);
    assert_eq!(image(&model, &medium, "all-old", Profile::Block).len(), 1000);
    let new = image(&model, &medium, "all-new", Profile::Block);
    assert_eq!((new.len(), new[999], new[1999], new[2000], new[2499]), (2500, 9, 0, 1, 1));
    let sizes: BTreeSet<_> = model
        .names(Profile::Block, 64, 0)
        .iter()
        .map(|name| image(&model, &medium, &name.to_string(), Profile::Block).len())
        .collect();
    assert_eq!(sizes, BTreeSet::from([1000, 2500]));

    // A request inside the extension is durable: so is a size that holds it.
    let inside = write(&mut model, 2100, 2, 100);
    model.submit(Request::Resize { size: 700 });
    let covered = Covered::one(inside);
    let batch = model.batch(&covered);
    assert_eq!(batch.size, 2500);
    model.settle(&covered);
    let sizes: BTreeSet<_> = model
        .names(Profile::Block, 64, 0)
        .iter()
        .map(|name| model.state(name, Profile::Block, &Covered::Nothing).unwrap().size)
        .collect();
    assert_eq!(sizes, BTreeSet::from([700, 2500]), "the shrink came later and is still in doubt");
    assert_eq!(model.size(), 700);
    model.complete(grown);

    // What a shrink cut off does not come back when the disk grows.
    model.submit(Request::Resize { size: 1200 });
    let seen: Vec<_> = model.look(ByteRange { start: 690, end: 1200 }).iter().map(|piece| piece.range).collect();
    assert_eq!(seen, [ByteRange { start: 700, end: 1200 }]);
    let everything = model.batch(&Covered::Everything);
    assert_eq!(everything.size, 1200);
    assert!(everything.pieces.iter().all(|piece| piece.range.end <= 1200));
}

/// A durable write takes what else lies in its block to the medium, and with it a size that holds that: it would be cut
/// off there, and has no other way to come.
#[test]
fn a_block_that_is_durable_is_not_cut_off() {
    let mut model = Model::new(700, 512);
    model.submit(Request::Resize { size: 1024 });
    let long = write(&mut model, 600, 1, 424);
    let short = write(&mut model, 512, 2, 100);
    let mut medium = vec![9; 700];
    for change in [short, long] {
        let covered = Covered::one(change);
        let batch = model.batch(&covered);
        medium.resize(batch.size as usize, 0);
        for piece in &batch.pieces {
            put(&mut medium, piece);
        }
        model.settle(&covered);
    }
    assert_eq!(medium.len(), 1024);
    assert_eq!((medium[511], medium[512], medium[611], medium[612], medium[1023]), (9, 2, 2, 1, 1));

    // But not with one that nobody ever gave the disk.
    let mut model = Model::new(1024, 512);
    write(&mut model, 600, 1, 424);
    model.submit(Request::Resize { size: 512 });
    model.submit(Request::Resize { size: 700 });
    let short = write(&mut model, 512, 2, 100);
    assert_eq!(model.batch(&Covered::one(short)).size, 700);
}

#[test]
fn a_size_that_is_not_kept_is_found() {
    let check = |sabotage: Option<Sabotage>| {
        let mut model = Model::new(1024, 512);
        if let Some(sabotage) = sabotage {
            model.sabotage(sabotage);
        }
        write(&mut model, 1024, 1, 1024);
        let inside = write(&mut model, 1536, 2, 512);
        model.batch(&Covered::one(inside)).size
    };
    assert_eq!(check(None), 2048);
    assert_eq!(check(Some(Sabotage::SizeIsForgotten)), 1024);
}

/// A range of a TiB costs what a sector costs, to hold, to choose from and to write.
#[test]
fn a_huge_disk() {
    let mut model = Model::new(1 << 40, 512);
    for i in 0..4 {
        let range = ByteRange { start: i << 20, end: (1 << 40) - (i << 30) };
        let id = model.submit(Request::Zeroes { range, unmap: true });
        model.complete(id);
    }
    write(&mut model, (1 << 39) + 12345, 7, 3000);
    assert!(model.bytes() < 16 << 10, "{}", model.bytes());
    for name in ["all-old", "all-new", "keep:1", "seed:5"] {
        let state = model.state(&name.parse().unwrap(), Profile::Block, &Covered::Nothing).unwrap();
        assert_eq!(state.size, 1 << 40);
    }
    let new = model.state(&StateName::AllNew, Profile::Block, &Covered::Nothing).unwrap();
    assert_eq!(new.pieces.len(), 3);
    let old = model.state(&StateName::AllOld, Profile::Block, &Covered::Nothing).unwrap();
    assert_eq!((old.pieces.len(), old.lost), (0, 1 << 40));
    assert_eq!(model.count(Profile::Block).count, u64::MAX);
    assert!(model.count(Profile::Block).log2 > 10_000.0);
}

/// What a state costs does not grow with the bytes of a range: neighbours that pick the same are one piece, and all runs
/// together have a bounded number of picks.
#[test]
fn many_huge_ranges() {
    let mut model = Model::new(1 << 40, 512);
    for i in 0..128 {
        let id = model.submit(Request::Zeroes { range: ByteRange::at(i << 33, 1 << 30), unmap: true });
        model.complete(id);
    }
    let small = write(&mut model, 4 << 30, 7, 4096);
    let state = |name: &str| model.state(&name.parse().unwrap(), Profile::Shorn, &Covered::Nothing).unwrap();
    assert_eq!(state("all-old").pieces.len(), 0);
    assert_eq!((state("all-old").lost, state("all-new").lost), ((128 << 30) + 4096, 0));
    assert_eq!(state("all-new").pieces.len(), 129);
    assert_eq!((state("drop:5").pieces.len(), state("drop:5").lost), (128, 1 << 30));
    // A tear goes through a run where it has to, and nowhere else.
    let torn = state("tear:5:first:3");
    assert_eq!((torn.pieces.len(), torn.lost), (129, (1 << 30) - 1536));
    assert_eq!(torn.pieces[6].range, ByteRange::at(5 << 33, 1536));
    let torn = state("tear:5:last:3");
    assert_eq!(torn.pieces[6].range, ByteRange::at((5 << 33) + (1 << 30) - 1536, 1536));
    assert_eq!(state("number:5").pieces.iter().map(|piece| piece.range.len()).sum::<u64>() % 512, 0);
    let mut mixed = 0;
    for seed in 0..40 {
        let pieces = state(&format!("seed:{seed}")).pieces;
        assert!(pieces.len() <= 1 << 16, "{}", pieces.len());
        assert!(pieces.windows(2).all(|pair| pair[0].range.end <= pair[1].range.start));
        // Next to giants a small run still picks block by block.
        let own = pieces.iter().filter(|piece| ByteRange::at(4 << 30, 4096).contains(piece.range.start));
        let kept: u64 = own.map(|piece| piece.range.len()).sum();
        mixed += usize::from((1..4096).contains(&kept));
    }
    assert!(mixed > 4, "{mixed} states have some blocks of request {small}");
}

/// A dropped request is open until a drain, and a flush covers it only after that (CM 4.5).
#[test]
fn a_dropped_request_ends_at_a_drain() {
    let mut model = Model::new(4096, 512);
    let id = model.submit(Request::Write { at: 0, data: vec![1; 512].into() });
    model.drop_request(id);
    let flush = model.begin_flush();
    assert!(model.batch(&Covered::CompletedBefore(flush)).pieces.is_empty());
    model.drain();
    assert!(model.batch(&Covered::CompletedBefore(flush)).pieces.is_empty(), "that flush was sent before");
    let flush = model.begin_flush();
    assert_eq!(model.batch(&Covered::CompletedBefore(flush)).pieces.len(), 1);
}

/// CM 4.7 (3): what is forgotten never was, and what came later stays.
#[test]
fn forgetting() {
    let mut model = Model::new(2048, 512);
    write(&mut model, 0, 1, 1024);
    write(&mut model, 2048, 2, 512);
    let flush = model.begin_flush();
    write(&mut model, 512, 3, 512);
    assert_eq!(model.size(), 2560);
    model.forget(&Covered::CompletedBefore(flush));
    assert_eq!((model.size(), model.pending()), (2048, (1, 0)));
    let seen: Vec<_> = model.look(ByteRange { start: 0, end: 2048 }).iter().map(|piece| piece.range).collect();
    assert_eq!(seen, [ByteRange { start: 512, end: 1024 }]);
}

/// Seeds mean the same for ever.
#[test]
fn seeds_are_for_ever() {
    let mut model = Model::new(8192, 512);
    for block in 0..16 {
        write(&mut model, block * 512, block as u8 + 1, 512);
    }
    let medium = vec![0; 8192];
    let picked = |seed: u64, profile| -> u32 {
        let image = image(&model, &medium, &format!("seed:{seed}"), profile);
        image.chunks(512).enumerate().fold(0, |bits, (i, block)| bits | u32::from(block[0] != 0) << i)
    };
    let table: Vec<_> = (1..5).map(|seed| (picked(seed, Profile::Ordered), picked(seed, Profile::Block))).collect();
    assert_eq!(table, [(0x3fff, 0x7fff), (0x0fff, 0), (0x1fff, 0xffff), (0xffff, 0)], "{table:x?}");
}
