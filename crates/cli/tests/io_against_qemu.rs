//! The same command lines through qemu-io and through `blkproof` called by that name: standard output, standard error,
//! exit status and the raw image left behind have to be the same, byte for byte. Only times and rates are blanked.
//!
//! A row of `io_tables/*.txt` is `image | options | commands separated by ;`. The image's ending is its format, unless
//! the options begin with `probe`.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::fmt::Write as _;
use std::io::Write as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Command, Stdio};

/// Images by name, with the options that make them.
const IMAGES: [(&str, &[&str]); 9] = [
    ("b.raw", &["-f", "raw", "b.raw", "1M"]),
    ("a.raw", &["-f", "raw", "a.raw", "1M"]),
    ("a.qcow2", &["-f", "qcow2", "a.qcow2", "1M"]),
    ("old.qcow2", &["-f", "qcow2", "-o", "compat=0.10", "old.qcow2", "1000000"]),
    ("ext.qcow2", &["-f", "qcow2", "-o", "lazy_refcounts=on,extended_l2=on,refcount_bits=1", "ext.qcow2", "3M"]),
    ("small.qcow2", &["-f", "qcow2", "-o", "cluster_size=512", "small.qcow2", "1M"]),
    ("zstd.qcow2", &["-f", "qcow2", "-o", "compression_type=zstd", "zstd.qcow2", "1M"]),
    ("top.qcow2", &["-f", "qcow2", "-b", "a.raw", "-F", "raw", "top.qcow2", "1M"]),
    ("a.vdi", &["-f", "vdi", "a.vdi", "4M"]),
];

/// A size that no copy could have: made anew for each run.
const LARGE: (&str, u64) = ("three.raw", 3 << 30);

#[derive(PartialEq, Eq, Debug)]
struct Seen {
    code: Option<i32>,
    signal: Option<i32>,
    stdout: String,
    stderr: String,
    image: Option<Vec<u8>>,
}

/// What a row asks for.
struct Row {
    image: String,
    args: Vec<String>,
    stdin: String,
}

fn make_images(dir: &Path) {
    for (name, args) in IMAGES {
        let made = Command::new("qemu-img").args(["create", "-q"]).args(args).current_dir(dir).status();
        assert!(made.expect("qemu-img can be run").success(), "qemu-img could not make {name}");
    }
    // A raw file whose size is no multiple of a sector, and files for `write -s`.
    std::fs::File::create(dir.join("odd.raw")).unwrap().set_len(1_000_001).unwrap();
    std::fs::write(dir.join("abc"), "abc").unwrap();
    std::fs::write(dir.join("empty"), "").unwrap();
    // Images whose other files are gone, and one that names its backing image by a list of options.
    let json = "json:{\"driver\":\"raw\",\"size\":1024,\"file\":{\"driver\":\"file\",\"filename\":\"a.raw\"}}";
    for (name, options) in [
        ("lost.qcow2", "backing_file=gone.raw,backing_fmt=raw".to_owned()),
        ("lostdata.qcow2", "data_file=gone.data".to_owned()),
        ("jsonback.qcow2", format!("backing_fmt=raw,backing_file={}", json.replace(',', ",,"))),
    ] {
        let mut make = Command::new("qemu-img");
        make.args(["create", "-q", "-u", "-f", "qcow2", "-o", &options, name, "1M"]).current_dir(dir);
        assert!(make.status().unwrap().success(), "qemu-img could not make {name}");
    }
    std::fs::remove_file(dir.join("gone.data")).unwrap();
    let header = std::fs::read(dir.join("a.qcow2")).unwrap();
    std::fs::write(dir.join("qcow2-header"), &header[..512]).unwrap();
}

/// Runs a row beside fresh copies of the images, in a directory of its own.
fn see(program: &str, pristine: &Path, row: &Row) -> Seen {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("directory")).unwrap();
    for entry in std::fs::read_dir(pristine).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().to_string_lossy().into_owned();
        let named = row.image == name || row.args.iter().any(|arg| arg.contains(&name));
        if named || (name == "a.raw" && matches!(row.image.as_str(), "top.qcow2" | "jsonback.qcow2")) {
            std::fs::copy(entry.path(), dir.path().join(name)).unwrap();
        }
    }
    if row.image == LARGE.0 {
        std::fs::File::create(dir.path().join(LARGE.0)).unwrap().set_len(LARGE.1).unwrap();
    }
    let mut command = Command::new(program);
    // Both are called by the same name, as a link in a build tree would be.
    command.arg0("qemu-io").args(&row.args).current_dir(dir.path());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{program}: {error}"));
    let mut stdin = child.stdin.take().unwrap();
    // A program that does not read its input may be gone already.
    let _ = stdin.write_all(row.stdin.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let image = (row.image.ends_with(".raw") && row.image != LARGE.0)
        .then(|| std::fs::read(dir.path().join(&row.image)).unwrap());
    Seen {
        code: output.status.code(),
        signal: output.status.signal(),
        stdout: without_times(&String::from_utf8_lossy(&output.stdout)),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        image,
    }
}

