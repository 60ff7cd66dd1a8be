"""A small synchronous client of QMP, the protocol of control sockets.

One thread reads: it hands replies to whoever waits for them and keeps the events. Any thread may send commands. What
arrives is never lost between two calls: :meth:`Client.wait_event` also sees events that came before it was called.
"""

import json
import os
import socket
import threading
from collections import deque
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Deque, Dict, List, Mapping, Optional, Tuple, Type, Union

__all__ = ["Address", "Client", "Closed", "CommandError", "Event", "ProtocolError", "QMPError", "TimedOut"]

Address = Union[str, "os.PathLike[str]", Tuple[str, int]]
"""Where to connect: a path, ``tcp:PORT``, ``tcp:HOST:PORT``, or host and port."""

EVENTS_KEPT = 100_000
"""Events that are kept; of more the oldest are forgotten, and counted in :attr:`Client.events_lost`."""


class QMPError(Exception):
    """Whatever goes wrong with a control socket."""


class CommandError(QMPError):
    """The server refused a command.

    ``kind`` is for programs: ``GenericError``, ``CommandNotFound``, ``DeviceNotFound``, ``DeviceNotActive``. ``desc``
    is for people.
    """

    def __init__(self, command: str, kind: str, desc: str) -> None:
        super().__init__(desc if desc.startswith(command) else f"{command}: {desc}")
        self.command = command
        self.kind = kind
        self.desc = desc


class Closed(QMPError):
    """The connection has ended."""


class TimedOut(QMPError, TimeoutError):
    """Nothing came within the time given."""


class ProtocolError(QMPError):
    """The other side does not speak QMP."""


@dataclass(frozen=True)
class Event:
    """Something that happened on the other side."""

    name: str
    """Which kind, such as ``FAULT_FIRED``."""
    data: Mapping[str, Any]
    """What there is to know."""
    time: float
    """Seconds since 1970, on the server's clock."""

    def __str__(self) -> str:
        fields = " ".join(f"{key}={_short(value)}" for key, value in self.data.items())
        return f"{self.name} {fields}".rstrip()

    def has(self, name: str, fields: Mapping[str, Any]) -> bool:
        """Whether it is of that name, and all of ``fields`` are in its data."""
        return self.name == name and all(key in self.data and self.data[key] == want for key, want in fields.items())


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


class _Pending:
    """A command that waits for its reply."""

    def __init__(self) -> None:
        self.message: Optional[Dict[str, Any]] = None


