"""Faults of a disk, seen by QEMU and libnbd."""

from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import pytest
from conftest import Peers

from blkproof import CommandError, Disk

SIZE = 1 << 20

small = pytest.mark.blkproof_disk(size=SIZE)


@small
def test_a_bad_sector_is_bad_until_it_is_rewritten(disk: Disk, peers: Peers) -> None:
    rule = disk.fail_read(lba=50, sense="03/1101", until="rewrite")
    for lba, bad in [(49, False), (50, True), (51, False), (50, True)]:
        assert peers.read_fails(disk.uri, lba) == bad, lba
    assert peers.read_fails(disk.uri, 32, 32)
    assert rule.fired == 3
    assert rule.status()["bad-sectors"] == 1
    peers.io(disk.uri, "write -P 7 25600 512").check_returncode()
    assert peers.holds(disk.uri, 7, 25600, 512) and not peers.holds(disk.uri, 8, 25600, 512)
    assert rule.status()["bad-sectors"] == 0
    fired = disk.wait_event("FAULT_FIRED", rule=rule.id)
    assert fired.data["error"]["device"] == "03/1101"
    assert fired.data["offset"] == 25600


@small
def test_libnbd_hears_which_sector_is_bad(disk: Disk) -> None:
    import nbd

    disk.fail_read(lba=range(50, 52))
    client = nbd.NBD()
    client.connect_uri(disk.uri)
    chunks: List[Any] = []

    def chunk(piece: object, offset: int, status: int, error: object) -> None:
        chunks.append((offset, status))

    with pytest.raises(nbd.Error) as failed:
        client.pread_structured(32 * 512, 32 * 512, chunk)
    assert failed.value.errno == "EIO"
    assert (50 * 512, nbd.READ_ERROR) in chunks
    client.shutdown()


@small
def test_errors_of_every_kind(disk: Disk, peers: Peers) -> None:
    table: Dict[str, Dict[str, Any]] = {
        "No space left on device": {"errno": "ENOSPC"},
        "Input/output error": {"nvme": "2/80 dnr"},
        "Operation not permitted": {"error": "EPERM"},
    }
    for words, error in table.items():
        rule = disk.fail_write(lba="8..16", **error)
        assert words in peers.io(disk.uri, "write 4096 512").stdout, words
        assert "wrote" in peers.io(disk.uri, "write 8192 512").stdout
        assert rule.fired == 1, words
        rule.remove()
    disk.fail_flush(times=1)
    assert peers.io(disk.uri, "flush").returncode == 1
    with pytest.raises(TypeError, match="one of error"):
        disk.fail_read(lba=1, sense="03/1101", errno="EIO")


@small
def test_lives_and_conditions(disk: Disk, peers: Peers) -> None:
    twice = disk.fail_read(lba=[1, range(3, 5)], until=2)
    assert [peers.read_fails(disk.uri, 3) for _ in range(3)] == [True, True, False]
    assert peers.read_fails(disk.uri, 1)
    twice.remove()
    third = disk.fail_read(lba=9, nth=3)
    assert [peers.read_fails(disk.uri, 9) for _ in range(4)] == [False, False, True, False]
    assert third.fired == 1
    third.reset()
    third.disarm()
    assert not any(peers.read_fails(disk.uri, 9) for _ in range(3))
    storm = disk.fail_read(lba=20, state="storm")
    assert not peers.read_fails(disk.uri, 20)
    disk.set_state("storm")
    assert peers.read_fails(disk.uri, 20)
    assert [rule["id"] for rule in disk.rules()] == [third.id, storm.id]
    reassigned = disk.fail_read(lba=30, until="reassign")
    peers.io(disk.uri, "write 15360 512").check_returncode()
    assert peers.read_fails(disk.uri, 30)
    disk.command("reassign", lba=30)
    assert not peers.read_fails(disk.uri, 30)
    assert reassigned.fired == 1
    disk.reset()
    assert disk.rules() == []
    with pytest.raises(LookupError):
        assert storm.fired


