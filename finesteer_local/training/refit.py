"""Takes a profile's corrections into its gate, from the states that are kept: seconds.

What a change does to everything else is told by prompts of the recipe. Their last states and scores are read once for a
profile, and kept in a small file of the cache; where training left the states there, that takes no reading either. The
profile as it was trained is kept beside the corrections: it is what every refit begins with, so that a deleted
correction is gone.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finesteer_local import paths
from finesteer_local.corrections import STEER, Correction
from finesteer_local.errors import DataError, FineSteerError, ProfileError
from finesteer_local.profile import Profile
from finesteer_local.runtime.cached_harvest import n_missing
from finesteer_local.runtime.expand import open_fast
from finesteer_local.runtime.trainable import TrainableModel
from finesteer_local.steering import ContrastiveGate
from finesteer_local.training.correct import Corrected, correct
from finesteer_local.training.data import Prompt, TrainingData
from finesteer_local.training.known import fitting, gate_scores, sample
from finesteer_local.training.model_data import ModelData
from finesteer_local.training.progress import Progress, quiet

Array = NDArray[np.float32]

POSITIVE, CONTRAST = 1500, 1500
"""Prompts by which a change is measured."""
COUNTED = 3
"""Every so-many-th of them is not measured by: on these the changed decisions are counted."""
_SHOWN = 160  # letters of a prompt that are kept, to be shown
Cost = Callable[[int], None]
"""Called with the number of prompts that have to be read, where their states are not kept."""


@dataclass(frozen=True)
class Reference:
    """Prompts of the recipe, as the gate reads them.

    Attributes:
        states: of their last tokens, (n, n_embd).
        scores: the gate's, by probes that have not learnt from them where that is known, (n,).
        needs: whether each needs intervention, (n,).
        texts: their beginnings.
    """

    states: Array
    scores: NDArray[np.float64]
    needs: NDArray[np.bool_]
    texts: list[str]

    @property
    def counted(self) -> NDArray[np.bool_]:
        """Which of them are counted, (n,); the others measure."""
        return np.asarray(np.arange(len(self.states)) % COUNTED == 0)


@dataclass(frozen=True)
class Refitted:
    """A profile with its corrections taken in.

    Attributes:
        profile: the new one.
        corrected: how each correction came out.
        flipped: of the counted prompts the text, whether it needs intervention, and whether it opens now.
        n_counted: how many were counted.
    """

    profile: Profile
    corrected: Corrected
    flipped: list[tuple[str, bool, bool]]
    n_counted: int
    seconds: float


def original_of(profile: Profile) -> Profile:
    """The profile as it was trained, before any correction.

    Raises:
        ProfileError: the file that is kept of it is damaged or gone.
    """
    taken = profile.training.get("corrections")
    if not taken:
        return profile
    file = original_file(profile)
    try:
        original = Profile.load(file)
    except ProfileError as error:
        raise ProfileError(
            f"what {profile.name!r} was before its corrections is not kept in {file}; train it anew"
        ) from error
    if _gate_digest(original) != taken.get("of"):
        raise ProfileError(f"{file} is of another training than {profile.name!r}; train it anew")
    return original


def original_file(profile: Profile) -> Path:
    """Where a profile is kept as it was trained."""
    return paths.data_dir() / "corrections" / f"{profile.name}.{profile.model.fingerprint[:12]}.gguf"


def reference(
    model: Path,
    profile: Profile,
    data: Callable[[], TrainingData],
    *,
    cost: Cost = lambda n: None,
    progress: Progress = quiet,
    **llama_options: Any,
) -> Reference:
    """The prompts by which changes of the profile's gate are measured, from the cache where they are kept there.

    Args:
        model: its GGUF file.
        profile: as it was trained.
        data: gives what it was trained on; not called where nothing has to be read.
        cost: told before anything is read that is not kept.

    Raises:
        DataError: the data cannot be used.
        ModelError, SteeringError: the model cannot be opened or read.
        StorageError: there is no room for the states.
    """
    file = paths.cache_dir() / "gates" / f"{profile.name}.{_gate_digest(profile)[:24]}.npz"
    if (kept := _read(file, profile.model.n_embd)) is not None:
        return kept
    recipe = data()
    with open_fast(model, **llama_options) as llama, tempfile.TemporaryDirectory(prefix="finesteer-") as folder:
        profile.check_model(llama.identity)
        model_data = ModelData(llama, recipe, Path(folder), progress)
        found = fitting(model_data, sample(profile, recipe, POSITIVE, CONTRAST, last=False))
        if n := n_missing(llama, model_data.requests(found.prompts), [profile.gate_layer]):
            cost(n)
        turns = model_data.turns(found.prompts, profile.gate_layer)
        made = Reference(
            states=turns.last,
            scores=gate_scores(profile.gate, turns, found.folds),
            needs=found.needs,
            texts=[prompt.text[:_SHOWN] for prompt in found.prompts],
        )
    _keep(file, made)
    return made


def refit(llama: TrainableModel, profile: Profile, corrections: Sequence[Correction], known: Reference) -> Refitted:
    """The profile with corrections taken in.

    Args:
        llama: the model as it is used, not a faster copy: its states are those that will be decided on.
        profile: as it was trained (`original_of`).
        known: `reference` of it.

    Raises:
        DataError: its gate is not contrastive, or a correction does not fit the model's context.
    """
    started = time.monotonic()
    gate = profile.gate
    if not isinstance(gate, ContrastiveGate):
        raise DataError(f"a gate of the kind {gate.kind!r} takes no corrections; only a contrastive one does")
    states, scores = _read_corrections(llama, profile, corrections)
    counted = known.counted
    found = correct(
        gate,
        known.states[~counted],
        known.scores[~counted],
        known.states[counted],
        known.scores[counted],
        states,
        scores,
        [each.should == STEER for each in corrections],
    )
    rows = np.flatnonzero(counted)[found.flipped]
    opened = known.scores > gate.low
    taken = [corrections[i] for i in found.taken]
    training = dict(profile.training)
    if taken:
        training["corrections"] = {
            "of": _gate_digest(profile),
            "ids": [each.id for each in taken],
            "steer": sum(each.should == STEER for each in taken),
            "leave": sum(each.should != STEER for each in taken),
            "changed_of_others": round(len(rows) / max(int(counted.sum()), 1), 4),
        }
    return Refitted(
        profile=replace(profile, gate=found.gate, training=training),
        corrected=found,
        flipped=[(known.texts[i], bool(known.needs[i]), not opened[i]) for i in rows],
        n_counted=int(counted.sum()),
        seconds=time.monotonic() - started,
    )


def keep_original(profile: Profile) -> None:
    """Keep the profile as it was trained.

    Raises:
        StorageError: it cannot be written.
    """
    profile.save(original_file(profile))


def _read_corrections(
    llama: TrainableModel, profile: Profile, corrections: Sequence[Correction]
) -> tuple[Array, NDArray[np.float64]]:
    """The last states of the corrected turns, (n, n_embd), and the gate's scores, (n,)."""
    states, scores = np.zeros((len(corrections), profile.model.n_embd), np.float32), np.zeros(len(corrections))
    with tempfile.TemporaryDirectory(prefix="finesteer-") as folder:
        model_data = ModelData(llama, None, Path(folder))
        reader = llama.reader([profile.gate_layer])
        try:
            for i, each in enumerate(corrections):
                tokens, turn = model_data.tokens(Prompt(each.messages))
                read = reader.turn_states(tokens, turn)[0]
                states[i], scores[i] = read[-1], profile.gate.score(read[-1], profile.gate.summary(read))
        finally:
            reader.close()
    return states, scores


