//! Limits that a blkdebug node pretends to have, so that what stands above shows how it copes with them.

use blkproof_block::graph::{OpenError, OptionError, Options};
use blkproof_block::{ByteRange, DeviceInfo, Limits};

use crate::request::Operation;

/// No option may reach this.
const MAX: u64 = i32::MAX as u64;

/// The options as given, in bytes; 0 is the child's.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[allow(missing_docs)]
pub struct LimitOptions {
    pub align: u64,
    pub max_transfer: u64,
    pub opt_write_zero: u64,
    pub max_write_zero: u64,
    pub opt_discard: u64,
    pub max_discard: u64,
}

impl LimitOptions {
    /// Takes them out of a node's options.
    ///
    /// # Errors
    /// If one is no size.
    pub(super) fn take(options: &mut Options) -> Result<Self, OptionError> {
        let mut size = |name| Ok::<_, OptionError>(options.take_size(name)?.unwrap_or(0));
        Ok(Self {
            align: size("align")?,
            max_transfer: size("max-transfer")?,
            opt_write_zero: size("opt-write-zero")?,
            max_write_zero: size("max-write-zero")?,
            opt_discard: size("opt-discard")?,
            max_discard: size("max-discard")?,
        })
    }

    /// Checks them against each other and the child, in QEMU's order and words.
    ///
    /// # Errors
    /// [`OpenError::Usage`] with the first that can not be met, and why.
    pub(super) fn check(&self, child: &Limits) -> Result<(), OpenError> {
        let refuse = |option: &str, value: u64, why: String| {
            Err(OpenError::Usage(format!("Cannot meet constraints with {option} {value}\nhint: {why}")))
        };
        if self.align != 0 && (self.align >= MAX || !self.align.is_power_of_two()) {
            return refuse("align", self.align, "it has to be a power of two below 2 GiB".to_owned());
        }
        let align = self.align.max(u64::from(child.alignment)).max(1);
        for (option, value, unit) in [
            ("max-transfer", self.max_transfer, align),
            ("opt-write-zero", self.opt_write_zero, align),
            ("max-write-zero", self.max_write_zero, self.opt_write_zero.max(align)),
            ("opt-discard", self.opt_discard, align),
            ("max-discard", self.max_discard, self.opt_discard.max(align)),
        ] {
            if value >= MAX || !value.is_multiple_of(unit) {
                return refuse(option, value, format!("it has to be a multiple of {unit} below 2 GiB"));
            }
        }
        Ok(())
    }

    /// What the node says of itself above a child that says `child`.
    pub(super) fn stated(&self, child: Limits) -> Limits {
        let or = |mine: u64, childs: u64| if mine == 0 { childs } else { mine };
        let small = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        let alignment = child.alignment.max(small(self.align));
        Limits {
            alignment,
            max_transfer: small(or(self.max_transfer, child.max_transfer.into())),
            zero_alignment: granule(self.opt_write_zero).max(child.zero_alignment),
            max_zero: or(self.max_write_zero, child.max_zero),
            discard_alignment: granule(self.opt_discard).max(child.discard_alignment),
            max_discard: or(self.max_discard, child.max_discard),
            ..child
        }
    }

    /// Zeroes smaller than this are refused, so that they come back as data.
    pub(super) fn smallest_zero(&self, limits: &Limits) -> u64 {
        u64::from(limits.alignment).max(self.opt_write_zero)
    }
}

/// The largest power of two that divides `size`: our granules are powers of two, QEMU's need not be.
fn granule(size: u64) -> u32 {
    match size {
        0 => 1,
        size => 1 << size.trailing_zeros().min(31),
    }
}

/// What is wrong with a request to a node that says `info`; `None` if it keeps to the limits.
pub(super) fn breach(info: &DeviceInfo, operation: Operation, range: ByteRange) -> Option<String> {
    let limits = &info.limits;
    let (unit, max) = match operation {
        Operation::Read | Operation::Write => (limits.alignment, u64::from(limits.max_transfer)),
        Operation::WriteZeroes => (limits.alignment, limits.max_zero),
        Operation::Discard => (limits.alignment, limits.max_discard),
        Operation::Flush | Operation::BlockStatus | Operation::Resize => return None,
    };
    let unit = u64::from(unit.max(1));
    // A request may end at the end of the device, or behind it where the device grows.
    if !range.start.is_multiple_of(unit) || (!range.end.is_multiple_of(unit) && range.end < info.size) {
        return Some(format!("{operation} of {range} is not aligned to {unit} bytes"));
    }
    (max > 0 && range.len() > max).then(|| format!("{operation} of {range} is longer than {max} bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_have_to_fit_each_other() {
        let child = Limits { alignment: 512, ..Limits::NONE };
        let good = LimitOptions {
            align: 4096,
            max_transfer: 12288,
            opt_write_zero: 8192,
            max_write_zero: 24576,
            opt_discard: 4096,
            max_discard: 4096,
        };
        good.check(&child).unwrap();
        LimitOptions::default().check(&child).unwrap();
        for (bad, want) in [
            (LimitOptions { align: 3, ..good }, "align 3"),
            (LimitOptions { align: 1 << 31, ..good }, "align 2147483648"),
            (LimitOptions { max_transfer: 4097, ..good }, "max-transfer 4097"),
            (LimitOptions { max_transfer: 100, ..LimitOptions::default() }, "max-transfer 100"),
            (LimitOptions { opt_write_zero: 2048, ..good }, "opt-write-zero 2048"),
            (LimitOptions { max_write_zero: 12288, ..good }, "max-write-zero 12288"),
            (LimitOptions { opt_discard: 1, ..good }, "opt-discard 1"),
            (LimitOptions { max_discard: 4 << 30, ..good }, "max-discard 4294967296"),
        ] {
            let error = bad.check(&child).unwrap_err().to_string();
            assert!(error.starts_with(&format!("Cannot meet constraints with {want}\n")), "{error}");
        }
        let stated = good.stated(child);
        assert_eq!((stated.alignment, stated.max_transfer, stated.zero_alignment), (4096, 12288, 8192));
        assert_eq!(LimitOptions { opt_write_zero: 12288, ..good }.stated(child).zero_alignment, 4096);
        assert_eq!(LimitOptions::default().stated(child), child);
    }

    #[test]
    fn requests_outside_the_limits_are_seen() {
        let limits = Limits { alignment: 512, max_transfer: 1024, max_discard: 4096, ..Limits::NONE };
        let info = DeviceInfo { limits, ..DeviceInfo::new("blkdebug", 10_000) };
        for (operation, start, len, bad) in [
            (Operation::Read, 0, 1024, false),
            (Operation::Read, 1, 512, true),
            (Operation::Read, 512, 100, true),
            (Operation::Read, 9728, 272, false),
            (Operation::Write, 0, 1536, true),
            (Operation::Discard, 0, 4096, false),
            (Operation::Discard, 0, 4608, true),
            (Operation::WriteZeroes, 0, 1 << 40, false),
            (Operation::Flush, 0, 0, false),
        ] {
            let range = ByteRange::at(start, len);
            assert_eq!(breach(&info, operation, range).is_some(), bad, "{operation} {range}");
        }
    }
}
