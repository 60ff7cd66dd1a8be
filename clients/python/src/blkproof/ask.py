"""Requests that wait for an answer from the test: each is decided by a function.

The questions come over a connection of their own and are answered in a thread of their own, so that a handler may use
the disk like any other code, and the test may wait meanwhile.
"""

import base64
import threading
import traceback
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple, Union

from .qmp import Address, Client, Closed, QMPError

__all__ = ["Answer", "Ask", "Handler"]


PATIENCE = 5.0
"""Seconds a handler has to return when its disk is closed."""


@dataclass(frozen=True)
class Answer:
    """What becomes of a request."""

    word: str
    """``proceed``, ``fail`` or ``succeed``."""
    data: Optional[bytes] = None
    """With ``proceed``: what is written, or read, instead."""
    error: Union[None, int, str] = None
    """With ``fail``: the error, as rules write it."""

    def arguments(self) -> Dict[str, Any]:
        """The arguments of ``fault-answer``."""
        arguments: Dict[str, Any] = {"answer": self.word}
        if self.data is not None:
            arguments["data"] = base64.b64encode(self.data).decode("ascii")
        if self.error is not None:
            arguments["error"] = str(self.error)
        return arguments


@dataclass(frozen=True)
class Ask:
    """A request that waits."""

    number: int
    rule: str
    operation: str
    """``read``, ``write``, ``write-zeroes``, ``discard``, ``flush``, …"""
    offset: int
    """Its first byte."""
    length: int
    """How many bytes it is about."""
    fua: bool
    """Whether it has to be durable when it completes."""
    timeout: float
    """Seconds until the rule's default is taken."""
    data: Optional[bytes]
    """What a write writes, or what a read would return; None where there is no data."""
    lba_size: int = 512

    @property
    def lba(self) -> int:
        """The sector of its first byte."""
        return self.offset // self.lba_size

    @property
    def lbas(self) -> range:
        """The sectors it touches."""
        return range(self.lba, -(-(self.offset + self.length) // self.lba_size))

    def proceed(self, data: Optional[bytes] = None) -> Answer:
        """Let it be done; with ``data``, with these bytes instead of its own."""
        return Answer("proceed", data=data)

    def fail(self, error: Union[int, str] = "EIO") -> Answer:
        """Fail it, with an error as rules write it: ``"ENOSPC"``, ``"03/1101"``, ``"nvme:2/81 dnr"``."""
        return Answer("fail", error=error)

    def succeed(self) -> Answer:
        """Say that it was done, and do nothing."""
        return Answer("succeed")


Handler = Callable[[Ask], Union[Answer, bytes, None]]
"""Decides: an answer of the question's own, bytes to proceed with, or None to proceed."""


class Asker:
    """Answers questions with the handlers of their rules."""

    def __init__(self, address: Address, node: Mapping[str, str], lba_size: int, timeout: float) -> None:
        self._client = Client(address, timeout)
        self._node = node
        self._lba_size = lba_size
        self._closing = False
        self._lock = threading.Lock()
        self._handlers: Dict[str, Handler] = {}
        self._failures: List[Tuple[Ask, BaseException]] = []
        self._thread = threading.Thread(target=self._answer_all, name="blkproof-ask", daemon=True)
        self._thread.start()

    def register(self, rule: str, handler: Handler) -> None:
        """From now on questions of this rule go to ``handler``."""
        with self._lock:
            self._handlers[rule] = handler
        self._client.execute("fault-register", {**self._node, "rule": rule})

    def unregister(self, rule: str) -> None:
        """Takes :meth:`register` back."""
        self._client.execute("fault-unregister", {**self._node, "rule": rule})
        with self._lock:
            self._handlers.pop(rule, None)

    def failures(self) -> List[Tuple[Ask, BaseException]]:
        """What handlers have raised, and forgets it."""
        with self._lock:
            failures, self._failures = self._failures, []
        return failures

    def stop_asking(self) -> None:
        """From now on it is no mistake of a handler that the disk is closed."""
        self._closing = True

    def close(self) -> None:
        """Answers nothing any more: what is asked gets its rule's default."""
        self.stop_asking()
        self._client.close()
        if self._thread is not threading.current_thread():
            # A handler that hangs has lost its request already, and is left behind.
            self._thread.join(PATIENCE)

    def _answer_all(self) -> None:
        while True:
            try:
                event = self._client.take_event("FAULT_ASK")
            except QMPError:
                return
            ask = _ask(event.data, self._lba_size)
            answer = self._decide(ask)
            try:
                self._answer(ask, answer)
            except Closed:
                return
            except QMPError as error:
                if not self._is_void(ask):
                    self._failed(ask, error)

    def _answer(self, ask: Ask, answer: Answer) -> None:
        self._client.execute("fault-answer", {"ask": ask.number, **answer.arguments()}, oob=True)

    def _is_void(self, ask: Ask) -> bool:
        """Whether an answer was refused because nobody waits for it any more, its client being gone."""
        try:
            # If it still waits, the answer was wrong; the request is not left to its time.
            self._answer(ask, ask.fail())
            return False
        except QMPError:
            pass
        try:
            over = self._client.wait_event("FAULT_ASK_OVER", timeout=5, ask=ask.number)
            return bool(over.data["why"] == "cancelled")
        except QMPError:
            return False

    def _decide(self, ask: Ask) -> Answer:
        with self._lock:
            handler = self._handlers.get(ask.rule)
        if handler is None:
            return ask.proceed()
        try:
            answer = handler(ask)
            if answer is None:
                return ask.proceed()
            if isinstance(answer, Answer):
                return answer
            if isinstance(answer, (bytes, bytearray, memoryview)):
                return ask.proceed(bytes(answer))
            raise TypeError(f"a handler returns an Answer, bytes or None, not {answer!r}")
        # Whatever it is, the test hears of it when it looks at the disk next.
        except BaseException as error:  # noqa: B902
            self._failed(ask, error)
            return ask.fail("EIO")

    def _failed(self, ask: Ask, error: BaseException) -> None:
        if self._closing and isinstance(error, Closed):
            # It was using the disk when that was closed.
            return
        with self._lock:
            self._failures.append((ask, error))


def _ask(data: Mapping[str, Any], lba_size: int) -> Ask:
    return Ask(
        number=data["ask"],
        rule=data["rule"],
        operation=data["operation"],
        offset=data["offset"],
        length=data["bytes"],
        fua=data["fua"],
        timeout=data["timeout"],
        data=base64.b64decode(data["data"]) if "data" in data else None,
        lba_size=lba_size,
    )


def describe(ask: Ask, error: BaseException) -> str:
    """What a handler has raised, for people."""
    trace = "".join(traceback.format_exception(type(error), error, error.__traceback__)).rstrip()
    return f"the handler of rule '{ask.rule}' failed on {ask.operation} of {ask.length} bytes at {ask.offset}:\n{trace}"
