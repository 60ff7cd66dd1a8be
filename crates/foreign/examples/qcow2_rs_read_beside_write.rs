//! Writes the first sector of a cluster and reads the second one meanwhile: `qcow2_rs_read_beside_write IMAGE`; the image is
//! made by qemu-img.
//!
//! Only the crate's own API, with its engine for tokio, on a file. See `docs/findings/qcow2-rs-read-beside-write.md`.
#![allow(clippy::print_stdout, reason = "a program")]

use std::error::Error;
use std::path::Path;

use qcow2_rs::dev::Qcow2DevParams;
use qcow2_rs::helpers::Qcow2IoBuf;
use qcow2_rs::utils::qcow2_setup_dev_tokio;

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("which image?")?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    runtime.block_on(async {
        let params = Qcow2DevParams::new(9, None, None, false, false);
        let device = qcow2_setup_dev_tokio(Path::new(&path), &params).await?;
        let (mut written, mut read) = (Qcow2IoBuf::<u8>::new(512), Qcow2IoBuf::<u8>::new(512));
        written.fill(0xaa);
        read.fill(0xcc);
        let (write, found) = tokio::join!(device.write_at(&written, 0), device.read_at(&mut read, 512));
        println!("write: {write:?}; read of 512 bytes: {found:?}, the first is {:#x}", read[0]);
        let again = device.read_at(&mut read, 512).await;
        println!("and again: {again:?}, the first is {:#x}", read[0]);
        device.flush_meta().await?;
        Ok(())
    })
}