/// Blanks what no two runs have in common.
fn without_times(text: &str) -> String {
    let mut out = String::new();
    for line in text.split_inclusive('\n') {
        let fields: Vec<&str> = line.split(',').collect();
        if let Some((figures, times)) = line.split_once(" ops; ") {
            // The shape of the rates is compared; their figures and units are not, nor is the time.
            let mut shape = times.split_once(" (").map_or(times, |(_, rates)| rates).replace("bytes/sec", "iB/sec");
            shape.retain(|c| !c.is_ascii_digit() && !".KMGTi".contains(c));
            write!(out, "{figures} ops; ({shape}").unwrap();
        } else if fields.len() == 5 && fields[1] == "1" && fields[2].contains(':') {
            writeln!(out, "{},1,TIME", fields[0]).unwrap();
        } else {
            out.push_str(line);
        }
    }
    out
}

fn row(line: &str) -> Row {
    let mut parts = line.splitn(3, '|').map(str::trim);
    let (image, options) = (parts.next().unwrap(), parts.next().unwrap());
    let commands = parts.next().unwrap_or_else(|| panic!("bad row: {line}"));
    let mut args: Vec<String> = Vec::new();
    let options = match (options.strip_prefix("probe"), image.rsplit_once('.')) {
        (Some(rest), _) => rest,
        (None, Some((_, format))) => {
            args.extend(["-f".to_owned(), format.to_owned()]);
            options
        }
        (None, None) => options,
    };
    args.extend(options.split_whitespace().map(str::to_owned));
    if !image.is_empty() {
        args.push(image.to_owned());
    }
    args.extend(commands.split(';').flat_map(|command| ["-c".to_owned(), command.to_owned()]));
    Row { image: image.to_owned(), args, stdin: String::new() }
}

fn compare(rows: impl IntoIterator<Item = (String, Row)>) {
    let pristine = tempfile::tempdir().unwrap();
    make_images(pristine.path());
    let (mut count, mut differing, mut report) = (0, 0, String::new());
    for (line, row) in rows {
        count += 1;
        let theirs = see("qemu-io", pristine.path(), &row);
        let ours = see(env!("CARGO_BIN_EXE_blkproof"), pristine.path(), &row);
        if theirs == ours {
            continue;
        }
        differing += 1;
        writeln!(report, "=== {line}").unwrap();
        for (who, seen) in [("qemu-io ", &theirs), ("blkproof", &ours)] {
            writeln!(report, "{who} code {:?} signal {:?}\n{}", seen.code, seen.signal, seen.stdout).unwrap();
            writeln!(report, "{who} stderr: {}", seen.stderr).unwrap();
        }
        if theirs.image != ours.image {
            writeln!(report, "the images differ").unwrap();
        }
    }
    assert!(count > 0, "no rows");
    assert!(differing == 0, "{report}\n{differing} of {count} rows differ");
}

fn compare_table(table: &str) {
    let lines = table.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
    compare(lines.map(|line| (line.to_owned(), row(line))));
}

#[test]
fn reading() {
    compare_table(include_str!("io_tables/read.txt"));
}

#[test]
fn writing() {
    compare_table(include_str!("io_tables/write.txt"));
}

#[test]
fn asynchronous_requests() {
    compare_table(include_str!("io_tables/aio.txt"));
}

#[test]
fn sizes_maps_and_information() {
    compare_table(include_str!("io_tables/size.txt"));
}

#[test]
fn opening_and_reopening() {
    compare_table(include_str!("io_tables/open.txt"));
}

#[test]
fn the_other_commands() {
    compare_table(include_str!("io_tables/control.txt"));
}

#[test]
fn the_vm_state() {
    compare_table(include_str!("io_tables/vmstate.txt"));
}

