//! A graph without a write cache (`-t writethrough`, `-t directsync`): every write is durable when it completes.
//!
//! It stands at the top, since only the top node knows what a write needs to be found again: FUA on a file below a
//! format would leave the format's tables in memory.

use std::rc::Rc;

use crate::device::{BlockDevice, Preallocation, WriteFlags, ZeroFlags};
use crate::{BlockStatus, Breakpoints, Capabilities, DeviceInfo, Event, Node, Result};

/// Makes every write act as if it carried FUA. Discards stay advice; a resize is flushed.
#[derive(Debug)]
pub(super) struct WriteThrough(pub(super) Node);

impl WriteThrough {
    fn native(&self) -> bool {
        self.0.info().capabilities.contains(Capabilities::FUA)
    }
}

impl BlockDevice for WriteThrough {
    fn info(&self) -> DeviceInfo {
        let info = self.0.info();
        DeviceInfo { capabilities: info.capabilities | Capabilities::FUA, ..info }
    }

    async fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        self.0.read(at, buf).await
    }

    fn read_now(&self, at: u64, buf: &mut [u8]) -> bool {
        self.0.read_now(at, buf)
    }

    async fn write(&self, at: u64, data: &[u8], flags: WriteFlags) -> Result<()> {
        if self.native() {
            return self.0.write(at, data, flags | WriteFlags::FUA).await;
        }
        self.0.write(at, data, flags.difference(WriteFlags::FUA)).await?;
        self.0.flush().await
    }

    async fn read_vm_state(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        self.0.read_vm_state(at, buf).await
    }

    async fn write_vm_state(&self, at: u64, data: &[u8]) -> Result<()> {
        self.0.write_vm_state(at, data).await?;
        self.0.flush().await
    }

    async fn write_zeroes(&self, at: u64, len: u64, flags: ZeroFlags) -> Result<()> {
        if self.native() {
            return self.0.write_zeroes(at, len, flags | ZeroFlags::FUA).await;
        }
        self.0.write_zeroes(at, len, flags.difference(ZeroFlags::FUA)).await?;
        self.0.flush().await
    }

    async fn discard(&self, at: u64, len: u64) -> Result<()> {
        self.0.discard(at, len).await
    }

    async fn flush(&self) -> Result<()> {
        self.0.flush().await
    }

    async fn block_status(&self, at: u64, len: u64) -> Result<BlockStatus> {
        self.0.block_status(at, len).await
    }

    async fn resize(&self, size: u64, preallocation: Preallocation) -> Result<()> {
        self.0.resize(size, preallocation).await?;
        self.0.flush().await
    }

    async fn drain(&self) -> Result<()> {
        self.0.drain().await
    }

    async fn close(&self) -> Result<()> {
        self.0.close().await
    }

    fn listens(&self, event: Event) -> bool {
        self.0.listens(event)
    }

    async fn event(&self, event: Event) {
        self.0.event(event).await;
    }

    fn breakpoints(&self) -> Option<Rc<dyn Breakpoints>> {
        self.0.breakpoints()
    }

    fn format_details(&self) -> Vec<(&'static str, String)> {
        self.0.format_details()
    }

    fn for_client(&self, client: &str) -> Option<Node> {
        Some(Node::new(Self(self.0.for_client(client)?)))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use futures_lite::future::block_on;

    use super::*;

    struct Log(Capabilities, Rc<RefCell<String>>);

    impl Log {
        fn note(&self, word: &str, fua: bool) -> Result<()> {
            let mut log = self.1.borrow_mut();
            log.push_str(word);
            if fua {
                log.push('!');
            }
            Ok(())
        }
    }

    impl BlockDevice for Log {
        fn info(&self) -> DeviceInfo {
            DeviceInfo { capabilities: self.0, ..DeviceInfo::new("log", 4096) }
        }

        async fn read(&self, _: u64, _: &mut [u8]) -> Result<()> {
            self.note("r", false)
        }

        async fn write(&self, _: u64, _: &[u8], flags: WriteFlags) -> Result<()> {
            self.note("w", flags.contains(WriteFlags::FUA))
        }

        async fn write_vm_state(&self, _: u64, _: &[u8]) -> Result<()> {
            self.note("v", false)
        }

        async fn write_zeroes(&self, _: u64, _: u64, flags: ZeroFlags) -> Result<()> {
            self.note("z", flags.contains(ZeroFlags::FUA))
        }

        async fn discard(&self, _: u64, _: u64) -> Result<()> {
            self.note("d", false)
        }

        async fn flush(&self) -> Result<()> {
            self.note("f", false)
        }

        async fn block_status(&self, _: u64, len: u64) -> Result<BlockStatus> {
            Ok(BlockStatus::data(len, None))
        }

        async fn resize(&self, _: u64, _: Preallocation) -> Result<()> {
            self.note("s", false)
        }

        async fn drain(&self) -> Result<()> {
            Ok(())
        }
    }

    #[test]
    fn every_change_is_durable_when_it_completes() {
        for (capabilities, want) in [(Capabilities::FUA, "rw!w!vfz!dsf"), (Capabilities::empty(), "rwfwfvfzfdsf")] {
            let log = Rc::new(RefCell::new(String::new()));
            let device = WriteThrough(Node::new(Log(capabilities, log.clone())));
            block_on(async {
                device.read(0, &mut [0]).await?;
                device.write(0, &[1], WriteFlags::empty()).await?;
                device.write(0, &[1], WriteFlags::FUA).await?;
                device.write_vm_state(0, &[1]).await?;
                device.write_zeroes(0, 1, ZeroFlags::empty()).await?;
                device.discard(0, 1).await?;
                device.resize(1, Preallocation::Off).await
            })
            .unwrap();
            assert_eq!(*log.borrow(), want);
        }
    }
}
