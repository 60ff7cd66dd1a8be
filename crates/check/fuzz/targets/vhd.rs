//! Any bytes as a vhd image.

#![no_main]

use blkproof_check::Format;
use blkproof_check_fuzz::judge;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| judge::fuzz(Format::Vhd, input));
