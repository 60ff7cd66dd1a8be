//! Other people's clients at our server, and our client at other people's servers.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::process::Stdio;

use blkproof_block::{BlockDevice, Node, WriteFlags, ZeroFlags};
use blkproof_nbd::client::Client;
use blkproof_nbd::handshake::Mode;
use blkproof_nbd::handshake::client::Wanted;
use blkproof_nbd::server::{Ended, Export, Limits, Server};
use common::{MIB, Served, exports, memory, patterned, run, succeeds, text};
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::task::spawn_local;

#[test]
fn nbdinfo_sees_every_export() {
    run(async {
        let list = exports([
            Export::new("", memory(&[1; 4096])).description("the default"),
            Export::new("disk b", memory(&patterned(MIB))).description("Größe: 1 MiB").read_only(),
            Export::new("c", memory(&[3; 8192])).minimum_block(512).unwrap(),
        ]);
        let served = Served::start(Server::new(list, Limits::default()));
        let json = succeeds("nbdinfo", &["--json", "--list", &served.uri()]).await;
        let json: Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["structured"], true);
        let list = json["exports"].as_array().unwrap();
        assert_eq!(list.len(), 3);
        for (export, (name, description, size, read_only, minimum)) in list.iter().zip([
            ("", "the default", 4096, false, 1),
            ("disk b", "Größe: 1 MiB", MIB, true, 1),
            ("c", "", 8192, false, 512),
        ]) {
            assert_eq!(export["export-name"], name);
            assert_eq!(export["description"].as_str().unwrap_or_default(), description, "{name}");
            assert_eq!(export["export-size"], size, "{name}");
            assert_eq!(export["is_read_only"], read_only, "{name}");
            assert_eq!(export["can_zero"], !read_only, "{name}");
            assert_eq!(export["can_fast_zero"], !read_only, "{name}");
            assert_eq!(export["can_trim"], !read_only, "{name}");
            assert_eq!(export["can_flush"], true, "{name}");
            assert_eq!(export["can_df"], true, "{name}");
            assert_eq!(export["block_size_minimum"], minimum, "{name}");
            assert_eq!(export["contexts"][0], "base:allocation", "{name}");
        }
    });
}

#[test]
fn nbdinfo_maps_what_is_written() {
    run(async {
        let node = memory(&vec![0; 4 * 1024 * 1024]);
        node.discard(0, 4 * MIB).await.unwrap();
        node.write(MIB, &vec![5; 128 << 10], WriteFlags::empty()).await.unwrap();
        let served = Served::node(node);
        let json = succeeds("nbdinfo", &["--map", "--json", &served.uri()]).await;
        let json: Value = serde_json::from_str(&json).unwrap();
        let extents: Vec<_> = json
            .as_array()
            .unwrap()
            .iter()
            .map(|extent| ["offset", "length", "type"].map(|key| extent[key].as_u64().unwrap()))
            .collect();
        assert_eq!(extents, [[0, MIB, 3], [MIB, 128 << 10, 0], [MIB + (128 << 10), 3 * MIB - (128 << 10), 3]]);
    });
}

#[test]
fn nbdcopy_goes_both_ways() {
    run(async {
        let mut bytes = patterned(8 * MIB);
        bytes[2 << 20..5 << 20].fill(0);
        let source = Served::node(memory(&bytes));
        let target = Served::node(memory(&vec![0xdd; bytes.len()]));
        let file = source.file("copy.raw");
        succeeds("nbdcopy", &[&source.uri(), text(&file)]).await;
        assert!(std::fs::read(&file).unwrap() == bytes, "from us to a file");
        succeeds("nbdcopy", &["--requests=64", text(&file), &target.uri()]).await;
        succeeds("qemu-img", &["compare", "-f", "raw", "-F", "raw", text(&file), &target.uri()]).await;
        let last = target.last().await;
        assert_eq!((last.mode, last.ended, last.errors), (Mode::Extended, Ended::Disconnect, 0), "qemu-img");
        succeeds("nbdcopy", &[&source.uri(), &target.uri()]).await;
    });
}

