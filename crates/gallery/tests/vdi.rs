//! Defects in the copy of the VDI driver: each misbehaves in its schedule, and the driver without it does not.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod support;

use std::pin::pin;
use std::rc::Rc;

use blkproof_block::testing::{Action, Executor, OpKind, Rule, TestDisk, block_on};
use blkproof_block::{BlockDevice, Preallocation, WriteFlags};
use blkproof_gallery::Mutant;
use blkproof_gallery::formats::vdi::{CreateOptions, Vdi, create};
use support::vdi::{BLOCK, BLOCKS, image, open, reopen};
use support::{cut, cut_now, fail_nth, finish, hold_nth, holds, parked, poll, read, shows, write};

fn held(kind: OpKind, times: u64) -> Rule {
    Rule::new(Action::HoldBefore).kind(kind).times(times)
}

async fn put(vdi: Rc<Vdi<TestDisk>>, at: u64, byte: u8, len: usize) {
    vdi.write(at, &vec![byte; len], WriteFlags::empty()).await.unwrap();
}

/// Write A fails, write B to the same block, flush, reopen, read B.
#[test]
fn v1() {
    shows(Mutant::V1, || {
        let (disk, vdi) = image();
        fail_nth(&disk, OpKind::Write, 1);
        block_on(vdi.write(0, &[1; 512], WriteFlags::empty())).unwrap_err();
        disk.clear_rules();
        write(&vdi, 1024, 2, 512);
        block_on(vdi.flush()).unwrap();
        holds(&vdi, 1024, 2, 512)?;
        holds(&vdi, BLOCK, 0, 512)?;
        let vdi = reopen(&disk, vdi)?;
        holds(&vdi, 1024, 2, 512)
    });
}

/// Write A, park its word to the map, write B to the same block, flush, cut the power, read B.
#[test]
fn v1b() {
    shows(Mutant::V1b, || {
        let (disk, vdi) = image();
        let vdi = Rc::new(vdi);
        let _parked = parked(&disk, held(OpKind::Flush, 1), put(Rc::clone(&vdi), 0, 1, 512));
        write(&vdi, 1024, 2, 512);
        block_on(vdi.flush()).unwrap();
        cut_now(&disk, |disk| holds(&open(&disk)?, 1024, 2, 512))
    });
}

/// Write A allocates, park; write B to the same block; release A; read B.
#[test]
fn v3() {
    shows(Mutant::V3, || {
        let (disk, vdi) = image();
        let vdi = Rc::new(vdi);
        let mut executor = parked(&disk, held(OpKind::Write, 1), put(Rc::clone(&vdi), 0, 1, 512));
        executor.spawn(put(Rc::clone(&vdi), 1024, 2, 512));
        executor.run_until_stalled();
        finish(&disk, executor)?;
        holds(&vdi, 0, 1, 512)?;
        holds(&vdi, 1024, 2, 512)
    });
}

/// One write allocates two blocks, the second in part; read what is behind it.
#[test]
fn v4() {
    shows(Mutant::V4, || {
        let (_, vdi) = image();
        write(&vdi, BLOCK - 512, 7, 1024);
        holds(&vdi, BLOCK - 512, 7, 1024)?;
        holds(&vdi, BLOCK + 512, 0, 4096 - 512)
    });
}

/// A read is refused when it is sent, and succeeds.
#[test]
fn m2() {
    shows(Mutant::M2, || {
        let (disk, vdi) = image();
        write(&vdi, 0, 1, 512);
        fail_nth(&disk, OpKind::Read, 1);
        match read(&vdi, 0, 512) {
            Ok(found) if found != [1; 512] => Err("success without the data".into()),
            _ => Ok(()),
        }
    });
}

/// Allocating write A, drop it, write B to the same block.
#[test]
fn m10() {
    shows(Mutant::M10, || {
        let (disk, vdi) = image();
        hold_nth(&disk, OpKind::Write, 1);
        assert!(poll(pin!(vdi.write(0, &[1; 512], WriteFlags::empty()))).is_pending());
        disk.clear_rules();
        let mut executor = Executor::new();
        executor.spawn(put(Rc::new(vdi), 1024, 2, 512));
        executor.run(0).map_err(|stuck| stuck.to_string())
    });
}

