//! Writes a sector of a cluster, and zeroes the sector after it at the same time, cluster after cluster:
//! `imago_write_beside_zeroes IMAGE`.
//!
//! Only the crate's own API, on a file. See `docs/findings/imago-write-beside-zeroes.md`.
#![allow(clippy::print_stdout, reason = "a program")]

#[path = "support/mod.rs"]
mod support;

use std::error::Error;
use std::sync::Barrier;

use imago::file::File;
use imago::qcow2::Qcow2;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatCreateBuilder as _, Storage as _, StorageCreateOptions};
use support::wait;

const CLUSTER: u64 = 64 << 10;
const CLUSTERS: u64 = 20_000;

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("which image shall be made?")?;
    let file = wait(File::create_open(StorageCreateOptions::new().filename(path).overwrite(true)))?;
    let image = Qcow2::<File>::create_builder(file).size(CLUSTER * CLUSTERS);
    let open = |file| Ok(Qcow2::<File>::builder(file).backing(None));
    let image = FormatAccess::new(wait(image.create_open(DenyImplicitOpenGate::default(), open))?);

    let barrier = Barrier::new(2);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            (0..CLUSTERS).try_for_each(|cluster| {
                barrier.wait();
                wait(image.write(&[0xaa; 512][..], CLUSTER * cluster))
            })
        });
        let zeroed = (0..CLUSTERS).try_for_each(|cluster| {
            barrier.wait();
            wait(image.write_zeroes(CLUSTER * cluster + 512, 512))
        });
        zeroed.and(writer.join().unwrap_or_else(|_| Err(std::io::Error::other("the writer panicked"))))
    })?;

    wait(image.flush())?;
    let mut lost = Vec::new();
    for cluster in 0..CLUSTERS {
        let mut sector = [0; 512];
        wait(image.read(&mut sector[..], CLUSTER * cluster))?;
        if sector != [0xaa; 512] {
            lost.push(cluster);
        }
    }
    println!("{} of {CLUSTERS} writes are lost", lost.len());
    if let Some(cluster) = lost.first() {
        println!("the first: guest offset {}, which does not hold 0xaa", CLUSTER * cluster);
    }
    Ok(())
}
