//! Thousands of seeded workloads: concurrent requests, cancelled ones, a scheduled medium, power cuts at any step.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use blkproof_block::nodes::memory::SparseBytes;
use blkproof_block::testing::{
    ChangeId, Choices, DrainPolicy, Executor, Model, TestDisk, block_on, hash, stamp, workload,
};
use blkproof_block::{BlockDevice, Errno, Node, WriteFlags, ZeroFlags};
use blkproof_fault::disk::model::Sabotage;
use blkproof_fault::disk::{DiskNode, DiskOptions, Kind, Profile, WriteBack};

const SIZE: u64 = 12 * 512 + 100;

struct Life {
    model: RefCell<Model>,
    findings: RefCell<Vec<String>>,
    /// Requests that ended.
    ended: Cell<u64>,
}

fn options(seed: u64) -> DiskOptions {
    let mut draws = Choices::new(hash(seed, 0x6f70));
    let profiles = [Profile::Ordered, Profile::Request, Profile::Block, Profile::Torn];
    let orders = [WriteBack::Fifo, WriteBack::Lifo, WriteBack::Elevator, WriteBack::Random];
    DiskOptions {
        profile: profiles[draws.index(4)],
        cache_size: [0, 2000, 5000, 1 << 20][draws.index(4)],
        write_back: orders[draws.index(4)],
        seed,
        block_size: [512, 512, 1024, 4096][draws.index(4)],
        ..DiskOptions::default()
    }
}

async fn request(node: Rc<DiskNode>, life: Rc<Life>, mut draws: Choices, change: Rc<Cell<Option<ChangeId>>>) {
    let at = draws.below(SIZE);
    let len = (1 + draws.below(2000)).min(SIZE - at);
    let (at, len) = if draws.chance(500) { (at / 512 * 512, len.div_ceil(512) * 512) } else { (at, len) };
    let len = len.min(SIZE - at);
    let fua = draws.chance(200);
    let note = |result: &blkproof_block::Result<()>| {
        life.ended.set(life.ended.get() + 1);
        if let Err(error) = result
            && error.errno != Errno::NOTCONN
        {
            life.findings.borrow_mut().push(format!("{error}"));
        }
    };
    let ended = |id, result: blkproof_block::Result<()>| {
        note(&result);
        match result {
            Ok(()) => life.model.borrow_mut().complete(id),
            Err(_) => life.model.borrow_mut().fail(id),
        }
    };
    match draws.below(10) {
        0..=3 => {
            let op = life.model.borrow().len() as u64 + 1;
            let data = stamp::bytes(at, len as usize, op);
            let id = life.model.borrow_mut().submit_write(at, &data, fua);
            change.set(Some(id));
            let flags = if fua { WriteFlags::FUA } else { WriteFlags::empty() };
            ended(id, node.write(at, &data, flags).await);
        }
        4 => {
            let id = life.model.borrow_mut().submit_zeroes(at, len, fua);
            change.set(Some(id));
            ended(id, node.write_zeroes(at, len, if fua { ZeroFlags::FUA } else { ZeroFlags::empty() }).await);
        }
        5 => {
            let id = life.model.borrow_mut().submit_discard(at, len);
            change.set(Some(id));
            ended(id, node.discard(at, len).await);
        }
        6 | 7 => {
            let id = life.model.borrow_mut().submit_flush();
            let result = node.flush().await;
            note(&result);
            if result.is_ok() {
                life.model.borrow_mut().complete_flush(id);
            }
        }
        8 => {
            let started = life.model.borrow_mut().now();
            let result = node.drain().await;
            note(&result);
            if result.is_ok() {
                life.model.borrow_mut().drained(started);
            }
        }
        _ => {
            let started = life.model.borrow_mut().now();
            let mut buf = vec![0xdd; len as usize];
            let result = node.read(at, &mut buf).await;
            note(&result);
            if result.is_ok()
                && let Err(violation) = life.model.borrow_mut().check_read(at, &buf, started)
            {
                life.findings.borrow_mut().push(format!("read: {violation}"));
            }
        }
    }
}

