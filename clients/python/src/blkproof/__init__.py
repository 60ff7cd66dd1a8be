"""Disks that fail as told, for tests of whatever uses a disk.

:class:`Disk` starts ``blkproof serve`` on an image or on a fresh disk, gives its NBD URI, and steers its faults while a
client uses it. :mod:`blkproof.qmp` is the protocol beneath, :mod:`blkproof.pytest_plugin` brings fixtures.
"""

from .ask import Answer, Ask
from .process import ServeError
from .qmp import Client, CommandError, Event, QMPError
from .rule import Hold, Rule
from .serve import Disk, PowerCut

__all__ = [
    "Answer",
    "Ask",
    "Client",
    "CommandError",
    "Disk",
    "Event",
    "Hold",
    "PowerCut",
    "QMPError",
    "Rule",
    "ServeError",
]
