"""The same profile on a GPU (or on workers) and on the processor: the gate, the vectors, the greedy text.

    python benchmarks/devices.py MODEL --profile PROFILE [--limit 60] [--rpc HOST:PORT,...]

Both models read the prompts of the built-in suites, and both decide for each.
"""

from __future__ import annotations

import argparse

import numpy as np

from finesteer_local import catalog
from finesteer_local.evaluation.suites import load_suites
from finesteer_local.profile import Profile
from finesteer_local.runtime import open_model
from finesteer_local.runtime.prompt import greedy_answer

SUITES = ("harmful", "jailbreak", "borderline", "benign")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--profile", required=True)
    parser.add_argument("--limit", type=int, default=60, help="prompts of each suite")
    parser.add_argument("--answer", type=int, default=48, help="tokens of an answer")
    parser.add_argument("--rpc", default="", help="workers, with commas between them")
    arguments = parser.parse_args()
    path = catalog.resolve_model(arguments.model)
    workers = [endpoint for endpoint in arguments.rpc.split(",") if endpoint]
    here = open_model(path, n_gpu_layers=0)
    there = open_model(path, n_gpu_layers=-1, rpc=workers)
    profile = Profile.load(catalog.resolve_profile(arguments.profile, here.identity))
    n_open = n_same = n_text = 0
    scores, cosines = [], []
    for llama in (here, there):
        llama.set_profiles([profile])
    for suite in load_suites(SUITES, arguments.limit):
        for case in suite.cases:
            texts = [greedy_answer(llama, case.messages, arguments.answer) for llama in (here, there)]
            a, b = here.last_decisions[0], there.last_decisions[0]
            n_open += a.open
            n_same += a.open == b.open
            n_text += texts[0] == texts[1]
            scores.append(abs(a.score - b.score))
            if a.open and b.open:
                for layer, vector in a.vectors.items():
                    other = b.vectors[layer]
                    cosines.append(vector @ other / (np.linalg.norm(vector) * np.linalg.norm(other)))
    agree = f"{np.median(cosines):.6f} (least {min(cosines):.6f})" if cosines else "unknown: nothing was steered"
    print(
        f"{len(scores)} prompts, {n_open} of them steered here: same decision {n_same}, "
        f"same {arguments.answer} tokens {n_text}; "
        f"the gate's score differs by {np.median(scores):.4f} (greatest {max(scores):.4f}; threshold "
        f"{a.threshold:.3f}), cosine of the vectors {agree}"
    )


if __name__ == "__main__":
    main()
