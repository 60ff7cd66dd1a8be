"""Starting and ending the server: clear errors, and nothing left behind."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Callable, List, Tuple

import pytest

from blkproof import Ask, CommandError, Disk, ServeError


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


def test_a_program_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLKPROOF", "/nowhere/blkproof")
    with pytest.raises(ServeError, match="'/nowhere/blkproof' is not there or can not be run; set BLKPROOF"):
        Disk()
    monkeypatch.delenv("BLKPROOF")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ServeError, match="the program 'blkproof' is not there in PATH"):
        Disk()


def test_a_server_that_does_not_come_up(blkproof_binary: str, tmp_path: Path) -> None:
    monster = tmp_path / "monster"
    monster.write_text("#!/bin/sh\nexec tail -f /dev/null\n")
    monster.chmod(0o755)
    with pytest.raises(ServeError, match="was not ready within 0.1 s"):
        Disk(binary=str(monster), timeout=0.1)
    monster.write_text("#!/bin/sh\necho mumble >&2\n")
    with pytest.raises(ServeError, match="ended before it was ready, with status 0\n(.|\n)*mumble"):
        Disk(binary=str(monster))
    table: List[Tuple[Callable[[], Disk], str]] = [
        (lambda: Disk(tmp_path / "none.raw", binary=blkproof_binary), "none.raw"),
        (lambda: Disk(size=1 << 20, profile="torm", binary=blkproof_binary), "torm"),
        (lambda: Disk(size=1 << 20, rules=tmp_path / "none.toml", binary=blkproof_binary), "none.toml"),
        (lambda: Disk(size=1 << 20, args=["--nonsense"], binary=blkproof_binary), "--nonsense"),
    ]
    for make, words in table:
        with pytest.raises(ServeError, match="ended before it was ready, with status [12]\n") as failed:
            make()
        assert words in str(failed.value)


def test_nothing_is_left_behind(blkproof_binary: str) -> None:
    with Disk(size=1 << 20, binary=blkproof_binary) as disk:
        image, folder, pid = Path(disk.image), Path(disk.control).parent, disk.pid
        assert image.exists() and folder.exists() and is_running(pid)
        assert folder.stat().st_mode & 0o77 == 0
    assert not (image.parent.exists() or folder.exists() or is_running(pid))
    # Not after an exception either, and it is that one that is raised.
    with pytest.raises(KeyError), Disk(size=1 << 20, binary=blkproof_binary) as disk:
        pid = disk.pid
        raise KeyError
    assert not is_running(pid)
    # Nor if nobody closes it.
    script = (
        "import blkproof, sys; disk = blkproof.Disk(size=1 << 20, binary=sys.argv[1]); "
        "print(disk.pid, disk.control, flush=True); raise SystemExit(5)"
    )
    done = subprocess.run([sys.executable, "-c", script, blkproof_binary], stdout=subprocess.PIPE, text=True)
    assert done.returncode == 5
    number, control = done.stdout.split()
    assert not is_running(int(number)) and not Path(control).parent.exists()


def test_a_server_that_dies(blkproof_disk: Callable[..., Disk], blkproof_binary: str) -> None:
    disk = Disk(size=1 << 20, binary=blkproof_binary)
    os.kill(disk.pid, signal.SIGKILL)
    os.waitid(os.P_PID, disk.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(ServeError, match="ended by itself, with status -9"):
        disk.check()
    assert "image " in disk.report()
    # What a command ends is ended well.
    quitting = blkproof_disk(size=1 << 20)
    quitting.command("quit")
    quitting.wait_event("SHUTDOWN", reason="quit")
    os.waitid(os.P_PID, quitting.pid, os.WEXITED | os.WNOWAIT)
    quitting.close()
    quitting.close()


def test_what_is_held_does_not_hold_up_the_end(blkproof_disk: Callable[..., Disk]) -> None:
    disk = blkproof_disk(size=1 << 20)
    held = disk.hold(op="write")
    stuck = threading.Event()

    def never(ask: Ask) -> None:
        stuck.set()
        disk.wait_event("NEVER", timeout=600)

    disk.ask("read", 8, never)
    reader = subprocess.Popen(["qemu-io", "-f", "raw", "-c", "read 4k 512", disk.uri], stdout=subprocess.DEVNULL)
    stuck.wait()
    writer = subprocess.Popen(["qemu-io", "-f", "raw", "-c", "write 0 512", disk.uri], stdout=subprocess.DEVNULL)
    held.wait()
    disk.close()
    writer.wait()
    reader.wait()


def test_a_mismatch_fails_whoever_closes_the_disk(
    blkproof_disk: Callable[..., Disk], tmp_path: Path, blkproof_binary: str
) -> None:
    (tmp_path / "a").write_bytes(b"\0" * (1 << 20))
    (tmp_path / "b").write_bytes(b"\0" * 4096 + b"\1" + b"\0" * ((1 << 20) - 4097))
    sides = {"raw": "a", "test": "b"}
    options = [f"{side}.driver=raw,{side}.file.filename={tmp_path / file}" for side, file in sides.items()]
    mirror = ",".join(["driver=blkverify", *options])
    disk = Disk(mirror, kind=None, args=["--image-opts"], binary=blkproof_binary)
    subprocess.run(["qemu-io", "-f", "raw", "-c", "read 0 64k", disk.uri], stdout=subprocess.DEVNULL)
    assert disk.wait_event("MISMATCH").data["offset"] == 4096
    with pytest.raises(ServeError, match="ended with status 1\n(.|\n)*contents mismatch at offset 4096"):
        disk.close()


def test_several_nodes_of_a_kind(blkproof_disk: Callable[..., Disk], tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\0" * (1 << 20))
    nodes = "driver=fault,node-name=up,file.driver=fault,file.node-name=down,file.file.driver=raw"
    graph = f"{nodes},file.file.file.filename={tmp_path / 'a'}"
    disk = blkproof_disk(graph, kind=None, args=["--image-opts"])
    with pytest.raises(CommandError, match="down"):
        disk.fail_read(lba=1)
    disk.close()
    disk = blkproof_disk(graph, kind=None, args=["--image-opts"], node="down")
    rule = disk.fail_read(lba=1)
    assert [node["node"] for node in disk.command("fault-list") if node["rules"]] == ["down"]
    assert rule.fired == 0
    disk.release()