def _gate_digest(profile: Profile) -> str:
    """SHA-256 of what the gate's decisions follow from."""
    gate = profile.gate
    digest = hashlib.sha256(f"{profile.name} {profile.model.fingerprint} {profile.gate_layer} {gate.kind}".encode())
    if isinstance(gate, ContrastiveGate):
        for array in (gate.mean, gate.scale, gate.query, gate.value_weight, gate.last_weight):
            digest.update(np.ascontiguousarray(array, np.float32).tobytes())
        digest.update(np.array([gate.bias, gate.low, gate.high, gate.window], np.float32).tobytes())
    return digest.hexdigest()


def _keep(file: Path, made: Reference) -> None:
    # What cannot be kept is read again the next time.
    with suppress(FineSteerError, OSError), paths.atomic_write(file) as temporary, temporary.open("wb") as stream:
        texts = np.frombuffer(json.dumps(made.texts).encode(), np.uint8)
        np.savez(stream, states=made.states.astype(np.float16), scores=made.scores, needs=made.needs, texts=texts)


def _read(file: Path, n_embd: int) -> Reference | None:
    with (
        suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile),
        np.load(file, allow_pickle=False) as kept,
    ):
        states, scores, needs = kept["states"].astype(np.float32), kept["scores"], kept["needs"]
        texts = json.loads(kept["texts"].tobytes().decode())
        if states.shape == (len(texts), n_embd) and scores.shape == needs.shape == (len(texts),) and len(texts):
            return Reference(states, scores.astype(np.float64), needs.astype(bool), texts)
    return None
