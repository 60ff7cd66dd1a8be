//! Each rule, kept and broken.

use blkproof_block::ByteRange;

use super::super::{Code, Ending, Oracle, Promises, Violation};
use super::{after, bytes, discard, read, write, zeroes};
use crate::plan::{Act, OpId};
use crate::stamp;

const SIZE: u64 = 1 << 20;

/// A client that does one thing after another.
struct Client {
    oracle: Oracle,
    next: OpId,
}

impl Client {
    fn new(base: Option<u64>) -> Self {
        Self::with(base, Promises::default())
    }

    fn with(base: Option<u64>, promises: Promises) -> Self {
        Self { oracle: Oracle::with_promises(SIZE, base, promises), next: 1 }
    }

    fn begin(&mut self, act: Act) -> OpId {
        let op = self.next;
        self.next += 1;
        self.oracle.submit(op, &act);
        op
    }

    fn act(&mut self, act: Act, ending: Ending) -> OpId {
        let op = self.begin(act);
        self.oracle.end(op, ending);
        op
    }

    fn done(&mut self, act: Act) -> OpId {
        self.act(act, Ending::Done)
    }

    fn read(&mut self, at: u64, found: &[u8]) -> Result<(), Violation> {
        let op = self.begin(read(at, at + found.len() as u64));
        let verdict = self.oracle.read_end(op, ByteRange::at(at, found.len() as u64), found);
        self.oracle.end(op, Ending::Done);
        verdict
    }

    fn status(&mut self, from: u64, to: u64) -> Result<(), Violation> {
        let range = ByteRange { start: from, end: to };
        let op = self.begin(Act::Status { range });
        let verdict = self.oracle.status_end(op, range, true);
        self.oracle.end(op, Ending::Done);
        verdict
    }

    fn crash(&mut self) {
        self.oracle = self.oracle.after_crash().into_oracle();
    }
}

#[track_caller]
fn broken(verdict: Result<(), Violation>, code: Code, found: &str, allowed: &[OpId]) {
    let violation = verdict.expect_err("a violation");
    assert_eq!((violation.code, &violation.allowed_ops[..]), (code, allowed), "{violation}");
    assert!(violation.to_string().contains(found), "{violation}");
}

fn base(at: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; len as usize];
    stamp::base_fill(&mut bytes, at);
    bytes
}

fn w(from: u64, to: u64) -> Act {
    write(from, to, false)
}

#[test]
fn a_success_replaces_what_was_there() {
    let mut client = Client::new(None);
    client.done(w(0, 1024));
    client.read(0, &bytes(0, 1024, 1)).unwrap();
    client.done(w(512, 1024));
    client.read(0, &bytes(0, 512, 1)).unwrap();
    broken(
        client.read(0, &bytes(0, 1024, 1)),
        Code::Read,
        "bytes 0x200..0x400: found superseded content of op 1",
        &[3],
    );
    broken(client.read(512, &[0; 512]), Code::Read, "superseded content of the initial", &[3]);
    broken(client.read(1024, &bytes(1024, 512, 3)), Code::Foreign, "what op 3 never wrote here", &[0]);
}

#[test]
fn foreign_bytes_are_named() {
    let mut client = Client::new(Some(SIZE));
    client.done(w(0, 4096));
    let mut torn = bytes(512, 512, 1);
    torn[100..].copy_from_slice(&base(512, 512)[100..]);
    let table = [
        (bytes(1024, 512, 1), "what op 1 wrote at 0x400"),
        (base(1024, 512), "what the base image holds at 0x400"),
        (torn, "a torn unit: 100 bytes of what op 1 wrote, then that of the initial content"),
        (vec![0xab; 512], "garbage [ab, ab"),
    ];
    for (found, text) in table {
        broken(client.read(512, &found), Code::Foreign, text, &[1]);
    }
    broken(client.read(512, &[0; 512]), Code::Read, "found zeroes", &[1]);
    broken(client.read(512, &base(512, 512)), Code::Read, "superseded content of the initial", &[1]);
    // A mix of two writes inside a unit.
    let mut client = Client::new(None);
    client.done(w(0, 512));
    client.begin(w(0, 512));
    let mut mixed = bytes(0, 512, 1);
    mixed[256..].copy_from_slice(&bytes(0, 512, 2)[256..]);
    broken(client.read(0, &mixed), Code::Foreign, "256 bytes of what op 1 wrote, then that of op 2", &[1, 2]);
}

