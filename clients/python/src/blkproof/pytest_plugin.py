"""Disks as fixtures of pytest.

- ``disk`` is a fresh disk; the marker ``blkproof_disk`` takes what :class:`Disk` takes, as in
  ``@pytest.mark.blkproof_disk(size=1 << 20, kind="liar")``.
- ``blkproof_disk`` makes any number of disks, with the arguments of :class:`Disk`.

Disks are closed after the test, which fails if a server or a handler has failed. A failed test shows for each of its
disks the rules with their counters, the last events, and what the server said.
"""

from typing import Any, Callable, Generator, Iterator, List

import pytest

from .process import find_binary
from .serve import Disk

_disks = pytest.StashKey[List[Disk]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("blkproof")
    group.addoption("--blkproof", metavar="BIN", help="the blkproof binary [default: $BLKPROOF, or that of the path]")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "blkproof_disk(image=None, **options): what the fixture `disk` is made with")


@pytest.fixture(scope="session")
def blkproof_binary(request: pytest.FixtureRequest) -> str:
    """The path of the blkproof binary."""
    return find_binary(request.config.getoption("--blkproof"))


@pytest.fixture
def blkproof_disk(request: pytest.FixtureRequest, blkproof_binary: str) -> Iterator[Callable[..., Disk]]:
    """Makes disks, with the arguments of :class:`Disk`; they are closed after the test."""
    disks: List[Disk] = []
    request.node.stash[_disks] = disks

    def make(*args: Any, **options: Any) -> Disk:
        options.setdefault("binary", blkproof_binary)
        disk = Disk(*args, **options)
        disks.append(disk)
        return disk

    yield make
    failures: List[BaseException] = []
    for disk in reversed(disks):
        try:
            disk.close()
        # All of them are closed; the first failure is told.
        except Exception as error:
            failures.append(error)
    if failures:
        raise failures[0]


@pytest.fixture
def disk(request: pytest.FixtureRequest, blkproof_disk: Callable[..., Disk]) -> Disk:
    """A disk: fresh, or as the marker ``blkproof_disk`` says."""
    marker = request.node.get_closest_marker("blkproof_disk")
    return blkproof_disk(*marker.args, **marker.kwargs) if marker else blkproof_disk()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: "pytest.CallInfo[None]") -> Generator[None, Any, None]:
    outcome = yield
    report = outcome.get_result()
    if report.failed:
        for disk in item.stash.get(_disks, []):
            report.sections.append((f"blkproof disk, {report.when}", disk.report()))
