"""What teachers are worth: gates that learn from so many prompts, from labels alone and with the recipe's teachers.

    python benchmarks/teacher.py smollm2 --prompts 1000 4000 10000
    python benchmarks/teacher.py qwen2.5-coder-0.5b --teacher FILE.npz

For each it prints the AUROC of held-out prompts, then of every suite's harmful rows against the harmless ones of all
suites, and the share of them above the score that 3 % of these exceed. A teacher that learnt on this model is left out
unless `--teacher` names it.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from finesteer_local import catalog
from finesteer_local.evaluation.suites import builtin_suites, load_suites
from finesteer_local.judges.statistics import auroc
from finesteer_local.runtime.expand import open_fast
from finesteer_local.training.data import Prompt
from finesteer_local.training.effort import NO_DEADLINE
from finesteer_local.training.gate_data import fit_gate, read_for_gate
from finesteer_local.training.known import gate_scores
from finesteer_local.training.model_data import ModelData
from finesteer_local.training.recipes import load_recipe
from finesteer_local.training.teach import layer_of
from finesteer_local.training.teacher import load_teachers, taught

HARMLESS = 0.03


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--recipe", default="safety")
    parser.add_argument("--teacher", type=Path, nargs="+", help="instead of the recipe's")
    parser.add_argument("--prompts", type=int, nargs="+", default=[1000, 4000, 10_000])
    parser.add_argument("--suite", nargs="+", default=[name for name in builtin_suites() if name != "truthful"])
    options = parser.parse_args()
    data, path = load_recipe(options.recipe), catalog.resolve_model(options.model)
    teachers = load_teachers(options.teacher or data.teachers)
    if not options.teacher:
        teachers = [each for each in teachers if not str(each.model).startswith(path.stem)]
    suites = load_suites(options.suite)
    with open_fast(path) as llama, tempfile.TemporaryDirectory() as folder:
        layer = layer_of(llama, data)
        model_data = ModelData(llama, data, Path(folder))
        read = {s.name: model_data.turns([Prompt(case.messages) for case in s.cases], layer) for s in suites}
        harmful = {s.name: np.array([case.label == "harmful" for case in s.cases]) for s in suites}
        print(f"{options.model}, layer {layer}; taught by {' and '.join(str(each.model) for each in teachers)}")
        for n in options.prompts:
            part = read_for_gate(model_data, data.part(n), layer, NO_DEADLINE, keep=False)
            for name, told in (("labels", None), ("taught", taught(model_data, teachers, part.prompts))):
                gate, fit = fit_gate(model_data, data, part, seed=0, taught=told)
                scores = {suite: gate_scores(gate, turns) for suite, turns in read.items()}
                others = np.concatenate([scores[suite][~harmful[suite]] for suite in scores])
                most = np.quantile(others, 1 - HARMLESS)
                shown = [
                    f"{suite} {auroc(found[harmful[suite]], others):.3f} / {(found[harmful[suite]] > most).mean():.2f}"
                    for suite, found in scores.items()
                    if harmful[suite].any()
                ]
                print(f"{n:7,} {name:8} held out {fit.auroc:.3f}  " + "  ".join(shown), flush=True)


if __name__ == "__main__":
    main()
