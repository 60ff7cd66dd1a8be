"""The pytest plugin, in a pytest of its own: what passes, what fails, and what is then shown."""

import pytest

HEAD = """import subprocess

def io(uri, command):
    return subprocess.run(['qemu-io', '-f', 'raw', '-c', command, uri]).returncode
"""


@pytest.fixture
def run(pytester: pytest.Pytester, blkproof_binary: str) -> "Runner":
    return Runner(pytester, blkproof_binary)


class Runner:
    def __init__(self, pytester: pytest.Pytester, binary: str) -> None:
        self.pytester = pytester
        self.binary = binary

    def __call__(self, code: str, *args: str) -> pytest.RunResult:
        self.pytester.makepyfile(HEAD + code)
        args = ("-p", "blkproof.pytest_plugin", "-p", "no:cacheprovider", "--blkproof", self.binary, *args)
        return self.pytester.runpytest_subprocess(*args)


def test_right_expectations_pass_and_wrong_ones_fail(run: Runner) -> None:
    result = run(
        """
import pytest

def test_right(disk):
    rule = disk.fail_read(lba=50)
    assert io(disk.uri, 'read 25600 512') == 1
    assert rule.fired == 1

def test_wrong(disk):
    rule = disk.fail_read(lba=50)
    disk.fail_write(lba=7)
    assert io(disk.uri, 'read 25600 512') == 1
    assert io(disk.uri, 'read 25088 512') == 1

@pytest.mark.blkproof_disk(size=1 << 16, kind='liar')
def test_marked(disk, blkproof_disk):
    assert (disk.state()['kind'], disk.state()['size']) == ('liar', 65536)
    other = blkproof_disk(kind=None)
    assert other.uri != disk.uri
"""
    )
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(
        [
            "*blkproof disk, call*",
            "image *disk.raw at nbd+unix:///?socket=*",
            "rules:",
            '  fail-read-1: fired 1 of 1 seen, armed: {"id": "fail-read-1", *"lba": 50*',
            "  fail-write-2: fired 0 of 0 seen, armed: *",
            "events: *",
            "  FAULT_FIRED node=fault rule=fail-read-1 action=fail *offset=25600 bytes=512 *",
            "FAILED *::test_wrong - *",
        ]
    )
    result.stdout.no_fnmatch_line("*blkproof disk, teardown*")


def test_servers_and_handlers_that_fail_make_tests_fail(run: Runner) -> None:
    result = run(
        """
import os, signal

def test_killed(blkproof_disk):
    disk = blkproof_disk(size=1 << 20)
    other = blkproof_disk(size=1 << 20)
    os.kill(disk.pid, signal.SIGKILL)

def test_handler(disk):
    disk.ask('read', None, lambda ask: {}['no such plan'])
    io(disk.uri, 'read 0 512')

def test_unharmed(disk):
    pass
"""
    )
    result.assert_outcomes(passed=3, errors=2)
    result.stdout.fnmatch_lines(
        [
            "E *ServeError: blkproof serve ended by itself, with status -9",
            "*blkproof disk, teardown*",
            "*the handler of rule 'ask-1' failed on read of 512 bytes at 0:",
            "*KeyError: 'no such plan'",
            "*ask-1: fired 1 of 1 seen*",
        ],
    )


def test_a_binary_that_is_not_there(run: Runner) -> None:
    run.binary = "/nowhere/blkproof"
    result = run("def test_any(disk):\n    pass\n")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*ServeError: the program '/nowhere/blkproof' is not there*--blkproof PATH*"])


def test_the_help_names_fixtures_and_options(run: Runner) -> None:
    run("", "--fixtures").stdout.fnmatch_lines(["blkproof_disk -- *", "disk -- *"])
    run("", "--markers").stdout.fnmatch_lines(["@pytest.mark.blkproof_disk(image=None, [*][*]options): *"])
    run("", "--help").stdout.fnmatch_lines(["*--blkproof=BIN*"])
