//! fio's `nbd` engine as the client.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;

use super::Load;
use crate::shell;

pub(super) fn run(socket: &Path, load: Load, time: Duration) -> anyhow::Result<f64> {
    let output = shell::output(
        "fio",
        &[
            "--name=bench".to_owned(),
            "--ioengine=nbd".to_owned(),
            format!("--uri=nbd+unix:///?socket={}", socket.display()),
            format!("--rw={}", if load.random { "randread" } else { "read" }),
            format!("--bs={}", load.block),
            format!("--iodepth={}", load.depth),
            format!("--runtime={}ms", time.as_millis()),
            "--time_based".to_owned(),
            "--randrepeat=1".to_owned(),
            "--output-format=json".to_owned(),
        ],
    )?;
    // fio prints notes of its client library before the object.
    let json = output.find('{').and_then(|at| output.get(at..)).context("fio printed no JSON")?;
    let json: serde_json::Value = serde_json::from_str(json).context("reading fio's JSON")?;
    json.pointer("/jobs/0/read/iops").and_then(serde_json::Value::as_f64).context("fio reported no rate")
}
