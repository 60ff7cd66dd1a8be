//! Any order of moves, taken for any reason, happens again by the names of what was held.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::cell::RefCell;
use std::rc::Rc;

use blkproof_block::choice::Choices;
use blkproof_block::{BlockDevice, WriteFlags, ZeroFlags};
use blkproof_formats::vdi;
use blkproof_sim::disk::{Content, DiskOptions};
use blkproof_sim::{Hold, MoveKey, Owner, Schedule, SimDisk, Simulation, Strategy};

fn image() -> Content {
    let disk = SimDisk::instant(DiskOptions::new(Content::new(0)).growing());
    let mut simulation = Simulation::new(&Schedule::default());
    let file = disk.clone();
    simulation.spawn(Owner(1), async move {
        vdi::create(&file, &vdi::CreateOptions { size: 4 << 20, ..vdi::CreateOptions::default() }).await.unwrap();
    });
    simulation.run(1000).unwrap();
    disk.content()
}

/// Twelve requests to a VDI image, all at once; the moves taken, the digest, and what was held.
fn run(schedule: &Schedule, seed: u64) -> (Vec<MoveKey>, u64, Vec<Hold>) {
    let mut simulation = Simulation::new(schedule);
    let file = simulation.disk(DiskOptions::new(image()).growing());
    let slot = Rc::new(RefCell::new(None));
    let into = Rc::clone(&slot);
    simulation.spawn(Owner(1), async move {
        *into.borrow_mut() = Some(Rc::new(vdi::Vdi::open(file, false).await.unwrap()));
    });
    let mut moves = Vec::new();
    while simulation.is_busy() {
        moves.extend(simulation.step());
    }
    let driver = slot.borrow_mut().take().unwrap();
    for op in 2..14 {
        let driver = Rc::clone(&driver);
        let mut draws = Choices::new(seed).stream(u64::from(op));
        let at = draws.below(4) * (1 << 20) + draws.below(4) * 512;
        let kind = draws.below(5);
        simulation.spawn(Owner(op), async move {
            match kind {
                0 | 1 => driver.write(at, &[u8::try_from(op).unwrap(); 1024], WriteFlags::empty()).await.unwrap(),
                2 => driver.write_zeroes(at, 4096, ZeroFlags::empty()).await.unwrap(),
                3 => driver.read(at, &mut [0; 512]).await.unwrap(),
                _ => driver.flush().await.unwrap(),
            }
        });
    }
    while simulation.is_busy() {
        moves.extend(simulation.step());
    }
    (moves, simulation.digest(), simulation.holds())
}

#[test]
fn a_seed_makes_one_run_and_its_holds_make_it_again() {
    let strategies =
        [Strategy::Fifo, Strategy::Random, Strategy::Delays { rate: 300 }, Strategy::Pct { depth: 3, length: 100 }];
    let mut different = 0;
    for seed in 0..40 {
        for strategy in strategies {
            let (moves, digest, holds) = run(&Schedule { strategy, seed, holds: Vec::new() }, seed);
            let again = run(&Schedule { strategy, seed, holds: Vec::new() }, seed);
            assert_eq!((&moves, digest), (&again.0, again.1), "seed {seed}, {strategy}");
            let explicit = run(&Schedule { holds: holds.clone(), ..Schedule::default() }, seed);
            assert_eq!((&moves, digest), (&explicit.0, explicit.1), "seed {seed}, {strategy}: by its holds");
            if strategy == Strategy::Fifo {
                assert_eq!(holds, [], "in order, nothing is held");
            } else if !holds.is_empty() {
                different += 1;
            }
        }
    }
    assert!(different > 100, "strategies depart from the order: {different} of 120 runs");
}

/// The planted fault: a hold that is left out changes the run.
#[test]
fn every_hold_counts() {
    let (moves, _, holds) = run(&Schedule { strategy: Strategy::Random, seed: 5, holds: Vec::new() }, 5);
    assert!(holds.len() > 5);
    for index in 0..holds.len() {
        let mut fewer = holds.clone();
        fewer.remove(index);
        let (again, ..) = run(&Schedule { holds: fewer, ..Schedule::default() }, 5);
        assert_ne!(again, moves, "without {}", holds[index]);
    }
}
