"""In which precision this machine multiplies matrices fastest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from finesteer_local import paths
from finesteer_local.training import precision as module
from finesteer_local.training.precision import fast_dtype, processor

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def anew() -> Iterator[None]:
    """Nothing is known from before, nor to whoever comes after."""
    fast_dtype.cache_clear()
    processor.cache_clear()
    yield
    fast_dtype.cache_clear()
    processor.cache_clear()


def takes(patch: pytest.MonkeyPatch, share: float) -> list[torch.dtype]:
    """bfloat16 takes so much of float32's time; what is asked."""
    asked: list[torch.dtype] = []
    patch.setattr(module, "_seconds", lambda dtype: (asked.append(dtype), share if dtype == torch.bfloat16 else 1.0)[1])
    return asked


@pytest.mark.parametrize(
    ("share", "wanted"), [(0.2, torch.bfloat16), (0.74, torch.bfloat16), (0.76, torch.float32), (5.0, torch.float32)]
)
def test_the_faster_one_is_found_once(share: float, wanted: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = takes(monkeypatch, share)
    assert fast_dtype() == wanted and asked == [torch.bfloat16, torch.float32]
    takes(monkeypatch, 1 / share)  # now it would be the other one
    assert fast_dtype() == wanted
    fast_dtype.cache_clear()  # as in another process
    assert fast_dtype() == wanted and len(asked) == 2


@pytest.mark.parametrize("damaged", ["true", 1, None, [True]])
def test_a_damaged_choice_is_made_anew(damaged: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    takes(monkeypatch, 5.0)
    fast_dtype()
    [key] = module._choices._read()
    module._choices.keep(key, damaged)
    fast_dtype.cache_clear()
    asked = takes(monkeypatch, 0.2)
    assert fast_dtype() == torch.bfloat16 and len(asked) == 2
    assert module._choices.get(key) is True
    (paths.cache_dir() / "precision.json").write_text("[", encoding="utf-8")
    fast_dtype.cache_clear()
    assert fast_dtype() == torch.bfloat16 and len(asked) == 4


def test_another_processor_is_asked_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    takes(monkeypatch, 0.2)
    assert fast_dtype() == torch.bfloat16
    for name in ("processor", "another"):
        fast_dtype.cache_clear()
        monkeypatch.setattr(module, "processor", lambda name=name: name)
        takes(monkeypatch, 5.0)
        assert fast_dtype() == torch.float32
    assert len(module._choices._read()) == 3


X86 = "processor\t: 0\nmodel name\t: Some CPU\ncpu MHz\t\t: {mhz}\nflags\t\t: fpu {flags}\n\nprocessor\t: 1\n"
ARM = "processor\t: 0\nBogoMIPS\t: {mhz}\nFeatures\t: fp {flags}\nCPU part\t: 0xd40\n\nprocessor\t: 1\n"


@pytest.mark.parametrize("written", [X86, ARM])
def test_processors_are_told_apart_by_what_they_can(written: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def told(**values: Any) -> str:
        processor.cache_clear()
        monkeypatch.setattr(Path, "read_text", lambda *_, **__: written.format(**values))
        return processor()

    assert told(mhz=1000, flags="amx_bf16") == told(mhz=2000, flags="amx_bf16") != told(mhz=1000, flags="avx2")


def test_elsewhere_python_tells_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    def read_text(*_: Any, **__: Any) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr(module.platform, "processor", lambda: "arm")
    assert processor().endswith(" arm")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_best_round_counts_and_the_first_does_not(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one also pays for setting up."""
    seen: list[torch.dtype] = []
    took = iter([1.0, *[9.0] * (module._ROUNDS - 2), 4.0])
    times = iter([time for seconds in took for time in (0.0, seconds)])
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(times))
    monkeypatch.setattr(torch.nn.functional, "linear", lambda inputs, weight: seen.append(weight.dtype))
    assert module._seconds(dtype) == 4.0 and seen == [dtype] * module._ROUNDS
