//! The ways in which one request below can fail.

use blkproof_block::Errno;
use blkproof_sim::{FaultDone, IoKind};

use super::untouched::Request;
use crate::plan::{FaultAt, FaultSpec};

/// A disk's sector: what fails is done up to the end of one.
const SECTOR: u64 = 512;

/// Every way in which this request can fail that a driver could tell apart, the plainest first.
///
/// Refused when it is sent, or failing when it completes, with nothing done; the same from it on for every request of its
/// kind. What changes the disk also fails with all of it done, and with its first or its last half if it has two. A disk
/// that refuses what would change it says that it is full, since that is when disks do so.
pub(super) fn ways(request: &Request) -> Vec<FaultSpec> {
    let changes = matches!(request.kind, IoKind::Write | IoKind::Zeroes | IoKind::Discard | IoKind::Resize);
    let grows = matches!(request.kind, IoKind::Write | IoKind::Zeroes | IoKind::Resize);
    let refusal = if grows { Errno::NOSPC } else { Errno::IO };
    let way = |lasting, immediate, done| FaultSpec {
        at: FaultAt::Nth(request.nth),
        lasting,
        immediate,
        done,
        errno: if immediate { refusal } else { Errno::IO },
    };
    let mut all = vec![way(false, true, FaultDone::Nothing), way(false, false, FaultDone::Nothing)];
    if changes {
        all.push(way(false, false, FaultDone::All));
    }
    let half = request.len.div_ceil(SECTOR) / 2 * SECTOR;
    if half > 0 && matches!(request.kind, IoKind::Write | IoKind::Zeroes) {
        all.extend([way(false, false, FaultDone::First(half)), way(false, false, FaultDone::From(half))]);
    }
    all.extend([way(true, true, FaultDone::Nothing), way(true, false, FaultDone::Nothing)]);
    all
}

#[cfg(test)]
mod tests {
    use blkproof_sim::{IoKey, Owner};

    use super::*;

    #[test]
    fn a_request_fails_in_every_way_it_can() {
        let read = ["refused EIO", "fails EIO", "refused EIO, lasting", "fails EIO, lasting"].as_slice();
        let sector =
            &["refused ENOSPC", "fails EIO", "fails EIO, all done", "refused ENOSPC, lasting", "fails EIO, lasting"];
        let three = &[
            "refused ENOSPC",
            "fails EIO",
            "fails EIO, all done",
            "fails EIO after 512",
            "fails EIO, from 512",
            "refused ENOSPC, lasting",
            "fails EIO, lasting",
        ];
        let discard =
            &["refused EIO", "fails EIO", "fails EIO, all done", "refused EIO, lasting", "fails EIO, lasting"];
        for (kind, len, want) in [
            (IoKind::Read, 4096, read),
            (IoKind::Flush, 0, read),
            (IoKind::Write, 512, sector),
            (IoKind::Write, 1536, three),
            (IoKind::Zeroes, 1536, three),
            (IoKind::Resize, 4096, sector),
            (IoKind::Discard, 4096, discard),
        ] {
            let key = IoKey { owner: Owner(1), nth: 1 };
            let found: Vec<_> = ways(&Request { nth: 7, key, kind, len }).iter().map(ToString::to_string).collect();
            let want: Vec<_> = want.iter().map(|words| format!("nth 7 {words}")).collect();
            assert_eq!(found, want, "{} of {len}", kind.name());
        }
    }
}