#[test]
fn qemu_reads_and_writes_over_extended_headers() {
    run(async {
        let node = memory(&vec![0; 64 << 20]);
        let served = Served::node(node.clone());
        let out = succeeds(
            "qemu-io",
            &[
                "-f",
                "raw",
                "-c",
                "write -P 5 4096 65536",
                "-c",
                "read -P 5 4096 65536",
                "-c",
                "write -f -P 7 100 3",
                "-c",
                "read -P 7 100 3",
                "-c",
                "write -z -u 8192 4096",
                "-c",
                "read -P 0 8192 4096",
                "-c",
                "write -z 12288 4096",
                "-c",
                "read -P 0 12288 4096",
                "-c",
                "discard 1M 1M",
                "-c",
                "aio_write -P 9 2M 32M",
                "-c",
                "aio_write -P 8 40M 1M",
                "-c",
                "aio_flush",
                "-c",
                "read -P 9 2M 32M",
                "-c",
                "read -P 8 40M 1M",
                "-c",
                "flush",
                &served.uri(),
            ],
        )
        .await;
        assert!(!out.contains("failed"), "{out}");
        let last = served.last().await;
        assert_eq!((last.mode, last.ended, last.errors), (Mode::Extended, Ended::Disconnect, 0), "{last:?}");
        let mut byte = [0];
        node.read(34 * MIB - 1, &mut byte).await.unwrap();
        assert_eq!(byte, [9]);
    });
}

#[test]
fn qemu_img_converts_maps_and_compares() {
    run(async {
        let mut bytes = patterned(4 * MIB);
        bytes[1 << 20..3 << 20].fill(0);
        let node = memory(&bytes);
        node.discard(MIB, 2 * MIB).await.unwrap();
        let served = Served::node(node);
        let copy = served.file("copy.qcow2");
        succeeds("qemu-img", &["convert", "-O", "qcow2", "-f", "raw", &served.uri(), text(&copy)]).await;
        succeeds("qemu-img", &["compare", "-F", "raw", text(&copy), &served.uri()]).await;
        let map = succeeds("qemu-img", &["map", "--output=json", "-f", "raw", &served.uri()]).await;
        let map: Value = serde_json::from_str(&map).unwrap();
        let extents: Vec<_> = map
            .as_array()
            .unwrap()
            .iter()
            .map(|extent| (extent["start"].as_u64().unwrap(), extent["length"].as_u64().unwrap(), &extent["zero"]))
            .collect();
        let (yes, no) = (&Value::Bool(true), &Value::Bool(false));
        assert_eq!(extents, [(0, MIB, no), (MIB, 2 * MIB, yes), (3 * MIB, MIB, no)]);
        let target = Served::node(memory(&vec![0xdd; bytes.len()]));
        succeeds("qemu-img", &["convert", "-n", "-O", "raw", text(&copy), &target.uri()]).await;
        succeeds("qemu-img", &["compare", "-f", "raw", "-F", "raw", &target.uri(), &served.uri()]).await;
    });
}

#[test]
fn fio_verifies_what_it_wrote() {
    run(async {
        let served = Served::node(memory(&vec![0; 16 << 20]));
        let uri = format!("--uri={}", served.uri());
        let arguments =
            ["--name=t", "--ioengine=nbd", &uri, "--rw=randrw", "--bssplit=512/20:4k/60:64k/20", "--size=16m"];
        let verify = ["--io_size=8m", "--iodepth=32", "--verify=crc32c", "--randseed=7", "--verify_fatal=1"];
        succeeds("fio", &[&arguments[..], &verify[..]].concat()).await;
        served.settle().await;
        assert!(served.ends.borrow().iter().all(|end| end.as_ref().is_ok_and(|summary| summary.errors == 0)));
    });
}

