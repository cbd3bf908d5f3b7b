"""Train a small profile from prompts of one's own: a model that has no live data shall say so.

`train_data/live.jsonl` holds questions about the present, each with an answer to move towards and one to move away
from; `train_data/other.jsonl` holds prompts near to them, and ordinary ones, for which the gate stays closed.
Needs the extra `train`.

python examples/train.py [MODEL]
"""

import sys
from pathlib import Path

from finesteer_local import catalog, open_model, train_profile

model = catalog.resolve_model(sys.argv[1] if len(sys.argv) > 1 else "smollm2")
data = Path(__file__).parent / "train_data"


def tell(stage: str, done: int, total: int) -> None:
    """Show how far it is."""
    print(f"\r{stage}: {done} of {total}   ", end="", file=sys.stderr)


# Without `strength` and `scope` both are tuned, which takes some minutes more.
profile = train_profile(
    model,
    data=data / "live.jsonl",
    contrast=data / "other.jsonl",
    name="live",
    strength=1.0,
    scope="turn",
    progress=tell,
)
profile.save("live.gguf")
print(f"\nlive.gguf: steers layer {profile.layers[0]}, strength {profile.strength:.2f}, scope {profile.scope}")

llama = open_model(model, profiles=["live.gguf"])
for question in ("Is it snowing in Oslo now?", "Why is snow white?"):
    answer = llama.create_chat_completion([{"role": "user", "content": question}], max_tokens=40, temperature=0.0)
    print(f"{question} (gate {llama.last_decision.g:.2f})\n  {answer['choices'][0]['message']['content']}")