#[test]
fn a_read_beside_a_write_sees_old_or_new_and_binds_nobody() {
    let mut client = Client::new(None);
    client.done(w(0, 1024));
    let second = client.begin(w(0, 1024));
    let mixed = [bytes(0, 512, 1), bytes(512, 512, 2)].concat();
    client.read(0, &mixed).unwrap();
    assert_eq!(client.oracle.take_notes(), []);
    client.read(0, &bytes(0, 1024, 1)).unwrap();
    let notes = client.oracle.take_notes();
    assert_eq!(notes.iter().map(|note| (note.code, note.range.start)).collect::<Vec<_>>(), [(Code::Inversion, 512)]);
    let early = client.begin(read(0, 512));
    client.oracle.end(second, Ending::Done);
    // A read sent before the end may still bring the old; one sent after it may not.
    client.oracle.read_end(early, ByteRange::at(0, 512), &bytes(0, 512, 1)).unwrap();
    broken(client.read(0, &bytes(0, 512, 1)), Code::Read, "op 1", &[2]);
}

#[test]
fn what_one_read_found_another_finds() {
    let overlapping = || {
        let mut client = Client::new(None);
        let one = client.begin(w(0, 512));
        let two = client.begin(w(0, 512));
        client.oracle.end(one, Ending::Done);
        client.oracle.end(two, Ending::Done);
        client
    };
    let mut client = overlapping();
    broken(client.read(0, &[0; 512]), Code::Overlap, "initial", &[1, 2]);
    client.read(0, &bytes(0, 512, 1)).unwrap();
    broken(client.read(0, &bytes(0, 512, 2)), Code::Inversion, "op 2", &[1]);
    client.oracle.reopened(true);
    broken(client.read(0, &bytes(0, 512, 2)), Code::Reopen, "op 2", &[1]);
    // Two reads at once agree too, unless something was under way during one of them.
    let mut client = overlapping();
    let slow = client.begin(read(0, 512));
    client.read(0, &bytes(0, 512, 1)).unwrap();
    let verdict = client.oracle.read_end(slow, ByteRange::at(0, 512), &bytes(0, 512, 2));
    broken(verdict, Code::Inversion, "op 2", &[1]);
    let mut client = Client::new(None);
    let one = client.begin(w(0, 512));
    let two = client.begin(w(0, 512));
    client.oracle.end(one, Ending::Done);
    let slow = client.begin(read(0, 512));
    client.oracle.end(two, Ending::Done);
    client.read(0, &bytes(0, 512, 1)).unwrap();
    client.oracle.read_end(slow, ByteRange::at(0, 512), &bytes(0, 512, 2)).unwrap();
}

#[test]
fn a_failed_write_is_there_or_not_for_good() {
    let failed = |ending| {
        let mut client = Client::new(None);
        client.done(w(0, 512));
        client.act(w(0, 512), ending);
        client
    };
    for (ending, code) in [(Ending::Failed, Code::FailedWrite), (Ending::Cancelled, Code::Cancel)] {
        for (first, second) in [(1, 2), (2, 1)] {
            let mut client = failed(ending);
            client.done(Act::Flush);
            client.oracle.reopened(true);
            assert_eq!(client.oracle.candidates(0), [1, 2]);
            client.read(0, &bytes(0, 512, first)).unwrap();
            broken(client.read(0, &bytes(0, 512, second)), Code::Reopen, "op", &[first]);
        }
        for (first, second) in [(1, 2), (2, 1)] {
            let mut client = failed(ending);
            client.done(Act::Flush);
            client.read(0, &bytes(0, 512, first)).unwrap();
            broken(client.read(0, &bytes(0, 512, second)), code, "op", &[first]);
        }
        let mut client = failed(ending);
        let third = client.done(w(0, 512));
        broken(client.read(0, &bytes(0, 512, 2)), code, "superseded content of op 2", &[third]);
    }
    // A status pins as a read does.
    let mut client = Client::new(None);
    client.act(w(0, 512), Ending::Failed);
    client.status(0, SIZE).unwrap();
    broken(client.read(0, &bytes(0, 512, 1)), Code::FailedWrite, "op 1", &[0]);
}