@small
def test_damage_reads_the_same_every_time(disk: Disk, peers: Peers, tmp_path: Path) -> None:
    peers.io(disk.uri, "write -P 0x55 0 64k").check_returncode()
    disk.corrupt(lba=range(10, 12), fields={"bits": 3})
    copies = [tmp_path / "1", tmp_path / "2"]
    for copy in copies:
        peers.run("qemu-img", "convert", "-f", "raw", "-O", "raw", disk.uri, str(copy)).check_returncode()
    first, second = (copy.read_bytes() for copy in copies)
    assert first == second
    assert len(first) == SIZE
    wrong = [at for at, byte in enumerate(first[: 64 << 10]) if byte != 0x55]
    assert wrong and all(at // 512 in (10, 11) for at in wrong)


@small
def test_held_requests_go_on_when_they_are_released(disk: Disk, peers: Peers) -> None:
    held = disk.hold(op="write", lba=5)
    writer = peers.start(disk.uri, "write -P 9 2560 512")
    held.wait()
    assert peers.holds(disk.uri, 0, 2560, 512)
    assert writer.poll() is None
    assert held.release() == 1
    assert "wrote 512/512" in writer.communicate(timeout=60)[0]
    assert peers.holds(disk.uri, 9, 2560, 512)
    with pytest.raises(CommandError, match="nothing is parked"):
        held.release()
    with disk.hold(op="read", lba=6) as held:
        reader = peers.start(disk.uri, "read 3072 512")
        held.wait()
    assert "read 512/512" in reader.communicate(timeout=60)[0]
    assert len(disk.events("SUSPENDED")) == len(disk.events("RESUMED")) == 2


@small
def test_delay_and_disconnect(disk: Disk, peers: Peers) -> None:
    slow = disk.delay("5ms", op="read", lba=3)
    slower = disk.delay(0.002, op="read", lba=3)
    assert not peers.read_fails(disk.uri, 3)
    assert (slow.fired, slower.fired) == (1, 1)
    cut = disk.disconnect(op="write", lba=4)
    assert peers.io(disk.uri, "write 2048 512").returncode != 0
    assert disk.wait_fired(cut) == 1
    # Once; the disk is there again.
    assert "wrote" in peers.io(disk.uri, "write 2048 512").stdout
    disk.wait_event("CLIENT_DISCONNECTED", count=3)


@pytest.mark.parametrize("kind", ["honest", "liar"])
def test_a_power_cut_loses_what_it_may(blkproof_disk: Callable[..., Disk], peers: Peers, kind: str) -> None:
    disk = blkproof_disk(size=SIZE, kind=kind)
    import nbd

    client = nbd.NBD()
    client.connect_uri(disk.uri)
    client.pwrite(b"f" * 4096, 0)
    client.flush()
    client.pwrite(b"w" * 4096, 65536)
    state = disk.state()
    assert (state["kind"], state["on"]) == (kind, True)
    cut = disk.power_cut(state="all-old")
    assert (cut.cut, cut.state, cut.on) == (1, "all-old", True)
    assert (cut.lost, cut.betrayed) == ((4096, 0) if kind == "honest" else (8192, 4096))
    with pytest.raises(nbd.Error):
        client.pread(512, 0)
    assert peers.holds(disk.uri, ord("f") if kind == "honest" else 0, 0, 4096)
    assert peers.holds(disk.uri, 0, 65536, 4096)
    assert disk.wait_event("POWER_CUT").data["lost"] == cut.lost
    # Without a name the disk picks one, which asks for the same again.
    assert disk.power_cut().state.startswith("seed:")


def test_a_disk_that_stays_off(blkproof_disk: Callable[..., Disk], peers: Peers) -> None:
    disk = blkproof_disk(size=SIZE, disk_options={"stay-off": "on"}, profile="torn")
    assert disk.state()["profile"] == "torn"
    assert not disk.power_cut().on
    assert peers.io(disk.uri, "read 0 512").returncode != 0
    disk.power_on()
    assert not peers.read_fails(disk.uri, 0)


@small
def test_figures_and_events(disk: Disk, peers: Peers) -> None:
    peers.io(disk.uri, "write 0 64k", "read 0 4k", "read 4k 4k").check_returncode()
    stats = disk.stats()
    assert (stats["wr_operations"], stats["wr_bytes"]) == (1, 65536)
    assert (stats["rd_operations"], stats["rd_bytes"]) == (2, 8192)
    assert stats["driver-specific"]["size"] == SIZE
    disk.reset_stats()
    assert disk.stats()["rd_operations"] == 0
    names = [event.name for event in disk.events()]
    assert "CLIENT_CONNECTED" in names
    assert disk.events("CLIENT_CONNECTED", export="nonsense") == []


def test_figures_are_those_of_the_whole_disk(blkproof_disk: Callable[..., Disk], peers: Peers, tmp_path: Path) -> None:
    image = tmp_path / "disk.raw"
    image.write_bytes(bytes(SIZE))
    graph = f"driver=stats,node-name=first,file.driver=raw,file.file.driver=file,file.file.filename={image}"
    disk = blkproof_disk(graph, args=["--image-opts"])
    peers.io(disk.uri, "write 0 64k").check_returncode()
    nodes = [node["node-name"] for node in disk.command("stats-query")]
    assert nodes == ["first", "stats"]
    assert disk.stats()["wr_operations"] == 1
    disk.reset_stats()
    assert disk.stats()["wr_operations"] == 0
    # qemu-io flushes at its end: by now the write is below.
    assert disk.command("stats-query", node="first")[0]["stats"]["wr_operations"] > 0


@small
def test_no_event_of_the_past_is_missing(disk: Disk) -> None:
    for count in range(1, 21):
        disk.command("power-cut")
        assert len(disk.events("POWER_CUT")) == count


def test_images_rules_files_and_other_graphs(
    blkproof_disk: Callable[..., Disk], peers: Peers, tmp_path: Path
) -> None:
    image = tmp_path / "disk.qcow2"
    peers.run("qemu-img", "create", "-f", "qcow2", str(image), "8M").check_returncode()
    rules = tmp_path / "lab.toml"
    rules.write_text('[[rule]]\nid = "bad"\non = { lba = 7 }\nlife = "until-rewritten"\n')
    disk = blkproof_disk(image, format="qcow2", rules=rules, kind=None)
    assert peers.read_fails(disk.uri, 7)
    assert disk.wait_fired("bad") == 1
    with pytest.raises(CommandError) as refused:
        disk.power_cut()
    assert refused.value.kind in ("DeviceNotFound", "GenericError")
    peers.io(disk.uri, "write -P 1 0 1M").check_returncode()
    disk.close()
    checked = peers.run("qemu-img", "check", str(image))
    assert "No errors were found" in checked.stdout, checked
    assert peers.holds(str(image), 1, 0, 1 << 20, format="qcow2")
    frozen = blkproof_disk(image, format="qcow2", read_only=True)
    assert peers.io(frozen.uri, "write 0 512").returncode != 0


@small
def test_mistakes_are_told(disk: Disk) -> None:
    table: List[Tuple[Callable[[], object], str]] = [
        (lambda: disk.fail_read(lbas=5), "did you mean 'lba'"),
        (lambda: disk.fail_read(lba="50-60"), "is no range of sectors"),
        (lambda: disk.fail_read(lba=5, sense="03/11zz"), "03/11zz"),
        (lambda: disk.wait_fired("nobody"), "has no rule 'nobody'"),
        (lambda: disk.command("fault-ad"), "fault-add"),
        (lambda: disk.power_cut("all-odd"), "all-odd"),
    ]
    for mistake, words in table:
        with pytest.raises(CommandError) as refused:
            mistake()
        assert words in str(refused.value)
    rule = disk.fail_read(lba=5)
    with pytest.raises(CommandError, match="fired 0 of 1 times"):
        rule.wait(timeout=0.05)
    with pytest.raises(ValueError, match="step"):
        disk.fail_read(lba=range(0, 10, 2))
    assert [rule["id"] for rule in disk.rules()] == [rule.id]
