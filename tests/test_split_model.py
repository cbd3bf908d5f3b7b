"""The names of split models."""

from __future__ import annotations

from pathlib import Path

import pytest

from finesteer_local.split_model import is_later_part, split_names, split_parts, whole_name


def test_the_parts_of_a_model() -> None:
    names = ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]
    assert split_names(names[0]) == split_names(names[1]) == names
    assert split_parts(Path("a") / names[1]) == [Path("a") / name for name in names]
    assert [is_later_part(name) for name in names] == [False, True]
    assert is_later_part(f"folder/{names[1]}")
    assert whole_name(names[0]) == "m.gguf"


@pytest.mark.parametrize(
    "name", ["m.gguf", "m-1-of-2.gguf", "m-00003-of-00002.gguf", "m-00000-of-00002.gguf", "m.bin", ""]
)
def test_a_model_in_one_file(name: str) -> None:
    assert split_names(name) == [name]
    assert not is_later_part(name)
