//! Disk image formats as block devices, written for crash safety and cancellation.
//!
//! A format is a [`BlockDevice`](blkproof_block::BlockDevice) over one or more devices. It reports a damaged image as
//! an error with a place and never as a panic, announces its steps to the node beneath it, and survives being dropped
//! at any await.

pub mod qcow2;
pub mod vdi;