/// Write in place, park its second half, read: no unit is mixed.
#[test]
fn m18() {
    shows(Mutant::M18, || {
        let (disk, vdi) = image();
        let vdi = Rc::new(vdi);
        write(&vdi, 0, 1, 1024);
        let rule = Rule::new(Action::HoldBefore).kind(OpKind::Write).nth(2);
        let executor = parked(&disk, rule, put(Rc::clone(&vdi), 0, 2, 1024));
        let found = read(&vdi, 512, 512)?;
        finish(&disk, executor)?;
        if found.iter().any(|byte| *byte != found[0]) { Err("a mixed sector".into()) } else { Ok(()) }
    });
}

/// Two writes to two fresh blocks, both parked; release; read both.
#[test]
fn m19() {
    shows(Mutant::M19, || {
        let (disk, vdi) = image();
        let vdi = Rc::new(vdi);
        disk.add_rule(held(OpKind::Write, 2));
        let mut executor = Executor::new();
        executor.spawn(put(Rc::clone(&vdi), 0, 1, 4096));
        executor.spawn(put(Rc::clone(&vdi), BLOCK, 2, 4096));
        executor.run_until_stalled();
        finish(&disk, executor)?;
        holds(&vdi, 0, 1, 4096)?;
        holds(&vdi, BLOCK, 2, 4096)
    });
}

/// Write the last unit of a block.
#[test]
fn m31() {
    shows(Mutant::M31, || {
        let (_, vdi) = image();
        write(&vdi, BLOCK - 512, 1, 512);
        holds(&vdi, BLOCK - 512, 1, 512)
    });
}

/// Write at 2^32 + x; read x.
#[test]
fn m32() {
    shows(Mutant::M32, || {
        let disk = TestDisk::growing(0);
        block_on(create(&disk, &CreateOptions { size: 5 << 30, ..CreateOptions::default() })).unwrap();
        let vdi = open(&disk)?;
        write(&vdi, (1 << 32) + 4096, 1, 512);
        holds(&vdi, (1 << 32) + 4096, 1, 512)?;
        holds(&vdi, 4096, 0, 512)
    });
}

/// Write by the first entry, then by the second; reopen; read both.
#[test]
fn m34() {
    shows(Mutant::M34, || {
        let (disk, vdi) = image();
        write(&vdi, 0, 1, 512);
        write(&vdi, BLOCK, 2, 512);
        let vdi = reopen(&disk, vdi)?;
        holds(&vdi, 0, 1, 512)?;
        holds(&vdi, BLOCK, 2, 512)
    });
}

/// Write, flush, cut the power, read.
#[test]
fn m35_and_m38() {
    for mutant in [Mutant::M35, Mutant::M38] {
        shows(mutant, || {
            let (disk, vdi) = image();
            write(&vdi, 0, 1, 512);
            block_on(vdi.flush()).unwrap();
            cut_now(&disk, |disk| holds(&open(&disk)?, 0, 1, 512))
        });
    }
}

/// Write with FUA, cut the power, read.
#[test]
fn m37() {
    shows(Mutant::M37, || {
        let (disk, vdi) = image();
        block_on(vdi.write(0, &[1; 512], WriteFlags::FUA)).unwrap();
        cut_now(&disk, |disk| holds(&open(&disk)?, 0, 1, 512))
    });
}

/// Write; cut the power anywhere in the flush; open.
#[test]
fn m39() {
    shows(Mutant::M39, || {
        let (disk, vdi) = image();
        write(&vdi, 0, 1, 512);
        block_on(vdi.flush()).unwrap();
        cut(&disk, 0..=disk.position(), |disk| open(&disk).map(|_| ()))
    });
}

/// Write, a flush fails, a flush succeeds, cut the power, read.
#[test]
fn m42() {
    shows(Mutant::M42, || {
        let (disk, vdi) = image();
        write(&vdi, 0, 1, 512);
        fail_nth(&disk, OpKind::Flush, 1);
        block_on(vdi.flush()).unwrap_err();
        disk.clear_rules();
        block_on(vdi.flush()).unwrap();
        cut_now(&disk, |disk| holds(&open(&disk)?, 0, 1, 512))
    });
}

/// Grow; cut the power anywhere; open.
#[test]
fn m44() {
    shows(Mutant::M44, || {
        let (disk, vdi) = image();
        write(&vdi, 0, 1, 512);
        block_on(vdi.resize(u64::from(BLOCKS + 50) * BLOCK, Preallocation::Off)).unwrap();
        cut(&disk, 0..=disk.position(), |disk| open(&disk).map(|_| ()))
    });
}
