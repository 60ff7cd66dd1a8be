"""The QMP client: against the server, and against servers that misbehave."""

import socket
import threading
from pathlib import Path
from typing import Iterator, List, Tuple, Type

import pytest

from blkproof import CommandError, Disk
from blkproof.qmp import Client, Closed, ProtocolError, TimedOut

GREETING = b'{"QMP": {"version": {}, "capabilities": []}}\r\n'
READY = b'{"return": {}, "id": 1}\r\n'
EVENT = b'{"timestamp": {"seconds": 1, "microseconds": 500000}, "event": "E", "data": {"a-b": %d}}\r\n'

Fake = Tuple[socket.socket, str]


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[Fake]:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        yield server, path


def says(fake: Fake, greeting: bytes, answer: bytes = b"", piece: int = 1 << 16, stay: bool = True) -> threading.Thread:
    """A server for one client: greets, answers whatever it is told first, in pieces of that size, and says no more."""

    def serve() -> None:
        connection, _ = fake[0].accept()
        with connection:
            connection.sendall(greeting)
            if answer:
                assert connection.recv(65536).endswith(b"\n")
            for at in range(0, len(answer), piece):
                connection.sendall(answer[at : at + piece])
            while stay and connection.recv(65536):
                pass

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize(
    ("greeting", "answer", "error", "words"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", b"", ProtocolError, "is not QMP"),
        (b"[1]\r\n", b"", ProtocolError, "is not QMP"),
        (b"{}\r\n", b"", ProtocolError, "no reply and no event"),
        (b"\xff\xfe\r\n", b"", ProtocolError, "is not QMP"),
        (GREETING, b'{"event": 5}\r\n', ProtocolError, "timestamp"),
        (GREETING, b'{"return"', TimedOut, "no answer"),
        (b"\r\n", b"", TimedOut, "no greeting"),
        (GREETING, b'{"error": {"class": "GenericError", "desc": "no"}, "id": 1}\r\n', CommandError, "no"),
    ],
)
def test_servers_that_speak_something_else(
    fake: Fake, greeting: bytes, answer: bytes, error: Type[Exception], words: str
) -> None:
    serving = says(fake, greeting, answer)
    with pytest.raises(error, match=words):
        Client(fake[1], timeout=0.1 if error is TimedOut else 30)
    serving.join()


def test_servers_that_leave(fake: Fake) -> None:
    for greeting, answer in [(b"", b""), (GREETING, b""), (GREETING, READY[:9])]:
        serving = says(fake, greeting, answer, stay=False)
        with pytest.raises((Closed, ProtocolError)):
            Client(fake[1], timeout=30)
        serving.join()
    serving = says(fake, GREETING, READY, stay=False)
    with Client(fake[1]) as client:
        with pytest.raises(Closed):
            client.wait_event("E")
        with pytest.raises(Closed):
            client.execute("quit")
    with pytest.raises(Closed, match="could not connect"):
        Client(fake[1] + "-not-there")
    with pytest.raises(Closed, match="could not connect"):
        Client("tcp:127.0.0.1:1")


def test_pieces_events_and_late_replies(fake: Fake) -> None:
    # Byte by byte; a reply to nobody; a reply without an id; events before and between replies.
    rest = EVENT % 1 + b'{"return": {}, "id": 77}\r\n{"return": 1}\r\n' + EVENT % 2
    says(fake, GREETING, READY + rest, piece=1)
    with Client(fake[1]) as client:
        second = client.wait_event("E", count=2)
        assert (second.data["a-b"], second.time) == (2, 1.5)
        assert client.wait_event("E", a_b=1).data["a-b"] == 1
        assert [event.data["a-b"] for event in client.events()] == [1, 2]
        assert client.events("E", a_b=3) == client.events("F") == []
        with pytest.raises(TimedOut, match="0 of 1 events E with {'a-b': 3} came within 0.01 s"):
            client.wait_event("E", timeout=0.01, a_b=3)
        with pytest.raises(TimedOut, match="no answer within 0.01 s"):
            client.execute("hello", timeout=0.01)
        assert client.take_event("E").data["a-b"] == 1
        client.forget_events()
        with pytest.raises(TimedOut):
            client.take_event("E", timeout=0.01)


@pytest.mark.blkproof_disk(size=1 << 20)
def test_several_threads_and_commands_out_of_band(disk: Disk) -> None:
    disk.fail_read(lba=5, id="never")
    with Client(disk.control) as client:
        assert "qemu" in client.greeting["version"]
        waiting = threading.Thread(target=lambda: refused.append(_refused(client)))
        refused: List[str] = []
        waiting.start()
        numbers = []
        threads = [
            threading.Thread(target=lambda: numbers.append(len(client.execute("query-commands", oob=True))))
            for _ in range(20)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(numbers) == 20 and len(set(numbers)) == 1
        # All of them have overtaken the one that waits.
        assert waiting.is_alive()
        client.execute("fault-remove", {"rule": "never"}, oob=True)
        waiting.join()
        assert "never" in refused[0]


def _refused(client: Client) -> str:
    with pytest.raises(CommandError) as refused:
        client.execute("fault-wait", {"rule": "never", "timeout": 600})
    return str(refused.value)


@pytest.mark.blkproof_disk(size=1 << 20)
def test_closing_ends_what_waits(disk: Disk) -> None:
    disk.fail_read(lba=5, id="never")
    client = Client(disk.control)
    ended = []

    def wait() -> None:
        with pytest.raises(Closed, match="this client is closed"):
            client.execute("fault-wait", {"rule": "never", "timeout": 600})
        ended.append(True)

    waiting = threading.Thread(target=wait)
    waiting.start()
    client.execute("query-version", oob=True)
    client.close()
    client.close()
    waiting.join()
    assert ended == [True]
