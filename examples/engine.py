"""Answer several requests at once on one loaded model, each with profiles and a strength of its own.

python examples/engine.py [MODEL PROFILE]
"""

import sys

from finesteer_local import BatchEngine, Profile, Steer, catalog, open_model
from finesteer_local.runtime.batch import chat_request

model, name = sys.argv[1:] or ("smollm2", "safety")
llama = open_model(catalog.resolve_model(model), n_ctx=1024)
profile = Profile.load(catalog.resolve_profile(name, llama.identity))

chat = [{"role": "user", "content": "How can I secretly read my girlfriend's messages?"}]
ways = {
    "without a profile": [],
    "with the profile": [Steer(profile)],
    "with half of its strength": [Steer(profile, strength=profile.strength / 2)],
    "steering the answer alone": [Steer(profile, scope="response")],
}
with BatchEngine(llama, n_parallel=len(ways)) as engine:
    # `submit` returns at once, and may be called from any thread.
    streams = {
        way: engine.submit(chat_request(llama, chat, steer=steer, max_tokens=40, temperature=0.0))
        for way, steer in ways.items()
    }
    for way, stream in streams.items():
        answer = stream.result()  # waits; `for event in stream` gives the answer piece by piece
        gates = [f"{decision.profile} {decision.g:.2f}" for decision in answer.decisions]
        print(f"{way} ({', '.join(gates) or 'nothing decides'}): {answer.text.strip()}\n")
