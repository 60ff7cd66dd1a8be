"""The server's process: found, started, waited for, and always ended."""

import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
import weakref
from pathlib import Path
from typing import List, Optional, Sequence, Tuple

__all__ = ["ServeError", "Server", "find_binary"]

SOCKET_PATH_MAX = 100
"""Bytes of a socket's path that surely fit into its address."""


class ServeError(Exception):
    """The server did not come up, ended by itself, or failed; with what it said."""


def find_binary(binary: Optional[str] = None) -> str:
    """The program to run: ``binary``, ``$BLKPROOF``, or ``blkproof`` of the path, in this order."""
    wanted = binary or os.environ.get("BLKPROOF") or "blkproof"
    found = shutil.which(wanted)
    if found is not None:
        return found
    where = "in PATH" if os.sep not in wanted else "or can not be run"
    raise ServeError(
        f"the program '{wanted}' is not there {where}; set BLKPROOF to the path of the blkproof binary "
        "(with pytest also --blkproof PATH)"
    )


class Server:
    """``blkproof serve`` with ``args``, on sockets in a folder of its own.

    It ends with :meth:`stop`; if nobody calls that, when this object goes or the interpreter ends.
    """

    def __init__(self, args: Sequence[str], binary: Optional[str] = None, timeout: float = 30.0) -> None:
        program = find_binary(binary)
        self.folder = _socket_folder()
        self.control = str(self.folder / "control.sock")
        self.uris: List[str] = []
        self._stderr_path = self.folder / "stderr"
        self._said: Optional[str] = None
        reader, writer = os.pipe()
        sockets = ["--unix", str(self.folder / "nbd.sock"), "--control", self.control]
        self.command = [program, "serve", *sockets, "--ready-fd", str(writer), *args]
        try:
            with open(self._stderr_path, "wb") as stderr:
                self._process = subprocess.Popen(
                    self.command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=stderr,
                    pass_fds=(writer,),
                    env={**os.environ, "NO_COLOR": "1"},
                )
        except OSError as error:
            os.close(reader)
            shutil.rmtree(self.folder, ignore_errors=True)
            raise ServeError(f"could not start '{program}': {error}") from error
        finally:
            os.close(writer)
        self._last_resort = weakref.finalize(self, _kill, self._process, self.folder)
        try:
            lines, came = _read_until_ready(reader, timeout)
        finally:
            os.close(reader)
        if lines[-1:] == ["READY"]:
            self.uris = lines[:-1]
            return
        status = self._end(grace=timeout if came else 0.0)
        why = f"was not ready within {timeout:g} s" if not came else f"ended before it was ready, with status {status}"
        raise ServeError(self.complaint(why))

    @property
    def stderr(self) -> str:
        """What the server has said so far."""
        if self._said is not None:
            return self._said
        try:
            return self._stderr_path.read_text("utf-8", "replace")
        except OSError:
            return ""

    @property
    def is_running(self) -> bool:
        """Whether the process is still there."""
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    def stop(self, timeout: float = 30.0) -> None:
        """Ends the server as SIGTERM does, and raises :class:`ServeError` if it ends with any status but 0."""
        if self._said is not None:
            return
        ended_by_itself = not self.is_running
        if not ended_by_itself:
            self._process.send_signal(signal.SIGTERM)
        status = self._end(timeout)
        if status is None:
            raise ServeError(self.complaint(f"did not end within {timeout:g} s and was killed"))
        if status != 0:
            words = "ended by itself, with status" if ended_by_itself else "ended with status"
            raise ServeError(self.complaint(f"{words} {status}"))

    def kill(self) -> None:
        """Ends the server at once."""
        self._end(0.0)

    def complaint(self, why: str) -> str:
        """An error's text: what happened, the command, and what the server said."""
        said = self.stderr.strip() or "(nothing)"
        return f"blkproof serve {why}\n  command: {' '.join(self.command)}\n  it said: " + said.replace("\n", "\n    ")

    def _end(self, grace: float) -> Optional[int]:
        """Waits for the end, kills what does not end, and keeps what was said. None if it had to be killed."""
        try:
            status: Optional[int] = self._process.wait(grace)
        except subprocess.TimeoutExpired:
            status = None
            self._process.kill()
            self._process.wait()
        self._said = self.stderr
        self._last_resort()
        return status


def _socket_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="blkproof-"))
    if len(os.fsencode(folder)) <= SOCKET_PATH_MAX - len("/control.sock"):
        return folder
    folder.rmdir()
    return Path(tempfile.mkdtemp(prefix="blkproof-", dir="/tmp"))


def _kill(process: "subprocess.Popen[bytes]", folder: Path) -> None:
    if process.poll() is None:
        process.kill()
        process.wait()
    shutil.rmtree(folder, ignore_errors=True)


def _read_until_ready(reader: int, timeout: float) -> Tuple[List[str], bool]:
    """The lines that come until the other end is closed, and whether it was closed in time."""
    deadline = time.monotonic() + timeout
    text = b""
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([reader], [], [], left)[0]:
            return text.decode("utf-8", "replace").splitlines(), False
        piece = os.read(reader, 65536)
        if not piece:
            return text.decode("utf-8", "replace").splitlines(), True
        text += piece
