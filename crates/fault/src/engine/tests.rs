//! What requests cost: what is kept of them, and how often the index is made anew.

use super::*;
use crate::request::{Operations, Request};
use crate::rule::{Corruption, Done, Failure, Life, On, Rot, Then};

const NOW: Duration = Duration::ZERO;
const SIZE: u64 = 8 << 30;

type Condition = fn(&mut Rule);

fn corrupt(share: Option<u32>) -> Action {
    Action::Corrupt { how: Corruption::Zero, sectors: share }
}

fn fail() -> Action {
    Action::Fail { error: Failure::parse("EIO").unwrap(), done: Done::Prefix, wait: None }
}

fn rule(action: Action, operations: Operations, sectors: &[(u64, u64)]) -> Rule {
    let ranges = sectors.iter().map(|range| ByteRange { start: range.0 * 512, end: range.1 * 512 }).collect();
    let on = On { operations, ranges, ..On::default() };
    Rule { id: RuleId("r".into()), on, action, then: Then::default(), life: None }
}

fn engine(rules: Vec<Rule>) -> Engine {
    Engine::new(RuleSet { rules, ..RuleSet::default() }, NOW).unwrap()
}

/// A request that succeeds; the damage it meets.
fn done(engine: &mut Engine, operation: Operation, range: ByteRange) -> Vec<Damage> {
    if !engine.concerns(operation, range) {
        return Vec::new();
    }
    let request = Request { id: 0, operation, range, fua: false };
    let plan = engine.submit(&request, SIZE, NOW);
    engine.complete(&request, &plan.damages, Some(range), None, SIZE, NOW).damage
}

fn sectors(from: u64, count: u64) -> ByteRange {
    ByteRange::at(from * 512, count * 512)
}

#[test]
fn damage_is_kept_as_it_was_done_and_sifted_when_it_is_read() {
    let mut engine = engine(vec![rule(corrupt(Some(1 << 31)), Operations::WRITE_ZEROES, &[])]);
    done(&mut engine, Operation::WriteZeroes, ByteRange::at(0, 4 << 30));
    assert_eq!(engine.rules[0].stretches(ByteRange::at(0, SIZE), false, NOW).len(), 1);
    let damaged = engine.list(NOW)[0].damaged;
    assert_eq!(damaged, 4 << 20, "half of the sectors, about");
    let hit = done(&mut engine, Operation::Read, sectors(4096, 4096));
    assert!((1900..2200).contains(&hit.len()), "{}", hit.len());
    assert_eq!(hit, done(&mut engine, Operation::Read, sectors(4096, 4096)));
    // Of few, exactly.
    done(&mut engine, Operation::Write, sectors(0, 1 << 23));
    assert_eq!(engine.list(NOW)[0].damaged, 0);
    done(&mut engine, Operation::WriteZeroes, sectors(4096, 4096));
    assert_eq!(engine.list(NOW)[0].damaged, hit.len() as u64);
    assert_eq!(engine.indexed, 1);
}

#[test]
fn what_every_read_is_damaged_by_is_not_kept() {
    let mut always = engine(vec![rule(corrupt(None), Operations::READ | Operations::WRITE, &[(10, 20)])]);
    for _ in 0..3 {
        assert_eq!(done(&mut always, Operation::Read, sectors(8, 4)).len(), 2);
        done(&mut always, Operation::Write, sectors(0, 100));
    }
    assert!(!always.damage && !always.rules[0].has_hurt());
    assert_eq!(always.indexed, 1);
    // Any condition means that another read may not fire.
    let second = Duration::from_secs(1);
    let conditions: [(&str, Condition); 9] = [
        ("nth", |rule| rule.on.nth = Some(1)),
        ("every", |rule| rule.on.every = Some(1)),
        ("probability", |rule| rule.on.probability = Some(u32::MAX)),
        ("times", |rule| rule.on.times = Some(9)),
        ("state", |rule| rule.on.state = Some(Rc::from("1"))),
        ("after", |rule| rule.on.after = Some(NOW)),
        ("before", |rule| rule.on.before = Some(Duration::MAX)),
        ("disarm", |rule| rule.then.disarm = true),
        ("event", |rule| rule.on.event = Some(Event::ReadAio)),
    ];
    for (name, condition) in conditions {
        let mut one = rule(corrupt(None), Operations::READ, &[(10, 20)]);
        condition(&mut one);
        let mut engine = engine(vec![one]);
        engine.event(Event::ReadAio, NOW);
        assert_eq!(done(&mut engine, Operation::Read, sectors(8, 4)).len(), 2, "{name}");
        assert!(engine.damage && engine.rules[0].has_hurt(), "{name}");
        engine.set_armed("r", false);
        assert!(engine.concerns(Operation::Read, sectors(11, 1)), "{name}: damage that was done stays");
        assert_eq!(done(&mut engine, Operation::Read, sectors(0, 100)).len(), 2, "{name}");
        assert!(!engine.concerns(Operation::Read, sectors(12, 1)), "{name}");
        done(&mut engine, Operation::Discard, sectors(11, 1));
        assert_eq!(
            done(&mut engine, Operation::Read, sectors(0, 100)),
            [Damage { key: engine.rules[0].key, how: Corruption::Zero, range: sectors(10, 1) }]
        );
    }
    let mut late = rule(corrupt(None), Operations::READ, &[(10, 20)]);
    late.on.slower_than = Some(second);
    let mut engine = engine(vec![late]);
    let request = Request { id: 0, operation: Operation::Read, range: sectors(8, 4), fua: false };
    for (took, want) in [(second / 2, 0), (second, 2), (second / 2, 2)] {
        let plan = engine.submit(&request, SIZE, NOW);
        let done = engine.complete(&request, &plan.damages, Some(request.range), Some(took), SIZE, NOW);
        assert_eq!(done.damage.len(), want, "{took:?}");
    }
}