/// Exercises a server with our client; the content of the export is `bytes`, and is changed.
async fn exercise(client: &Client, bytes: &[u8], who: &str) {
    let size = bytes.len() as u64;
    assert_eq!(client.info().size, size, "{who}");
    let mut buf = vec![0; bytes.len()];
    for (chunk, at) in buf.chunks_mut(300_001).zip((0..).step_by(300_001)) {
        client.read(at, chunk).await.unwrap();
    }
    assert!(buf == bytes, "{who}: what is read");
    client.write(5000, &[7; 70_000], WriteFlags::FUA).await.unwrap();
    client.write_zeroes(6000, 10_000, ZeroFlags::MAY_UNMAP).await.unwrap();
    client.discard(0, 4096).await.unwrap();
    client.flush().await.unwrap();
    let mut buf = vec![1; 11_000];
    client.read(5000, &mut buf).await.unwrap();
    assert!(buf[..1000].iter().all(|&byte| byte == 7) && buf[1000..].iter().all(|&byte| byte == 0), "{who}: written");
    let status = client.block_status(0, size).await.unwrap();
    assert!(status.len >= 1, "{who}");
    assert!(client.read(size - 10, &mut buf).await.is_err(), "{who}: past the end");
    client.drain().await.unwrap();
    client.close().await.unwrap();
}

#[test]
fn our_client_at_qemu_nbd_and_nbdkit() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        let bytes = patterned(3 * MIB);
        for (who, mode) in [("qemu-nbd", Mode::Extended), ("nbdkit", Mode::Structured), ("nbdkit-simple", Mode::Simple)]
        {
            let image = directory.path().join(format!("{who}.raw"));
            let socket = directory.path().join(format!("{who}.sock"));
            std::fs::write(&image, &bytes).unwrap();
            let mut command = match who {
                "qemu-nbd" => {
                    let mut command = tokio::process::Command::new("qemu-nbd");
                    command.args(["-f", "raw", "--discard=unmap", "-e", "4", "-k", text(&socket), text(&image)]);
                    command
                }
                _ => {
                    let mut command = tokio::process::Command::new("nbdkit");
                    command.args(["-f", "-U", text(&socket)]);
                    command.args(if who == "nbdkit" { &[][..] } else { &["--no-sr"][..] });
                    command.args(["file", text(&image)]);
                    command
                }
            };
            let mut server = command.kill_on_drop(true).stderr(Stdio::null()).spawn().unwrap();
            let stream = loop {
                assert!(server.try_wait().unwrap().is_none(), "{who} ended");
                match UnixStream::connect(&socket).await {
                    Ok(stream) => break stream,
                    Err(_) => tokio::task::yield_now().await,
                }
            };
            let (client, connection) = Client::connect(stream, Wanted::new("")).await.unwrap();
            spawn_local(connection);
            assert_eq!(client.agreed().mode, mode, "{who}");
            exercise(&client, &bytes, who).await;
            drop(client);
            server.kill().await.unwrap();
        }
    });
}

#[test]
fn our_client_at_our_server_over_a_socket() {
    run(async {
        let bytes = patterned(3 * MIB);
        let served = Served::node(memory(&bytes));
        let stream = UnixStream::connect(served.socket()).await.unwrap();
        let (client, connection) = Client::connect(stream, Wanted::new("")).await.unwrap();
        spawn_local(connection);
        exercise(&client, &bytes, "blkproof").await;
        // And through a second hop: our server in front of our client.
        let stream = UnixStream::connect(served.socket()).await.unwrap();
        let (client, connection) = Client::connect(stream, Wanted::new("")).await.unwrap();
        spawn_local(connection);
        let relay = Served::node(Node::new(client));
        succeeds("qemu-img", &["compare", "-f", "raw", "-F", "raw", &relay.uri(), &served.uri()]).await;
    });
}