#[test]
fn dropped_writes_land_until_a_drain() {
    let dropped = |promises| {
        let mut client = Client::with(None, promises);
        let lost = client.begin(w(0, 512));
        client.oracle.dropped(lost);
        client
    };
    let mut client = dropped(Promises::default());
    client.read(0, &[0; 512]).unwrap();
    client.read(0, &bytes(0, 512, 1)).unwrap();
    let over = client.done(w(0, 512));
    client.read(0, &bytes(0, 512, 1)).unwrap();
    let notes = client.oracle.take_notes();
    assert!(notes.iter().any(|note| note.code == Code::Cancel && note.found_ops == [1, over]), "{notes:?}");
    // A flush is no drain, one that was sent before the drop neither, nor one that fails.
    client.done(Act::Flush);
    client.act(Act::Drain, Ending::Failed);
    client.read(0, &bytes(0, 512, 1)).unwrap();
    client.read(0, &bytes(0, 512, over)).unwrap();
    client.done(Act::Drain);
    client.read(0, &bytes(0, 512, 1)).unwrap();
    broken(client.read(0, &bytes(0, 512, over)), Code::Cancel, "op", &[1]);
    let later = client.done(w(0, 512));
    broken(client.read(0, &bytes(0, 512, 1)), Code::Cancel, "op 1", &[later]);

    let mut client = dropped(Promises::default());
    let early = client.begin(Act::Drain);
    let other = client.begin(w(512, 1024));
    client.oracle.dropped(other);
    client.oracle.end(early, Ending::Done);
    client.read(0, &[0; 512]).unwrap();
    broken(client.read(0, &bytes(0, 512, 1)), Code::Cancel, "op 1", &[0]);
    client.read(512, &[0; 512]).unwrap();
    client.read(512, &bytes(512, 512, other)).unwrap();

    let mut client = dropped(Promises { flush_is_drain: true, ..Promises::default() });
    client.done(Act::Flush);
    client.read(0, &[0; 512]).unwrap();
    broken(client.read(0, &bytes(0, 512, 1)), Code::Cancel, "op 1", &[0]);

    let mut client = dropped(Promises { strict_late_landing: true, ..Promises::default() });
    let over = client.done(w(0, 512));
    broken(client.read(0, &bytes(0, 512, 1)), Code::Cancel, "op 1", &[over]);

    let mut client = dropped(Promises::default());
    client.oracle.reopened(true);
    client.read(0, &[0; 512]).unwrap();
    broken(client.read(0, &bytes(0, 512, 1)), Code::Cancel, "op 1", &[0]);
}

#[test]
fn discards_are_old_or_zero_and_then_stable() {
    let mut client = Client::new(Some(SIZE));
    client.done(w(0, 512));
    let gone = client.done(discard(0, 1024));
    broken(client.read(0, &base(0, 512)), Code::Discard, "initial", &[1, gone]);
    client.read(0, &[0; 512]).unwrap();
    broken(client.read(0, &bytes(0, 512, 1)), Code::Discard, "op 1", &[gone]);
    client.read(512, &base(512, 512)).unwrap();
    broken(client.read(512, &[0; 512]), Code::Discard, "op 2", &[0]);
    let mut client = Client::with(None, Promises { discard_undefined: true, ..Promises::default() });
    client.done(w(0, 512));
    client.done(discard(0, 512));
    client.read(0, &[7; 512]).unwrap();
}

