//! Reads the last sector of an overlay and writes some: `qcow2_rs_overlay IMAGE CACHE PLACE…`; the image is made by
//! qemu-img, CACHE is the size of the cache of L2 slices in bytes, 0 for what the crate takes by itself.
//!
//! Only the crate's own API, on files. See `docs/findings/qcow2-rs-short-base.md` and `qcow2-rs-overlay-cache.md`.
#![allow(clippy::print_stdout, reason = "a program")]

#[path = "support/mod.rs"]
mod support;

use std::error::Error;
use std::path::Path;

use qcow2_rs::dev::Qcow2DevParams;
use qcow2_rs::helpers::Qcow2IoBuf;
use qcow2_rs::utils::qcow2_setup_dev_sync;
use support::wait;

fn main() -> Result<(), Box<dyn Error>> {
    let mut words = std::env::args().skip(1);
    let path = words.next().ok_or("which image?")?;
    let cache: usize = words.next().ok_or("which size of the cache?")?.parse()?;
    let params = Qcow2DevParams::new(9, None, (cache > 0).then_some((12, cache)), false, false);
    let device = qcow2_setup_dev_sync(Path::new(&path), &params)?;
    wait(device.qcow2_prep_io())?;
    let size = device.info.virtual_size();
    // What is freed is what is found in memory that nobody filled.
    for _ in 0..64 {
        let mut secret = Qcow2IoBuf::<u8>::new(64 << 10);
        secret.fill(0x53);
        std::hint::black_box(&secret[..]);
    }

    let mut sector = Qcow2IoBuf::<u8>::new(512);
    sector.fill(0xcc);
    let read = wait(device.read_at(&mut sector, size - 512))?;
    println!("read of the last 512 bytes: {read} bytes, the first is {:#x}", sector[0]);

    sector.fill(0xaa);
    let places = words.map(|word| word.parse()).collect::<Result<Vec<u64>, _>>()?;
    for &at in &places {
        wait(device.write_at(&sector, at))?;
        println!("written 512 bytes of 0xaa at {at}");
    }
    for at in (0..size).step_by(1 << 20) {
        wait(device.read_at(&mut sector, at))?;
    }
    for &at in &places {
        wait(device.read_at(&mut sector, at))?;
        println!("after a read of each megabyte: {:#x} at {at}", sector[0]);
    }
    wait(device.flush_meta())?;
    wait(device.fsync_range(0, usize::MAX))?;
    Ok(())
}
