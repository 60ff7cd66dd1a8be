//! Which format an image has, by its magic alone. Names and sizes decide nothing.

use crate::bytes::{be_u32, le_u32};
use crate::source::Source;

/// An image format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Format {
    /// qcow2, versions 2 and 3.
    Qcow2,
    /// VirtualBox VDI.
    Vdi,
    /// VMware VMDK: sparse, stream-optimized, descriptor.
    Vmdk,
    /// Virtual PC VHD.
    Vhd,
    /// Hyper-V VHDX.
    Vhdx,
    /// Parallels HDD.
    Parallels,
    /// QEMU QED.
    Qed,
    /// Bytes of the guest, nothing else.
    Raw,
}

impl Format {
    /// All of them.
    pub const ALL: &'static [Self] =
        &[Self::Qcow2, Self::Vdi, Self::Vmdk, Self::Vhd, Self::Vhdx, Self::Parallels, Self::Qed, Self::Raw];

    /// QEMU's name for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Vdi => "vdi",
            Self::Vmdk => "vmdk",
            Self::Vhd => "vpc",
            Self::Vhdx => "vhdx",
            Self::Parallels => "parallels",
            Self::Qed => "qed",
            Self::Raw => "raw",
        }
    }

    /// The format of this name: QEMU's, or the common one (`vhd`).
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        if name.eq_ignore_ascii_case("vhd") {
            return Some(Self::Vhd);
        }
        Self::ALL.iter().copied().find(|format| format.name().eq_ignore_ascii_case(name))
    }
}

/// What the first and last bytes of an image are.
pub(crate) enum Probe {
    Known(Format),
    /// A format that is recognised but not checked, by name.
    Named(&'static str),
    Unknown,
}

/// Looks at the first and the last bytes; a part that can not be read says nothing.
pub(crate) fn probe(image: &dyn Source) -> Probe {
    let mut head = [0u8; 128];
    let read = image.read_at(0, &mut head).unwrap_or(0);
    let head = head.get(..read).unwrap_or_default();
    let begins = |magic: &[u8]| head.starts_with(magic);
    if begins(b"QFI\xfb") {
        return match be_u32(head, 4) {
            1 => Probe::Named("qcow (version 1)"),
            _ => Probe::Known(Format::Qcow2),
        };
    }
    if le_u32(head, 0x40) == 0xbeda_107f && head.len() > 0x44 {
        return Probe::Known(Format::Vdi);
    }
    if begins(b"KDMV") || begins(b"COWD") || begins(&[0xbe, 0xba, 0xfe, 0xca]) || begins(b"# Disk DescriptorFile") {
        return Probe::Known(Format::Vmdk);
    }
    if begins(b"vhdxfile") {
        return Probe::Known(Format::Vhdx);
    }
    if begins(b"WithoutFreeSpace") || begins(b"WithouFreSpacExt") {
        return Probe::Known(Format::Parallels);
    }
    if begins(b"QED\0") {
        return Probe::Known(Format::Qed);
    }
    if begins(b"conectix") || ends_with_footer(image) {
        return Probe::Known(Format::Vhd);
    }
    for (magic, name) in [
        (&b"LUKS\xba\xbe"[..], "LUKS"),
        (b"Bochs Virtual HD Image", "bochs"),
        (b"#!/bin/sh\n#V2.0 Format\n", "cloop"),
        (b"MComprHD", "CHD"),
    ] {
        if begins(magic) {
            return Probe::Named(name);
        }
    }
    Probe::Unknown
}

/// A fixed VHD is known by its last sector only; footers of 511 bytes were written by old programs.
fn ends_with_footer(image: &dyn Source) -> bool {
    [512u64, 511].into_iter().any(|back| {
        let mut cookie = [0u8; 8];
        let at = image.len().checked_sub(back);
        at.is_some_and(|at| image.read_at(at, &mut cookie).is_ok_and(|read| read == 8 && cookie == *b"conectix"))
    })
}
