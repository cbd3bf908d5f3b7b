"""Where a profile holds on a fine-tune: `profiles adapt` on copies of a model whose weights were disturbed.

    python benchmarks/fine_tunes.py smollm2 safety --noise 0.02 0.1 0.4 --prompts 4000

A copy has noise on every matrix, of so many standard deviations of its weights, and on its norm weights a thousandth
of them. For each it prints what `adapt` says and how long that takes. With `--prompts` it also says what a gate trained
on the copy itself does: both learn from so many prompts of the recipe, one on the model and one on the copy, and are
measured on the same others.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType
from llama_cpp import llama_cpp

from finesteer_local import catalog
from finesteer_local.gguf_file import read_header
from finesteer_local.identity import read_model_identity
from finesteer_local.judges.statistics import auroc
from finesteer_local.profile import Profile
from finesteer_local.runtime.expand import open_fast, requantise
from finesteer_local.steering import ContrastiveGate
from finesteer_local.training.adapt import CONTRAST, POSITIVE, adapt, adapted_gate
from finesteer_local.training.data import TrainingData
from finesteer_local.training.effort import NO_DEADLINE
from finesteer_local.training.gate_data import fit_gate, read_for_gate
from finesteer_local.training.known import Sample, data_of, gate_scores, sample
from finesteer_local.training.model_data import ModelData


def disturbed(source: Path, target: Path, noise: float, seed: int = 0) -> Path:
    """A float32 copy of the model, its weights moved by `noise` standard deviations."""
    if not requantise(source, target, llama_cpp.LLAMA_FTYPE_ALL_F32):
        raise SystemExit(f"llama.cpp cannot write {source} in float32")
    rng = np.random.default_rng(seed)
    for name, tensor in read_header(target, max_items=1 << 24).tensors.items():
        assert tensor.kind == GGMLQuantizationType.F32, name
        weights = np.memmap(target, np.float32, "r+", offset=tensor.start, shape=(tensor.n_bytes // 4,))
        size = noise * float(weights.std()) if len(tensor.shape) > 1 else 1e-3 * float(np.abs(weights).mean())
        weights += size * rng.standard_normal(len(weights)).astype(np.float32)
        weights.flush()
    return target


def gate_on(model: Path, profile: Profile, data: TrainingData, n: int, progress) -> ContrastiveGate:
    """A gate that learns from the recipe's first `n` prompts on this model."""
    with open_fast(model) as llama, tempfile.TemporaryDirectory() as folder:
        model_data = ModelData(llama, data, Path(folder), progress)
        read = read_for_gate(model_data, data.part(n), profile.gate_layer, NO_DEADLINE, keep=False)
        return fit_gate(model_data, data, read, seed=0)[0]


def others(found: Sample) -> Sample:
    """Those of the prompts that `adapt` does not take: they decide no threshold."""
    rows = [*np.flatnonzero(found.needs)[:-POSITIVE], *np.flatnonzero(~found.needs)[:-CONTRAST]]
    return Sample([found.prompts[i] for i in rows], found.needs[rows], found.folds[rows], found.held_out)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("profile")
    parser.add_argument("--noise", type=float, nargs="+", default=[0.02, 0.1, 0.4])
    parser.add_argument("--prompts", type=int, default=0)
    arguments = parser.parse_args()
    model = catalog.resolve_model(arguments.model)
    profile = Profile.load(catalog.resolve_profile(arguments.profile, read_model_identity(model)))
    data, started = data_of(profile), time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - started:4.0f} s] {text}", flush=True)

    def quiet(*_: object) -> None:
        pass

    small = (
        replace(profile, gate=gate_on(model, profile, data, arguments.prompts, quiet)) if arguments.prompts else None
    )
    if small is not None:
        facts = {**small.training, "prompts_for_gate": arguments.prompts}
        small = replace(small, training=facts, kinds=None)
        say(f"gate of {arguments.prompts} prompts trained on {arguments.model}")
    with tempfile.TemporaryDirectory(prefix="finesteer-") as folder:
        for noise in arguments.noise:
            copy = disturbed(model, Path(folder) / f"disturbed-{noise:g}.gguf", noise)
            say(f"noise {noise:g}")
            with open_fast(copy) as llama:
                found = adapt(llama, profile, data, progress=quiet)
            gate, answers = found.gate, found.answers
            assert gate is not None
            say(
                f"  adapt: {'holds' if found.profile else found.problem}; AUROC {gate.auroc:.3f}, "
                f"recall {gate.recall:.3f}, "
                f"openings {gate.openings:.3f}; answers {answers.score:.2f} of {answers.n_answers}; "
                f"fitted: {', '.join(found.changed) or 'nothing'}; {found.seconds:.0f} s"
            )
            if small is not None:
                with open_fast(copy) as llama, tempfile.TemporaryDirectory() as work:
                    model_data = ModelData(llama, data, Path(work))
                    unseen = others(sample(small, data, 2 * POSITIVE, 2 * CONTRAST))
                    turns = model_data.turns(unseen.prompts, profile.gate_layer)
                    kept = adapted_gate(model_data, small, data).gate
                own = gate_on(copy, profile, data, arguments.prompts, quiet)
                for name, each in (("kept", small.gate), ("adapted", kept), ("trained", own)):
                    scores = gate_scores(each, turns)
                    opened = scores > each.threshold
                    say(
                        f"  {name:8} AUROC {auroc(scores[unseen.needs], scores[~unseen.needs]):.3f}, "
                        f"recall {opened[unseen.needs].mean():.3f}, openings {opened[~unseen.needs].mean():.3f}"
                    )
            copy.unlink()


if __name__ == "__main__":
    main()