#[test]
fn zeroes_hide_what_was_there() {
    let mut client = Client::new(Some(SIZE));
    client.done(w(0, 512));
    let zero = client.done(zeroes(100, 1000));
    let edges = [bytes(0, 100, 1), vec![0; 900], base(1000, 24)].concat();
    client.read(0, &edges).unwrap();
    broken(client.read(0, &bytes(0, 512, 1)), Code::Zero, "superseded content of op 1", &[zero]);
    broken(client.read(512, &base(512, 512)), Code::Zero, "initial", &[zero]);
    broken(client.read(0, &[0; 512]), Code::Read, "zeroes", &[1]);
    broken(client.read(512, &[0; 512]), Code::Read, "0x3e8..0x400: found zeroes", &[0]);
}

#[test]
fn a_base_ends_where_it_ends() {
    for end in [0, 1, 511, 512, 700, SIZE - 1, SIZE, SIZE + 700] {
        let mut client = Client::new(Some(end));
        let shown = end.min(SIZE);
        let mut whole = base(0, shown);
        whole.resize(SIZE as usize, 0);
        client.read(0, &whole).unwrap();
        let wrong = [shown.saturating_sub(1), shown.min(SIZE - 1)];
        for at in wrong {
            let mut whole = whole.clone();
            whole[at as usize] ^= 0x55;
            let violation = client.read(0, &whole).unwrap_err();
            assert_eq!(violation.range.start, at / 512 * 512, "{end}: {violation}");
        }
        if shown > 0 {
            broken(client.status(shown - 1, shown), Code::Map, "says zeroes", &[0]);
            broken(client.status(0, SIZE), Code::Map, "says zeroes", &[0]);
        }
        if shown < SIZE {
            client.status(shown, SIZE).unwrap();
        }
        if 0 < shown && shown < SIZE {
            broken(client.status(shown - 1, SIZE), Code::Map, "", &[0]);
        }
    }
}

#[test]
fn a_map_tells_the_truth() {
    let mut client = Client::new(None);
    client.done(w(1 << 19, (1 << 19) + 512));
    client.status(0, 1 << 19).unwrap();
    client.status((1 << 19) + 512, SIZE).unwrap();
    broken(client.status(0, SIZE), Code::Map, "bytes 0x80000..0x80200: found a status that says zeroes", &[1]);
    let range = ByteRange::at(0, SIZE);
    let op = client.begin(Act::Status { range });
    client.oracle.status_end(op, range, false).unwrap();
    let pending = client.begin(zeroes(0, SIZE));
    client.status(0, SIZE).unwrap();
    client.oracle.end(pending, Ending::Failed);
    client.status(0, SIZE).unwrap();
    broken(client.read(1 << 19, &bytes(1 << 19, 512, 1)), Code::FailedWrite, "op 1", &[pending]);
}

#[test]
fn a_map_over_the_end_of_a_base_rules_out_the_base_alone() {
    let mut client = Client::new(Some(SIZE / 2));
    client.act(discard(0, SIZE), Ending::Failed);
    client.status(0, SIZE).unwrap();
    assert_eq!(client.oracle.candidates(SIZE / 2 - 1), [1]);
    assert_eq!(client.oracle.candidates(SIZE / 2), [0, 1]);
}

#[test]
fn sizes_are_what_was_asked_for() {
    let half = SIZE / 2;
    let mut client = Client::new(Some(2 * SIZE));
    client.done(w(half, half + 512));
    client.done(Act::Resize { size: half });
    assert_eq!(client.oracle.sizes(), [half]);
    let verdict = client.oracle.sized(SIZE);
    broken(verdict, Code::Resize, "1048576 bytes", &[]);
    client.done(Act::Resize { size: 2 * SIZE });
    broken(client.read(half, &bytes(half, 512, 1)), Code::Resize, "op 1", &[3]);
    broken(client.read(half, &base(half, 512)), Code::Resize, "initial", &[3]);
    broken(client.read(SIZE, &base(SIZE, 512)), Code::Foreign, "does not show", &[3]);
    client.read(half, &vec![0; (2 * SIZE - half) as usize]).unwrap();
    // One that failed leaves either size, until the device says which.
    let small = client.act(Act::Resize { size: 512 }, Ending::Failed);
    assert_eq!(client.oracle.sizes(), [512, 2 * SIZE]);
    client.oracle.sized(2 * SIZE).unwrap();
    assert_eq!(client.oracle.sizes(), [2 * SIZE]);
    broken(client.oracle.sized(512), Code::Resize, "512 bytes", &[]);
    assert_eq!(client.oracle.candidates(512), [0, small]);
    // Where the size before is not known, what lies between is not known either.
    let medium = client.act(Act::Resize { size: 1024 }, Ending::Failed);
    let large = client.done(Act::Resize { size: 3 * SIZE });
    assert_eq!(client.oracle.candidates(1024), [0, small, medium, large]);
}

