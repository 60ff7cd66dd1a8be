//! Images made by qemu-img and qemu-io, one or more for each format, and where their fields are.

use std::ops::Range;
use std::process::Command;

use blkproof_check::Format;

use super::peer::Bench;
use super::sparse::Sparse;
use super::{Base, Field, Kind};

fn run(tool: &str, args: &[&str]) {
    let done = Command::new(tool).args(args).output().unwrap_or_else(|error| panic!("{tool} is needed: {error}"));
    assert!(done.status.success(), "{tool} {args:?}: {}", String::from_utf8_lossy(&done.stderr));
}

fn image(bench: &Bench, format: Format, options: &str, size: &str, writes: &[&str]) -> Sparse {
    let path = bench.path("base");
    let name = path.to_str().unwrap();
    let mut create = vec!["create", "-q", "-f", format.name()];
    if !options.is_empty() {
        create.extend(["-o", options]);
    }
    run("qemu-img", &[&create[..], &[name, size]].concat());
    if !writes.is_empty() {
        let words = writes.iter().flat_map(|command| ["-c", command]);
        let args: Vec<&str> = ["-f", format.name(), "-t", "unsafe"].into_iter().chain(words).chain([name]).collect();
        run("qemu-io", &args);
    }
    Sparse::from_file(&path)
}

/// A stream-optimized VMDK can only be converted to.
fn stream_optimized(bench: &Bench) -> Sparse {
    let raw = bench.path("raw");
    let mut content = vec![0u8; 1 << 20];
    for (index, byte) in content.iter_mut().enumerate().filter(|(index, _)| index % 70_000 < 3000) {
        *byte = (index * index) as u8;
    }
    std::fs::write(&raw, content).unwrap();
    let path = bench.path("base");
    let names = [raw.to_str().unwrap(), path.to_str().unwrap()];
    run("qemu-img", &["convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", names[0], names[1]]);
    Sparse::from_file(&path)
}

/// One base at least for each format but qcow2.
pub fn all() -> Vec<Base> {
    let bench = Bench::new();
    let writes = ["write -P 7 1M 128k", "write -P 8 3M 64k", "write -P 9 0 100k"];
    let make = |format, options, size| {
        (format!("{} {options}", format_name(format)), format, image(&bench, format, options, size, &writes))
    };
    let mut bases = vec![
        make(Format::Vdi, "", "5M"),
        make(Format::Vdi, "static=on", "4M"),
        make(Format::Vmdk, "", "8M"),
        make(Format::Vhd, "", "8M"),
        make(Format::Vhd, "subformat=fixed,force_size=on", "4M"),
        make(Format::Vhdx, "block_size=1M", "8M"),
        make(Format::Parallels, "cluster_size=64k", "4M"),
        make(Format::Qed, "cluster_size=4k,table_size=2", "4M"),
        make(Format::Qed, "cluster_size=64k", "4M"),
    ];
    bases.push(("vmdk stream".to_owned(), Format::Vmdk, stream_optimized(&bench)));
    bases.into_iter().map(|(name, format, image)| with_fields(name, format, image)).collect()
}

fn format_name(format: Format) -> &'static str {
    format.name()
}

