"""Where tokens look, and the precision that a machine computes faster."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from finesteer_local.errors import ModelError
from finesteer_local.training import lower_layers
from finesteer_local.training.lower_layers import BLOCK, PRECISIONS, LowerLayers, Precision, causal, quicker
from finesteer_local.training.tensor_file import TensorFile
from tiny import write_tiny_model

TOKENS = np.random.default_rng(0).integers(5, 90, 5 * BLOCK + 7)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Callable[[float, float], None]:
    """Makes a layer take so many seconds in 8 bits and in bfloat16, on a machine that has instructions for both."""

    def set_seconds(int8: float, bfloat16: float) -> None:
        now, starts = 0.0, True
        turn = 0

        def clock() -> float:
            nonlocal now, starts, turn
            if not starts:
                now += (int8, bfloat16)[turn % 2]
                turn += 1
            starts = not starts
            return now

        monkeypatch.setattr(lower_layers.time, "perf_counter", clock)
        monkeypatch.setattr(lower_layers, "_has_bfloat16", lambda: True)

    return set_seconds


@pytest.mark.parametrize("precision", PRECISIONS)
def test_blocks_apart_find_what_they_find_together(
    tiny: Path, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = LowerLayers(tiny, 1, precision, TOKENS[:40].tolist())
    n = len(TOKENS)
    found = []
    for columns in (16, 4 * n):  # every block apart, and all of them together
        monkeypatch.setattr(lower_layers, "_COLUMNS", columns)
        places = layers.places(np.arange(n), causal(n))
        assert (len(places.looks) == 1) == (columns > n)
        found.append(layers.read(TOKENS.tolist(), places)[0].numpy())
    difference = np.linalg.norm(found[0] - found[1], axis=-1) / np.linalg.norm(found[1], axis=-1)
    assert np.median(difference) < (1e-5 if precision == "int8" else 1e-2)


def test_every_block_looks_once_and_at_all_that_its_tokens_see(tiny: Path) -> None:
    layers = LowerLayers(tiny, 0, "bfloat16", [])
    n = len(TOKENS)
    places = layers.places(np.arange(n), causal(n))
    blocks = np.concatenate([looks.blocks.numpy() for looks in places.looks])
    assert sorted(blocks) == list(range(places.n_blocks))
    for looks in places.looks:
        assert looks.sees.dtype == torch.bfloat16
        for block, sees in zip(looks.blocks.tolist(), looks.sees, strict=True):
            looked_at = (sees == 0).sum(-1)[0, :: layers.shape.share]
            wanted = np.arange(block * BLOCK, (block + 1) * BLOCK) + 1
            assert looked_at.tolist() == np.where(wanted <= n, wanted, 1).tolist()


@pytest.mark.parametrize(("seconds", "wanted"), [((1.0, 2.0), "int8"), ((2.0, 1.0), "bfloat16")])
def test_the_quicker_precision(tiny: Path, timed, seconds: tuple[float, float], wanted: Precision) -> None:
    timed(*seconds)
    assert quicker(tiny, 1) == wanted


def test_bfloat16_only_where_it_fits_and_the_machine_has_it(tiny: Path, timed, monkeypatch: pytest.MonkeyPatch) -> None:
    lower = 2 * TensorFile(tiny).n_weights(1)
    for largest, wanted in ((lower - 1, "bfloat16 from int8"), (lower, "bfloat16")):
        timed(2.0, 1.0)
        monkeypatch.setattr(lower_layers, "LARGEST", largest)
        assert quicker(tiny, 1) == wanted
    timed(2.0, 1.0)
    assert quicker(tiny, 2) == "bfloat16 from int8"
    timed(1.0, 2.0)
    assert quicker(tiny, 2) == "int8"
    timed(2.0, 1.0)
    monkeypatch.setattr(lower_layers, "_has_bfloat16", lambda: False)
    assert quicker(tiny, 0) == "int8"


def test_what_is_kept_in_a_byte_is_near_what_is_kept_in_two(tiny: Path) -> None:
    """8-bit numbers are exact in bfloat16, so only the weights' rounding differs, and that of their scale."""
    n = len(TOKENS)
    found, sizes = [], []
    for precision in ("bfloat16", "bfloat16 from int8"):
        layers = LowerLayers(tiny, 2, precision, [])
        found.append(layers.read(TOKENS.tolist(), layers.places(np.arange(n), causal(n)))[0].numpy())
        sizes.append(layers._layers[0].down.weight.element_size())
    assert sizes == [2, 1]
    difference = np.linalg.norm(found[0] - found[1], axis=-1) / np.linalg.norm(found[0], axis=-1)
    assert 0 < np.median(difference) < 0.02


def test_what_is_not_known_here_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="gemma3"):
        quicker(write_tiny_model(tmp_path / "m.gguf", "gemma3"), 1)