/// What was promised before a size was decided does not speak against it after the second power cut either.
#[test]
fn a_size_survives_one_power_cut_after_the_other() {
    let mut client = Client::new(None);
    client.done(write(1024, 2048, true));
    client.done(Act::Resize { size: 512 });
    for _ in 0..3 {
        client.crash();
        assert_eq!(client.oracle.sizes(), [512, SIZE]);
        client.oracle.sized(512).unwrap();
    }
    client.done(Act::Resize { size: SIZE });
    client.done(write(1024, 2048, true));
    for _ in 0..2 {
        client.crash();
        assert_eq!(client.oracle.sizes(), [SIZE], "a size of before the last promise");
    }
}

#[test]
fn a_power_cut_leaves_a_size_that_was_promised() {
    let mut client = Client::new(None);
    client.done(Act::Resize { size: 2 * SIZE });
    assert_eq!(client.oracle.after_crash().sizes(), [SIZE, 2 * SIZE]);
    let mut promised = client.oracle.clone();
    promised.submit(50, &write(2 * SIZE - 512, 2 * SIZE, true));
    promised.end(50, Ending::Done);
    assert_eq!(promised.after_crash().sizes(), [2 * SIZE]);
    client.done(Act::Flush);
    client.done(Act::Resize { size: 512 });
    let cut = client.oracle.after_crash();
    assert_eq!(cut.sizes(), [512, 2 * SIZE]);
    cut.judge_size(512).unwrap();
    broken(cut.judge_size(SIZE), Code::Resize, "1048576", &[]);
    client.done(Act::Flush);
    client.crash();
    assert_eq!(client.oracle.sizes(), [512]);
    client.oracle.disk_reached();
    client.begin(Act::Resize { size: 4096 });
    assert_eq!(client.oracle.after_crash().sizes(), [512], "the disk has not heard of it");
    client.oracle.disk_reached();
    client.crash();
    assert_eq!(client.oracle.sizes(), [512, 4096]);
    client.oracle.sized(4096).unwrap();
    assert_eq!(client.oracle.sizes(), [4096]);
    client.crash();
    assert_eq!(client.oracle.sizes(), [512, 4096]);
}

#[test]
fn a_flush_promises_what_was_seen_to_complete() {
    // CM 4.6 (3): submit W1 W2 W3, complete W3 W2, submit F, complete W1, complete F.
    let mut client = Client::new(None);
    let ops: Vec<_> = (0..3).map(|n| client.begin(w(n * 512, (n + 1) * 512))).collect();
    client.oracle.end(ops[2], Ending::Done);
    client.oracle.end(ops[1], Ending::Done);
    let flush = client.begin(Act::Flush);
    client.oracle.end(ops[0], Ending::Done);
    assert_eq!(after(&client.oracle, 512), [0, 2]);
    client.oracle.end(flush, Ending::Done);
    assert_eq!([0, 512, 1024].map(|at| after(&client.oracle, at)), [vec![0, 1], vec![2], vec![3]]);
    assert!(client.oracle.cut_after(flush) && !client.oracle.cut_after(ops[0]));
    let cut = client.oracle.after_crash();
    cut.judge(ByteRange::at(0, 512), &[0; 512]).unwrap();
    cut.judge(ByteRange::at(0, 512), &bytes(0, 512, 1)).unwrap();
    broken(cut.judge(ByteRange::at(0, 1024), &[0; 1024]), Code::Flush, "initial", &[2]);
    broken(cut.judge(ByteRange::at(512, 512), &bytes(0, 512, 1)), Code::Foreign, "op 1 wrote at 0x0", &[2]);
    // The first read pins.
    let mut next = cut.into_oracle();
    next.submit(50, &read(0, 512));
    next.read_end(50, ByteRange::at(0, 512), &bytes(0, 512, 1)).unwrap();
    next.end(50, Ending::Done);
    next.submit(51, &read(0, 512));
    broken(next.read_end(51, ByteRange::at(0, 512), &[0; 512]), Code::Inversion, "initial", &[1]);
    // And what it found may be gone after the next cut.
    assert_eq!(after(&next, 0), [0, 1]);
}

