//! The walk behind qcheck's streams: what it tells of a sound image, and that no damage stops it.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

use std::path::Path;
use std::process::Command;
use std::sync::Mutex;

use blkproof_check::map::Class;
use blkproof_check::source::{MemorySource, Source as _};
use blkproof_check::watch::{Event, Wants, Watch};
use blkproof_check::{Format, Options, Verdict, check};
use tempfile::tempdir;

#[derive(Default)]
struct Told {
    sections: Vec<String>,
    summaries: Vec<(String, u64, bool)>,
    /// Class, index, cluster, value, flawed.
    entries: Vec<(Class, u64, u64, u64, bool)>,
    problems: usize,
}

struct All(Wants, Mutex<Told>);

impl Watch for All {
    fn wants(&self) -> Wants {
        self.0
    }

    fn event(&self, event: &Event<'_>) {
        let mut told = self.1.lock().unwrap();
        match event {
            Event::Section(title) => told.sections.push((*title).to_owned()),
            Event::Summary(label, problems, cut) => told.summaries.push(((*label).to_owned(), *problems, *cut)),
            Event::Entry { class, index, cluster, value, flawed, .. } => {
                told.entries.push((*class, *index, *cluster, *value, *flawed));
            }
            Event::Problem(_) => told.problems += 1,
            _ => {}
        }
    }
}

fn tool(dir: &Path, program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).current_dir(dir).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}; run scripts/install-peers"));
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn image(options: &str, writes: &[&str]) -> Vec<u8> {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    tool(dir, "qemu-img", &["create", "-q", "-f", "qcow2", "-o", options, "a", "4M"]);
    let commands = writes.iter().flat_map(|write| ["-c", write]);
    tool(dir, "qemu-io", &["-f", "qcow2"].into_iter().chain(commands).chain(["a"]).collect::<Vec<_>>());
    std::fs::read(dir.join("a")).unwrap()
}

fn walk(image: Vec<u8>, wants: Wants) -> (Verdict, Told) {
    let watch = All(wants, Mutex::default());
    let options = Options { format: Some(Format::Qcow2), max_findings: 20, memory: 4 << 20, ..Options::default() };
    let report = check(&MemorySource(image), &options, &watch);
    (report.verdict, watch.1.into_inner().unwrap())
}

#[test]
fn every_width_of_counts_and_entries_is_walked() {
    for bits in [1, 2, 4, 8, 16, 32, 64] {
        for extended in [false, true] {
            let cluster = if extended { 16384 } else { 4096 };
            let onoff = if extended { "on" } else { "off" };
            let options = format!("cluster_size={cluster},refcount_bits={bits},extended_l2={onoff}");
            let bytes = image(&options, &["write 0 256k", "write -z 1M 64k"]);
            let clusters = MemorySource(bytes.clone()).len().div_ceil(cluster);
            let (verdict, told) = walk(bytes, Wants::all());
            assert_eq!(verdict, Verdict::Healthy, "{options}");
            let of = |class| told.entries.iter().filter(move |entry| entry.0 == class);
            let ones = of(Class::RefcountBlock).filter(|entry| entry.3 == 1).count() as u64;
            assert_eq!(ones, clusters, "{options}: each cluster of the file is counted once");
            assert!(of(Class::RefcountBlock).all(|entry| entry.3 <= 1 && (entry.2 < clusters) == (entry.3 == 1)));
            let data = of(Class::L2).filter(|entry| entry.3 != 0).map(|entry| entry.2).collect::<Vec<_>>();
            assert_eq!(data, (0..(256 << 10) / cluster).collect::<Vec<_>>(), "{options}: guest clusters in order");
            assert!(told.entries.iter().all(|entry| !entry.4), "{options}: nothing is flawed");
            assert_eq!(told.summaries.len(), 7, "{options}: {:?}", told.summaries);
            assert!(told.summaries.iter().all(|(_, problems, cut)| *problems == 0 && !cut), "{:?}", told.summaries);
        }
    }
}

/// Every field and table entry may be anything: the walk ends, and tells no more than the file has.
#[test]
fn no_damage_stops_the_walk() {
    let sound = [
        image("cluster_size=4096", &["write 0 256k", "write -c 1M 4k", "write -z 2M 64k"]),
        image("cluster_size=16384,extended_l2=on,refcount_bits=1", &["write 2k 6k", "write 1M 64k"]),
        image("compat=0.10,cluster_size=512", &["write 0 64k"]),
    ];
    let mut state = 0x51f0u64;
    let mut next = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    for round in 0..300 {
        let mut bytes = sound[round % sound.len()].clone();
        // Mostly metadata: it lies at the beginning of small images.
        for _ in 0..=next(4) {
            let reach = if next(3) == 0 { 112 } else { bytes.len().min(0x10000) };
            let at = next(reach) & !7;
            let word = match next(4) {
                0 => u64::MAX,
                1 => 0,
                2 => (next(1 << 30) as u64) << next(34),
                _ => 1 << next(64),
            };
            let end = (at + 8).min(bytes.len());
            bytes[at..end].copy_from_slice(&word.to_be_bytes()[..end - at]);
        }
        if next(8) == 0 {
            let len = next(bytes.len());
            bytes.truncate(len);
        }
        let file = bytes.len();
        let wants = if next(2) == 0 { Wants::all() } else { Wants::PROBLEMS | Wants::SECTIONS };
        let (_, told) = walk(bytes, wants);
        assert_eq!(told.sections.first().map(String::as_str), Some("Header"), "round {round}");
        assert_eq!(told.summaries.last().map(|(label, ..)| label.as_str()), Some("Refcount analysis"), "round {round}");
        // A bit of the file is at most one count; and small images have few entries of anything else.
        assert!(told.entries.len() <= 16 * file + 1000, "round {round}: {} entries", told.entries.len());
        if !wants.contains(Wants::L2) {
            assert!(told.entries.len() <= 5 * 20 + 100, "round {round}: flawed entries are bounded");
        }
    }
}
