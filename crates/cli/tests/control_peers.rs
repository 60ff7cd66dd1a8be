//! Other people's QMP clients on our control socket: socat, qemu.qmp, qmp-shell.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::path::{Path, PathBuf};

use common::{Outcome, Served, shell};
use tempfile::tempdir;

fn serve(dir: &Path) -> Served {
    std::fs::File::create(dir.join("disk.raw")).unwrap().set_len(1 << 20).unwrap();
    let graph = "driver=fault,node-name=f,file.driver=raw,file.file.driver=file,file.file.filename=disk.raw";
    Served::start(dir, 1, &["--control", "c.sock", "--image-opts", graph])
}

/// The Python that has qemu.qmp.
fn python() -> PathBuf {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/peers-python/bin/python");
    assert!(python.exists(), "{} is missing; run scripts/install-peers", python.display());
    python
}

#[test]
fn socat() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    let _served = serve(dir);
    std::fs::write(
        dir.join("script"),
        "{'execute': 'query-nodes'}\n\
         {'execute': 'qmp_capabilities'}\n\
         { \"execute\": \"query-nodes\", \"id\": \"\\u00e9\" }\n\
         nonsense\n\
         {'execute': 'fault-add', 'arguments': {'rule': {'id': 'r', 'on': {'op': 'read'}, 'do': 'pass'}}}\n\
         {'execute': 'fault-add', 'arguments': {'rule': {'id': 'r', 'on': {'op': 'read'}, 'do': 'pass'}}}\n\
         {'execute': 'fault-adds'}\n\
         {'execute': 'fault-\x01{'execute': 'fault-remove', 'arguments': {'rule': 'r'}, 'id': [1, {}]}\n",
    )
    .unwrap();
    let said = shell(dir, "socat -t 10 - UNIX-CONNECT:c.sock < script").exited(0).stdout;
    let greeting = concat!(
        "{\"QMP\":{\"version\":{\"qemu\":{\"micro\":0,\"minor\":1,\"major\":0},\"package\":\"blkproof ",
        env!("CARGO_PKG_VERSION"),
        "\"},\"capabilities\":[\"oob\"]}}"
    );
    let want = [
        greeting,
        r#"{"error":{"class":"CommandNotFound","desc":"Expecting capabilities negotiation with 'qmp_capabilities'"}}"#,
        r#"{"return":{}}"#,
        r#"{"return":[{"node":"f","driver":"fault","rules":0,"state":"1","stopped":false}],"id":"\u00e9"}"#,
        r#"{"error":{"class":"GenericError","desc":"JSON parse error, a message is an object, and begins with '{' (byte 1 of the message)"}}"#,
        r#"{"return":{"rules":["r"]}}"#,
        r#"{"error":{"class":"GenericError","desc":"there is a rule 'r' already; remove it first, or give this one another id"}}"#,
        r#"{"error":{"class":"CommandNotFound","desc":"The command fault-adds has not been found; did you mean 'fault-add'?"}}"#,
        r#"{"error":{"class":"GenericError","desc":"JSON parse error, stray '\\x01' (byte 20 of the message)"}}"#,
        r#"{"return":{},"id":[1,{}]}"#,
    ];
    let lines: Vec<&str> = said.split("\r\n").filter(|line| !line.is_empty()).collect();
    assert_eq!(lines, want, "{said}");
}

#[test]
fn qemu_qmp() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    let served = serve(dir);
    std::fs::write(
        dir.join("client.py"),
        r#"
import asyncio, subprocess, sys
from qemu.qmp import QMPClient, EventListener
from qemu.qmp.qmp_client import ExecuteError

async def main(uri):
    qmp = QMPClient("test")
    await qmp.connect("c.sock")
    commands = await qmp.execute("query-commands")
    assert {"name": "fault-add"} in commands, commands
    rule = {"id": "bad", "on": {"op": "read", "lba": 50}, "do": {"fail": "03/1101"}}
    assert await qmp.execute("fault-add", {"rule": rule}) == {"rules": ["bad"]}
    try:
        await qmp.execute("fault-remove", {"rule": "bat"})
        raise AssertionError("a rule that is not there was removed")
    except ExecuteError as error:
        assert error.error_class == "GenericError" and "did you mean 'bad'?" in str(error), error
    with qmp.listener("FAULT_FIRED") as fired, qmp.listener("FAULT_ASK") as asked:
        read = await asyncio.create_subprocess_exec("qemu-io", "-f", "raw", "-c", "read 25600 512", uri)
        event = await fired.get()
        assert event["data"]["rule"] == "bad" and event["data"]["error"]["first-bad"] == 25600, event
        assert await read.wait() == 1
        assert await qmp.execute("fault-wait", {"rule": "bad", "timeout": 5}) == {"fired": 1}

        rule = {"id": "q", "on": {"op": "write"}, "do": {"ask": "1 h", "data": True}}
        await qmp.execute("fault-add", {"rule": rule})
        await qmp.execute("fault-register", {"rule": "q"})
        write = await asyncio.create_subprocess_exec("qemu-io", "-f", "raw", "-c", "write -P 7 0 512", uri)
        ask = (await asked.get())["data"]
        assert (ask["operation"], ask["offset"], ask["bytes"]) == ("write", 0, 512), ask
        await qmp.execute("fault-answer", {"ask": ask["ask"], "answer": "fail", "error": "ENOSPC"})
        assert await write.wait() == 1
    await qmp.execute("quit")
    try:
        await qmp.disconnect()
    except EOFError:
        # The server was told to leave, and was the first to.
        pass
    print("done")

asyncio.run(main(sys.argv[1]))
"#,
    )
    .unwrap();
    let said =
        shell(dir, &format!("timeout 60 {} client.py '{}' 2>&1", python().display(), served.uri())).exited(0).stdout;
    assert!(said.ends_with("done\n"), "{said}");
}

#[test]
fn qmp_shell() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    let _served = serve(dir);
    let shell_program = python().with_file_name("qmp-shell");
    let typed = "query-nodes\\nfault-hold tag=A\\nfault-list node=f\\nfault-remove rule=A\\n";
    let Outcome { stdout, .. } =
        shell(dir, &format!("printf '{typed}' | HOME=$PWD timeout 60 {} c.sock 2>&1", shell_program.display()))
            .exited(0);
    assert!(stdout.contains("\"driver\": \"fault\"") || stdout.contains("'driver': 'fault'"), "{stdout}");
    assert!(stdout.contains("\"rules\": [\"A\"]") || stdout.contains("'rules': ['A']"), "{stdout}");
    assert!(!stdout.contains("error"), "{stdout}");
}