#[test]
fn the_index_follows_rules_that_begin_or_end_to_be_at_work_alone() {
    let life = |until| Some(Life { until, ..Life::default() });
    let mut one = rule(fail(), Operations::READ, &[(10, 12), (20, 21)]);
    one.life = life(Until::Rewrite);
    let mut engine = engine(vec![one]);
    for sector in [10, 20, 20, 50] {
        done(&mut engine, Operation::Write, sectors(sector, 1));
        assert_eq!(engine.indexed, 1, "{sector}");
    }
    assert!(engine.concerns(Operation::Write, sectors(11, 1)) && engine.concerns(Operation::Read, sectors(11, 1)));
    done(&mut engine, Operation::WriteZeroes, sectors(0, 100));
    assert_eq!(engine.indexed, 2, "nothing is left");
    assert!(!engine.concerns(Operation::Write, sectors(11, 1)) && !engine.concerns(Operation::Read, sectors(11, 1)));
    engine.reset(None, NOW);
    assert!(engine.concerns(Operation::Write, sectors(11, 1)));
    engine.set_armed("r", false);
    assert!(!engine.concerns(Operation::Write, sectors(11, 1)), "it sees nothing");
    engine.set_armed("r", true);
    assert!(engine.concerns(Operation::Read, sectors(11, 1)));

    let mut twice = rule(fail(), Operations::READ, &[(10, 12)]);
    twice.on.times = Some(2);
    twice.life = life(Until::Rewrite);
    let mut engine = super::tests::engine(vec![twice]);
    for (reads, indexed, concerned) in [(1, 1, true), (2, 2, false)] {
        let request = Request { id: 0, operation: Operation::Read, range: sectors(10, 1), fua: false };
        assert!(matches!(engine.submit(&request, SIZE, NOW).fate, Fate::Fail { .. }));
        assert_eq!(engine.indexed, indexed, "{reads}");
        assert_eq!(engine.concerns(Operation::Read, sectors(11, 1)), concerned, "{reads}");
        assert_eq!(engine.concerns(Operation::Write, sectors(11, 1)), concerned, "{reads}");
    }
    assert_eq!(engine.rules[0].counts(NOW).0, Some(2));
}

#[test]
fn accesses_and_cures_end_a_rule_too() {
    let mut patient = rule(fail(), Operations::READ, &[(10, 12)]);
    patient.life = Some(Life { until: Until::Accesses(2), ..Life::default() });
    let mut engine = engine(vec![patient]);
    let request = |range| Request { id: 0, operation: Operation::Read, range, fua: false };
    for place in [10, 10, 11, 11] {
        assert!(engine.concerns(Operation::Read, sectors(place, 1)));
        assert!(matches!(engine.submit(&request(sectors(place, 1)), SIZE, NOW).fate, Fate::Fail { .. }), "{place}");
    }
    assert!(!engine.concerns(Operation::Read, sectors(10, 2)));
    let mut once = rule(fail(), Operations::READ, &[(10, 12)]);
    once.then.cure = true;
    let mut engine = super::tests::engine(vec![once]);
    engine.submit(&request(sectors(9, 2)), SIZE, NOW);
    assert!(matches!(engine.submit(&request(sectors(10, 1)), SIZE, NOW).fate, Fate::Proceed));
    engine.submit(&request(sectors(10, 2)), SIZE, NOW);
    assert!(!engine.concerns(Operation::Read, sectors(10, 2)));
    // Without a range there is always more to be cured.
    let mut anywhere = rule(fail(), Operations::READ | Operations::FLUSH, &[]);
    anywhere.then.cure = true;
    let mut engine = super::tests::engine(vec![anywhere]);
    for (place, fails) in [(5, true), (5, false), (6, true), (6, false)] {
        let plan = engine.submit(&request(sectors(place, 1)), SIZE, NOW);
        assert_eq!(matches!(plan.fate, Fate::Fail { .. }), fails, "{place}");
    }
    let flush = Request { id: 0, operation: Operation::Flush, range: ByteRange::at(0, 0), fua: false };
    for _ in 0..2 {
        assert!(matches!(engine.submit(&flush, SIZE, NOW).fate, Fate::Fail { .. }), "it has no sectors to be cured");
    }
}

