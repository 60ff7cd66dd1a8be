//! Advisory locks: who may use a file at the same time, agreed with QEMU.
//!
//! The scheme is the one QEMU's file driver uses, found by looking at the locks it holds (`/proc/locks`) and at what
//! it refuses, so that both programs respect each other. A permission in use is a shared lock on the single byte
//! `100 + permission`; a permission denied to everybody else is a shared lock on `200 + permission`. All locks are
//! shared, hence read-only descriptors can hold them, and several holders can say the same thing. A conflict is *seen*,
//! not run into: whoever opens takes its own locks first and then asks whether anybody else holds the byte that means
//! the opposite. Of two that open at once at least one sees the other; both may, and then both are refused.
//!
//! The locks belong to the open file description (`F_OFD_SETLK`). They are given back when nothing in this program uses
//! the file any more, jobs in flight included: a file is free only when no late write can reach it. Closing alone would
//! not do: a child process that another thread has just forked holds a copy of the descriptor until it executes.
//!
//! QEMU's raw format shares everything when it is used by `qemu-io`. Ours never does: two writers, or a writer beside a
//! reader, are refused whatever the format is, as QEMU does for qcow2.

use std::os::fd::AsFd;

use nix::errno::Errno as NixErrno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use crate::{Errno, IoError};

const USED: libc::off_t = 100;
const DENIED: libc::off_t = 200;

/// A permission, by its number in the lock scheme.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Permission {
    ConsistentRead = 0,
    Write = 1,
    Resize = 3,
}

impl Permission {
    fn name(self) -> &'static str {
        match self {
            Self::ConsistentRead => "consistent read",
            Self::Write => "write",
            Self::Resize => "resize",
        }
    }
}

/// What one opener does with a file, and what nobody else may do meanwhile.
#[derive(Clone, Copy, Debug)]
pub(super) struct Claim {
    uses: &'static [Permission],
    denies: &'static [Permission],
}

impl Claim {
    /// Reads; nobody may write.
    pub(super) const READER: Self =
        Self { uses: &[Permission::ConsistentRead], denies: &[Permission::Write, Permission::Resize] };

    /// Reads next to whoever writes (`-U`).
    pub(super) const SHARED_READER: Self = Self { uses: &[Permission::ConsistentRead], denies: &[] };

    /// Reads and writes; nobody else may write.
    pub(super) const WRITER: Self = Self {
        uses: &[Permission::ConsistentRead, Permission::Write, Permission::Resize],
        denies: &[Permission::Write, Permission::Resize],
    };

    /// Replaces the content; nobody else may even read.
    pub(super) const CREATOR: Self = Self {
        uses: &[Permission::Write, Permission::Resize],
        denies: &[Permission::ConsistentRead, Permission::Write, Permission::Resize],
    };
}

/// Why a claim was not granted.
#[derive(Debug)]
pub(super) enum LockError {
    /// Somebody else uses the file; `lock` is QEMU's name of what could not be had: `"write"` or `shared "write"`.
    Busy { lock: String },
    /// The file system has no such locks, or the kernel ran out of them.
    Unavailable(IoError),
}

/// Claims the file, for as long as the open file description lives.
///
/// # Errors
/// A refused claim leaves no lock behind.
pub(super) fn claim(file: impl AsFd, claim: Claim) -> Result<(), LockError> {
    take(&file, claim).inspect_err(|_| release(&file))
}

/// Gives back everything that was claimed.
pub(super) fn release(file: impl AsFd) {
    let everything = libc::flock { l_len: 0, ..one_byte(libc::F_UNLCK, 0) };
    // Without locks there is nothing to give back; and closing the file is the second chance.
    let _ = fcntl(&file, FcntlArg::F_OFD_SETLK(&everything));
}

fn take(file: impl AsFd, claim: Claim) -> Result<(), LockError> {
    for permission in claim.uses {
        set(&file, USED + byte(*permission))?;
    }
    for permission in claim.denies {
        set(&file, DENIED + byte(*permission))?;
    }
    for permission in claim.uses {
        if held_by_another(&file, DENIED + byte(*permission))? {
            return Err(LockError::Busy { lock: format!("\"{}\"", permission.name()) });
        }
    }
    for permission in claim.denies {
        if held_by_another(&file, USED + byte(*permission))? {
            return Err(LockError::Busy { lock: format!("shared \"{}\"", permission.name()) });
        }
    }
    Ok(())
}

fn byte(permission: Permission) -> libc::off_t {
    permission as libc::off_t
}

fn set(file: impl AsFd, at: libc::off_t) -> Result<(), LockError> {
    let lock = one_byte(libc::F_RDLCK, at);
    loop {
        match fcntl(&file, FcntlArg::F_OFD_SETLK(&lock)) {
            Ok(_) => return Ok(()),
            Err(NixErrno::EINTR) => {}
            // Only a program outside the scheme takes exclusive locks.
            Err(NixErrno::EAGAIN | NixErrno::EACCES) => {
                return Err(LockError::Busy { lock: format!("byte {at}") });
            }
            Err(error) => return Err(LockError::Unavailable(IoError::new(Errno(error as i32)))),
        }
    }
}

fn held_by_another(file: impl AsFd, at: libc::off_t) -> Result<bool, LockError> {
    loop {
        // An exclusive lock would conflict with every other holder, so the question finds them all.
        let mut lock = one_byte(libc::F_WRLCK, at);
        match fcntl(&file, FcntlArg::F_OFD_GETLK(&mut lock)) {
            Ok(_) => return Ok(libc::c_int::from(lock.l_type) != libc::F_UNLCK),
            Err(NixErrno::EINTR) => {}
            Err(error) => return Err(LockError::Unavailable(IoError::new(Errno(error as i32)))),
        }
    }
}

fn one_byte(kind: libc::c_int, at: libc::off_t) -> libc::flock {
    libc::flock {
        l_type: libc::c_short::try_from(kind).expect("the kinds of lock are small numbers"),
        l_whence: libc::c_short::try_from(libc::SEEK_SET).expect("SEEK_SET is 0"),
        l_start: at,
        l_len: 1,
        l_pid: 0, // required to be 0 for locks of open file descriptions
    }
}
