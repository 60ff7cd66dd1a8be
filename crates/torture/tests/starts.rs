//! Images that hold something from the start, and what nobody may change in them.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use blkproof_torture::plan::TargetSpec;
use blkproof_torture::target::{self, Checked, Content};

fn spec(name: &str, options: &[(&str, &str)], size: u64, base: Option<u64>) -> TargetSpec {
    let mut options: Vec<_> = options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    options.sort();
    TargetSpec { name: name.to_owned(), options, size, base }
}

/// Of each start: the image is sound, compressed ones are shorter, and the snapshot is intact as long as nothing it
/// refers to changes.
#[test]
fn starts_are_what_they_say() {
    let small = ("cluster_size", "4096");
    let size = 300 << 10;
    let made = |options: &[(&str, &str)], base| -> (TargetSpec, Content) {
        let spec = spec("qcow2", options, size, base);
        let image = target::find("qcow2").unwrap().create(&spec).unwrap_or_else(|error| panic!("{options:?}: {error}"));
        (spec, image)
    };
    let target = target::find("qcow2").unwrap();
    let base = Some(200_001);
    let rows = [
        made(&[small, ("start", "copied")], base),
        made(&[small, ("start", "compressed")], base),
        made(&[small, ("snapshot", "on"), ("start", "copied")], base),
        made(&[small, ("snapshot", "on")], None),
    ];
    for (spec, image) in &rows {
        assert_eq!(target.check(image), Checked::Sound, "{spec:?}");
        assert_eq!(target.intact(image, spec), Ok(()), "{spec:?}");
    }
    assert!(rows[1].1.size() < rows[0].1.size() * 7 / 8, "{} {}", rows[1].1.size(), rows[0].1.size());
    // Every byte of the guest's that the snapshot holds counts.
    for (spec, image) in &rows[2..] {
        let mut wrong = 0;
        for (at, page) in image.pages() {
            for byte in [0, 4095].into_iter().filter(|byte| *byte < page.len()) {
                let mut other = image.clone();
                other.write(at + byte as u64, &[page[byte] ^ 1]);
                wrong += u32::from(target.intact(&other, spec).is_err());
            }
        }
        let least = if spec.base.is_some() { 2 * 48 } else { 4 };
        assert!(wrong >= least, "{spec:?}: {wrong}");
    }
    let plain = made(&[small], None);
    let spec = TargetSpec { options: rows[3].0.options.clone(), ..plain.0 };
    assert!(target.intact(&plain.1, &spec).unwrap_err().contains("0 snapshots"));
}

#[test]
fn a_start_that_is_none_is_refused() {
    for (name, options, base) in [
        ("qcow2", ("start", "pressed"), Some(512)),
        ("vdi", ("start", "pressed"), Some(512)),
        ("raw", ("start", "compressed"), Some(512)),
        ("raw", ("start", "copied"), None),
    ] {
        let spec = spec(name, &[options], 1 << 20, base);
        assert!(target::find(name).unwrap().create(&spec).is_err(), "{spec:?}");
    }
}