#[test]
fn many_ranges_are_searched_and_found() {
    let ranges: Vec<_> = (0..1000).map(|at| (at * 10 + 5, at * 10 + 7)).collect();
    let mut one = rule(fail(), Operations::READ, &ranges);
    one.life =
        Some(Life { growth: Some(crate::rule::Growth { each: Duration::from_secs(1), limit: 3 }), ..Life::default() });
    let engine = engine(vec![one]);
    let parts = |from, count, seconds| -> Vec<(u64, u64)> {
        let parts = engine.rules[0].parts(sectors(from, count), Duration::from_secs(seconds));
        let first = engine.rules[0].first_part(sectors(from, count), Duration::from_secs(seconds));
        assert_eq!(parts.first().map(|part| part.start), first);
        parts.into_iter().map(|part| (part.start / 512, part.end / 512)).collect()
    };
    for (from, count, seconds, want) in [
        (0, 5, 0, vec![]),
        (0, 6, 0, vec![(5, 6)]),
        (6, 1, 0, vec![(6, 7)]),
        (7, 8, 0, vec![]),
        (6, 10, 0, vec![(6, 7), (15, 16)]),
        (4996, 20, 0, vec![(4996, 4997), (5005, 5007), (5015, 5016)]),
        (9996, 9, 0, vec![(9996, 9997)]),
        (9997, 9, 0, vec![]),
        (9997, 9, 2, vec![(9997, 9999)]),
        (9996, 9, 99, vec![(9996, 9997), (9997, 10_000)]),
    ] {
        let mut got = parts(from, count, seconds);
        // Whether neighbours come as one part is no matter.
        got.dedup_by(|next, last| {
            let joins = last.1 == next.0;
            if joins {
                last.1 = next.1;
            }
            joins
        });
        let mut want: Vec<(u64, u64)> = want;
        want.dedup_by(|next, last| {
            let joins = last.1 == next.0;
            if joins {
                last.1 = next.1;
            }
            joins
        });
        assert_eq!(got, want, "{from}+{count} after {seconds} s");
    }
}

/// A reassignment of all there is does not look at every sector.
#[test]
fn a_rotting_disk_is_reassigned_at_once() {
    let mut rot = rule(fail(), Operations::READ, &[]);
    rot.life = Some(Life { until: Until::Reassign, growth: None, rot: Some(Rot { half: Duration::from_secs(9) }) });
    let mut engine = engine(vec![rot]);
    assert_eq!(engine.reassign(ByteRange::at(0, u64::MAX), NOW), 1);
    assert_eq!(engine.reassign(ByteRange::at(0, u64::MAX), NOW), 1, "the last sector is not whole");
    assert!(engine.may_damage(ByteRange::at(0, u64::MAX), NOW).is_none());
}

/// A sector of which only a part was written stays as it is, on both sides.
#[test]
fn whole_sectors_are_cured_and_no_others() {
    let mut bad = rule(fail(), Operations::READ, &[(10, 14)]);
    bad.life = Some(Life { until: Until::Rewrite, ..Life::default() });
    let mut engine = engine(vec![bad]);
    done(&mut engine, Operation::Write, ByteRange { start: 10 * 512 + 1, end: 13 * 512 - 1 });
    let parts = engine.rules[0].parts(sectors(0, 100), NOW);
    assert_eq!(parts, [sectors(10, 1), sectors(12, 2)]);
    assert_eq!(engine.rules[0].counts(NOW).0, Some(3));
}

#[test]
fn a_reassigned_sector_is_rid_of_its_damage() {
    let mut once = rule(corrupt(None), Operations::READ, &[(10, 14)]);
    once.on.nth = Some(1);
    once.life = Some(Life { until: Until::Reassign, ..Life::default() });
    let mut engine = engine(vec![once]);
    assert_eq!(done(&mut engine, Operation::Read, sectors(10, 4)).len(), 4);
    assert_eq!(engine.reassign(sectors(11, 2), NOW), 1);
    let left: Vec<_> = done(&mut engine, Operation::Read, sectors(10, 4)).iter().map(|damage| damage.range).collect();
    assert_eq!(left, [sectors(10, 1), sectors(13, 1)]);
}

