//! Seen: over a device that does not grow by itself, a read returned zeroes where a completed write had put data
//! (random workload). Why: two requests that each made the device longer set its length at the same time; the smaller
//! length came last and cut off what the other request had written. A dropped request could do the same, later.
//! Must hold: the device never gets shorter, whatever order requests land in.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

use std::rc::Rc;

use blkproof_block::testing::{Action, Executor, OpKind, Rule, TaskId, TestDisk, block_on};
use blkproof_block::{BlockDevice, Preallocation, WriteFlags};
use blkproof_formats::qcow2::{CreateOptions, OpenOptions, Qcow2, create};

const CLUSTER: u64 = 4096;

fn image(data_file: bool) -> (TestDisk, Option<TestDisk>, Rc<Qcow2<TestDisk>>) {
    let options = CreateOptions {
        size: 1 << 20,
        cluster_size: CLUSTER,
        data_file: data_file.then(|| "data.raw".into()),
        ..CreateOptions::default()
    };
    let (file, data) = (Rc::new(TestDisk::growing(0)), data_file.then(|| Rc::new(TestDisk::growing(0))));
    block_on(create(Rc::clone(&file), data.clone(), &options)).unwrap();
    let disk = TestDisk::from_bytes(file.image());
    let data = data.map(|data| TestDisk::from_bytes(data.image()));
    let open = OpenOptions { data_file: data.clone(), ..OpenOptions::default() };
    let image = block_on(Qcow2::open(disk.clone(), open)).unwrap();
    // The tables exist already, so that what follows is data alone.
    block_on(image.write(0, &[1; CLUSTER as usize], WriteFlags::empty())).unwrap();
    block_on(image.flush()).unwrap();
    (disk, data, Rc::new(image))
}

fn write(executor: &mut Executor, image: &Rc<Qcow2<TestDisk>>, cluster: u64, byte: u8) -> TaskId {
    let image = Rc::clone(image);
    let task = executor.spawn(async move {
        image.write(cluster * CLUSTER, &[byte; CLUSTER as usize], WriteFlags::empty()).await.unwrap();
    });
    executor.run_until_stalled();
    task.id()
}

fn assert_cluster(image: &Qcow2<TestDisk>, cluster: u64, byte: u8) {
    let mut buf = [0xee; CLUSTER as usize];
    block_on(image.read(cluster * CLUSTER, &mut buf)).unwrap();
    assert_eq!((buf[0], buf[4095]), (byte, byte), "cluster {cluster}");
}

#[test]
fn two_requests_that_extend_the_device_do_not_cut_each_other_off() {
    let (disk, _, image) = image(false);
    let mut executor = Executor::new();
    disk.hold_kind(OpKind::Resize);
    write(&mut executor, &image, 1, 0x11);
    write(&mut executor, &image, 2, 0x22);
    // The youngest first, as long as any is held.
    while let Some(op) = disk.parked().last().map(|op| op.id) {
        disk.release(op);
        executor.run_until_stalled();
    }
    assert_cluster(&image, 1, 0x11);
    assert_cluster(&image, 2, 0x22);
}

#[test]
fn a_dropped_extension_does_not_land_behind_a_later_one() {
    let (disk, _, image) = image(false);
    let mut executor = Executor::new();
    disk.add_rule(Rule::new(Action::HoldBefore).kind(OpKind::Resize).nth(1));
    let task = write(&mut executor, &image, 1, 0x11);
    let late = disk.parked()[0].id;
    executor.cancel(task);
    write(&mut executor, &image, 2, 0x22);
    if disk.orphans().iter().any(|op| op.id == late) {
        disk.land(late);
    }
    assert_cluster(&image, 2, 0x22);
}

#[test]
fn a_dropped_growth_of_the_data_file_does_not_land_behind_a_later_one() {
    let (_, data, image) = image(true);
    let data = data.unwrap();
    let mut executor = Executor::new();
    data.add_rule(Rule::new(Action::HoldBefore).kind(OpKind::Resize).nth(1));
    let grown = Rc::clone(&image);
    let task = executor.spawn(async move { grown.resize(2 << 20, Preallocation::Off).await });
    executor.run_until_stalled();
    let late = data.parked()[0].id;
    executor.cancel(task.id());
    block_on(image.resize(4 << 20, Preallocation::Off)).unwrap();
    block_on(image.write(3 << 20, &[0x33; CLUSTER as usize], WriteFlags::empty())).unwrap();
    if data.orphans().iter().any(|op| op.id == late) {
        data.land(late);
    }
    assert_cluster(&image, (3 << 20) / CLUSTER, 0x33);
}
