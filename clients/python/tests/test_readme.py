"""The examples of the README, and of the project's page on it, run."""

import re
from pathlib import Path

import pytest

HERE = Path(__file__).parents[1]


@pytest.mark.parametrize("page", ["README.md", "../../docs/python.md"])
def test_examples_run(page: str, pytester: pytest.Pytester, blkproof_binary: str) -> None:
    text = (HERE / page).read_text("utf-8")
    examples = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert examples
    tests = 0
    for number, example in enumerate(examples):
        tests += example.count("\ndef test_") + example.startswith("def test_")
        # What is no test is a script, and has to run too.
        name = f"test_{number}" if "def test_" in example else f"script_{number}"
        pytester.makepyfile(**{name: example})
    args = ["-p", "blkproof.pytest_plugin", "-p", "no:cacheprovider", "--blkproof", blkproof_binary]
    pytester.runpytest_subprocess(*args).assert_outcomes(passed=tests)
    for script in sorted(pytester.path.glob("script_*.py")):
        assert pytester.runpython(script).ret == 0