#[test]
fn a_failed_flush_promises_nothing() {
    for (forgets, left) in [(false, vec![1]), (true, vec![0, 1])] {
        let mut client = Client::with(None, Promises { failed_flush_forgets: forgets, ..Promises::default() });
        client.done(w(0, 512));
        client.act(Act::Flush, Ending::Failed);
        assert_eq!(after(&client.oracle, 0), [0, 1]);
        client.done(Act::Flush);
        assert_eq!(after(&client.oracle, 0), left);
        client.done(w(512, 1024));
        client.done(Act::Flush);
        assert_eq!(after(&client.oracle, 512), [3 + 1]);
    }
}

#[test]
fn what_a_failed_flush_forgot_is_gone_for_readers_too() {
    for forgets in [false, true] {
        let mut client = Client::with(None, Promises { failed_flush_forgets: forgets, ..Promises::default() });
        let kept = client.done(w(0, 1024));
        client.done(Act::Flush);
        let gone = client.done(w(512, 1024));
        client.act(Act::Flush, Ending::Failed);
        assert_eq!(client.read(512, &bytes(512, 512, kept)).is_ok(), forgets);
        client.read(512, &bytes(512, 512, gone)).unwrap();
        // Durable is durable, and what was lost is not something else.
        for at in [0, 512] {
            client.read(at, &[0; 512]).unwrap_err();
            client.read(at, &bytes(at + 512, 512, gone)).unwrap_err();
        }
        client.status(512, 1024).unwrap_err();
    }
}

#[test]
fn fua_promises_itself() {
    let mut client = Client::new(None);
    client.done(w(512, 1024));
    let fua = client.done(write(0, 512, true));
    assert!(client.oracle.cut_after(fua));
    let cut = client.oracle.after_crash();
    broken(cut.judge(ByteRange::at(0, 512), &[0; 512]), Code::Fua, "initial", &[fua]);
    cut.judge(ByteRange::at(512, 512), &[0; 512]).unwrap();
    let mut client = Client::with(None, Promises { write_through: true, ..Promises::default() });
    let op = client.done(w(0, 512));
    assert!(client.oracle.cut_after(op));
    assert_eq!(after(&client.oracle, 0), [op]);
    for act in [w(0, 512), Act::Flush, read(0, 1)] {
        assert!(!Oracle::cut_before(&act));
    }
    for act in [zeroes(0, 512), discard(0, 512), Act::Resize { size: 0 }] {
        assert!(Oracle::cut_before(&act));
    }
}

#[test]
fn a_floor_is_a_set_that_a_read_orders() {
    let mut client = Client::new(None);
    let one = client.begin(write(0, 512, true));
    let two = client.begin(write(0, 512, true));
    client.oracle.end(one, Ending::Done);
    client.oracle.end(two, Ending::Done);
    assert_eq!(after(&client.oracle, 0), [1, 2]);
    let slow = client.begin(read(4096, 4608));
    client.read(0, &bytes(0, 512, 1)).unwrap();
    assert_eq!(after(&client.oracle, 0), [1], "also while a read is in flight that began before");
    client.oracle.end(slow, Ending::Failed);
    let third = client.done(w(0, 512));
    assert_eq!(after(&client.oracle, 0), [1, third]);
    client.crash();
    client.read(0, &bytes(0, 512, third)).unwrap();
    assert_eq!(after(&client.oracle, 0), [1, third]);
}

