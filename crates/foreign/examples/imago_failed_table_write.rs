//! One write to the file fails; what is written afterwards is said to be safe: `imago_failed_table_write IMAGE` leaves the
//! file in IMAGE.
//!
//! Only the crate's own API, over storage in memory. See `docs/findings/imago-failed-table-write.md`.
#![allow(clippy::print_stdout, reason = "a program")]

#[path = "support/mod.rs"]
mod support;

use std::error::Error;
use std::fmt::{self, Display, Formatter};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use imago::io_buffers::{IoVector, IoVectorMut};
use imago::qcow2::Qcow2;
use imago::storage::PreallocateMode;
use imago::storage::drivers::CommonStorageHelper;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatCreateBuilder as _, FormatDriverBuilder as _, Storage};
use support::wait;

#[derive(Debug, Default)]
struct State {
    bytes: Vec<u8>,
    /// Fails the write to this place, once.
    fails: Option<u64>,
}

#[derive(Debug, Default)]
struct Memory {
    state: Arc<Mutex<State>>,
    helper: CommonStorageHelper,
}

impl Memory {
    fn over(state: &Arc<Mutex<State>>) -> Self {
        Self { state: Arc::clone(state), helper: CommonStorageHelper::default() }
    }

    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Display for Memory {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("memory")
    }
}

#[allow(
    unsafe_code,
    clippy::indexing_slicing,
    reason = "the trait's functions are declared so; nothing here is unsafe"
)]
impl Storage for Memory {
    fn size(&self) -> io::Result<u64> {
        Ok(self.with(|state| state.bytes.len()) as u64)
    }

    async unsafe fn pure_readv(&self, mut bufv: IoVectorMut<'_>, offset: u64) -> io::Result<()> {
        let (at, len) = (usize::try_from(offset).unwrap_or(usize::MAX), usize::try_from(bufv.len()).unwrap_or(0));
        let mut data = self.with(|state| state.bytes.get(at..).unwrap_or_default().to_vec());
        data.resize(len, 0);
        bufv.copy_from_slice(&data);
        Ok(())
    }

    async unsafe fn pure_writev(&self, bufv: IoVector<'_>, offset: u64) -> io::Result<()> {
        let mut data = vec![0; usize::try_from(bufv.len()).unwrap_or(0)];
        bufv.copy_into_slice(&mut data);
        self.with(|state| {
            if state.fails == Some(offset) {
                state.fails = None;
                return Err(io::Error::from_raw_os_error(5));
            }
            let at = usize::try_from(offset).unwrap_or(usize::MAX);
            let end = at + data.len();
            let len = state.bytes.len().max(end);
            state.bytes.resize(len, 0);
            state.bytes[at..end].copy_from_slice(&data);
            Ok(())
        })
    }

    async fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    async fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    async unsafe fn invalidate_cache(&self) -> io::Result<()> {
        Ok(())
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        &self.helper
    }

    async fn resize(&self, size: u64, _mode: PreallocateMode) -> io::Result<()> {
        self.with(|state| state.bytes.resize(usize::try_from(size).unwrap_or(0), 0));
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("which image shall be made?")?;
    let state = Arc::new(Mutex::new(State::default()));
    wait(Qcow2::<Memory>::create_builder(Memory::over(&state)).size(1 << 20).create())?;
    // Bytes 40..48 of the header say where the L1 table is (qcow2 spec, section "Header").
    let memory = Memory::over(&state);
    let table =
        memory.with(|state| state.bytes.get(40..48).and_then(|bytes| bytes.try_into().ok()).map(u64::from_be_bytes));
    let table = table.ok_or("the image is short")?;

    let builder = Qcow2::<Memory>::builder(Memory::over(&state)).backing(None).write(true);
    let image = FormatAccess::new(wait(builder.open(DenyImplicitOpenGate::default()))?);
    memory.with(|state| state.fails = Some(table));
    println!("first write: {:?}", wait(image.write(&[0xaa; 512][..], 0)));
    println!("second write: {:?}", wait(image.write(&[0xbb; 512][..], 0)));
    println!("flush: {:?}, sync: {:?}", wait(image.flush()), wait(image.sync()));
    let mut sector = [0; 512];
    wait(image.read(&mut sector[..], 0))?;
    println!("read: {:#x}", sector.first().copied().unwrap_or(0));
    memory.with(|state| std::fs::write(&path, &state.bytes))?;
    Ok(())
}
