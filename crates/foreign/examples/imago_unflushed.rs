//! Writes a cluster of a new image and ends without a flush, as a process does that is killed: `imago_unflushed IMAGE`. With
//! `again`, does so in an image that is there, and flushes.
//!
//! Only the crate's own API, on a file. See `docs/findings/imago-power-cut.md`.
#![allow(clippy::print_stdout, reason = "a program")]

#[path = "support/mod.rs"]
mod support;

use std::error::Error;

use imago::file::File;
use imago::qcow2::Qcow2;
use imago::{
    DenyImplicitOpenGate, FormatAccess, FormatCreateBuilder as _, FormatDriverBuilder as _, Storage as _,
    StorageCreateOptions, StorageOpenOptions,
};
use support::wait;

fn main() -> Result<(), Box<dyn Error>> {
    let mut words = std::env::args().skip(1);
    let path = words.next().ok_or("which image?")?;
    let again = words.next().is_some_and(|word| word == "again");
    if !again {
        let file = wait(File::create_open(StorageCreateOptions::new().filename(&path).overwrite(true)))?;
        wait(Qcow2::<File>::create_builder(file).size(1 << 30).create())?;
    }
    let file = wait(File::open(StorageOpenOptions::new().filename(&path).write(true)))?;
    let builder = Qcow2::<File>::builder(file).backing(None).write(true);
    let image = FormatAccess::new(wait(builder.open(DenyImplicitOpenGate::default()))?);
    wait(image.write(&[0xaa; 512][..], if again { 1 << 20 } else { 0 }))?;
    if again {
        wait(image.flush())?;
        wait(image.sync())?;
    }
    println!("written{}", if again { ", flushed and synced" } else { ", neither flushed nor synced" });
    Ok(())
}
