//! VM state: clusters behind the disk that a snapshot keeps are its own, without one that says so they are stray.
#![allow(
    missing_docs,
    unreachable_pub,
    dead_code,
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation
)]

mod causes_support;

use blkproof_check::Verdict;
use blkproof_check::map::Class;
use causes_support::{Image, MIB, story};

#[test]
fn a_snapshot_keeps_its_vm_state() {
    let image = Image::create("64M", "");
    image.io(&["write -q -P 1 0 8M".to_owned(), "write -q -b -P 7 0 2M".to_owned()]);
    image.img(&["snapshot", "-c", "machine"]);
    // `qemu-img snapshot` has no machine whose state it could measure, and writes 0.
    let codes = |report: &blkproof_check::Report| report.findings.iter().map(|one| one.code.name).collect::<Vec<_>>();
    let unsaid = image.check();
    assert_eq!((unsaid.verdict, image.qemu_status()), (Verdict::Healthy, 0), "{}", story(&unsaid));
    assert!(codes(&unsaid).contains(&"QCOW2-L1-STRAY"), "{}", story(&unsaid));

    // Snapshot table entry: 32-bit size at 32, 64-bit size in the extra data at 40 (specification, "Snapshots").
    let table = image.u64_at(64);
    image.write(table + 32, &u32::try_from(2 * MIB).unwrap().to_be_bytes());
    image.write(table + 40, &(2 * MIB).to_be_bytes());
    let said = image.check();
    assert_eq!((said.verdict, image.qemu_status()), (Verdict::Healthy, 0), "{}", story(&said));
    assert_eq!(codes(&said), [""; 0], "{}", story(&said));
    let host = said.host.as_ref().unwrap();
    assert_eq!(host.bytes(Class::VmState), 2 * MIB);
    assert_eq!(host.bytes(Class::Data), 8 * MIB);

    // More than the snapshot's L1 table can hold: its end is missing.
    image.write(table + 40, &(1u64 << 40).to_be_bytes());
    let cut = image.check();
    assert_eq!(cut.verdict, Verdict::Damaged, "{}", story(&cut));
}