class Client:
    """A session with a QMP server.

    ``timeout``, in seconds, is for connecting and for every command that is not given its own.
    """

    def __init__(self, address: Address, timeout: float = 30.0) -> None:
        self.timeout = timeout
        self.greeting: Mapping[str, Any] = {}
        self.events_lost = 0
        """Events that this client has missed, on either side."""
        self._socket = _connect(address, timeout)
        self._sending = threading.Lock()
        # Guards all below; notified whenever something has come.
        self._news = threading.Condition()
        self._pending: Dict[int, _Pending] = {}
        self._events: Deque[Event] = deque(maxlen=EVENTS_KEPT)
        self._last_id = 0
        self._end: Optional[QMPError] = None
        self._closing = False
        self._reader = threading.Thread(target=self._read, name="blkproof-qmp", daemon=True)
        self._reader.start()
        try:
            self._negotiate()
        except BaseException:
            self.close()
            raise

    def execute(
        self,
        command: str,
        arguments: Optional[Mapping[str, Any]] = None,
        *,
        oob: bool = False,
        timeout: Optional[float] = None,
    ) -> Any:
        """Does a command and returns what it answers.

        With ``oob`` it overtakes commands that are being waited for. Raises :class:`CommandError` if it was refused,
        :class:`TimedOut` if no answer came (it may still be done), :class:`Closed` if the server is gone.
        """
        limit = self.timeout if timeout is None else timeout
        pending = _Pending()
        with self._news:
            self._check_open()
            self._last_id += 1
            number = self._last_id
            self._pending[number] = pending
        message: Dict[str, Any] = {"exec-oob" if oob else "execute": command, "id": number}
        if arguments:
            message["arguments"] = dict(arguments)
        try:
            self._send(message)
            with self._news:
                if not self._news.wait_for(lambda: pending.message is not None or self._end is not None, limit):
                    raise TimedOut(f"{command}: no answer within {limit:g} s")
                reply = pending.message
                if reply is None:
                    self._check_open()
        finally:
            with self._news:
                self._pending.pop(number, None)
        assert reply is not None
        error = reply.get("error")
        if error is not None:
            raise CommandError(command, str(error.get("class")), str(error.get("desc")))
        return reply["return"]

    def events(self, name: Optional[str] = None, **fields: Any) -> List[Event]:
        """The events that have come, the oldest first; with ``name`` and ``fields`` only those.

        A dash in the name of a field is written as ``_``.
        """
        wanted = _dashed(fields)
        with self._news:
            return [event for event in self._events if name is None or event.has(name, wanted)]

    def wait_event(self, name: str, count: int = 1, timeout: Optional[float] = None, **fields: Any) -> Event:
        """Waits until so many such events have come, counted from the beginning, and returns the last of them."""
        limit = self.timeout if timeout is None else timeout
        wanted = _dashed(fields)
        with self._news:
            found: List[Event] = []

            def enough() -> bool:
                found[:] = [event for event in self._events if event.has(name, wanted)]
                return len(found) >= count or self._end is not None

            self._news.wait_for(enough, limit)
            if len(found) >= count:
                return found[count - 1]
            self._check_open()
            words = f" with {wanted}" if wanted else ""
            raise TimedOut(f"{len(found)} of {count} events {name}{words} came within {limit:g} s")

    def take_event(self, name: str, timeout: Optional[float] = None) -> Event:
        """Waits for the next event of that name, and takes it out of what is kept, with all that came before it.

        It waits as long as it takes if no time is given.
        """
        with self._news:
            found: List[Event] = []

            def came() -> bool:
                while self._events and not found:
                    event = self._events.popleft()
                    if event.name == name:
                        found.append(event)
                return bool(found) or self._end is not None

            self._news.wait_for(came, timeout)
            if found:
                return found[0]
            self._check_open()
            raise TimedOut(f"no event {name} came within {timeout:g} s")

    def forget_events(self) -> None:
        """Forgets the events that have come."""
        with self._news:
            self._events.clear()

    def close(self) -> None:
        """Ends the session. Commands that wait in other threads fail with :class:`Closed`."""
        with self._news:
            self._closing = True
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        if self._reader is not threading.current_thread():
            self._reader.join()
        self._socket.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.close()

    def _negotiate(self) -> None:
        with self._news:
            if not self._news.wait_for(lambda: bool(self.greeting) or self._end is not None, self.timeout):
                raise TimedOut(f"no greeting within {self.timeout:g} s: is it a QMP server?")
            if not self.greeting:
                self._check_open()
            offered = self.greeting.get("capabilities", [])
        self.execute("qmp_capabilities", {"enable": ["oob"]} if "oob" in offered else None)

    def _check_open(self) -> None:
        if self._end is not None:
            raise self._end

    def _send(self, message: Mapping[str, Any]) -> None:
        line = json.dumps(message).encode("ascii") + b"\n"
        try:
            with self._sending:
                self._socket.sendall(line)
        except OSError as error:
            with self._news:
                self._check_open()
            raise Closed(f"could not send to the control socket: {error}") from error

    def _read(self) -> None:
        end: QMPError = Closed("the server has closed the control connection")
        try:
            with self._socket.makefile("rb") as lines:
                for line in lines:
                    if line.strip():
                        self._take(json.loads(line))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            end = ProtocolError(f"what came over the control socket is not QMP: {error}")
        except OSError as error:
            end = Closed(f"the control connection broke: {error}")
        with self._news:
            self._end = Closed("this client is closed") if self._closing else end
            self._news.notify_all()

    def _take(self, message: Dict[str, Any]) -> None:
        with self._news:
            if "event" in message:
                self._take_event(message)
            elif "QMP" in message:
                self.greeting = message["QMP"]
            elif "return" in message or "error" in message:
                pending = self._pending.get(message.get("id", 0))
                # Whoever gave up waiting is not there any more.
                if pending is not None:
                    pending.message = message
            else:
                raise ValueError(f"a message that is no reply and no event: {_short(message)}")
            self._news.notify_all()

    def _take_event(self, message: Dict[str, Any]) -> None:
        stamp = message["timestamp"]
        data = message.get("data", {})
        event = Event(message["event"], data, stamp["seconds"] + stamp["microseconds"] / 1e6)
        if event.name == "EVENTS_LOST":
            self.events_lost += data["count"]
        if len(self._events) == EVENTS_KEPT:
            self.events_lost += 1
        self._events.append(event)


def _dashed(fields: Mapping[str, Any]) -> Dict[str, Any]:
    return {key.replace("_", "-"): value for key, value in fields.items()}


def _connect(address: Address, timeout: float) -> socket.socket:
    place: Union[str, Tuple[str, int]] = address if isinstance(address, tuple) else os.fspath(address)
    if isinstance(place, str) and place.startswith("tcp:"):
        host, _, port = place[len("tcp:") :].rpartition(":")
        place = (host.strip("[]") or "127.0.0.1", int(port))
    try:
        if isinstance(place, tuple):
            connection = socket.create_connection(place, timeout)
        else:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                connection.settimeout(timeout)
                connection.connect(place)
            except BaseException:
                connection.close()
                raise
    except OSError as error:
        raise Closed(f"could not connect to the control socket {address!r}: {error}") from error
    # The reader waits as long as it takes; commands have their own limits.
    connection.settimeout(None)
    return connection
