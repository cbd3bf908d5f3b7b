"""What a model wrote for a behaviour: kept as files that the user can read, change and train from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finesteer_local import paths
from finesteer_local.errors import DataError
from finesteer_local.jsonl import rows_text
from finesteer_local.training.behaviour.sentence import Behaviour, read_sentence
from finesteer_local.training.data import Pair, Prompt, TrainingData, read_pairs, read_prompts

PAIRS, NEAR_MISSES = "pairs.jsonl", "near-misses.jsonl"
HELD_PAIRS, HELD_NEAR_MISSES = "held-out-pairs.jsonl", "held-out-near-misses.jsonl"
_ABOUT = "behaviour.json"


@dataclass(frozen=True)
class Material:
    """Questions with both kinds of answers, and near misses; a part of both is held out, and teaches nothing."""

    behaviour: Behaviour
    pairs: Sequence[Pair]
    near_misses: Sequence[Prompt]
    held_pairs: Sequence[Pair]
    held_near_misses: Sequence[Prompt]

    def data(self, name: str) -> TrainingData:
        """What a profile is trained on.

        Raises:
            DataError: the model wrote too little.
        """
        try:
            return TrainingData(
                name,
                self.pairs,
                self.near_misses,
                description=self.behaviour.sentence,
                recipe="",
            )
        except DataError as error:
            raise DataError(f"the model wrote too little that is of use: {error}") from error

    def save(self, folder: Path) -> None:
        """Write the files; the one that says that all are there comes last.

        Raises:
            StorageError: they cannot be written.
        """
        for name, pairs in ((PAIRS, self.pairs), (HELD_PAIRS, self.held_pairs)):
            rows = ({"prompt": p.prompt.text, "chosen": p.chosen, "rejected": p.rejected} for p in pairs)
            _write(folder / name, rows)
        for name, prompts in ((NEAR_MISSES, self.near_misses), (HELD_NEAR_MISSES, self.held_near_misses)):
            _write(folder / name, ({"prompt": prompt.text} for prompt in prompts))
        _write(folder / _ABOUT, [{"behaviour": self.behaviour.sentence}])

    @classmethod
    def load(cls, folder: Path) -> Material | None:
        """What is kept in the folder, with the user's changes; None where nothing is.

        Raises:
            DataError: a file is damaged; the message names the line.
        """
        try:
            sentence = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))["behaviour"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return cls(
            read_sentence(sentence),
            read_pairs(folder / PAIRS),
            read_prompts(folder / NEAR_MISSES),
            read_pairs(folder / HELD_PAIRS),
            read_prompts(folder / HELD_NEAR_MISSES),
        )


def folder_of(name: str, fingerprint: str, seed: int) -> Path:
    """Where what a model wrote for the profile `name` is kept."""
    return paths.data_dir() / "behaviours" / f"{name}.{fingerprint[:12]}.{seed}"


def _write(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    with paths.atomic_write(file) as temporary:
        temporary.write_text(rows_text(rows), encoding="utf-8", newline="\n")
