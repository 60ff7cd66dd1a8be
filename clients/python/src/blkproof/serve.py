"""Disks for tests: ``blkproof serve`` on an image, with its faults in the test's hands."""

import dataclasses
import json
import os
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Dict, List, Mapping, Optional, Sequence, Type, Union

from .ask import Asker, Handler, describe
from .process import ServeError, Server
from .qmp import Client, Event, QMPError
from .rule import Hold, Lba, Operation, Rule, When, failure, life, matching

__all__ = ["Disk", "PowerCut"]

DEFAULT_SIZE = 64 << 20
"""Bytes of a fresh disk."""

STATS_NODE = "stats"
"""What ``blkproof serve --stats`` calls the node in front of the only export."""


@dataclasses.dataclass(frozen=True)
class PowerCut:
    """What a power cut has done."""

    cut: int
    """Its number."""
    state: str
    """The state the disk came back in: a name that asks for the same again."""
    size: int
    """Bytes of the disk in that state."""
    requests: int
    """Requests that were not yet durable."""
    lost: int
    """Bytes that were acknowledged and are not there."""
    betrayed: int
    """Those of them that a flush had covered: what only a liar loses."""
    on: bool
    """Whether the disk is back; False if it stays off until :meth:`Disk.power_on`."""


class Disk:
    """A disk that ``blkproof serve`` exports over NBD.

    ``image`` is any graph that blkproof serves: a path, ``blkverify:RAW:TEST``, …; without it there is a fresh disk
    of ``size`` bytes. ``format`` is the image's, as in ``-f``. The rest is in front of it: a disk with a write cache
    (``kind`` ``honest`` or ``liar``, ``profile``, ``disk_options``; none with ``kind=None``), statistics, and rules,
    those of a ``rules`` file among them. ``args`` are further arguments of ``blkproof serve``.

    ``node`` names the fault node, if the graph has several. ``timeout``, in seconds, is for starting, for ending and
    for each command.

    As a context manager it is stopped at the end. Nothing of the server is left behind, whatever happens.
    """

    def __init__(
        self,
        image: Union[None, str, "os.PathLike[str]"] = None,
        *,
        size: int = DEFAULT_SIZE,
        format: Optional[str] = None,
        kind: Optional[str] = "honest",
        profile: Optional[str] = None,
        disk_options: Optional[Mapping[str, Union[str, int]]] = None,
        rules: Union[None, str, "os.PathLike[str]"] = None,
        seed: Optional[int] = None,
        read_only: bool = False,
        node: Optional[str] = None,
        args: Sequence[str] = (),
        binary: Optional[str] = None,
        timeout: float = 30.0,
    ) -> None:
        self._node: Dict[str, Any] = {} if node is None else {"node": node}
        self._timeout = timeout
        self._names = 0
        self._asker: Optional[Asker] = None
        self._closed = False
        self._last_rules: List[Dict[str, Any]] = []
        # A folder goes with the object, also if nobody closes the disk.
        self._folder: Optional["tempfile.TemporaryDirectory[str]"] = None
        if image is None:
            self._folder = tempfile.TemporaryDirectory(prefix="blkproof-disk-")
            self.image = str(Path(self._folder.name) / "disk.raw")
            with open(self.image, "wb") as file:
                file.truncate(size)
            format = "raw"
        else:
            self.image = os.fspath(image)
        options = _serve_options(format, kind, profile, disk_options, rules, seed, read_only)
        try:
            self._server = Server([*options, *args, "--", self.image], binary, timeout)
        except BaseException:
            self._remove_folder()
            raise
        try:
            self._client = Client(self._server.control, timeout)
        except BaseException:
            self._server.kill()
            self._remove_folder()
            raise
        try:
            self._oob = self._overtaking()
            self.lba_size = int(self._fault_nodes()[0]["lba-size"])
        except BaseException:
            self._stop_quietly()
            raise

    @property
    def uri(self) -> str:
        """The NBD URI of the disk."""
        return self._server.uris[0]

    @property
    def control(self) -> str:
        """The path of the control socket, for ``blkproof ctl`` and other clients."""
        return self._server.control

    @property
    def stderr(self) -> str:
        """What the server has said."""
        return self._server.stderr

    @property
    def pid(self) -> int:
        """The number of the server's process."""
        return self._server.pid

    def command(self, command: str, *, timeout: Optional[float] = None, **arguments: Any) -> Any:
        """Does any command of the control socket; a dash in the name of an argument is written as ``_``.

        Arguments that are None are left out.
        """
        given = {key.replace("_", "-"): value for key, value in arguments.items() if value is not None}
        return self._client.execute(command, given, oob=command in self._oob, timeout=timeout)

    def add_rule(
        self,
        do: Union[str, Mapping[str, Any]],
        *,
        op: Optional[Operation] = None,
        lba: Optional[Lba] = None,
        until: Union[None, str, int, Mapping[str, Any]] = None,
        then: Optional[Mapping[str, Any]] = None,
        id: Optional[str] = None,
        **when: When,
    ) -> Rule:
        """Arms any rule, with the fields of rule files; the methods below are for the usual ones.

        ``when`` is what else the table ``on`` takes: ``nth=3``, ``probability="1%"``, ``times=1``, ``state="storm"``, …
        When this returns, the next request meets the rule.
        """
        return self._add(id or self._name("rule"), matching(op, lba, when), do, until, then)

    def fail_read(
        self,
        lba: Optional[Lba] = None,
        *,
        sense: Optional[str] = None,
        nvme: Optional[str] = None,
        ata: Optional[str] = None,
        errno: Union[None, int, str] = None,
        error: Optional[str] = None,
        until: Union[None, str, int, Mapping[str, Any]] = None,
        done: Optional[str] = None,
        id: Optional[str] = None,
        **when: When,
    ) -> Rule:
        """Fails reads that touch the sectors.

        The error is SCSI ``sense`` such as ``"03/1101"``, an ``nvme`` status such as ``"2/81 dnr"``, ``ata`` such as
        ``"UNC"``, an ``errno`` such as ``"ENOSPC"``, or, as ``error``, however a rule file writes it; EIO if nothing is
        given. ``until`` is ``"rewrite"``, ``"reassign"``, a number of failed accesses, or what ``life`` takes in a rule
        file. ``done`` is what is done all the same: ``nothing``, ``prefix`` or ``all``.
        """
        do = self._fail(failure(error, sense, nvme, ata, errno), done)
        return self._add(id or self._name("fail-read"), matching("read", lba, when), do, until)

    def fail_write(
        self,
        lba: Optional[Lba] = None,
        *,
        sense: Optional[str] = None,
        nvme: Optional[str] = None,
        ata: Optional[str] = None,
        errno: Union[None, int, str] = None,
        error: Optional[str] = None,
        until: Union[None, str, int, Mapping[str, Any]] = None,
        done: Optional[str] = None,
        id: Optional[str] = None,
        **when: When,
    ) -> Rule:
        """Fails writes, and zeroes written, that touch the sectors; otherwise as :meth:`fail_read`."""
        do = self._fail(failure(error, sense, nvme, ata, errno), done)
        on = matching(["write", "write-zeroes"], lba, when)
        return self._add(id or self._name("fail-write"), on, do, until)

    def fail_flush(self, *, error: str = "EIO", id: Optional[str] = None, **when: When) -> Rule:
        """Fails flushes, before the disk sees them."""
        return self._add(id or self._name("fail-flush"), matching("flush", None, when), self._fail(error, None))

    def delay(
        self,
        time: Union[str, float],
        *,
        op: Optional[Operation] = None,
        lba: Optional[Lba] = None,
        id: Optional[str] = None,
        **when: When,
    ) -> Rule:
        """Delays requests by ``"5ms"``, ``"1ms..9ms"``, or so many seconds."""
        do = {"delay": time if isinstance(time, str) else f"{round(time * 1e6)}us"}
        return self._add(id or self._name("delay"), matching(op, lba, when), do)

    def hold(
        self, *, op: Optional[Operation] = None, lba: Optional[Lba] = None, tag: Optional[str] = None, **when: When
    ) -> Hold:
        """Parks requests until they are released: the next one that matches, or so many as ``times`` says.

        ``wait()`` of what this returns says when one is parked.
        """
        tag = tag or self._name("hold")
        self.command("fault-hold", **self._node, tag=tag, on=matching(op, lba, when))
        return Hold(self, tag)

    def release(self, tag: Optional[str] = None, count: Optional[int] = None) -> int:
        """Lets parked requests go on, the oldest first, and answers how many; only of ``tag`` if that is given."""
        return int(self.command("fault-release", **self._node, tag=tag, count=count)["released"])

    def corrupt(
        self,
        lba: Optional[Lba] = None,
        *,
        how: str = "flip",
        op: Optional[Operation] = "read",
        id: Optional[str] = None,
        fields: Optional[Mapping[str, Any]] = None,
        until: Union[None, str, int, Mapping[str, Any]] = None,
        **when: When,
    ) -> Rule:
        """Damages data: ``flip``, ``stuck``, ``zero``, ``stale``, ``foreign`` or ``random``.

        ``fields`` are those of the action: ``{"bits": 3}``, ``{"distance": 8}``. A retry reads the same.
        """
        do = {"corrupt": how, **(fields or {})}
        return self._add(id or self._name("corrupt"), matching(op, lba, when), do, until)

    def disconnect(
        self,
        *,
        op: Optional[Operation] = None,
        lba: Optional[Lba] = None,
        times: int = 1,
        id: Optional[str] = None,
        **when: When,
    ) -> Rule:
        """Cuts the connection of the client whose request matches, without an answer; once, or so many ``times``."""
        on = {**matching(op, lba, when), "times": times}
        return self._add(id or self._name("disconnect"), on, "disconnect")

    def ask(
        self,
        op: Optional[Operation],
        lba: Optional[Lba],
        handler: Handler,
        *,
        timeout: float = 30.0,
        default: str = "EIO",
        data: bool = True,
        id: Optional[str] = None,
        **when: When,
    ) -> Rule:
        """Has ``handler`` decide what becomes of each request that matches.

        It gets an :class:`Ask` and returns ``ask.proceed()``, ``ask.proceed(data)``, ``ask.fail(error)``,
        ``ask.succeed()``, bytes to proceed with, or None to proceed. It runs in a thread of its own, one question
        after the other, and may use the disk. If it raises, the request fails with EIO, and the disk raises when it is
        closed, or in :meth:`check`. After ``timeout`` seconds the request gets ``default``: an error, or ``proceed``.
        """
        id = id or self._name("ask")
        if self._asker is None:
            self._asker = Asker(self._server.control, self._node, self.lba_size, self._timeout)
        # First: the first question already has to find somebody.
        self._asker.register(id, handler)
        do = {"ask": f"{round(timeout * 1000)}ms", "default": default, "data": data}
        try:
            return self._add(id, matching(op, lba, when), do)
        except BaseException:
            self._asker.unregister(id)
            raise

    def rules(self) -> List[Dict[str, Any]]:
        """Every rule, with what it has done: ``id``, ``armed``, ``fired``, ``seen``, …, ``rule``."""
        return [rule for node in self._fault_nodes() for rule in node["rules"]]

    def reset(self) -> None:
        """Removes every rule."""
        self.command("fault-remove", **self._node, all=True)

    def set_state(self, state: str) -> None:
        """Changes the state that rules look at."""
        self.command("fault-state", **self._node, state=state)

    def wait_fired(self, rule: Union[Rule, str], count: int = 1, timeout: float = 30.0) -> int:
        """Waits until a rule has fired so often, counted from when it was added or reset; answers how often it has.

        Raises :class:`CommandError` if it has not within ``timeout`` seconds.
        """
        id = rule.id if isinstance(rule, Rule) else rule
        arguments = {**self._node, "rule": id, "count": count, "timeout": timeout}
        # Over its own connection: other threads go on with the commands of this one.
        with Client(self._server.control, self._timeout) as client:
            answer = client.execute("fault-wait", arguments, timeout=timeout + self._timeout)
        return int(answer["fired"])

    def power_cut(self, state: Optional[str] = None) -> PowerCut:
        """Cuts the power: clients are disconnected, and the disk comes back as ``state``, or as its seed picks.

        When this returns, the disk is in its new state.
        """
        answer = self.command("power-cut", state=state)
        return PowerCut(**{field.name: answer[field.name] for field in dataclasses.fields(PowerCut)})

    def power_on(self) -> None:
        """Switches the disk on that stayed off after a power cut (``disk_options={"stay-off": "on"}``)."""
        self.command("power-on")

    def state(self, names: int = 16) -> Dict[str, Any]:
        """What the disk holds that a power cut could lose, and ``names`` of states it could come back in."""
        return dict(self.command("disk-state", names=names))

    def stats(self) -> Dict[str, Any]:
        """The figures of requests, as ``query-blockstats`` has them: ``rd_operations``, ``wr_bytes``, …

        ``driver-specific`` holds blkproof's own: latencies, sizes, alignments, queue depth.
        """
        # By name: the image's graph may have such nodes of its own.
        answer = self.command("stats-query", node=STATS_NODE)[0]
        return {**answer["stats"], "driver-specific": answer["driver-specific"]}

    def reset_stats(self) -> None:
        """Forgets the figures."""
        self.command("stats-reset", node=STATS_NODE)

    def events(self, name: Optional[str] = None, **fields: Any) -> List[Event]:
        """What has happened, the oldest first: all, or only events of that ``name`` with these ``fields``.

        What happened before this was called is among them. :meth:`wait_event` waits for those that are to come, and sees
        those of the past too.
        """
        # What happened before a reply stands before it.
        self.command("query-version")
        return self._client.events(name, **fields)

    def wait_event(self, name: str, count: int = 1, timeout: float = 30.0, **fields: Any) -> Event:
        """Waits until so many such events have come, counted from the beginning, and returns the last of them."""
        return self._client.wait_event(name, count, timeout, **fields)

    def check(self) -> None:
        """Raises if the server has ended, or if a handler of :meth:`ask` has failed."""
        if not self._closed and not self._server.is_running:
            self.close()
        failures = self._asker.failures() if self._asker is not None else []
        if failures:
            # The first one is the cause; the others are told in its words.
            words = "\n".join(describe(ask, error) for ask, error in failures)
            raise AssertionError(words) from failures[0][1]

    def report(self, events: int = 20) -> str:
        """The disk in words, for whoever reads of a failed test: rules with their counters, and the last events."""
        try:
            rules = self._last_rules if self._closed else self.rules()
        except QMPError as error:
            rules, said = self._last_rules, f"(the server does not answer: {error})"
        else:
            said = ""
        lines = [f"image {self.image} at {self.uri}"]
        lines += ["rules:" if rules else "rules: none"]
        for rule in rules:
            armed = "armed" if rule["armed"] else "not armed"
            counts = f"fired {rule['fired']} of {rule['seen']} seen, {armed}"
            lines.append(f"  {rule['id']}: {counts}: {json.dumps(rule['rule'])}")
        every = self._client.events()
        lines.append(f"events: {len(every)}" + (f", the last {events}:" if len(every) > events else ""))
        lines += [f"  {event}" for event in every[-events:]]
        if self._client.events_lost:
            lines.append(f"  ({self._client.events_lost} events were lost)")
        if said:
            lines.append(said)
        if self.stderr.strip():
            lines += ["the server said:", *(f"  {line}" for line in self.stderr.strip().splitlines())]
        return "\n".join(lines)

    def close(self) -> None:
        """Stops the server. Raises if it failed, or if a handler of :meth:`ask` did."""
        if self._closed:
            return
        try:
            self._stop()
        finally:
            self._remove_folder()
        self.check()

    def __enter__(self) -> "Disk":
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        if error is None:
            self.close()
        else:
            # What went wrong first is what the reader needs.
            self._stop_quietly()

    def __repr__(self) -> str:
        return f"<Disk {self.uri}>"

    def _stop(self) -> None:
        self._closed = True
        try:
            self._last_rules = self.rules()
        except QMPError:
            # It has ended by itself: stopping says so.
            pass
        try:
            self._close_connections()
        finally:
            self._server.stop(self._timeout)

    def _stop_quietly(self) -> None:
        self._closed = True
        try:
            self._close_connections()
            self._server.stop(self._timeout)
        except ServeError:
            # Whatever is being raised is more to the point.
            pass
        finally:
            self._remove_folder()

    def _close_connections(self) -> None:
        asker = self._asker
        if asker is not None:
            asker.stop_asking()
        # Handlers that wait for something of the disk hear that it is over.
        self._client.close()
        if asker is not None:
            asker.close()

    def _remove_folder(self) -> None:
        if self._folder is not None:
            self._folder.cleanup()

    def _add(
        self,
        id: str,
        on: Mapping[str, Any],
        do: Union[str, Mapping[str, Any]],
        until: Union[None, str, int, Mapping[str, Any]] = None,
        then: Optional[Mapping[str, Any]] = None,
    ) -> Rule:
        rule: Dict[str, Any] = {"id": id, "on": on, "do": do}
        lives = life(until)
        if lives is not None:
            rule["life"] = lives
        if then is not None:
            rule["then"] = then
        self.command("fault-add", **self._node, rule=rule)
        return Rule(self, id)

    def _fault_nodes(self) -> List[Dict[str, Any]]:
        return list(self.command("fault-list", **self._node))

    def _overtaking(self) -> Sequence[str]:
        """The commands that may overtake others: so no thread waits for what another one waits for."""
        schema = self._client.execute("query-schema")
        return [command["name"] for command in schema["commands"] if command["oob"]]

    def _name(self, prefix: str) -> str:
        self._names += 1
        return f"{prefix}-{self._names}"

    @staticmethod
    def _fail(error: Union[int, str], done: Optional[str]) -> Dict[str, Any]:
        return {"fail": error} if done is None else {"fail": error, "done": done}


def _serve_options(
    format: Optional[str],
    kind: Optional[str],
    profile: Optional[str],
    disk_options: Optional[Mapping[str, Union[str, int]]],
    rules: Union[None, str, "os.PathLike[str]"],
    seed: Optional[int],
    read_only: bool,
) -> List[str]:
    options = ["--stats"]
    if format is not None:
        options += ["-f", format]
    more: Dict[str, Union[str, int]] = {} if profile is None else {"profile": profile}
    more.update(disk_options or {})
    if kind is not None:
        words = ",".join(f"{key}={value}" for key, value in more.items())
        options += ["--disk", f"{kind}:{words}" if words else kind]
    elif more:
        raise TypeError("options of a disk without a kind of disk")
    if rules is not None:
        options += ["--rules", os.fspath(rules)]
    if seed is not None:
        options += ["--seed", str(seed)]
    if read_only:
        options.append("--read-only")
    return options
