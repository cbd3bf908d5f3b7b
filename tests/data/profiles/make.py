"""Wrote the test vectors beside it: `python tests/data/profiles/make.py`, from the repository's root.

Each case is a small profile, prompts' hidden states, and the decisions that follow. They were checked against
docs/reference_reader.py before they were kept; tests/test_profile_vectors.py holds both implementations to them.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

N_EMBD, N_LAYER = 16, 6


def main() -> None:
    from finesteer_local.profile import ModelIdentity, Profile
    from finesteer_local.steering import ConditionGate
    from tiny import make_answer_gate, make_experts, make_gate, make_kinds

    model = ModelIdentity("0123456789abcdef" * 4, "Small", "llama", N_EMBD, N_LAYER, 100, "")
    rng = np.random.default_rng(0)
    condition = rng.standard_normal(N_EMBD).astype(np.float32)
    last_token = make_gate("selective, last token", N_EMBD, rng)
    gates = {
        "always": make_gate("open", N_EMBD, rng),
        "scs": type(last_token)(
            last_token.mean, last_token.basis, np.linspace(0.5, 0.9, 40, dtype=np.float32), eps=0.5, gamma=2.0
        ),
        "contrastive": make_gate("selective", N_EMBD, rng),
        "contrastive_ramp": replace(make_gate("selective", N_EMBD, rng), low=-5.0, high=5.0),
        "cast_mean": ConditionGate(condition, limit=0.02, sign=1.0, over_prompt=1.0),
        "cast_last": ConditionGate(condition, limit=0.15, sign=-1.0, over_prompt=0.0),
        "length_decay": make_gate("open", N_EMBD, rng),
        # Later ones have a generator of their own, so that the earlier ones stay as they are.
        "contrastive_window": replace(
            make_gate("selective", N_EMBD, np.random.default_rng(1)), window=8, low=2.5, high=3.5
        ),
        "kinds": replace(make_gate("selective", N_EMBD, np.random.default_rng(2)), window=8, low=0.5, high=1.5),
        "kinds_hidden": replace(make_gate("selective", N_EMBD, np.random.default_rng(5)), window=8, low=0.5, high=1.5),
    }
    lengths = (1, 64, 65, 128, 512, 9000)
    sizes = dict.fromkeys(("contrastive_window", "kinds", "kinds_hidden"), (3, 8, 9, 21, 40, 70))
    cases = []
    for name, gate in gates.items():
        rank = 0 if name == "always" else 2
        experts = {layer: make_experts(N_EMBD, rng, rank=rank, width=8 if rank else 0) for layer in (2, 4)}
        decay = 0.3 if name == "length_decay" else 0.0
        profile = Profile("vectors", model, gate, 1, experts, strength=0.75, scope="turn", length_decay=decay)
        if name.startswith("kinds"):
            width = 12 if name == "kinds_hidden" else 0
            profile = replace(profile, kinds=make_kinds(N_EMBD, np.random.default_rng(3), width=width))
        profile.save(HERE / f"{name}.gguf")
        prompts = []
        for n_states, n_tokens in zip(sizes.get(name, (1, 2, 3, 7, 7, 7)), lengths, strict=True):
            states = (2 * rng.standard_normal((n_states, N_EMBD))).astype(np.float32)
            decision = profile.decide(states, n_tokens=n_tokens)
            prompts.append(
                {
                    "n_tokens": n_tokens,
                    "states": [[float(x) for x in row] for row in states],
                    "score": decision.score,
                    "g": decision.g,
                    **({"kinds": dict(decision.kinds)} if decision.kinds else {}),
                    "alpha": {str(n): [float(x) for x in a] for n, a in decision.alpha.items()},
                    "beta": {str(n): [float(x) for x in b] for n, b in decision.beta.items()},
                    "vectors": {str(n): [float(x) for x in v] for n, v in decision.vectors.items()},
                }
            )
        cases.append({"profile": f"{name}.gguf", "prompts": prompts})
    text = json.dumps({"format_version": 1, "tolerance": 1e-6, "cases": cases}, indent=None)
    (HERE / "decisions.json").write_text(text.replace('{"n_tokens"', '\n{"n_tokens"') + "\n", encoding="utf-8")

    rng = np.random.default_rng(4)
    gate = make_answer_gate(N_EMBD, threshold=1.0, first=4, every=2, decay=0.8, bias=0.1)
    experts = {2: make_experts(N_EMBD, rng)}
    profile = Profile("vectors", model, make_gate("closed", N_EMBD, rng), 1, experts, answer_gate=gate)
    profile.save(HERE / "answer_gate.gguf")
    answers = []
    for n_tokens in (1, 3, 4, 7, 12, 20, 20, 20):
        states = (2 * rng.standard_normal((n_tokens, N_EMBD))).astype(np.float32)
        watch = gate.start()
        for h in states:
            watch.read(h) if watch.due else watch.pass_by()
        rows = [[float(x) for x in row] for row in states]
        answers.append({"scores": watch.scores, "opened_at": watch.opened_at, "states": rows})
    text = json.dumps({"profile": "answer_gate.gguf", "tolerance": 1e-6, "answers": answers})
    (HERE / "answers.json").write_text(text.replace('{"scores"', '\n{"scores"') + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
