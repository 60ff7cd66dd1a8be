//! Files that a check writes: pictures, and maps for ddrescue. Never an image.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use blkproof_check::Report;
use blkproof_report::{ddrescue, map};

use super::same_file;

/// A picture asked for.
#[derive(Clone, Debug)]
pub(super) enum MapKind {
    Svg(PathBuf),
    Html(PathBuf),
    Term,
}

pub(super) fn parse_map(text: &str) -> Result<MapKind, String> {
    match text.split_once('=') {
        Some(("svg", file)) if !file.is_empty() => Ok(MapKind::Svg(file.into())),
        Some(("html", file)) if !file.is_empty() => Ok(MapKind::Html(file.into())),
        None if text == "term" => Ok(MapKind::Term),
        _ => Err(format!("'{text}' is none of svg=FILE, html=FILE, term")),
    }
}

/// What is to be written beside the report.
pub(super) struct Outputs {
    maps: Vec<MapKind>,
    ddrescue: Option<PathBuf>,
}

impl Outputs {
    /// Refuses what would overwrite an image, or itself.
    pub(super) fn new(maps: &[MapKind], ddrescue: Option<&Path>, images: &[PathBuf]) -> anyhow::Result<Self> {
        let outputs = Self { maps: maps.to_vec(), ddrescue: ddrescue.map(Path::to_owned) };
        let files = outputs.files();
        if files.len() > images.len().max(1) && images.len() > 1 || (images.len() > 1 && !files.is_empty()) {
            anyhow::bail!("one file can not hold the maps of several images; check them one by one");
        }
        for (number, file) in files.iter().enumerate() {
            if images.iter().any(|image| same_file(image, file)) {
                anyhow::bail!("'{}' is the image itself; check never writes to it", file.display());
            }
            if files.iter().take(number).any(|other| other == file) {
                anyhow::bail!("'{}' is to be written twice", file.display());
            }
            let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
            if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
                anyhow::bail!("'{}' can not be written: there is no folder '{}'", file.display(), folder.display());
            }
        }
        Ok(outputs)
    }

    fn files(&self) -> Vec<&Path> {
        let maps = self.maps.iter().filter_map(|kind| match kind {
            MapKind::Svg(file) | MapKind::Html(file) => Some(file.as_path()),
            MapKind::Term => None,
        });
        maps.chain(self.ddrescue.as_deref()).collect()
    }

    /// Writes them all.
    pub(super) fn write(&self, report: &Report) -> anyhow::Result<()> {
        for kind in &self.maps {
            match kind {
                MapKind::Svg(file) => write(file, &map::svg(report))?,
                MapKind::Html(file) => write(file, &map::html(report))?,
                MapKind::Term => {}
            }
        }
        let Some(file) = &self.ddrescue else { return Ok(()) };
        let map = ddrescue::map(report).with_context(|| {
            format!("'{}' was not written: the size of the guest's disk is not known", file.display())
        })?;
        write(file, &map)
    }
}

fn write(file: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(file, text).with_context(|| format!("could not write '{}'", file.display()))
}
