"""Makes the teacher that a recipe brings along (teacher.py): `python -m finesteer_local.training.teach MODEL RECIPE`.

For who writes a recipe of many thousand prompts. It takes as long as the gate of `train --quality full`, once. What
comes into the recipe later is learnt from its labels, and after a tenth of it has changed the teacher is left out.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from finesteer_local.runtime.expand import open_fast
from finesteer_local.runtime.trainable import TrainableModel
from finesteer_local.training.data import TrainingData
from finesteer_local.training.effort import NO_DEADLINE
from finesteer_local.training.gate_data import GateData, fit_gate, read_for_gate
from finesteer_local.training.gates import folds_of
from finesteer_local.training.known import gate_scores
from finesteer_local.training.layers import candidate_layers
from finesteer_local.training.model_data import ModelData
from finesteer_local.training.progress import Progress, quiet
from finesteer_local.training.recipes import load_recipe
from finesteer_local.training.teacher import ANCHORS, PROMPTS, Teacher
from finesteer_local.training.weights import learns_by_itself


def teach(model: Path, recipe: str, *, seed: int = 0, progress: Progress = quiet) -> Teacher:
    """What the gate of a recipe learns on the GGUF model at `model`, for other models.

    Raises:
        DataError, ModelError, SteeringError, UnknownNameError: as for a training.
    """
    data = load_recipe(recipe, seed)
    with open_fast(model) as llama, tempfile.TemporaryDirectory(prefix="finesteer-") as folder:
        model_data = ModelData(llama, data, Path(folder), progress)
        layer = layer_of(llama, data)
        read = read_for_gate(model_data, data, layer, NO_DEADLINE, keep=False)
        return teacher_of(f"{model.stem}, layer {layer}", model_data, data, read, seed=seed)


def layer_of(llama: TrainableModel, data: TrainingData) -> int:
    """The layer that the gate reads in a training of `data` where the user asks for none."""
    return candidate_layers(llama.n_layer, data.judge, learns=learns_by_itself(llama, data.judge))[0]


def teacher_of(name: str, model_data: ModelData, data: TrainingData, read: GateData, *, seed: int = 0) -> Teacher:
    """The teacher that learns from what was `read` of `data`, all of it."""
    gate, _ = fit_gate(model_data, data, read, seed=seed)
    needs = (np.arange(len(read.prompts)) < len(read.positive)).astype(np.float32)
    folds = folds_of(needs, np.array([prompt.family for prompt in read.prompts]), seed)
    scores = gate_scores(gate, read.turns, folds)
    row = {id(prompt): i for i, prompt in enumerate(read.prompts)}
    order = np.array([row[id(prompt)] for _, prompt in data.ordered[:PROMPTS]])
    anchors = [read.turns[i] for i in order[:ANCHORS]]
    prompts = [read.prompts[i] for i in order]
    return Teacher.of(name, gate, model_data, prompts, anchors, scores[order], folds[order])


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("recipe", help="a recipe's folder, or the name of one that comes along")
    parser.add_argument("--out", type=Path, default=Path("teacher.npz"))
    options = parser.parse_args()
    teach(options.model, options.recipe).save(options.out)


if __name__ == "__main__":
    main()
