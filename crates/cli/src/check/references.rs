//! Files that images name, checked after them where the user allowed it.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

use blkproof_check::source::{FileSource, Source as _};
use blkproof_check::watch::Watch;
use blkproof_check::{Format, Options, Report, check};

use super::Job;

/// Files met already, so that a chain that bites its tail has an end.
#[derive(Default)]
pub(super) struct Seen(BTreeSet<(u64, u64)>);

impl Seen {
    /// Whether this file was met before; it has been from now on. What can not be looked at was not.
    pub(super) fn before(&mut self, path: &Path) -> bool {
        std::fs::metadata(path).is_ok_and(|file| !self.0.insert((file.dev(), file.ino())))
    }
}

/// The files an image names. Names are paths, relative to the image's folder; those that are something else (`json:`,
/// `nbd://…`) are told, not followed; of an untrusted image also those that leave its folder. Extents are parts of the
/// image: its own check has opened them.
pub(super) fn jobs(image: &Path, report: &Report, untrusted: bool) -> Vec<Job> {
    let folder = image.parent().unwrap_or(Path::new(""));
    let mut jobs = Vec::new();
    for other in report.references.iter().filter(|other| other.role != "extent") {
        let named = || format!("{} '{}'", other.role, blkproof_report::text::safe(&other.name));
        let path = match path_of(&other.name) {
            Some(path) if untrusted && !stays(&path) => {
                eprintln!("note: {}: {} is in another folder and was not checked", image.display(), named());
                continue;
            }
            Some(path) => folder.join(path),
            None => {
                eprintln!("note: {}: {} is no plain file name and was not checked", image.display(), named());
                continue;
            }
        };
        let format = match (&other.format, other.role) {
            (_, "data file") => Some(Format::Raw),
            (None, _) => None,
            (Some(name), _) => match Format::named(name) {
                Some(format) => Some(format),
                None => {
                    let name = blkproof_report::text::safe(name);
                    eprintln!("note: {}: {} has format '{name}', which is not checked", image.display(), named());
                    continue;
                }
            },
        };
        jobs.push(Job { path, format, named_by: Some(image.to_owned()) });
    }
    jobs
}

/// Bytes in the data file that an image names, if it names one that is there.
pub(super) fn data_file_len(path: &Path, image: &FileSource, options: &Options) -> Option<u64> {
    /// Stops a check as soon as the header is read.
    struct HeaderOnly;
    impl Watch for HeaderOnly {
        fn stop(&self) -> bool {
            true
        }
    }
    let report = check(image, options, &HeaderOnly);
    let data_file = report.references.iter().find(|other| other.role == "data file")?;
    let path = path.parent().unwrap_or(Path::new("")).join(path_of(&data_file.name)?);
    Some(FileSource::open(&path).ok()?.len())
}

/// QEMU takes `word:` at the beginning of a name for a protocol; `file:` is the one that means a path.
fn path_of(name: &str) -> Option<PathBuf> {
    let name = name.strip_prefix("file:").unwrap_or(name);
    let protocol = name.split_once(':').is_some_and(|(word, _)| !word.contains('/'));
    (!name.is_empty() && !protocol).then(|| PathBuf::from(name))
}

/// Whether a path leads into the folder it starts from, links apart.
fn stays(path: &Path) -> bool {
    path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_paths_are_followed() {
        for (name, path) in [
            ("base.qcow2", Some("base.qcow2")),
            ("../a:b.raw", Some("../a:b.raw")),
            ("file:x.raw", Some("x.raw")),
            ("json:{\"driver\":\"null-co\"}", None),
            ("nbd://host/x", None),
            ("", None),
        ] {
            assert_eq!(path_of(name), path.map(PathBuf::from), "{name}");
        }
    }
}
