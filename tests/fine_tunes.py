"""Fine-tunes of tiny models: a LoRA that was merged into the weights, and weights that were disturbed."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from finesteer_local.gguf_file import read_header

RANK = 2


def merged(
    base: Path, target: Path, *, size: float = 0.02, norms: float = 0.0, named: tuple[str, ...] = ("attn_q", "attn_v")
) -> Path:
    """A copy of a float32 model with a low-rank change of some matrices merged in, as after LoRA.

    Args:
        size: of the change, in norms of the matrix.
        norms: added to the norm weights, which LoRA leaves alone and other fine-tuning does not.
    """
    shutil.copyfile(base, target)
    rng = np.random.default_rng(1)
    for name, tensor in read_header(target, max_items=1 << 20).tensors.items():
        weights = np.memmap(target, np.float32, "r+", offset=tensor.start, shape=tensor.shape)
        if len(tensor.shape) > 1 and any(part in name for part in named):
            n_out, n_in = tensor.shape
            change = rng.standard_normal((n_out, RANK)) @ rng.standard_normal((RANK, n_in))
            weights += (size * np.linalg.norm(weights) * change / np.linalg.norm(change)).astype(np.float32)
        elif name.endswith("_norm.weight") and norms:
            weights += np.float32(norms)
        weights.flush()
    return target
