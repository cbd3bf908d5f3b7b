"""The wheel and the source distribution hold all that an answer needs, and no more than they should."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from email.parser import BytesParser
from email.policy import default
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest

pytest.importorskip("setuptools", "77", reason="setuptools 77 builds the package; the dependency group `dev` has it")

ROOT = Path(__file__).parents[1]
_LEFT_OUT = ignore_patterns(
    ".*cache*",
    ".git",
    ".hypothesis",
    ".venv",
    "*.egg-info",
    "__pycache__",
    "build",
    "dist",
    "node_modules",
    "*.so",
    "*.dll",
)
_BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Run in a folder without sources of ours; the tests' own packages serve, ours only from `PYTHONPATH`."""
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": "", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(kind: str, source: Path, folder: Path) -> Path:
    """`wheel` or `sdist` of the sources, built as pip does it."""
    folder.mkdir()
    return folder / run("-c", _BUILD, f"build_{kind}", folder, cwd=source).splitlines()[-1]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked source distribution."""
    folder = tmp_path_factory.mktemp("sdist")
    copytree(ROOT, folder / "source", ignore=_LEFT_OUT)
    with tarfile.open(build("sdist", folder / "source", folder / "dist")) as archive:
        archive.extractall(folder)
    [unpacked] = folder.glob("finesteer_local-*")
    return unpacked


@pytest.fixture(scope="module", params=["checkout", "sdist"])
def wheel(request: pytest.FixtureRequest, sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel built from a checkout, and that from the source distribution alone."""
    source = sdist if request.param == "sdist" else sdist.parent / "source"
    return build("wheel", source, tmp_path_factory.mktemp("wheel") / "dist")


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """A folder for `PYTHONPATH`."""
    folder = wheel.parent / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_one_wheel_serves_every_python(wheel: Path) -> None:
    assert "-py3-none-" in wheel.name and not wheel.name.endswith("-any.whl")


def test_the_wheel_holds_the_package_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert len(tops) == 2 and {name for name in tops if not name.endswith(".dist-info")} == {"finesteer_local"}
    assert not [name for name in names if "/page/" in name or "__pycache__" in name]


def test_it_answers(installed: Path, tiny: Path, tmp_path: Path, home: Path) -> None:
    where = run(
        "-c", "import finesteer_local.converters as it; print(it.__file__)", cwd=tmp_path, PYTHONPATH=str(installed)
    )
    assert Path(where.strip()).is_relative_to(installed)
    command = ("-m", "finesteer_local", "run", tiny, "--json", "--max-tokens", "3", "--threads", "1", "Hello")
    assert '"completion_tokens": 3' in run(*command, cwd=tmp_path, PYTHONPATH=str(installed))


def test_the_compiled_filter_is_found(installed: Path, tmp_path: Path) -> None:
    code = "from finesteer_local.runtime import tap; print(tap.native_filter())"
    if (installed / "finesteer_local" / "runtime" / ("_tap.dll" if os.name == "nt" else "_tap.so")).exists():
        assert "_FuncPtr" in run("-c", code, cwd=tmp_path, PYTHONPATH=str(installed))
    else:
        pytest.skip("no C compiler is here")


def test_recipes_are_whole(installed: Path, tmp_path: Path) -> None:
    """With every file that they name; the teachers' are the ones that are no text."""
    code = (
        "from finesteer_local.training.recipes import load_recipe, recipe_names; "
        "from finesteer_local.training.teacher import load_teachers; "
        "[load_recipe(name) for name in recipe_names()]; "
        "print([each.model for each in load_teachers(load_recipe('safety').teachers)])"
    )
    assert "layer" in run("-c", code, cwd=tmp_path, PYTHONPATH=str(installed))


def test_what_pypi_shows(installed: Path) -> None:
    [path] = installed.glob("*.dist-info/METADATA")
    shown = BytesParser(policy=default).parsebytes(path.read_bytes())
    assert {"Homepage", "Documentation", "Issues"} <= {line.split(",")[0] for line in shown.get_all("Project-URL")}
    assert shown["License-Expression"] == "Apache-2.0" and shown["Author"]
    assert set(shown.get_all("Provides-Extra")) == {"train", "serve", "hub", "sign", "transformers"}
    text = str(shown.get_payload())
    version, [repository] = (
        shown["Version"],
        {line.split(", ")[1] for line in shown.get_all("Project-URL") if "Repository" in line},
    )
    assert f"]({repository}/blob/v{version}/docs/method.md)" in text
    assert (
        f"![The demo: six prompts, unsteered and steered side by side]({repository}/raw/v{version}/docs/demo.svg)"
        in text
    )
    assert "](docs/" not in text and "](CONTRIBUTING" not in text


@pytest.mark.parametrize("wheel", ["sdist"], indirect=True)
def test_the_tests_of_the_source_distribution_run(sdist: Path, installed: Path, tmp_path: Path) -> None:
    tests = [sdist / "tests" / f"test_{name}.py" for name in ("errors", "page_build", "gguf_file")]
    missing = {path.relative_to(ROOT) for path in (ROOT / "tests").glob("**/*.py")} - {
        path.relative_to(sdist) for path in (sdist / "tests").glob("**/*.py")
    }
    assert not {path for path in missing if "node_modules" not in path.parts}
    command = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", sdist / "pyproject.toml", *tests)
    lean = {"PYTHONPATH": str(installed), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    assert " passed" in run(*command, cwd=tmp_path, **lean)