#[test]
fn formats() {
    compare_table(include_str!("io_tables/formats.txt"));
}

#[test]
fn commands_on_standard_input() {
    let long = format!("length {}\n", "x".repeat(1100));
    let many = format!("length {}\n", "x ".repeat(600));
    let inputs = [
        "read 0 4k\nfoo\nlength\n",
        "length\nquit\nlength\n",
        "length",
        "",
        "\n\n  \nlength\n",
        "length\n\n",
        "aio_read 0 4k\naio_flush\nlength\n",
        "close\nlength\nopen -o driver=raw a.raw\nlength\n",
        "read\t0\t512\n",
        "#length\nlength\n",
        "length\0 foo\nlength\n",
        "write 0 512\nread -v 0 16\nread -P 0xcd 0 513\n",
        "read -x 0 1\nread 0 1 2 3\n",
        &long,
        &many,
    ];
    compare(inputs.map(|input| {
        let args = ["-f", "raw", "a.raw"].map(str::to_owned).to_vec();
        (format!("stdin: {input:?}"), Row { image: "a.raw".into(), args, stdin: input.to_owned() })
    }));
}

/// Test suites merge both streams into one pipe: what stands where then is part of the output.
#[test]
fn merged_streams() {
    let merged = |program: &str, args: &[&str], stdin: &str| {
        let dir = tempfile::tempdir().unwrap();
        std::fs::File::create(dir.path().join("a.raw")).unwrap().set_len(1 << 20).unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        let mut command = Command::new(program);
        command.arg0("qemu-io").args(["-f", "raw", "a.raw"]).args(args).current_dir(dir.path());
        command.stdin(Stdio::piped()).stdout(writer.try_clone().unwrap()).stderr(writer);
        let mut child = command.spawn().unwrap();
        // The command holds the pipe's other end open.
        drop(command);
        let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
        let mut text = String::new();
        std::io::Read::read_to_string(&mut reader, &mut text).unwrap();
        child.wait().unwrap();
        without_times(&text)
    };
    // More than the C library collects: some of it is out before the error.
    let dump = ["-c", "read -v 0 3k", "-c", "foo"];
    for (args, stdin) in [
        (&["-c", "length", "-c", "foo", "-c", "length"][..], ""),
        (&["-c", "length", "-c", "read -x 0 1", "-c", "close", "-c", "read 0 1"], ""),
        (&["-c", "length", "-c", "sigraise 9"], ""),
        (&["-c", "length", "-c", "abort"], ""),
        (&["-c", "length", "-c", "foo", "-c", "sleep 1", "-c", "foo"], ""),
        (&[], "length\nfoo\nlength\nread 0 1 2\nread\n"),
        (&dump, ""),
    ] {
        let theirs = merged("qemu-io", args, stdin);
        assert_eq!(merged(env!("CARGO_BIN_EXE_blkproof"), args, stdin), theirs, "{args:?} {stdin:?}");
    }
}

/// An image that another program has open for writing.
#[test]
fn a_locked_image() {
    let dir = tempfile::tempdir().unwrap();
    make_images(dir.path());
    let programs = ["qemu-io", env!("CARGO_BIN_EXE_blkproof")];
    for holder in programs {
        let mut held = Command::new(holder);
        held.arg0("qemu-io").args(["-f", "qcow2", "a.qcow2"]).current_dir(dir.path());
        let mut held = held.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut prompt = [0; 9];
        std::io::Read::read_exact(held.stdout.as_mut().unwrap(), &mut prompt).unwrap();
        for args in [&["-f", "qcow2"][..], &["-r", "-f", "qcow2"], &["-r", "-U", "-f", "qcow2"]] {
            let seen = programs.map(|program| {
                let mut command = Command::new(program);
                command.arg0("qemu-io").args(args).args(["a.qcow2", "-c", "length"]).current_dir(dir.path());
                let output = command.output().unwrap();
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                (output.status.code(), text(&output.stdout), text(&output.stderr))
            });
            assert_eq!(seen[1], seen[0], "{args:?} while {holder} has the image");
        }
        drop(held.stdin.take());
        assert!(held.wait().unwrap().success());
    }
}