/// What a run found, and how much was betrayed.
fn run(seed: u64, options: DiskOptions, sabotage: Option<Sabotage>, cancels: bool) -> (Vec<String>, u64, u64) {
    let mut content = SparseBytes::new(SIZE);
    content.write(0, &stamp::bytes(0, SIZE as usize, 1 << 40));
    let child = TestDisk::from_bytes(content);
    child.set_drain_policy(DrainPolicy::BySeed(seed));
    let mut executor = Executor::new();
    executor.attach(&child);
    let node = Rc::new(DiskNode::new(Node::new(child.clone()), options));
    if let Some(sabotage) = sabotage {
        node.sabotage(sabotage);
    }
    let disk = node.handle();
    let mut schedule = Choices::new(hash(seed, 1));
    let mut betrayed = 0;
    for cut in 0..2_u64 {
        let life = Rc::new(Life {
            model: RefCell::new(Model::new(child.image())),
            findings: RefCell::default(),
            ended: Cell::new(0),
        });
        let requests = Choices::new(hash(seed, 2 + cut));
        let mut flying: Vec<(_, Rc<Cell<Option<ChangeId>>>)> = Vec::new();
        let steps = 10 + schedule.below(120);
        let mut sent = 0;
        for _ in 0..steps {
            flying.retain(|(task, _)| executor.is_running(*task));
            if flying.len() < 5 && schedule.chance(350) {
                let change = Rc::new(Cell::new(None));
                let future = request(Rc::clone(&node), Rc::clone(&life), requests.stream(sent), Rc::clone(&change));
                flying.push((executor.spawn(future).id(), change));
                sent += 1;
            }
            executor.step(&mut schedule);
            if cancels && schedule.chance(15) && !flying.is_empty() {
                let (task, change) = flying.swap_remove(schedule.index(flying.len()));
                executor.cancel(task);
                if let Some(change) = change.get() {
                    life.model.borrow_mut().drop_request(change);
                }
            }
        }
        let judge = life.model.borrow().clone();
        // What is still running is polled before the cut, after it, or never again.
        let abandoned: Vec<_> = flying.iter().filter(|_| schedule.chance(200)).map(|(task, _)| *task).collect();
        // Nor did what was never polled begin in this life.
        for (task, _) in &flying {
            if executor.polls(*task) == 0 {
                executor.cancel(*task);
            }
        }
        let cutting = disk.clone();
        let report = executor.block_on(hash(seed, 100 + cut), async move { cutting.power_cut(None).await });
        let report = match report {
            Ok(report) => report.unwrap(),
            Err(stuck) => return (vec![format!("seed {seed}: {stuck}")], 0, 0),
        };
        // Requests that were answered between the judge's look and the cut count for what they are.
        let judge = if life.ended.get() > 0 { life.model.borrow().clone() } else { judge };
        abandoned.into_iter().for_each(|task| executor.cancel(task));
        betrayed += report.betrayed;
        let found = child.bytes(0, SIZE as usize);
        if let Err(violation) = judge.after_crash(usize::MAX).check(0, &found) {
            let text = format!("seed {seed}, cut {cut}, {}: {violation}", report.state);
            life.findings.borrow_mut().push(text);
        }
        // Nothing of the old life reaches the medium any more.
        if let Err(stuck) = executor.run(hash(seed, 200 + cut)) {
            life.findings.borrow_mut().push(format!("seed {seed}: {stuck}"));
        }
        if child.bytes(0, SIZE as usize) != found {
            life.findings.borrow_mut().push(format!("seed {seed}, cut {cut}: the medium changed after the cut"));
        }
        let findings = life.findings.borrow().clone();
        if !findings.is_empty() {
            return (findings, betrayed, executor.trace());
        }
    }
    (Vec::new(), betrayed, hash(executor.trace(), child.log().fingerprint()))
}

/// No flushed and no FUA write is ever lost, nothing foreign appears, nothing hangs, nothing lands late.
#[test]
fn an_honest_disk_keeps_its_word() {
    for seed in 0..1500 {
        let (findings, betrayed, trace) = run(seed, options(seed), None, seed % 2 == 1);
        assert!(findings.is_empty(), "seed {seed}: {findings:#?}");
        assert_eq!(betrayed, 0, "seed {seed}");
        if seed % 50 == 0 {
            assert_eq!(run(seed, options(seed), None, false).2, trace, "seed {seed} is not repeatable");
        }
    }
}

/// The positive control (CM 5.2): the same judge catches a liar, and the liar's own count says the same.
#[test]
fn a_liar_is_caught() {
    let (mut caught, mut betrayed) = (0, 0);
    for seed in 0..300 {
        let options = DiskOptions { kind: Kind::Liar, cache_size: 1 << 20, ..options(seed) };
        let (findings, bytes, _) = run(seed, options, None, false);
        caught += usize::from(!findings.is_empty());
        betrayed += usize::from(bytes > 0);
        assert!(findings.is_empty() || bytes > 0, "seed {seed}: {findings:?} and nothing betrayed");
    }
    assert!(caught > 120 && betrayed >= caught, "caught {caught}, betrayed {betrayed}");
}

#[test]
fn mistakes_are_found() {
    for sabotage in [
        Sabotage::FlushSkipsZeroes,
        Sabotage::SettledVersionsStay,
        Sabotage::SettlingTakesNewer,
        Sabotage::BatchHoldsNewestOnly,
        Sabotage::ReadersMissNewest,
        Sabotage::FuaIsNotWritten,
        Sabotage::NoDrain,
        Sabotage::MediumIsReadFirst,
        Sabotage::JobsOutliveCut,
        Sabotage::RoomWithoutWriting,
    ] {
        let found = (0..2500).find(|&seed| !run(seed, options(seed), Some(sabotage), seed % 2 == 1).0.is_empty());
        assert!(found.is_some(), "{sabotage:?} goes unnoticed");
    }
}

/// The general torture of any driver: faults of the medium, drops at every await, resizes; and then the process dies
/// without a word at any write to the medium, which is a cut to what was flushed or evicted.
#[test]
fn any_driver_s_torture() {
    for seed in 0..40 {
        let child = TestDisk::new(30 * 512);
        let node = Rc::new(DiskNode::new(Node::new(child.clone()), options(seed)));
        let config =
            workload::Config { seed, ops: 120, max_len: 3000, resizes: (seed % 2) as u32 * 3, ..Default::default() };
        let faulty = seed % 4 >= 2;
        let config = if faulty { config.hostile() } else { config };
        let outcome = workload::run(config, node, &child);
        outcome.assert_clean();
        let found = outcome.check_crashes(12, 8, |image| {
            let mut bytes = vec![0; image.size() as usize];
            image.read(0, &mut bytes);
            Ok(bytes)
        });
        assert_eq!(found, [], "seed {seed}");
    }
}

/// After all of that the disk still works: written, closed, reopened.
#[test]
fn closed_and_reopened() {
    for seed in 0..10 {
        let child = TestDisk::new(20 * 512);
        let node = Rc::new(DiskNode::new(Node::new(child.clone()), options(seed)));
        let config = workload::Config { seed, ops: 80, max_len: 3000, cancel_rate: 80, ..Default::default() };
        let mut outcome = workload::run(config, Rc::clone(&node), &child);
        outcome.assert_clean();
        block_on(node.close()).unwrap();
        block_on(outcome.check_reopened(&child)).unwrap();
    }
}
