"""Wrote the sample files beside it, with the libraries themselves; they are kept so that every test run has them.

    pip install --no-deps repeng==0.4.0 steering-vectors==0.12.2 saklas==5.3.0 safetensors==0.8.0
    python tests/data/foreign/make.py

It needs torch, transformers and gguf too. Every file holds the vectors that `vectors()` gives, 64 wide.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
WIDTH = 64
LAYERS = (1, 2, 3)


def vectors() -> dict[int, np.ndarray]:
    """Layer -> (WIDTH,), float32; the numbers are exact in bfloat16."""
    rng = np.random.default_rng(5)
    return {layer: (rng.integers(-64, 65, WIDTH) / 64).astype(np.float32) for layer in LAYERS}


def main() -> None:
    import torch

    np.float_ = np.float64  # repeng 0.4.0 names it; NumPy 2 has dropped it
    from repeng import ControlVector
    from safetensors.numpy import save_file as save_numpy
    from safetensors.torch import save_file
    from saklas.core.capture import fold_directions_to_subspace
    from saklas.core.profile import Profile
    from saklas.io.manifold_tensors import save_manifold
    from steering_vectors import SteeringVector

    given = vectors()
    tensors = {layer: torch.from_numpy(vector) for layer, vector in given.items()}
    ControlVector("llama", given).export_gguf(HERE / "repeng.gguf")
    Profile(tensors).to_gguf(HERE / "saklas.gguf", model_hint="llama")
    Profile(tensors).save(HERE / "saklas_profile.safetensors", {"concept": "calm"})

    class Whitener:
        """Lengths as they are: what saklas measures on a model's neutral prompts is not to be had here."""

        def covers_all(self, layers: list[int]) -> bool:
            return True

        def mahalanobis_norm(self, layer: int, direction: torch.Tensor) -> float:
            return float(direction.norm())

    means = {layer: torch.zeros(WIDTH) for layer in tensors}
    manifold = fold_directions_to_subspace("calm", tensors, means, whitener=Whitener())
    manifold.node_labels[:] = ["calm"]  # its own "+" does not pass its own check
    save_manifold(manifold, HERE / "saklas_manifold.safetensors", {"method": "folded_vector", "fit_mode": "baked"})

    torch.save(SteeringVector(tensors), HERE / "steering_vectors.pt")
    torch.save(tensors, HERE / "steering_vectors_dict.pt")
    torch.save(SteeringVector(tensors, "mlp"), HERE / "steering_vectors_mlp.pt")
    save_file({f"layer_{n}": t.bfloat16() for n, t in tensors.items()}, HERE / "bfloat16.safetensors")
    save_numpy({f"layers.{n}": vector for n, vector in given.items()}, HERE / "float32.safetensors")


if __name__ == "__main__":
    sys.exit(main())
