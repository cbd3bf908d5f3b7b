"""Skipped tests are told of, and fail where they must run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SKIPPING = """
import pytest

@pytest.mark.parametrize("i", [1, 2])
@pytest.mark.skipif(True, reason="no browser: apt install chromium")
def test_page(i): ...

def test_other():
    if {other}:
        pytest.skip("no Node")
"""


def outcome(folder: Path, *arguments: str, must_run: str = "", other: bool = True) -> tuple[int, str]:
    (folder / "test_it.py").write_text(SKIPPING.format(other=other))
    (folder / "test_module.py").write_text("import pytest; pytest.importorskip('nobody', reason='nobody is here')")
    (folder / "test_sound.py").write_text("def test_sound(): ...")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "not_run", "-p", "no:cacheprovider", "--rootdir", ".", *arguments],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parent),
            "MUST_RUN": must_run,
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        },
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("processes", [(), ("-p", "xdist.plugin", "-n", "2")], ids=["one process", "two processes"])
def test_what_was_not_run(tmp_path: Path, processes: tuple[str, ...]) -> None:
    if processes:
        pytest.importorskip("xdist")
    code, output = outcome(tmp_path, *processes)
    [line] = [line for line in output.splitlines() if line.startswith("Not run: ")]
    assert code == 0 and line.startswith("Not run: 2 tests, no browser: apt install chromium; ")
    assert "1 test, no Node" in line and "nobody is here" in line

    code, output = outcome(tmp_path, *processes, must_run="test_it.py test_module.py test_sound.py")
    assert code == 1 and "Must be run here, and was skipped: test_it.py, test_module.py" in output


def test_nothing_was_skipped(tmp_path: Path) -> None:
    code, output = outcome(tmp_path, "test_sound.py", must_run="test_sound.py")
    assert code == 0 and "Not run" not in output
