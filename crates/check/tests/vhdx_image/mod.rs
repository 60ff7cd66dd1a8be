//! VHDX images as sparse files: made by QEMU, copied for each case, and changed in place with checksums set right
//! again.

#![allow(dead_code, unreachable_pub)]

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

pub const MIB: u64 = 1 << 20;
/// Where QEMU puts the parts.
pub const HEADERS: [u64; 2] = [64 << 10, 128 << 10];
pub const REGIONS: [u64; 2] = [192 << 10, 256 << 10];
pub const LOG: u64 = MIB;
pub const TABLE: u64 = 2 * MIB;
pub const META: u64 = 3 * MIB;

/// Runs a tool that has to be there.
pub fn run(program: &str, args: &[&str]) -> Output {
    Command::new(program).args(args).output().unwrap_or_else(|error| panic!("{program} is needed: {error}"))
}

/// An image that is thrown away at the end.
pub struct Image {
    _dir: TempDir,
    pub path: PathBuf,
    file: File,
}

impl Image {
    /// Made by qemu-img with these options, then written to by qemu-io.
    pub fn make(options: &str, size: &str, commands: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.vhdx");
        let name = path.to_str().unwrap();
        let done = run("qemu-img", &["create", "-q", "-f", "vhdx", "-o", options, name, size]);
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        Self::at(dir, path).io(commands)
    }

    fn at(dir: TempDir, path: PathBuf) -> Self {
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        Self { _dir: dir, path, file }
    }

    /// A copy of a file, its holes kept.
    pub fn copy(of: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.vhdx");
        let done = run("cp", &["--sparse=always", of.to_str().unwrap(), path.to_str().unwrap()]);
        assert!(done.status.success());
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        Self::at(dir, path)
    }

    /// Lets qemu-io work on it in one opening.
    pub fn io(self, commands: &[&str]) -> Self {
        if !commands.is_empty() {
            let words = commands.iter().flat_map(|command| ["-c", *command]);
            let args: Vec<&str> =
                ["-f", "vhdx"].into_iter().chain(words).chain([self.path.to_str().unwrap()]).collect();
            let done = run("qemu-io", &args);
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        }
        self
    }

    /// Lets qemu-io write while no write to the block table succeeds, and die: the log holds what the table does not.
    pub fn crash(self, commands: &[&str]) -> Self {
        let sector = TABLE / 512;
        let file = self.path.to_str().unwrap();
        let options = format!(
            "driver=vhdx,file.driver=blkdebug,file.image.driver=file,file.image.filename={file},\
             file.inject-error.0.event=none,file.inject-error.0.iotype=write,file.inject-error.0.errno=5,\
             file.inject-error.0.sector={sector}"
        );
        let words = commands.iter().chain(&["abort"]).flat_map(|command| ["-c", *command]);
        let args: Vec<&str> = ["--image-opts", &options].into_iter().chain(words).collect();
        assert!(!run("qemu-io", &args).status.success(), "it dies");
        let (current, _) = self.headers();
        assert_ne!(self.read(current + 48, 16), [0; 16], "the log is in use");
        self
    }

    /// `qemu-img check`'s exit status.
    pub fn qemu_check(&self, extra: &[&str]) -> i32 {
        let args = [&["check", "-q", "-f", "vhdx"], extra, &[self.path.to_str().unwrap()]].concat();
        run("qemu-img", &args).status.code().unwrap()
    }

    pub fn len(&self) -> u64 {
        self.file.metadata().unwrap().len()
    }

    pub fn set_len(&self, len: u64) {
        self.file.set_len(len).unwrap();
    }

    pub fn read(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.file.read_exact_at(&mut bytes, at).unwrap();
        bytes
    }

    pub fn put(&self, at: u64, bytes: &[u8]) {
        self.file.write_all_at(bytes, at).unwrap();
    }

    pub fn flip(&self, at: u64) {
        let byte = self.read(at, 1)[0];
        self.put(at, &[byte ^ 1]);
    }

    pub fn u32(&self, at: u64) -> u32 {
        u32::from_le_bytes(self.read(at, 4).try_into().unwrap())
    }

    pub fn u64(&self, at: u64) -> u64 {
        u64::from_le_bytes(self.read(at, 8).try_into().unwrap())
    }

