"""Rules: what they are made from, and what is done with one that is armed.

The fields are those of rule files, checked by the server. Here only Python's shapes are turned into them.
"""

from typing import TYPE_CHECKING, Any, Dict, Iterable, List, Mapping, Optional, Sequence, Union

if TYPE_CHECKING:
    from .serve import Disk

__all__ = ["Hold", "Lba", "Operation", "Rule", "When"]

Lba = Union[int, str, range, Sequence[Union[int, str, range]]]
"""Sectors: ``50``, ``range(32, 64)``, ``"32..64"`` (64 is not in it), ``"32+8"``, or a list of such."""

Operation = Union[str, Sequence[str]]
"""``read``, ``write``, ``write-zeroes``, ``discard``, ``flush``, ``block-status``, ``resize``, or a list of such."""

When = Union[int, float, str, range, Sequence[Union[int, str, range]]]
"""Any other field of ``on``: ``bytes``, ``event``, ``nth``, ``every``, ``probability``, ``times``, ``state``,
``after``, ``before``, ``slower_than``, ``faster_than``."""

_LIVES = {"rewrite": "rewritten", "reassign": "reassigned"}


def matching(op: Optional[Operation], lba: Optional[Lba], when: Mapping[str, When]) -> Dict[str, Any]:
    """The table ``on`` of a rule."""
    on: Dict[str, Any] = {} if op is None else {"op": _listed(op)}
    if lba is not None:
        on["lba"] = _ranges(lba)
    for key, value in when.items():
        on[key.replace("_", "-")] = _ranges(value)
    return on


def life(until: Union[None, str, int, Mapping[str, Any]]) -> Union[None, str, Dict[str, Any]]:
    """The field ``life`` of a rule, of ``rewrite``, ``reassign``, a number of failed accesses, or what it takes."""
    if isinstance(until, int):
        return {"accesses": until}
    if isinstance(until, str):
        return {"until": _LIVES[until]} if until in _LIVES else until
    return None if until is None else dict(until)


def failure(
    error: Optional[str], sense: Optional[str], nvme: Optional[str], ata: Optional[str], errno: Union[None, int, str]
) -> Union[int, str]:
    """The field ``error`` of a rule, of one of these."""
    given: List[Union[int, str]] = [word for word in (error, sense, errno) if word is not None]
    given += [f"{prefix}:{word}" for prefix, word in (("nvme", nvme), ("ata", ata)) if word is not None]
    if len(given) > 1:
        raise TypeError("an error is one of error, sense, nvme, ata and errno; several were given")
    return given[0] if given else "EIO"


def _listed(words: Operation) -> Union[str, List[str]]:
    return words if isinstance(words, str) else list(words)


def _ranges(value: Any) -> Any:
    """Python's ranges as rules write them; everything else as it is."""
    if isinstance(value, range):
        if value.step != 1:
            raise ValueError(f"{value} has a step; sectors of a rule stand side by side")
        return f"{value.start}..{value.stop}"
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping)):
        return [_ranges(one) for one in value]
    return value


class Rule:
    """A rule that was added to a disk."""

    def __init__(self, disk: "Disk", id: str) -> None:
        self.disk = disk
        self.id = id

    def status(self) -> Dict[str, Any]:
        """What ``fault-list`` says of it: ``armed``, ``fired``, ``seen``, ``bad-sectors``, …, and the ``rule``."""
        for status in self.disk.rules():
            if status["id"] == self.id:
                return status
        raise LookupError(f"the disk has no rule '{self.id}' any more")

    @property
    def fired(self) -> int:
        """How often it fired since it was added or reset."""
        return int(self.status()["fired"])

    @property
    def seen(self) -> int:
        """How many requests it matched, whether it fired on them or not."""
        return int(self.status()["seen"])

    def wait(self, count: int = 1, timeout: float = 30.0) -> int:
        """Waits until it has fired so often; see :meth:`Disk.wait_fired`."""
        return self.disk.wait_fired(self, count, timeout)

    def arm(self) -> None:
        """Lets it fire again."""
        self.disk.command("fault-arm", rule=self.id, armed=True)

    def disarm(self) -> None:
        """Keeps it from firing; it forgets nothing."""
        self.disk.command("fault-arm", rule=self.id, armed=False)

    def reset(self) -> None:
        """Makes it as it was when it was added."""
        self.disk.command("fault-reset", rule=self.id)

    def remove(self) -> None:
        """Removes it and its damage; what it holds goes on."""
        self.disk.command("fault-remove", rule=self.id)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.id!r})"


class Hold(Rule):
    """A rule that parks requests. As a context manager it releases them at the end, and is removed."""

    def release(self, count: Optional[int] = None) -> int:
        """Lets parked requests go on, the oldest first: all, or so many. Answers how many."""
        return self.disk.release(self.id, count)

    def __enter__(self) -> "Hold":
        return self

    def __exit__(self, *_: object) -> None:
        # Removing a rule lets go what it holds.
        self.remove()
