//! What every format shares: stated formats, assumptions, and the policy for images of unknown origin.
#![allow(missing_docs, clippy::unwrap_used)]

use std::process::Command;

use blkproof_check::source::{FileSource, MemorySource};
use blkproof_check::watch::Silent;
use blkproof_check::{Assume, Format, Options, Verdict, check};

fn qemu_img(args: &[&str]) {
    let done = Command::new("qemu-img").args(args).output().unwrap();
    assert!(done.status.success(), "qemu-img {args:?}: {}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn a_name_of_another_file_is_told_of_an_untrusted_image_only() {
    let dir = tempfile::tempdir().unwrap();
    let (base, top) = (dir.path().join("base.raw"), dir.path().join("top.qed"));
    let (base, top) = (base.to_str().unwrap(), top.to_str().unwrap());
    qemu_img(&["create", "-q", "-f", "raw", base, "1M"]);
    qemu_img(&["create", "-q", "-f", "qed", "-b", base, "-F", "raw", top]);
    let image = FileSource::open(top.as_ref()).unwrap();
    for untrusted in [false, true] {
        let report = check(&image, &Options { untrusted, ..Options::default() }, &Silent);
        let told = report.findings.iter().any(|finding| finding.code.name == "IMAGE-POLICY-REFERENCE");
        assert_eq!(told, untrusted);
        assert_eq!(report.verdict, Verdict::Healthy, "{:?}", report.findings);
    }
}

#[test]
fn a_guest_that_writes_a_header_into_its_raw_disk_is_noticed() {
    let mut disk = vec![0; 1 << 20];
    let raw = Options { format: Some(Format::Raw), ..Options::default() };
    let codes = |disk: &[u8]| {
        let report = check(&MemorySource(disk.to_vec()), &raw, &Silent);
        assert_eq!(report.verdict, Verdict::Unsupported);
        report.findings.iter().map(|finding| finding.code.name).collect::<Vec<_>>()
    };
    assert_eq!(codes(&disk), [""; 0]);
    disk[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    assert_eq!(codes(&disk), ["RAW-LOOKS-LIKE-IMAGE"]);
}

/// A name listed as assumable is one that an analyser asks for: the list and the code do not drift apart.
#[test]
fn every_assumable_name_is_asked_for() {
    let sources = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for format in Format::ALL {
        let folder = match format {
            Format::Vhd => "vhd".to_owned(),
            Format::Raw => continue,
            other => other.name().to_owned(),
        };
        let mut text = String::new();
        for entry in std::fs::read_dir(sources.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                text.push_str(&std::fs::read_to_string(path).unwrap());
            }
        }
        for name in Assume::known(*format) {
            assert!(text.contains(&format!("\"{name}\"")), "{}: nobody asks for '{name}'", format.name());
        }
        assert_eq!(Assume::parse("nonsense=1").unwrap().unknown(*format), Some("nonsense"));
    }
}
