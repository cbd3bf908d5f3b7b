"""saklas: profiles with their JSON, and manifolds as its own GGUF export folds them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finesteer_local.converters import safetensors
from finesteer_local.converters.recognise import read
from foreign import DATA, HINTS, VECTORS, assert_vectors, refused


def copied(tmp_path: Path, name: str, **changes: Any) -> Path:
    """A sample with its JSON, in which `changes` are made."""
    shutil.copy(DATA / f"{name}.safetensors", tmp_path)
    beside = json.loads((DATA / f"{name}.json").read_text())
    (tmp_path / f"{name}.json").write_text(json.dumps({**beside, **changes}))
    return tmp_path / f"{name}.safetensors"


def test_profile(tmp_path: Path) -> None:
    foreign = read(copied(tmp_path, "saklas_profile"), HINTS)
    assert_vectors(foreign, VECTORS)
    assert "relative to each other" in foreign.notes[0]


def test_tensors_that_are_not_those_of_the_json(tmp_path: Path) -> None:
    refused(copied(tmp_path, "saklas_profile", tensor_sha256="0" * 64), "tensor_sha256 differs")
    refused(
        copied(tmp_path, "saklas_profile", provenance={"injection_mode": "angular"}), "'injection_mode'", "rotation"
    )
    (tmp_path / "saklas_profile.json").write_text("{")
    refused(tmp_path / "saklas_profile.safetensors", "the file is not JSON")


def test_manifold_folds_as_saklas_folds_it(tmp_path: Path) -> None:
    foreign = read(copied(tmp_path, "saklas_manifold"), HINTS)
    assert foreign.format == "saklas manifold of one dimension"
    for layer, vector in VECTORS.items():
        np.testing.assert_allclose(foreign.experts[layer].prototypes[0], vector, rtol=1e-6)
    pytest.importorskip("saklas")
    from saklas.core.capture import folded_directions
    from saklas.io.manifold_tensors import load_manifold

    folded = folded_directions(load_manifold(tmp_path / "saklas_manifold.safetensors"))
    assert_vectors(foreign, {layer: tensor.numpy() for layer, tensor in folded.items()})


def test_manifolds_that_no_vector_can_follow(tmp_path: Path) -> None:
    one = np.ones((1, 64), np.float32)

    def made(**tensors: np.ndarray) -> Path:
        path = copied(tmp_path, "saklas_manifold")
        safetensors.write(path, {name.replace("__", "."): tensor for name, tensor in tensors.items()}, {})
        return path

    refused(made(layer_1__basis=one, layer_1__mean=one[0], layer_1__node_params=one), "a curved manifold")
    refused(made(layer_1__basis=np.ones((2, 64), np.float32), layer_1__mean=one[0]), "has 2 dimensions")
    refused(made(layer_9__basis=one, layer_9__mean=one[0]), "no mahalanobis_share_per_layer")
    refused(made(layer_1__mean=one[0], layer_2__basis=one), "layer 1 has no basis")
    (tmp_path / "saklas_manifold.json").unlink()
    refused(tmp_path / "saklas_manifold.safetensors", "needs the file saklas_manifold.json")
