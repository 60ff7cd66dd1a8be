//! Findings that are kept come back as they were, once, and whole.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::fs;

use blkproof_torture::plan::Plan;
use blkproof_torture::run::Finding;
use blkproof_torture::store::{Origin, Record, RecordError, Store, StoreError};

const PLAN: &str = "schema = \"blkproof.plan/1\"\nops = [\"1 write 0+512 fua\", \"2 flush\"]\n[target]\nname = \"vdi\"\n\
                    size = \"64K\"\n";

fn record() -> Record {
    let mut finding = Finding::new("read", "run", "two\nlines with \"quotes\" and ü");
    finding.signature.site = "src/a.rs:7".to_owned();
    finding.op = Some(2);
    finding.range = Some(blkproof_block::ByteRange { start: 512, end: 1024 });
    finding.allowed = vec!["zeroes".to_owned(), "op 1".to_owned()];
    finding.step = u64::MAX;
    finding.cut = Some(("after 1".parse().unwrap(), "all-old".parse().unwrap()));
    let origin = Origin {
        seed: u64::MAX,
        profile: "quick".to_owned(),
        times: 2,
        ops: 3,
        plan_ops: 4,
        shrunk: "5 runs".to_owned(),
    };
    Record { finding, plan: Plan::parse(PLAN).unwrap(), origin: Some(origin) }
}

#[test]
fn a_record_is_read_as_it_is_written() {
    let full = record();
    let bare = Record { finding: Finding::new("hang", "", ""), plan: full.plan.clone(), origin: None };
    for record in [full, bare] {
        assert_eq!(Record::parse(&record.json().to_string()).unwrap(), record);
    }
}

#[test]
fn what_is_no_record_is_refused_by_what_is_wrong() {
    let json = record().json();
    for key in ["schema", "signature", "text", "plan"] {
        let mut less = json.clone();
        less.as_object_mut().unwrap().remove(key);
        assert_eq!(Record::from_json(&less).unwrap_err(), RecordError::Key(key));
    }
    for (key, value) in [
        ("schema", serde_json::json!("blkproof.finding/2")),
        ("signature", "x".into()),
        ("op", "2".into()),
        ("op", u64::from(u32::MAX).saturating_add(1).into()),
        ("range", serde_json::json!({"offset": u64::MAX, "length": 1})),
        ("allowed", serde_json::json!([1])),
        ("step", (-1).into()),
        ("cut", serde_json::json!({"point": "never", "state": "all-old"})),
        ("origin", serde_json::json!({})),
        ("plan", "ops = [".into()),
    ] {
        let mut wrong = json.clone();
        wrong[key] = value;
        assert!(Record::from_json(&wrong).is_err(), "{key}: {}", wrong[key]);
    }
    assert!(matches!(Record::parse("{"), Err(RecordError::Json(_))));
}

#[test]
fn a_finding_is_kept_once_and_found_by_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::create(&dir.path().join("a/b")).unwrap();
    assert!(store.list().unwrap().is_empty());
    let first = record();
    let (name, new) = store.put(&first).unwrap();
    assert!(new);
    let later = Record { origin: None, ..first.clone() };
    assert_eq!(store.put(&later).unwrap(), (name.clone(), false), "what was kept first stays");
    // Another plan with the same signature lies beside it, another signature in a folder of its own.
    let other_plan = Record { plan: Plan::parse(&PLAN.replace("64K", "128K")).unwrap(), ..first.clone() };
    let mut other_kind = first.clone();
    other_kind.finding.signature.code = "../odd code".to_owned();
    let (beside, _) = store.put(&other_plan).unwrap();
    let (apart, _) = store.put(&other_kind).unwrap();
    let folder = |name: &str| name.split_once('/').unwrap().0.to_owned();
    assert_eq!(folder(&beside), folder(&name));
    assert!(folder(&apart).starts_with("___odd_code-"), "{apart}");

    let mut names: Vec<_> = store.list().unwrap().into_iter().map(|kept| kept.name).collect();
    let mut want = vec![name.clone(), beside, apart.clone()];
    names.sort();
    want.sort();
    assert_eq!(names, want);
    assert_eq!(store.find(&name).unwrap().record, first);
    assert_eq!(store.find(&folder(&apart)).unwrap().name, apart);
    assert_eq!(fs::read_to_string(store.plan_path(&name)).unwrap(), first.plan.to_string());
    for ambiguous in [folder(&name), String::new(), "zzz".to_owned()] {
        assert!(matches!(store.find(&ambiguous), Err(StoreError::Name { .. })), "{ambiguous}");
    }
    // Nothing is left of the writing.
    let left = |path: &std::path::Path| {
        fs::read_dir(path)
            .unwrap()
            .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with('.'))
            .count()
    };
    assert_eq!(left(&dir.path().join("a/b").join(folder(&name))), 0);
}

#[test]
fn a_plan_whose_finding_was_not_written_is_no_finding_and_is_written_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::create(dir.path()).unwrap();
    let (name, _) = store.put(&record()).unwrap();
    fs::remove_file(dir.path().join(format!("{name}.json"))).unwrap();
    assert!(store.list().unwrap().is_empty());
    assert_eq!(store.put(&record()).unwrap(), (name, true));
}

#[test]
fn a_store_that_can_not_be_used_says_why() {
    let dir = tempfile::tempdir().unwrap();
    assert!(Store::open(&dir.path().join("nothing")).is_err());
    fs::write(dir.path().join("file"), "").unwrap();
    let error = Store::create(&dir.path().join("file/below")).unwrap_err().to_string();
    assert!(error.starts_with("could not make '"), "{error}");
    fs::write(dir.path().join("known.toml"), "x = 1").unwrap();
    assert!(matches!(Store::open(dir.path()).unwrap().known(), Err(StoreError::Known { .. })));
}
