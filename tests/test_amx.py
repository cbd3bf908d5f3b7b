"""AMX, with which many builds of llama.cpp crash."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from llama_cpp import Llama, llama_cpp

from finesteer_local.runtime import expand
from reference import SETTINGS, plain_llama, steered_llama
from tiny import write_tiny_model

AMX = b"AMX_INT8 = 1 | AVX2 = 1"


@pytest.fixture(params=[AMX, b"CPU : AVX2 = 1"], ids=["amx", "no amx"])
def extra(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether llama.cpp may have its extra buffers, on a processor with AMX and on one without."""
    real = llama_cpp.llama_model_default_params

    def defaults() -> llama_cpp.llama_model_params:
        params = real()
        params.use_extra_bufts = True
        return params

    monkeypatch.setattr(llama_cpp, "llama_print_system_info", lambda: request.param)
    monkeypatch.setattr(llama_cpp, "llama_model_default_params", defaults)
    return bool(request.param != AMX)


def test_only_where_there_is_some(extra: bool, tiny: Path) -> None:
    assert plain_llama(tiny).model_params.use_extra_bufts == extra
    assert steered_llama(tiny).model_params.use_extra_bufts == extra
    # Models that others open are their own affair.
    assert Llama(str(tiny), **SETTINGS).model_params.use_extra_bufts
    assert llama_cpp.llama_model_default_params().use_extra_bufts


def test_the_float32_copy(extra: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llama = steered_llama(write_tiny_model(tmp_path / "tiny.gguf"))
    monkeypatch.setattr(expand, "_helps", lambda path: True)
    copy = expand.expanded(llama)
    assert copy.params.use_extra_bufts == extra
    copy.close()


def test_what_llama_cpp_finds_is_not_told() -> None:
    code = """
from llama_cpp import _logger, llama_cpp
def info():
    _logger.llama_log_callback(1, b"ggml_cuda_init: found 1 CUDA devices", None)
    return b""
llama_cpp.llama_print_system_info = info
if "quiet" in __import__("sys").argv:
    import finesteer_local.runtime
else:
    info()
"""
    told, quiet = (
        subprocess.run([sys.executable, "-c", code, word], capture_output=True, text=True) for word in ("loud", "quiet")
    )
    assert "found 1 CUDA" in told.stderr
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
