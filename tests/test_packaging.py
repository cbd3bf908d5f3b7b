"""What is installed: all data files, all public names, and nothing heavy on import."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module, metadata
from importlib.resources import files
from pathlib import Path

import pytest

import finesteer_local

ROOT = Path(__file__).parents[1]
HEAVY = ("llama_cpp", "numpy", "torch", "sklearn", "gguf", "rich", "fastapi")


def test_version() -> None:
    assert metadata.version("finesteer-local") == finesteer_local.__version__


def test_the_command_is_declared() -> None:
    [script] = metadata.entry_points(group="console_scripts", name="finesteer-local")
    assert script.value == "finesteer_local.cli:main"


def test_the_folders_beside_the_package_are_inside_it() -> None:
    assert files("finesteer_local.models").joinpath("catalog.json").is_file()
    assert files("finesteer_local.models").joinpath("profiles").is_dir()
    assert import_module("finesteer_local.converters").__doc__
    assert files("finesteer_local").joinpath("py.typed").is_file()


def test_every_data_file_is_packaged() -> None:
    tomllib = pytest.importorskip("tomllib")
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["package-data"]["*"]
    suffixes = {Path(pattern).suffix for pattern in patterns}
    code = {".py", ".pyc", ".c", ".so"}
    for folder in ("finesteer_local", "models", "converters"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_relative_to(ROOT / "finesteer_local" / "server" / "page"):
                continue  # ships as built
            if path.is_file() and path.name not in ("README.md", "py.typed"):
                assert path.suffix in code | suffixes, f"{path} would not be installed"


@pytest.mark.parametrize("name", finesteer_local.__all__)
def test_public_names(name: str) -> None:
    assert getattr(finesteer_local, name) is not None
    assert name in dir(finesteer_local)


def test_type_checkers_see_what_is_imported() -> None:
    """The names are imported when they are first used, which no type checker follows: it reads the declarations."""
    tree = ast.parse(Path(finesteer_local.__file__).read_text("utf-8"))
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    declared = {
        alias.name: f".{node.module}" for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert {*declared, "__version__"} == set(finesteer_local.__all__)
    for name, home in declared.items():
        assert getattr(finesteer_local, name) is getattr(import_module(home, "finesteer_local"), name)


def test_every_error_is_public() -> None:
    errors = vars(import_module("finesteer_local.errors")).values()
    family = {e.__name__ for e in errors if isinstance(e, type) and issubclass(e, finesteer_local.FineSteerError)}
    assert family <= set(finesteer_local.__all__)


def test_no_other_names() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Steered'"):
        finesteer_local.Steered  # noqa: B018


@pytest.mark.parametrize(
    "code",
    [
        "import finesteer_local; dir(finesteer_local)",
        "from finesteer_local import catalog; catalog.resolve_model(r'{f}')",
    ],
    ids=["package", "catalog"],
)
def test_importing_loads_nothing_heavy(code: str, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"")
    check = f"\nimport sys; print([m for m in {HEAVY!r} if m in sys.modules])"
    code = code.format(f=tmp_path / "m.gguf") + check
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