#[test]
fn failed_dropped_and_open_requests_survive_or_not() {
    let mut client = Client::new(None);
    client.done(write(0, 512, true));
    let failed = client.act(w(0, 512), Ending::Failed);
    client.read(0, &bytes(0, 512, 1)).unwrap();
    let lost = client.begin(w(0, 512));
    client.oracle.dropped(lost);
    let open = client.begin(w(0, 512));
    let gone = client.done(discard(0, 512));
    client.done(Act::Flush);
    assert_eq!(after(&client.oracle, 0), [1, failed, lost, open, gone]);
    client.crash();
    assert_eq!(client.oracle.candidates(0), [1, failed, lost, open, gone]);
    // What was open ended with the power: nothing lands late.
    client.read(0, &bytes(0, 512, open)).unwrap();
    broken(client.read(0, &bytes(0, 512, lost)), Code::Cancel, "op", &[open]);
}

#[test]
fn what_has_not_reached_the_disk_excuses_nobody() {
    let mut client = Client::new(None);
    client.oracle.disk_reached();
    client.done(write(0, 512, true));
    client.oracle.disk_reached();
    let zero = client.begin(zeroes(0, 512));
    assert_eq!(after(&client.oracle, 0), [1]);
    client.oracle.disk_reached();
    assert_eq!(after(&client.oracle, 0), [1, zero]);
    // A promise counts even if it needed no disk.
    client.oracle.end(zero, Ending::Done);
    let again = client.done(Act::Zeroes { range: ByteRange::at(0, 512), fua: true, unmap: false, no_fallback: false });
    assert_eq!(after(&client.oracle, 0), [again]);
    let mut life = client.oracle.after_crash().into_oracle();
    life.submit(60, &w(0, 512));
    assert_eq!(after(&life, 0), [again]);
}

#[test]
fn a_clean_close_keeps_everything_and_a_failed_one_what_was_flushed() {
    let mut client = Client::new(None);
    client.done(w(0, 512));
    let mut failed = client.oracle.clone();
    client.oracle.reopened(true);
    broken(client.read(0, &[0; 512]), Code::Reopen, "initial", &[1]);
    client.read(0, &bytes(0, 512, 1)).unwrap();
    assert_eq!(after(&client.oracle, 0), [0, 1], "a close is no flush");
    failed.reopened(false);
    assert_eq!(failed.candidates(0), [0, 1]);
    // Later requests are judged by their own rules.
    client.done(w(0, 512));
    broken(client.read(0, &bytes(0, 512, 1)), Code::Read, "op 1", &[4]);
}

#[test]
fn compressed_writes_are_told_from_plain_ones() {
    let mut client = Client::new(None);
    client.done(Act::Write { range: ByteRange::at(0, 1024), fua: false, compressed: true });
    let mut found = vec![0; 1024];
    stamp::fill_compressible(&mut found, 0, 1);
    client.read(0, &found).unwrap();
    broken(client.read(0, &bytes(0, 1024, 1)), Code::Foreign, "never wrote", &[1]);
}

#[test]
fn a_run_too_short_to_tell_is_no_evidence() {
    let mut client = Client::new(None);
    client.done(w(0, 512));
    client.act(w(0, 512), Ending::Failed);
    // The magic is the same in both.
    client.read(0, &bytes(0, 4, 1)).unwrap();
    client.read(0, &bytes(0, 512, 2)).unwrap();
    broken(client.read(0, &bytes(0, 512, 1)), Code::FailedWrite, "op 1", &[2]);
    // What a read of a part made certain is certain of that part alone.
    let mut client = Client::new(None);
    client.done(w(0, 512));
    client.act(w(0, 512), Ending::Failed);
    client.read(100, &bytes(100, 50, 2)).unwrap();
    assert_eq!([99, 100, 149, 150].map(|at| client.oracle.candidates(at)), [vec![1, 2], vec![2], vec![2], vec![1, 2]]);
}