    /// Sets the checksum of a structure right.
    pub fn seal(&self, at: u64, len: usize) {
        let mut bytes = self.read(at, len);
        bytes[4..8].fill(0);
        self.put(at + 4, &crc32c::crc32c(&bytes).to_le_bytes());
    }

    /// The header with the larger sequence number, and the other one.
    pub fn headers(&self) -> (u64, u64) {
        let [first, second] = HEADERS;
        if self.u64(second + 8) > self.u64(first + 8) { (second, first) } else { (first, second) }
    }

    /// Changes the header that counts.
    pub fn edit_header(&self, at: u64, bytes: &[u8]) {
        let (current, _) = self.headers();
        self.put(current + at, bytes);
        self.seal(current, 4096);
    }

    /// Changes both region tables alike.
    pub fn edit_regions(&self, at: u64, bytes: &[u8]) {
        for table in REGIONS {
            self.put(table + at, bytes);
            self.seal(table, 64 << 10);
        }
    }

    pub fn entry(&self, index: u64) -> u64 {
        self.u64(TABLE + index * 8)
    }

    pub fn set_entry(&self, index: u64, value: u64) {
        self.put(TABLE + index * 8, &value.to_le_bytes());
    }

    /// Where the entry of the metadata table with this identifier is, and where its item is.
    pub fn item(&self, first_bytes: u32) -> (u64, u64) {
        let entry = (0..5).map(|index| META + 32 + index * 32).find(|at| self.u32(*at) == first_bytes).unwrap();
        (entry, META + u64::from(self.u32(entry + 16)))
    }

    /// Places of the log entries that are in use, in order.
    pub fn log_entries(&self) -> Vec<u64> {
        let (current, _) = self.headers();
        let guid = self.read(current + 48, 16);
        let mut all: Vec<_> = (LOG..LOG + MIB)
            .step_by(4096)
            .filter(|at| self.read(*at, 4) == b"loge" && self.read(*at + 32, 16) == guid)
            .collect();
        all.sort_by_key(|at| self.u64(at + 16));
        all
    }

    /// Writes a log entry of the current opening at `at`, as a writer would that changes the 4 KiB at `target`.
    pub fn write_log(&self, at: u64, sequence: u64, tail: u64, target: u64, page: &[u8]) {
        let (current, _) = self.headers();
        let mut entry = vec![0u8; 8192];
        let mut put = |at: usize, bytes: &[u8]| entry[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"loge");
        put(8, &8192u32.to_le_bytes());
        put(12, &(tail as u32).to_le_bytes());
        put(16, &sequence.to_le_bytes());
        put(24, &1u32.to_le_bytes());
        put(32, &self.read(current + 48, 16));
        put(48, &self.len().to_le_bytes());
        put(56, &self.len().to_le_bytes());
        put(64, b"desc");
        put(68, &page[4092..]);
        put(72, &page[..8]);
        put(80, &target.to_le_bytes());
        put(88, &sequence.to_le_bytes());
        put(4096, b"data");
        put(4100, &((sequence >> 32) as u32).to_le_bytes());
        put(4104, &page[8..4092]);
        put(8188, &(sequence as u32).to_le_bytes());
        let crc = crc32c::crc32c(&entry);
        entry[4..8].copy_from_slice(&crc.to_le_bytes());
        // The log is a ring.
        for (index, sector) in entry.chunks(4096).enumerate() {
            self.put(LOG + (at + index as u64 * 4096) % MIB, sector);
        }
    }

    /// A block more at the end of the file, and an entry for `block` in the log only, behind what the log's page holds.
    pub fn log_block(&self, at: u64, sequence: u64, tail: u64, page: &mut [u8], block: usize) {
        let place = self.len();
        self.set_len(place + MIB);
        page[block * 8..block * 8 + 8].copy_from_slice(&(place | 6).to_le_bytes());
        self.write_log(at, sequence, tail, TABLE, page);
    }

    /// Changes a log entry, its checksum set right.
    pub fn edit_log(&self, entry: u64, at: u64, bytes: &[u8]) {
        self.put(entry + at, bytes);
        self.seal(entry, self.u32(entry + 8) as usize);
    }
}
