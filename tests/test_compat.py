"""The private parts of llama-cpp-python: that they are there, that it is told where they are not, and one owner."""

from __future__ import annotations

import ast
import ctypes
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_cpp import Llama, _internals, llama_cpp
from llama_cpp import __version__ as llama_cpp_version
from packaging.specifiers import SpecifierSet

import finesteer_local
import newest_llama_cpp
from finesteer_local.errors import SteeringError
from finesteer_local.runtime import compat
from finesteer_local.runtime.ggml import function
from reference import plain_llama

PACKAGE = Path(finesteer_local.__file__).parent
PRIVATE = {name for names in (*compat._NAMES.values(), *compat._USED.values()) for name in names if name[0] == "_"}


def test_the_installed_release_has_it_all() -> None:
    assert compat.missing() == []
    compat.check()


def generate(self: Any, tokens: Any, reset: bool = True) -> Any:
    yield self._init_sampler(), self.sample, self.n_tokens, self.eval


class Renamed(ctypes.Structure):
    _fields_ = tuple(
        ("unified_kv" if name == "kv_unified" else name, kind) for name, kind in llama_cpp.llama_context_params._fields_
    )


@pytest.mark.parametrize(
    ("owner", "name", "value", "lacks"),
    [
        (_internals, "LlamaSampler", None, "_internals.LlamaSampler.add_dist"),
        (Llama, "generate", generate, "_requires_eval in llama.Llama.generate"),
        (llama_cpp, "llama_context_params", Renamed, "llama_context_params.kv_unified"),
    ],
)
def test_what_is_missing(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, value: Any, lacks: str) -> None:
    monkeypatch.setattr(owner, name, value)
    assert compat.missing() == [lacks]
    with pytest.raises(SteeringError) as error:
        compat.check()
    told = str(error.value)
    assert f"has no {lacks};" in told and "pip install 'llama-cpp-python" in told and "\n" not in told


def test_a_release_that_lacks_something_ends_a_command_in_one_line(tiny: Path) -> None:
    code = (
        "import llama_cpp._internals as parts; del parts.LlamaSampler.add_dist\n"
        "import sys; sys.argv = ['finesteer-local', 'run', sys.argv[1], 'Hello']\n"
        "from finesteer_local.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tiny)], capture_output=True, text=True)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "has no _internals.LlamaSampler.add_dist; install" in done.stderr


def test_a_field_that_a_structure_does_not_have() -> None:
    params = llama_cpp.llama_context_default_params()
    assert compat.set_fields(params, n_ctx=7, kv_unified=True) is params
    assert (params.n_ctx, params.kv_unified) == (7, True)
    with pytest.raises(SteeringError, match=r"has no llama_context_params\.unified_kv;"):
        compat.set_fields(params, n_ctx=8, unified_kv=True)


def test_whether_generate_resets() -> None:
    before = [0] * compat._place_of_reset()
    assert compat.asks_reset((), {}) and compat.asks_reset([*before, True], {})
    assert not compat.asks_reset((), {"reset": False}) and not compat.asks_reset([*before, False, 1.0], {})


def test_ggml_exports_no_such_function() -> None:
    with pytest.raises(SteeringError, match="does not export ggml_no_such_thing; reinstall llama-cpp-python"):
        function("ggml_no_such_thing", None, [])


def test_names_of_ours(tiny: Path) -> None:
    llama = plain_llama(tiny)
    ours = compat.OpenLlama(str(tiny), n_ctx=512, n_threads=1, verbose=False)
    assert ours.stale and ours.adapter is None and not ours.keeps_all_logits
    ours.eval([1, 2])
    assert not ours.stale
    ours.stale = True
    assert ours._requires_eval
    assert compat.model_of(llama) is llama._model and compat.chat_handlers(llama) is llama._chat_handlers


# --- nobody else uses them


def trees(folder: Path = PACKAGE) -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(folder.rglob("*.py")):
        if path.name != "compat.py":
            yield str(path.relative_to(PACKAGE)), ast.parse(path.read_text("utf-8"))


def test_private_names_are_for_compat_alone() -> None:
    found = []
    for name, tree in trees(PACKAGE / "runtime"):
        is_llama = {  # classes in whose methods `self` is llama-cpp-python's
            node
            for kind in ast.walk(tree)
            if isinstance(kind, ast.ClassDef)
            and any(isinstance(base, ast.Name) and base.id.endswith("Llama") for base in kind.bases)
            for node in ast.walk(kind)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("llama_cpp"):
                names = [*str(node.module).split("."), *(alias.name for alias in node.names)]
                found += [f"{name}: {one}" for one in names if one[0] == "_" and one != "__version__"]
            if not isinstance(node, ast.Attribute) or node.attr not in PRIVATE:
                continue
            if not (isinstance(node.value, ast.Name) and node.value.id == "self") or node in is_llama:
                found.append(f"{name}: {ast.unparse(node)}")
    assert found == []


def test_every_field_that_is_set_is_looked_for() -> None:
    wanted = {field for fields in compat._FIELDS.values() for field in fields}
    found = {
        keyword.arg
        for _, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "set_fields"
        for keyword in node.keywords
    }
    assert found | {"use_extra_bufts"} == wanted  # amx.py sets that by itself


# --- other releases


@pytest.mark.parametrize(
    ("before", "release", "after"),
    [
        ("llama-cpp-python>=0.3.36", "0.3.36", "llama-cpp-python>=0.3.36,<0.3.37"),
        ("llama-cpp-python>=0.3.36,<0.3.37", "0.4.0", "llama-cpp-python>=0.3.36,<0.4.1"),
    ],
)
def test_the_range_of_tested_releases(before: str, release: str, after: str) -> None:
    assert newest_llama_cpp.widened(before, release) == after


def test_the_installed_release_is_a_tested_one() -> None:
    tomllib = pytest.importorskip("tomllib")
    listed = tomllib.loads((newest_llama_cpp.ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    [text] = [line for line in listed if line.startswith(newest_llama_cpp.PACKAGE)]
    assert SpecifierSet(text.removeprefix(newest_llama_cpp.PACKAGE)).contains(llama_cpp_version)
