"""AMX, with which many builds of llama.cpp crash."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from llama_cpp import llama_cpp

from finesteer_local.runtime import amx
from reference import plain_llama


@pytest.mark.parametrize(("features", "extra"), [(b"AMX_INT8 = 1 | AVX2 = 1", False), (b"CPU : AVX2 = 1", True)])
def test_only_where_there_is_some(features: bytes, extra: bool, monkeypatch: pytest.MonkeyPatch, tiny: Path) -> None:
    real = llama_cpp.llama_model_default_params

    def defaults() -> llama_cpp.llama_model_params:
        params = real()
        params.use_extra_bufts = True
        return params

    monkeypatch.setattr(llama_cpp, "llama_print_system_info", lambda: features)
    monkeypatch.setattr(llama_cpp, "llama_model_default_params", defaults)
    amx.avoid_amx()
    params = llama_cpp.llama_model_default_params()
    assert params.use_extra_bufts == extra
    assert plain_llama(tiny).model_params.use_extra_bufts == extra  # llama-cpp-python's own


def test_the_package_does_it() -> None:
    code = """
from llama_cpp import llama_cpp
llama_cpp.llama_print_system_info = lambda: b"AMX_INT8 = 1"
from finesteer_local import SteeredLlama
print(llama_cpp.llama_model_default_params().use_extra_bufts)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("False\n", 0), done.stderr


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
