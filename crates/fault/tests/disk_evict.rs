//! What leaves a full cache, and what a power cut can leave afterwards.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

mod disk_common;

use std::rc::Rc;

use blkproof_block::testing::{Choices, TestDisk, block_on, hash};
use blkproof_block::{BlockDevice, Node, WriteFlags};
use blkproof_fault::disk::model::{ChangeId, Covered, Model, Request};
use blkproof_fault::disk::{DiskNode, DiskOptions, Profile, WriteBack, parse_options};

use self::disk_common::Both;

fn write(model: &mut Model, at: u64, byte: u8, len: usize) -> ChangeId {
    let id = model.submit(Request::Write { at, data: Rc::from(vec![byte; len]) });
    model.complete(id);
    id
}

const ORDERS: [WriteBack; 4] = [WriteBack::Fifo, WriteBack::Lifo, WriteBack::Elevator, WriteBack::Random];

/// Eviction takes states away and adds none: whatever it has written back, each state that is left is one that a disk
/// with a cache without end could be left in.
#[test]
fn eviction_adds_no_state() {
    for profile in [Profile::Ordered, Profile::Request, Profile::Block] {
        let mut evictions = 0;
        for seed in 0..60 {
            let mut draws = Choices::new(hash(0x6576_6963_7421, seed));
            let mut both = Both::new(2 + draws.index(3), None);
            let order = ORDERS[draws.index(4)];
            for _ in 0..24 {
                if both.reference.point().0.len() >= 8 {
                    break;
                }
                both.step(&mut draws);
                if draws.chance(200) && both.model.can_evict() {
                    let limit = both.model.bytes().saturating_sub(1 + draws.below(1200));
                    let covered = both.model.evict(limit, order, seed, profile);
                    assert_ne!(covered, Covered::Nothing, "something can be evicted");
                    both.settle(&covered);
                    evictions += 1;
                }
                let legal = match profile {
                    Profile::Ordered => both.reference.prefixes(),
                    Profile::Request => both.reference.by_request(),
                    _ => both.reference.by_block(),
                };
                for name in both.model.names(profile, 300, seed) {
                    assert!(legal.contains(&both.state(&name, profile)), "{profile:?}, {order:?}, seed {seed}: {name}");
                }
            }
        }
        assert!(evictions > 60, "{evictions}");
    }
}

/// Any order of eviction, however wrong for it: a disk of profile `ordered` never has a later write without an earlier.
#[test]
fn an_ordered_disk_with_a_small_cache() {
    for write_back in ORDERS {
        let child = TestDisk::new(64 << 10);
        let options = DiskOptions { profile: Profile::Ordered, write_back, cache_size: 4096, ..DiskOptions::default() };
        let node = DiskNode::new(Node::new(child.clone()), options);
        block_on(async {
            for sector in 0..128_u64 {
                node.write(sector * 37 % 128 * 512, &[1; 512], WriteFlags::empty()).await.unwrap();
            }
            node.handle().power_cut(Some("all-old")).await.unwrap();
        });
        let bytes = child.bytes(0, 64 << 10);
        let kept: Vec<_> = (0..128).map(|sector| bytes[sector * 37 % 128 * 512] == 1).collect();
        let survivors = kept.iter().filter(|kept| **kept).count();
        assert!(kept.iter().take(survivors).all(|kept| *kept), "{write_back:?}: {survivors} survive, not the first");
        assert!((100..128).contains(&survivors), "{survivors}");
    }
}

#[test]
fn ordered_takes_no_other_order() {
    for (text, refused) in [
        ("honest:profile=ordered", false),
        ("honest:profile=ordered,write-back=fifo", false),
        ("honest:profile=request,write-back=lifo", false),
        ("honest:profile=ordered,write-back=lifo", true),
        ("honest:profile=ordered,write-back=random", true),
    ] {
        let error = parse_options(text).err().map(|error| error.to_string());
        assert_eq!(error.is_some(), refused, "{text}");
        if let Some(error) = error {
            assert!(error.contains("expects 'fifo' with profile=ordered"), "{error}");
        }
    }
}

#[test]
fn eviction_in_each_order() {
    for (order, want) in
        [(WriteBack::Fifo, vec![0, 1]), (WriteBack::Lifo, vec![5, 6]), (WriteBack::Elevator, vec![1, 4])]
    {
        let mut model = Model::new(1 << 20, 512);
        for place in [9, 0, 7, 6, 1, 8, 5] {
            write(&mut model, place * 4096, 1, 4096);
        }
        model.submit(Request::Write { at: 0, data: vec![2; 4096].into() });
        let limit = model.bytes() - 8000;
        let evicted = model.evict(limit, order, 0, Profile::Block);
        assert_eq!(evicted, Covered::These(want.into_iter().map(ChangeId).collect()), "{order:?}");
        model.settle(&evicted);
        assert!(model.bytes() <= limit);
        // The open one stays whatever is asked for.
        let all = model.evict(0, order, 0, Profile::Block);
        model.settle(&all);
        assert_eq!(model.pending(), (1, 1));
        assert_eq!(model.evict(0, order, 0, Profile::Block), Covered::Nothing);
        assert!(!model.can_evict());
    }
    let drawn = |seed| {
        let mut model = Model::new(1 << 20, 512);
        for place in 0..20 {
            write(&mut model, place * 4096, 1, 4096);
        }
        let limit = model.bytes() / 2;
        model.evict(limit, WriteBack::Random, seed, Profile::Block)
    };
    assert_eq!(drawn(1), drawn(1));
    assert_ne!(drawn(1), drawn(2));
}