#[test]
fn a_terabyte_costs_little() {
    let size = 1u64 << 40;
    let mut oracle = Oracle::new(size, Some(1000));
    oracle.submit(1, &zeroes(700, size));
    oracle.end(1, Ending::Done);
    oracle.submit(2, &w(size - 512, size));
    oracle.end(2, Ending::Done);
    let range = ByteRange { start: 700, end: size - 512 };
    oracle.submit(3, &Act::Status { range });
    oracle.status_end(3, range, true).unwrap();
    oracle.end(3, Ending::Done);
    oracle.submit(4, &Act::Resize { size: size * 4 });
    oracle.end(4, Ending::Done);
    assert_eq!(oracle.candidates(size * 4 - 1), [0, 4][1..]);
    assert_eq!(oracle.candidates(700), [1]);
    assert_eq!(oracle.candidates(699), [0]);
}

#[test]
fn a_hot_unit_that_nobody_flushes_is_not_forgotten() {
    let mut client = Client::new(None);
    for _ in 0..5000 {
        client.done(w(0, 512));
    }
    let cut = client.oracle.after_crash();
    assert_eq!(cut.candidates(0), (0..=5000).collect::<Vec<_>>());
    client.done(Act::Flush);
    assert_eq!(after(&client.oracle, 0), [5000]);
    client.done(w(0, 512));
    assert_eq!(after(&client.oracle, 0), [5000, 5002]);
}

/// What is forgotten for good is never more than what something durable replaced, however long the tale.
#[test]
fn what_overlapped_something_durable_is_not_forgotten() {
    for before in 0..70 {
        let mut client = Client::new(None);
        for _ in 0..before {
            client.done(w(0, 512));
        }
        let long = client.begin(w(0, 512));
        client.done(w(0, 512));
        let durable = client.begin(write(0, 512, true));
        client.oracle.end(long, Ending::Done);
        let last = client.begin(w(0, 512));
        client.oracle.end(durable, Ending::Done);
        client.oracle.end(last, Ending::Done);
        let mut want = vec![long, durable, last];
        for _ in 0..3 {
            want.push(client.done(w(0, 512)));
            assert_eq!(after(&client.oracle, 0), want, "{before} before");
        }
    }
}

#[test]
fn what_a_read_ordered_stays_in_order() {
    let mut client = Client::new(None);
    let one = client.begin(write(0, 512, true));
    let two = client.begin(write(0, 512, true));
    client.oracle.end(one, Ending::Done);
    client.oracle.end(two, Ending::Done);
    client.read(0, &bytes(0, 512, one)).unwrap();
    let mut want = vec![one];
    for _ in 0..70 {
        want.push(client.done(w(0, 512)));
        assert_eq!(after(&client.oracle, 0), want);
    }
}

#[test]
fn a_unit_has_a_history() {
    let mut client = Client::new(None);
    client.done(w(0, 513));
    client.act(w(512, 1024), Ending::Failed);
    client.done(Act::Flush);
    client.done(w(1024, 1536));
    let lost = client.begin(discard(0, 4096));
    client.oracle.dropped(lost);
    let history = client.oracle.history(1);
    let short: Vec<_> = history.iter().map(|e| (e.op, e.submit, e.ended, e.ending, e.dropped, e.durable)).collect();
    let (done, failed) = (Some(Ending::Done), Some(Ending::Failed));
    assert_eq!(
        short,
        [
            (1, 1, Some(2), done, None, true),
            (2, 3, Some(4), failed, None, false),
            (3, 5, Some(6), done, None, false),
            (5, 9, None, None, Some(10), false),
        ]
    );
    assert_eq!(history[0].act, w(0, 513));
    assert_eq!(client.oracle.history(7).iter().map(|event| event.op).collect::<Vec<_>>(), [3, 5]);
}

#[test]
fn copies_go_their_own_ways() {
    let mut client = Client::new(None);
    client.act(w(0, 512), Ending::Failed);
    let mut other = client.oracle.clone();
    client.read(0, &bytes(0, 512, 1)).unwrap();
    other.submit(2, &read(0, 512));
    other.read_end(2, ByteRange::at(0, 512), &[0; 512]).unwrap();
    assert_eq!((client.oracle.candidates(0), other.candidates(0)), (vec![1], vec![0]));
}
