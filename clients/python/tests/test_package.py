"""The package as others get it: built and installed without a network, its plugin found by pytest."""

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import blkproof

HERE = Path(__file__).parents[1]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy: building writes beside the sources."""
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "build", "dist")
    return Path(shutil.copytree(HERE, tmp_path / "source", ignore=ignored))


def run(*command: str, cwd: Path) -> str:
    # Not this tree's sources: what was installed is what is tested.
    environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "PIP_NO_INDEX": "1", "PIP_NO_CACHE_DIR": "1"}
    both = subprocess.STDOUT
    done = subprocess.run(command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=both, text=True)
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_it_is_built_and_installed(source: Path, tmp_path: Path, blkproof_binary: str) -> None:
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(source), cwd=tmp_path)
    names = sorted(path.name for path in (tmp_path / "dist").iterdir())
    assert names == ["blkproof-0.1.0-py3-none-any.whl", "blkproof-0.1.0.tar.gz"]
    with zipfile.ZipFile(tmp_path / "dist" / names[0]) as wheel:
        inside = wheel.namelist()
        metadata = wheel.read("blkproof-0.1.0.dist-info/METADATA").decode()
    modules = {f"blkproof/{path.name}" for path in (HERE / "src" / "blkproof").glob("*.py*")}
    assert modules | {"blkproof/py.typed"} <= set(inside)
    assert {"LICENSE-MIT", "LICENSE-APACHE"} <= {name.rpartition("/")[2] for name in inside}
    assert "License: MIT OR Apache-2.0\n" in metadata and "Requires-Python: >=3.9\n" in metadata
    assert "Requires-Dist" not in metadata
    with tarfile.open(tmp_path / "dist" / names[1]) as archive:
        assert "blkproof-0.1.0/README.md" in archive.getnames()
    # From the sources, as in the README; pytest and setuptools are those of the system.
    venv = tmp_path / "venv"
    run(sys.executable, "-m", "venv", "--system-site-packages", str(venv), cwd=tmp_path)
    run(str(venv / "bin" / "pip"), "install", "--no-build-isolation", "--no-deps", str(source), cwd=tmp_path)
    (tmp_path / "test_it.py").write_text(
        "import blkproof\n\ndef test_it(disk):\n"
        f"    assert blkproof.__file__.startswith({str(venv)!r})\n    assert disk.fail_read(lba=1).fired == 0\n"
    )
    said = run(
        str(venv / "bin" / "python"), "-m", "pytest", "--blkproof", blkproof_binary, "test_it.py", cwd=tmp_path
    )
    assert "plugins: blkproof-0.1.0" in said and "1 passed" in said


def test_versions_agree() -> None:
    ours = re.search(r'^version = "(.*)"', (HERE / "pyproject.toml").read_text(), re.MULTILINE)
    theirs = re.search(r'^version = "(.*)"', (HERE / "../../Cargo.toml").read_text(), re.MULTILINE)
    assert ours and theirs and ours[1] == theirs[1]
    assert all(hasattr(blkproof, name) for name in blkproof.__all__)
