//! Images whose bytes are anything at all: errors, never a panic, and no memory out of proportion.

use blkproof_block::testing::{Choices, TestDisk, block_on, hash};
use blkproof_block::{BlockDevice, Preallocation, WriteFlags, ZeroFlags};

use super::{Setup, check_image, shared};
use crate::vdi::Vdi;

async fn poke(image: &Vdi<TestDisk>, choices: &mut Choices) {
    let size = image.info().size;
    let mut buf = vec![0; 9000];
    for _ in 0..6 {
        let at = if choices.chance(500) { choices.below(size.max(1)) } else { choices.below(120_000) };
        let len = choices.index(9000);
        let _ = image.read(at, &mut buf[..len]).await;
        let _ = image.try_read(at, &mut buf[..len]);
        let _ = image.write(at, &buf[..len], WriteFlags::empty()).await;
        let _ = image.write_zeroes(at, len as u64, ZeroFlags::MAY_UNMAP).await;
        let _ = image.discard(at, len as u64).await;
        if at < size {
            let _ = image.block_status(at, size - at).await;
        }
    }
    let _ = image.flush().await;
    if size < 1 << 30 {
        let _ = image.resize(choices.below(1 << 20), Preallocation::Off).await;
    }
    let _ = image.close().await;
}

#[test]
fn damaged_images_are_errors_and_never_panics() {
    let disk = Setup::small().disk();
    let image = shared(&disk, None);
    for block in [3u64, 0, 7, 24] {
        block_on(image.write(block * 4096, &[1; 4096], WriteFlags::empty())).unwrap();
    }
    block_on(image.close()).unwrap();
    let good = disk.image();
    let (mut opened, mut refused) = (0, 0);
    for seed in 0..3000 {
        let mut choices = Choices::new(hash(0xbad, seed));
        let mut bytes = good.clone();
        for _ in 0..=choices.below(3) {
            // Header fields and map entries, with values that are wrong in interesting ways.
            let at = match choices.below(3) {
                0 => 0x40 + choices.below(0x40) * 4,
                1 => 0x150 + choices.below(14) * 4,
                _ => 0x200 + choices.below(26) * 4,
            };
            let value = [0, 1, 2, 511, 512, 1024, 4096, 26, 27, 1 << 20, 0x7fff_ffff, 0xffff_fffd, 0xffff_ffff];
            let value: u32 = if choices.chance(800) {
                value[choices.index(value.len())]
            } else {
                u32::try_from(choices.next() >> 32).unwrap()
            };
            bytes.write(at, &value.to_le_bytes());
        }
        if choices.chance(100) {
            bytes.set_size(choices.below(20_000));
        }
        for read_only in [true, false] {
            let disk = TestDisk::growing_from_bytes(bytes.clone());
            match block_on(Vdi::open(disk.clone(), read_only)) {
                Ok(image) => {
                    opened += 1;
                    block_on(poke(&image, &mut choices));
                    if !read_only {
                        check_image(&disk.image(), true).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
                    }
                }
                Err(_) => refused += 1,
            }
        }
    }
    assert!(opened > 500 && refused > 500, "opened {opened}, refused {refused}");
}