#[test]
fn how_long_a_request_took_is_measured_to_the_bound() {
    let second = Duration::from_secs(1);
    let request = Request { id: 0, operation: Operation::Read, range: sectors(0, 1), fua: false };
    for (slower, faster, took, want) in [
        (None, Some(second), second, false),
        (None, Some(second), second - Duration::from_nanos(1), true),
        (Some(second), None, second, true),
        (Some(second), None, second - Duration::from_nanos(1), false),
        (Some(second), Some(2 * second), second, true),
        (Some(second), Some(2 * second), 2 * second, false),
    ] {
        let mut late = rule(fail(), Operations::READ, &[]);
        (late.on.slower_than, late.on.faster_than) = (slower, faster);
        let mut engine = engine(vec![late]);
        assert!(engine.submit(&request, SIZE, NOW).fired.is_empty());
        let done = engine.complete(&request, &[], Some(request.range), Some(took), SIZE, NOW);
        assert_eq!(!done.late.fired.is_empty(), want, "{slower:?} {faster:?} {took:?}");
    }
}

/// One that is not armed sees nothing, also where other rules have every request looked at.
#[test]
fn a_rule_that_is_not_armed_is_not_cured() {
    let mut bad = rule(fail(), Operations::READ, &[(10, 11)]);
    bad.life = Some(Life { until: Until::Rewrite, ..Life::default() });
    let other = Rule { id: RuleId("all".into()), ..rule(Action::None, Operations::WRITE, &[]) };
    let mut engine = engine(vec![bad, other]);
    engine.set_armed("r", false);
    done(&mut engine, Operation::Write, sectors(10, 1));
    engine.set_armed("r", true);
    assert_eq!(engine.rules[0].counts(NOW).0, Some(1));
    done(&mut engine, Operation::Write, sectors(10, 1));
    assert_eq!(engine.rules[0].counts(NOW).0, Some(0));
}

#[test]
fn a_reassignment_cures_what_it_can_cure() {
    for (until, cures) in [(Until::Never, 0), (Until::Accesses(9), 0), (Until::Reassign, 1), (Until::Rewrite, 1)] {
        let mut bad = rule(fail(), Operations::READ, &[(10, 11)]);
        bad.life = Some(Life { until, ..Life::default() });
        let mut engine = engine(vec![bad]);
        assert_eq!(engine.reassign(sectors(20, 1), NOW), 0, "{until:?}");
        assert_eq!(engine.reassign(sectors(0, 20), NOW), cures, "{until:?}");
        assert_eq!(engine.rules[0].counts(NOW).0, Some(1 - cures as u64), "{until:?}");
        assert_eq!(engine.reassign(sectors(0, 20), NOW), 0, "{until:?}: once");
        if cures == 0 {
            assert!(engine.concerns(Operation::Read, sectors(10, 1)));
        }
    }
}

#[test]
fn a_foreign_sector_is_never_its_own() {
    let how = Corruption::Foreign { distance: None };
    let mut engine = engine(vec![rule(Action::Corrupt { how, sectors: None }, Operations::READ, &[])]);
    for count in [2, 3, 8] {
        for damage in done(&mut engine, Operation::Read, sectors(0, count)) {
            let from = engine.foreign(&damage, count * 512);
            assert!(from != damage.range.start && from < count * 512, "{from} of {count}");
        }
    }
}

#[test]
fn a_misdirected_request_stays_on_the_disk() {
    use crate::rule::Place;
    for (place, start, want) in [
        (Place::By(512), 10, 11),
        (Place::By(-512 * 11), 10, 96),
        (Place::By(512 * 88), 10, 96),
        (Place::At(98 * 512), 10, 96),
        (Place::At(u64::MAX), 10, 96),
    ] {
        let mut engine = engine(vec![rule(Action::Misdirect(place), Operations::WRITE, &[])]);
        let request = Request { id: 0, operation: Operation::Write, range: sectors(start, 4), fua: false };
        let Fate::Misdirect { to } = engine.submit(&request, 100 * 512, NOW).fate else { panic!("{place:?}") };
        assert_eq!(to / 512, want, "{place:?}");
    }
}

#[test]
fn a_reset_of_all_brings_back_the_first_state_and_that_of_one_does_not() {
    let mut go = rule(Action::None, Operations::READ, &[]);
    go.then.state = Some(Rc::from("gone"));
    let mut engine = engine(vec![go]);
    for (id, want) in [(Some("r"), "gone"), (None, "1")] {
        engine.submit(&Request { id: 0, operation: Operation::Read, range: sectors(0, 1), fua: false }, SIZE, NOW);
        assert!(engine.reset(id, NOW));
        assert_eq!((&**engine.state(), engine.list(NOW)[0].fired), (want, 0));
    }
    assert!(!engine.reset(Some("other"), NOW));
}
