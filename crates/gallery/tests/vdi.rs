//! Defects in the copy of the VDI driver: each misbehaves in its schedule, and the driver without it does not.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod support;

use blkproof_block::testing::{OpKind, block_on};
use blkproof_block::{BlockDevice, WriteFlags};
use blkproof_gallery::Mutant;
use support::vdi::{BLOCK, image, reopen};
use support::{fail_nth, holds, shows, write};

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
