"""How often a request gets the same decision and the same greedy text in a batch as alone.

    python benchmarks/batch.py MODEL.gguf --profile PROFILE.gguf

With the gate as it is and with the gate held open. What a batch gains and costs is `finesteer-local bench`'s to say.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from finesteer_local.bench.batch import conversations
from finesteer_local.bench.profiles import opened
from finesteer_local.profile import Profile
from finesteer_local.runtime import SteeredLlama, open_model
from finesteer_local.runtime.batch import BatchEngine, Steer, chat_request


def compare(llama: SteeredLlama, profile: Profile, arguments: argparse.Namespace) -> str:
    chats = conversations(arguments.requests * arguments.rounds)
    options = {"max_tokens": arguments.answer, "temperature": 0.0, "repeat_penalty": 1.0}
    requests = [chat_request(llama, chat, steer=[Steer(profile)], **options) for chat in chats]
    with BatchEngine(llama, n_parallel=arguments.requests, n_ctx=arguments.context) as engine:
        batched = [stream.result() for stream in [engine.submit(request) for request in requests]]
    n_score = n_decision = n_text = 0
    llama.set_profiles([profile])
    for chat, answer in zip(chats, batched, strict=True):
        llama.forget()
        alone = llama.create_chat_completion(chat, **options)
        decision = llama.last_decisions[0]
        n_score += decision.score == answer.decisions[0].score
        n_decision += decision.open == answer.decisions[0].open
        n_text += alone["choices"][0]["message"]["content"] == answer.text
    n = len(chats)
    return f"of {n} requests: the gate's score bit-equal {n_score}, same decision {n_decision}, same text {n_text}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--profile", required=True)
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--answer", type=int, default=96, help="longest answer in tokens")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    llama = open_model(arguments.model, n_ctx=arguments.context)
    profile = Profile.load(arguments.profile)
    for name, gate in (("as it is", profile), ("open", opened(profile))):
        print(f"gate {name}: {compare(llama, gate, arguments)}", flush=True)


if __name__ == "__main__":
    main()
