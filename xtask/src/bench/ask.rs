//! What a program that decides each write to one range costs the rest of the disk.
//!
//! Both contenders read at random behind the first MiB. In front of the second one a rule asks about every write to the first
//! MiB, one client writes there, and another answers over the control socket.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, ensure};

use super::report::Table;
use super::servers::{Served, Server};
use super::{Bench, Load, client, warm};

/// The range that is asked about.
const RANGE: u64 = 1 << 20;

/// Decisions a second that the writer asks for, so that what is measured is the other range and not a shared processor.
const PACE: Duration = Duration::from_millis(5);

pub(super) fn run(bench: &Bench<'_>) -> anyhow::Result<Table> {
    let title = "4 KiB random reads beside a range whose writes a program decides, light client";
    let raw = bench.raw_image()?;
    let contenders = [Server::Blkproof(Served::Controlled { raw: raw.clone() }), Server::Blkproof(Served::Raw(raw))];
    let shown =
        contenders.iter().map(|server| (server.name(), bench.shown(&server.command(Path::new("SOCKET")).join(" "))));
    let mut table = Table::new(title, "requests/s", shown);
    contenders.iter().flat_map(Server::images).try_for_each(warm)?;
    let load = Load { from: RANGE, ..Load::RANDOM };
    for round in 0..bench.args.rounds {
        for (place, server) in contenders.iter().enumerate() {
            let running = server.start(bench.dir)?;
            let program = (place == 0).then(|| Program::start(running.socket())).transpose()?;
            client::run(running.socket(), load, Duration::from_millis(300))?;
            let figure = client::run(running.socket(), load, Duration::from_secs(bench.args.seconds))?;
            eprintln!("{title}: round {}, {}: {figure:.0} requests/s", round + 1, server.name());
            if let Some(program) = program {
                let decided = program.stop()?;
                ensure!(decided > 0, "no write was decided");
                eprintln!("  {decided} writes were decided meanwhile");
            }
            table.record(place, figure);
        }
    }
    Ok(table)
}

/// Whoever writes to the range, and whoever decides.
struct Program {
    stop: Arc<AtomicBool>,
    writer: JoinHandle<anyhow::Result<()>>,
    decided: Arc<AtomicU64>,
}

impl Program {
    fn start(socket: &Path) -> anyhow::Result<Self> {
        let control = socket.with_extension("control");
        let mut stream =
            UnixStream::connect(&control).with_context(|| format!("connecting to {}", control.display()))?;
        let mut lines = BufReader::new(stream.try_clone()?);
        let rule =
            r#"{"id": "asked", "on": {"op": "write", "bytes": "0..1M"}, "do": {"action": "ask", "timeout": "10s"}}"#;
        for command in [
            r#"{"execute": "qmp_capabilities"}"#.to_owned(),
            format!(r#"{{"execute": "fault-add", "arguments": {{"rule": {rule}}}}}"#),
            r#"{"execute": "fault-register", "arguments": {"rule": "asked"}}"#.to_owned(),
        ] {
            writeln!(stream, "{command}")?;
            let mut reply = String::new();
            while !reply.contains("\"return\"") {
                reply.clear();
                ensure!(lines.read_line(&mut reply)? > 0, "the control socket was closed");
                ensure!(!reply.contains("\"error\""), "{command}: {reply}");
            }
        }
        let decided = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&decided);
        // Ends with its connection.
        std::thread::spawn(move || -> anyhow::Result<()> {
            let mut line = String::new();
            while lines.read_line(&mut line)? > 0 {
                if line.contains("FAULT_ASK\"") {
                    let event: serde_json::Value = serde_json::from_str(&line)?;
                    let ask = &event["data"]["ask"];
                    writeln!(
                        stream,
                        r#"{{"execute": "fault-answer", "arguments": {{"ask": {ask}, "answer": "proceed"}}}}"#
                    )?;
                    count.fetch_add(1, Ordering::Relaxed);
                }
                line.clear();
            }
            Ok(())
        });
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let mut stream = UnixStream::connect(socket)?;
        client::handshake(&mut stream)?;
        let writer = std::thread::spawn(move || {
            let mut out = Vec::new();
            client::header(&mut out, 1, 4096, 4096);
            out.extend([0x5a; 4096]);
            while !told.load(Ordering::Relaxed) {
                stream.write_all(&out)?;
                let mut reply = [0; 16];
                stream.read_exact(&mut reply)?;
                ensure!(reply[4..8] == [0; 4], "a decided write failed");
                std::thread::sleep(PACE);
            }
            Ok(())
        });
        Ok(Self { stop, writer, decided })
    }

    /// How many writes were decided.
    fn stop(self) -> anyhow::Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
        Ok(self.decided.load(Ordering::Relaxed))
    }
}
