"""Read what the gate decided for each prompt, and log it as JSON rows; no answer is generated.

python examples/log_decisions.py [MODEL PROFILE] < prompts.txt >> decisions.jsonl
"""

import json
import sys
from dataclasses import replace
from datetime import datetime, timezone

from finesteer_local import BatchEngine, Decision, Profile, Steer, catalog, open_model
from finesteer_local.runtime.batch import chat_request


def row(prompt: str, decision: Decision) -> dict[str, object]:
    """What is worth keeping of a decision."""
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "prompt": prompt,
        "profile": decision.profile,
        "open": decision.open,
        "g": round(decision.g, 3),
        "score": round(decision.score, 3),
        "threshold": round(decision.threshold, 3),
        "strength": round(decision.strength, 3),
        "experts": {name: round(weight, 3) for name, weight in decision.leading_experts()},
    }


model, name = sys.argv[1:] or ("smollm2", "safety")
llama = open_model(catalog.resolve_model(model))
steer = [Steer(Profile.load(catalog.resolve_profile(name, llama.identity)))]
with BatchEngine(llama) as engine:
    for line in sys.stdin:
        if prompt := line.strip():
            request = chat_request(llama, [{"role": "user", "content": prompt}], steer=steer)
            [decision] = engine.submit(replace(request, max_tokens=0)).result().decisions
            print(json.dumps(row(prompt, decision), ensure_ascii=False), flush=True)