/// The usage text is our own; what comes before it and the exit status are getopt's and qemu-io's.
#[test]
fn misuse_of_the_program() {
    let pristine = tempfile::tempdir().unwrap();
    make_images(pristine.path());
    for words in [
        "-x",
        "-xyz",
        "--foo",
        "--foo=1 a.raw",
        "-c",
        "-t",
        "--cache",
        "--ca",
        "--c",
        "--n",
        "--i",
        "--f",
        "--",
        "a b",
        "a b c",
        "--nocache=3 a.raw",
        "--read-only=1",
        "--imageopts",
        "-f raw a.raw extra",
        "-rx",
        "-f raw -- a.raw -c length",
    ] {
        let args: Vec<String> = words.split(' ').map(str::to_owned).collect();
        let row = Row { image: "a.raw".into(), args, stdin: String::new() };
        let theirs = see("qemu-io", pristine.path(), &row);
        let ours = see(env!("CARGO_BIN_EXE_blkproof"), pristine.path(), &row);
        assert_eq!((ours.code, &ours.stderr), (theirs.code, &theirs.stderr), "{words}");
        assert_eq!(
            ours.stdout.starts_with("Usage: qemu-io [OPTIONS]"),
            theirs.stdout.starts_with("Usage: qemu-io [OPTIONS]"),
            "{words}"
        );
    }
}

/// Whatever is wrong with a header is said in the same words.
#[test]
fn damaged_headers() {
    const FIELDS: [(u64, &str); 32] = [
        (0, "00000001"), // magic
        (4, "00000001"), // version
        (4, "00000004"),
        (8, "ffffffffffffffff"), // backing file offset
        (8, "0000000000010001"),
        (8, "000000000000fff00000ffff"), // and length
        (8, "000000000000040000000400"),
        (20, "00000008"), // cluster bits
        (20, "00000016"),
        (24, "7fffffffffffffff"), // size
        (36, "00000000"),         // L1 entries
        (36, "ffffffff"),
        (36, "00400001"),
        (40, "1234567890abcdef"), // L1 offset
        (40, "7fffffffffff0000"),
        (48, "1234567890abcdef"), // refcount table
        (48, "ffffffffffff0000"),
        (56, "00000000"),
        (56, "00000081"),
        (56, "ffffffff"),
        (60, "00010001"), // snapshots
        (60, "ffffffff"),
        (60, "000000011234567890abcdef"),
        (60, "00000001ffffffffffff0000"),
        (60, "000000001234567890abcdef"),
        (96, "00000007"),  // refcount width
        (100, "00000068"), // header length
        (100, "00010008"),
        (100, "ffffffff"),
        (104, "01"),               // compression type
        (112, "123456787fffffff"), // extension
        (112, "12345678ffffffff"),
    ];
    let dir = tempfile::tempdir().unwrap();
    make_images(dir.path());
    let pristine = std::fs::read(dir.path().join("a.qcow2")).unwrap();
    for (at, hex) in FIELDS {
        let mut image = pristine.clone();
        for (index, digits) in hex.as_bytes().chunks(2).enumerate() {
            let digits = std::str::from_utf8(digits).unwrap();
            image[usize::try_from(at).unwrap() + index] = u8::from_str_radix(digits, 16).unwrap();
        }
        let seen = ["qemu-io", env!("CARGO_BIN_EXE_blkproof")].map(|program| {
            std::fs::write(dir.path().join("bad.qcow2"), &image).unwrap();
            let mut command = Command::new(program);
            command.arg0("qemu-io").args(["-r", "-f", "qcow2", "bad.qcow2", "-c", "length"]).current_dir(dir.path());
            let output = command.output().unwrap();
            (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
        });
        assert_eq!(seen[1], seen[0], "{hex} at {at}");
    }
}

/// The harness has teeth: a run that differs in any one respect is seen to differ.
#[test]
fn a_difference_is_found() {
    let pristine = tempfile::tempdir().unwrap();
    make_images(pristine.path());
    let base = see("qemu-io", pristine.path(), &row("a.raw | | read 0 4k"));
    assert_eq!(see("qemu-io", pristine.path(), &row("a.raw | | read 0 4k")), base, "a run agrees with itself");
    for other in [
        "a.raw | | read 0 8k",
        "a.raw | | read 0 4k;foo",
        "a.raw | | read 0 4k;flush 1",
        "a.raw | | write -q 0 1;read 0 4k",
        "a.raw | | read -C 0 4k",
        "a.raw | | read 0 4k;sigraise 9",
    ] {
        assert_ne!(see("qemu-io", pristine.path(), &row(other)), base, "{other}");
    }
}
