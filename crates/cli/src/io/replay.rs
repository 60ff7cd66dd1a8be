//! `blkproof io --replay TRACE`: the requests of a trace, sent again.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::rc::Rc;

use anyhow::{Context as _, bail};
use blkproof_block::BlockDevice as _;
use blkproof_fault::clock::{Clock, SharedClock};
use blkproof_fault::trace::{Difference, Plan, PlanReader, Speed, Summary, replay};
use serde_json::json;

use super::console::Console;
use super::reply::Reply;
use super::session::Disk;
use crate::clock::MachineClock;
use crate::messages::human_size;

/// Differences told one by one.
const TOLD: u64 = 20;

/// Longest line read; one with the data of the longest request that NBD knows is a sixth of it.
const LINE_MAX: u64 = 256 << 20;

/// What `--replay` and the options beside it say.
#[derive(Clone, Debug)]
pub(super) struct Replay {
    /// The trace.
    pub(super) file: String,
    /// When requests are sent.
    pub(super) speed: Speed,
}

/// Sends everything to `disk`; whether all of it ended as recorded.
pub(super) async fn run(asked: &Replay, disk: &Disk, console: &Rc<Console>) -> bool {
    let mut reply = Reply::new(console, &["replay".to_owned(), asked.file.clone()]);
    let plan = match read(&asked.file) {
        Ok(plan) => plan,
        Err(error) => {
            reply.complain(&format!("{}: {error:#}", asked.file));
            reply.finish(false);
            return false;
        }
    };
    let size = disk.node().info().size;
    if size != plan.head.size {
        let then = plan.head.size;
        reply.complain(&format!("the trace was made on a disk of {then} bytes, this one has {size}"));
    }
    if plan.dropped > 0 {
        let dropped = plan.dropped;
        reply.complain(&format!("{dropped} requests are missing in the trace; what they did is not done again"));
    }
    if plan.pauses > 0 {
        reply.complain("the trace was not written all the time; what came while it was not is not done again");
    }
    let clock: SharedClock = Rc::new(MachineClock::new()) as Rc<dyn Clock>;
    let mut told = 0;
    let summary = replay(&plan, disk.node(), &clock, asked.speed, |difference| {
        told += 1;
        if told <= TOLD {
            tell(&difference, &mut reply);
        }
    })
    .await;
    if told > TOLD {
        reply.out(&format!("and {} more", told - TOLD));
    }
    conclude(&plan, &summary, &mut reply);
    reply.finish(summary.differences == 0);
    summary.differences == 0
}

fn read(name: &str) -> anyhow::Result<Plan> {
    let mut file = BufReader::new(File::open(name).context("could not be opened")?);
    let mut reader = PlanReader::default();
    let mut line = String::new();
    loop {
        line.clear();
        let bytes = file.by_ref().take(LINE_MAX).read_line(&mut line).context("could not be read")?;
        if bytes == 0 {
            return Ok(reader.finish()?);
        }
        if !line.ends_with('\n') && bytes as u64 == LINE_MAX {
            bail!("has a line longer than {LINE_MAX} bytes");
        }
        reader.line(&line)?;
    }
}

fn tell(difference: &Difference, reply: &mut Reply) {
    reply.out(&difference.to_string());
}

fn conclude(plan: &Plan, summary: &Summary, reply: &mut Reply) {
    let Summary { requests, failed, bytes_read, bytes_written, in_flight_max, elapsed, differences, .. } = summary;
    let Summary { compared, open, cancelled, held_back, .. } = summary;
    if reply.is_json() {
        reply.set("node", plan.head.node.clone());
        reply.set("requests", *requests);
        reply.set("failed", *failed);
        reply.set("bytes_read", *bytes_read);
        reply.set("bytes_written", *bytes_written);
        reply.set("in_flight_max", *in_flight_max as u64);
        reply.set("held_back", *held_back);
        reply.set("seconds", json!(elapsed.as_secs_f64()));
        reply.set("differences", *differences);
        reply.set("reads_compared", plan.has_data().then_some(*compared));
        reply.set("reads_open", *open);
        reply.set("cancelled", *cancelled);
        return;
    }
    reply.out(&format!(
        "replayed {requests} requests of {}: {} read, {} written, {failed} failed, at most {in_flight_max} in flight, \
         {:.3} s",
        plan.head.node,
        human_size(*bytes_read),
        human_size(*bytes_written),
        elapsed.as_secs_f64()
    ));
    if plan.has_data() {
        reply.out(&format!("compared the data of {compared} reads"));
    } else {
        reply.out("data of reads not compared: the trace does not hold all that was read and written (data=on, without a pause)");
    }
    if *held_back > 0 {
        reply.out(&format!("{held_back} requests waited for memory, and overlap less than they did"));
    }
    if *open > 0 {
        reply.out(&format!("{open} reads brought other data, and may: a write of the same bytes was under way"));
    }
    if *cancelled > 0 {
        reply.out(&format!("{cancelled} requests had been given up; how they ended is not compared"));
    }
    reply.out(&match differences {
        0 => "no difference".to_owned(),
        1 => "1 request ended in another way".to_owned(),
        more => format!("{more} requests ended in another way"),
    });
}
