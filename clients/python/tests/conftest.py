"""What the tests share: the peers that use the disks."""

import subprocess
from typing import List

import pytest

pytest_plugins = ["pytester"]


class Peers:
    """QEMU's programs. That they are missing is an error, not a reason to skip."""

    def io(self, uri: str, *commands: str, format: str = "raw") -> "subprocess.CompletedProcess[str]":
        words = [word for command in commands for word in ("-c", command)]
        return self.run("qemu-io", "-t", "none", "-f", format, *words, uri)

    def read_fails(self, uri: str, lba: int, count: int = 1) -> bool:
        done = self.io(uri, f"read {lba * 512} {count * 512}")
        failed = "read failed: Input/output error" in done.stdout + done.stderr
        assert failed or f"read {count * 512}/{count * 512} bytes" in done.stdout, done
        return failed

    def holds(self, uri: str, byte: int, offset: int, length: int, format: str = "raw") -> bool:
        """Whether the bytes there can be read, and all of them are `byte`."""
        done = self.io(uri, f"read -P {byte} {offset} {length}", format=format)
        read = f"read {length}/{length} bytes" in done.stdout and "failed" not in done.stdout
        assert (done.returncode == 0) == read, done
        return done.returncode == 0

    def run(self, *command: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    def start(self, uri: str, *commands: str) -> "subprocess.Popen[str]":
        words: List[str] = [word for command in commands for word in ("-c", command)]
        return subprocess.Popen(
            ["qemu-io", "-t", "none", "-f", "raw", *words, uri],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


@pytest.fixture(scope="session")
def peers() -> Peers:
    return Peers()
