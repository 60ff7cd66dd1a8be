"""Requests that the test decides, one by one."""

from typing import Callable, List, Tuple, cast

import pytest
from conftest import Peers

from blkproof import Answer, Ask, Disk

SIZE = 1 << 20

small = pytest.mark.blkproof_disk(size=SIZE)


@small
def test_a_handler_decides_each_write(disk: Disk, peers: Peers) -> None:
    asked: List[Tuple[str, int, int, bytes]] = []

    def decide(ask: Ask) -> Answer:
        assert ask.data is not None
        asked.append((ask.operation, ask.lba, len(ask.lbas), ask.data[:1]))
        return {
            100: ask.proceed(),
            101: ask.fail("ENOSPC"),
            102: ask.proceed(b"\xee" * ask.length),
            103: ask.succeed(),
        }[ask.lba]

    rule = disk.ask("write", range(100, 200), decide)
    done = [peers.io(disk.uri, f"write -P {lba} {lba * 512} 512") for lba in range(99, 104)]
    assert ["wrote" in one.stdout for one in done] == [True, True, False, True, True]
    assert "No space left on device" in done[2].stdout
    assert asked == [("write", lba, 1, bytes([lba])) for lba in range(100, 104)]
    for lba, byte in [(99, 99), (100, 100), (101, 0), (102, 0xEE), (103, 0)]:
        assert peers.holds(disk.uri, byte, lba * 512, 512), lba
    assert rule.fired == 4


@small
def test_a_handler_may_use_the_disk_while_the_test_waits(disk: Disk, peers: Peers) -> None:
    def decide(ask: Ask) -> bytes:
        assert ask.data == b"\0" * 1024
        disk.fail_write(lba=0)
        assert disk.stats()["wr_operations"] == 0
        return b"A" * 512 + b"B" * 512

    rule = disk.ask("read", "6..8", decide)
    reader = peers.start(disk.uri, "read -s 0 -l 512 -P 0x41 3072 1024", "read -s 512 -l 512 -P 0x42 3072 1024")
    rule.wait(2)
    said = reader.communicate(timeout=60)[0]
    assert said.count("read 1024/1024") == 2 and reader.returncode == 0


def test_what_goes_wrong_in_a_handler_is_raised(blkproof_disk: Callable[..., Disk], peers: Peers) -> None:
    def broken(ask: Ask) -> None:
        raise KeyError(f"no plan for {ask.lba}")

    disk = blkproof_disk(size=SIZE)
    disk.ask("write", 1, broken)
    disk.ask("write", 2, lambda ask: b"too short")
    disk.ask("write", 3, lambda ask: ask.fail("ENONSENSE"))
    disk.ask("write", 4, cast("Callable[[Ask], None]", lambda ask: "a word"))
    for lba, words in [
        (1, "KeyError: 'no plan for 1'"),
        (2, "bytes"),
        (3, "ENONSENSE"),
        (4, "a handler returns an Answer, bytes or None, not 'a word'"),
    ]:
        assert "write failed: Input/output error" in peers.io(disk.uri, f"write {lba * 512} 512").stdout
        with pytest.raises(AssertionError) as failed:
            disk.check()
        assert f"the handler of rule 'ask-{lba}' failed on write of 512 bytes at {lba * 512}:" in str(failed.value)
        assert words in str(failed.value)
    # What was raised once is not raised again.
    disk.check()
    peers.io(disk.uri, "write 512 512")
    with pytest.raises(AssertionError, match="no plan for 1"):
        disk.close()


@small
def test_a_question_whose_client_is_gone(disk: Disk, peers: Peers) -> None:
    def decide(ask: Ask) -> Answer:
        # The client's connection ends while its request is being decided.
        disk.power_cut("all-old")
        disk.wait_event("FAULT_ASK_OVER", why="cancelled")
        return ask.proceed()

    rule = disk.ask("write", 1, decide)
    assert peers.io(disk.uri, "write 512 512").returncode != 0
    disk.wait_event("POWER_CUT")
    rule.wait()
    # Nobody waited for the answer, and that is nobody's mistake.
    disk.check()


@small
def test_a_late_answer_is_a_mistake(disk: Disk, peers: Peers) -> None:
    def decide(ask: Ask) -> Answer:
        disk.wait_event("FAULT_ASK_OVER", why="timeout")
        return ask.proceed()

    disk.ask("write", 1, decide, timeout=0.01, default="ENOSPC")
    assert "No space left on device" in peers.io(disk.uri, "write 512 512").stdout
    with pytest.raises(AssertionError, match="fault-answer"):
        disk.close()