fn with_fields(name: String, format: Format, image: Sparse) -> Base {
    let big = format == Format::Vhd;
    let mut fields = Vec::new();
    let mut span = |range: Range<u64>, width: usize, kind: Kind, what: &'static str| {
        let fits = range.end.min(image.len);
        fields.extend(range.step_by(width).filter(|at| *at < fits).map(|at| Field { at, width, kind, what }));
    };
    let number = |at: u64, width: usize| image.number(at, width, big);
    let unit = match format {
        Format::Vdi => {
            span(0x40..0x58, 4, Kind::Header, "pre-header and header");
            span(0x154..0x188, 4, Kind::Header, "header");
            span(0x188..0x1c8, 8, Kind::Side, "UUIDs");
            let map = number(0x154, 4);
            span(map..map + 4 * number(0x180, 4).min(64), 4, Kind::Map, "block map");
            1 << 20
        }
        Format::Vmdk => {
            for header in [0, image.len.saturating_sub(1024)] {
                if image.bytes(header, 4) != b"KDMV" {
                    continue;
                }
                span(header..header + 12, 4, Kind::Header, "header");
                span(header + 12..header + 44, 8, Kind::Header, "header");
                span(header + 44..header + 48, 4, Kind::Header, "header");
                span(header + 48..header + 72, 8, Kind::Header, "header");
                span(header + 72..header + 80, 1, Kind::Header, "header");
            }
            span(512..900, 1, Kind::Extension, "descriptor");
            let header = if number(56, 8) == u64::MAX { image.len - 1024 } else { 0 };
            for (directory, kind) in
                [(number(header + 56, 8) * 512, Kind::Map), (number(header + 48, 8) * 512, Kind::Side)]
            {
                if directory == 0 {
                    continue;
                }
                span(directory..directory + 16, 4, kind, "grain directory");
                let table = number(directory, 4) * 512;
                span(table..table + 4 * 136, 4, kind, "grain table");
            }
            span(image.len - 1536..image.len, 8, Kind::Side, "end of the file");
            if header > 0 {
                span(128 * 512..128 * 512 + 24, 4, Kind::Side, "first grain's marker");
            }
            64 << 10
        }
        Format::Vhd => {
            let footer = image.len - 512;
            for at in [footer, 0] {
                if image.bytes(at, 8) == b"conectix" {
                    span(at..at + 8, 8, Kind::Header, "cookie");
                    span(at + 8..at + 16, 4, Kind::Header, "footer");
                    span(at + 16..at + 24, 8, Kind::Header, "footer");
                    span(at + 24..at + 40, 4, Kind::Header, "footer");
                    span(at + 40..at + 56, 8, Kind::Header, "sizes");
                    span(at + 56..at + 84, 4, Kind::Header, "footer");
                    span(at + 84..at + 90, 1, Kind::Header, "footer");
                }
            }
            if number(footer + 60, 4) == 3 {
                span(512..536, 8, Kind::Extension, "dynamic header");
                span(536..640, 4, Kind::Extension, "dynamic header");
                let table = number(512 + 16, 8);
                span(table..table + 32, 4, Kind::Map, "block table");
            }
            2 << 20
        }
        Format::Vhdx => {
            for at in [64u64 << 10, 128 << 10] {
                span(at..at + 80, 4, Kind::Header, "header");
            }
            for at in [192u64 << 10, 256 << 10] {
                span(at..at + 80, 4, Kind::Extension, "region table");
            }
            span((1 << 20)..(1 << 20) + 80, 4, Kind::Side, "log");
            span((3 << 20)..(3 << 20) + 200, 4, Kind::Side, "metadata table");
            span((3 << 20) + (64 << 10)..(3 << 20) + (64 << 10) + 64, 4, Kind::Side, "metadata items");
            span((2 << 20)..(2 << 20) + 80, 8, Kind::Map, "block table");
            1 << 20
        }
        Format::Parallels => {
            span(0..16, 8, Kind::Header, "magic");
            span(16..64, 4, Kind::Header, "header");
            span(64..64 + 4 * 64, 4, Kind::Map, "block table");
            64 << 10
        }
        _ => {
            span(0..16, 4, Kind::Header, "header");
            span(16..56, 8, Kind::Header, "header");
            span(56..64, 4, Kind::Header, "header");
            let cluster = number(4, 4);
            let l1 = number(40, 8);
            span(l1..l1 + 32, 8, Kind::Map, "L1 table");
            let l2 = number(l1, 8);
            span(l2..l2 + 400, 8, Kind::Map, "L2 table");
            let past = l2 + (1 << 20) / cluster * 8;
            span(past..past + 300, 8, Kind::Map, "L2 table");
            cluster
        }
    };
    Base { format, name, image, fields, unit, big }
}
