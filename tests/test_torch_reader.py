"""The lower layers in PyTorch give llama.cpp's hidden states, but for what their precision costs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from finesteer_local.errors import ModelError, PromptError
from finesteer_local.runtime.harvest import Harvester, differ
from finesteer_local.runtime.packing import StatesRequest
from finesteer_local.training import torch_reader
from finesteer_local.training.lower_layers import PRECISIONS, Precision
from finesteer_local.training.torch_reader import TorchReader
from reference import tapped
from test_harvest import requests
from tiny import write_tiny_model
from tiny_architectures import write_family

CLOSE: dict[Precision, float] = {"int8": 0.04, "bfloat16": 0.01, "bfloat16 from int8": 0.02}
"""Relative difference, the median, through three blocks. 8-bit weights and activations cost .4 % a number; bfloat16 has
eight binary digits, .2 % a number and no scale that its neighbours share; weights that are rounded to 7 or 8 of them,
more. A head that is rotated the other way, a mask with one token too many or a missing bias costs .2 and more."""


@pytest.fixture(params=PRECISIONS)
def precision(request: pytest.FixtureRequest) -> Precision:
    return request.param


def both(
    path: Path, layer: int, precision: Precision, asked: list[StatesRequest]
) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
    ours = dict(TorchReader(path, layer, precision, asked).harvest(asked))
    return ours, dict(Harvester(tapped(path, n_ctx=1024), [layer]).harvest(asked))


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
@pytest.mark.parametrize("weight_type", [np.float32, np.float16])
def test_states_are_those_of_llama_cpp(
    tmp_path: Path, architecture: str, weight_type: type, precision: Precision
) -> None:
    path = write_tiny_model(tmp_path / "m.gguf", architecture, weight_type=weight_type)
    asked = requests(12)
    ours, theirs = both(path, 2, precision, asked)
    assert sorted(ours) == list(range(len(asked)))
    for i, states in ours.items():
        assert states.shape == theirs[i].shape == (1, len(asked[i].tokens) - asked[i].first, 64)
        assert states.dtype == np.float32
    found, wanted = (np.concatenate([each[i][0] for i in sorted(each)]) for each in (ours, theirs))
    assert differ(found, wanted) < CLOSE[precision]


def test_norms_of_heads_and_another_size_of_them(tmp_path: Path, precision: Precision) -> None:
    path = write_family(tmp_path / "m.gguf", "qwen3")
    asked = [StatesRequest([5, 6, 7, 8 + i, 9, 10], 1) for i in range(20)]
    ours, theirs = both(path, 1, precision, asked)
    assert differ(np.stack([ours[i] for i in range(20)]), np.stack([theirs[i] for i in range(20)])) < CLOSE[precision]


def test_a_prompt_sees_nothing_of_its_neighbours(tiny: Path, precision: Precision) -> None:
    """In a batch of many, what a prompt's states are must not depend on the others but for rounding."""
    asked = requests(12)
    reader = TorchReader(tiny, 2, precision, asked)
    together = dict(reader.harvest(asked))
    for i in (0, 3, 17, len(asked) - 1):
        [(_, alone)] = reader.harvest([asked[i]])
        assert differ(together[i], alone) < (1e-4 if precision == "int8" else CLOSE[precision])


def test_a_long_prompt_among_short_ones_changes_nothing(tiny: Path, precision: Precision) -> None:
    """Blocks that look at much are computed apart from those that look at little."""
    rng = np.random.default_rng(0)
    asked = [StatesRequest([5, *rng.integers(5, 90, n - 1).tolist()], 1) for n in (700, *[12] * 20, 200)]
    reader = TorchReader(tiny, 2, precision, asked)
    together = dict(reader.harvest(asked))
    alone = [next(reader.harvest([each]))[1] for each in asked]
    theirs = dict(Harvester(tapped(tiny, n_ctx=1024), [2]).harvest(asked))
    for i, states in enumerate(alone):
        assert differ(together[i], states) < (1e-4 if precision == "int8" else CLOSE[precision])
        assert differ(together[i], theirs[i]) < CLOSE[precision]


def test_the_same_requests_give_the_same_bits(tiny: Path, precision: Precision) -> None:
    asked = requests(12)
    first, second = (dict(TorchReader(tiny, 1, precision, asked).harvest(asked)) for _ in range(2))
    assert all((first[i] == second[i]).all() for i in first)


def test_a_batch_that_is_known_is_left_out_and_changes_nothing(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, precision: Precision
) -> None:
    monkeypatch.setattr(torch_reader, "BATCH", 64)
    asked = requests(12)
    reader = TorchReader(tiny, 1, precision, asked)
    everything = dict(reader.harvest(asked))
    rest = dict(reader.harvest(asked, lambda i: i % 9 != 0))
    assert len(rest) < len(everything)
    assert {i for i in everything if i % 9 == 0} <= set(rest)
    assert all((rest[i] == everything[i]).all() for i in rest)


def test_batches_read_side_by_side_are_those_read_one_by_one(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, precision: Precision
) -> None:
    monkeypatch.setattr(torch_reader, "BATCH", 32)
    asked = requests(40)
    n_threads = torch.get_num_threads()
    found = []
    try:
        for n in (1, 3):
            torch.set_num_threads(n)
            found.append(list(TorchReader(tiny, 1, precision, asked).harvest(asked)))
            next(iter(TorchReader(tiny, 1, precision, asked).harvest(asked)))  # one that nobody reads to its end
            assert torch.get_num_threads() == n
    finally:
        torch.set_num_threads(n_threads)
    one, three = found
    assert [i for i, _ in one] == [i for i, _ in three]
    assert all((a == b).all() for (_, a), (_, b) in zip(one, three, strict=True))


def test_what_cannot_be_read_this_way_says_so(tmp_path: Path, precision: Precision) -> None:
    path = write_tiny_model(tmp_path / "m.gguf", "gemma3")
    with pytest.raises(ModelError, match="gemma3"):
        TorchReader(path, 1, precision, requests(2))
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(b"GGUF" + bytes(20))
    with pytest.raises(ModelError):
        TorchReader(damaged, 1, precision, requests(2))


def test_an_empty_request_is_refused(tiny: Path, precision: Precision) -> None:
    with pytest.raises(PromptError, match="no hidden states"):
        list(TorchReader(tiny, 1, precision, requests(2)).harvest([StatesRequest([], 0)]))
