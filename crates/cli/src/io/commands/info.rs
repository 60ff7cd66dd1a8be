//! `info`.

use serde_json::{Map, Value, json};

use super::{Command, Outcome, disk};
use crate::io::reply::Reply;
use crate::io::report::size;
use crate::io::session::Disk;
use crate::io::shell::Shell;

pub(super) const INFO: Command = Command {
    name: "info",
    alias: Some("i"),
    words_min: 0,
    words_max: Some(0),
    args: None,
    summary: "prints information about the current file",
    help: "",
    needs_file: true,
    writes: false,
    run: |shell, _, reply| Box::pin(std::future::ready(info(shell, reply))),
};

fn info(shell: &mut Shell, reply: &mut Reply) -> Outcome {
    let Some(disk) = disk(shell) else { return Outcome::Failed };
    let info = disk.info();
    let details = disk.format_details();
    reply.set("format", info.driver);
    reply.set("size", disk.size());
    reply.set("cluster_size", info.cluster_size);
    reply.set("read_only", disk.is_read_only());
    let named: Map<String, Value> = details.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
    reply.set("details", Value::Object(named));
    if reply.is_json() {
        return Outcome::Done;
    }
    reply.out(&format!("format name: {}", info.driver));
    if disk.is_protocol() {
        // A driver that is a protocol too has two names in QEMU, and they are the same.
        reply.out(&format!("format name: {}", info.driver));
    }
    if reply.as_qemu_io() && info.driver == "null-co" {
        return Outcome::Failed; // QEMU's driver has no more to say, and qemu-io takes that for a failure
    }
    reply.out(&format!("cluster size: {}", size(u64::from(info.cluster_size))));
    reply.out(&format!("vm state offset: {}", size(vm_state_offset(&disk, &details))));
    if !details.is_empty() {
        reply.out("Format specific information:");
        for (name, value) in details {
            reply.out(&format!("    {name}: {value}"));
        }
    }
    Outcome::Done
}

/// A qcow2 image keeps the VM state behind the last byte that its guest's L1 entries cover; other formats have none.
///
/// One L2 table is a cluster of 8-byte entries, or of 16-byte entries with subclusters (qcow2 spec, section "L2 table
/// entry").
fn vm_state_offset(disk: &Disk, details: &[(&'static str, String)]) -> u64 {
    let info = disk.info();
    if info.driver != "qcow2" {
        return 0;
    }
    let extended = details.iter().any(|(name, value)| *name == "extended l2" && value == "true");
    let cluster = u64::from(info.cluster_size.max(1));
    let entries = cluster / if extended { 16 } else { 8 };
    let covered = cluster.saturating_mul(entries).max(1);
    disk.size().checked_next_multiple_of(covered).unwrap_or(u64::MAX)
}
