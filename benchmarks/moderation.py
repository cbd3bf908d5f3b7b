"""What a check costs beside reading the same prompt with its logits, and beside a short answer.

    python benchmarks/moderation.py MODEL --profile PROFILE [--limit 6] [--rounds 5] [--answer 24] [--threads 1]

Prompts of the built-in suites, as they are and behind a page of earlier talk. The three ways take turns; a ratio is
that of one prompt in one round, and the median of all is told.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

from finesteer_local import catalog
from finesteer_local.evaluation.suites import load_suites
from finesteer_local.profile import Profile
from finesteer_local.runtime import SteeredLlama, open_model
from finesteer_local.runtime.prompt import Message, chat_prompt

SUITES = ("harmful", "jailbreak", "borderline", "benign")
PAGE = "The train from the coast was late again, and nobody on the platform seemed to mind. " * 24


def seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def read(llama: SteeredLlama, messages: list[Message]) -> None:
    """The prompt, from the first token to its logits."""
    llama.reset()
    llama.forget()
    llama.eval(chat_prompt(llama, messages))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--profile", default="safety")
    parser.add_argument("--limit", type=int, default=6, help="prompts of each suite")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--answer", type=int, default=24, help="tokens of the short answer")
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    path = catalog.resolve_model(arguments.model)
    guard, plain = (open_model(path, n_threads=arguments.threads) for _ in range(2))
    guard.set_profiles([Profile.load(catalog.resolve_profile(arguments.profile, guard.identity))])
    talks = [list(case.messages) for suite in load_suites(SUITES, arguments.limit) for case in suite.cases]
    page = [{"role": "user", "content": PAGE}, {"role": "assistant", "content": "How late was it?"}]
    for name, prompts in (("short", talks), ("behind a page", [[*page, *talk] for talk in talks])):
        times = []
        for _ in range(arguments.rounds):
            for messages in prompts:
                times.append(
                    (
                        seconds(lambda messages=messages: guard.check(messages)),
                        seconds(lambda messages=messages: read(plain, messages)),
                        seconds(
                            lambda messages=messages: plain.create_chat_completion(
                                messages, max_tokens=arguments.answer, temperature=0
                            )
                        ),
                    )
                )
                plain.forget()
        check, prompt, answer = np.array(times).T
        n_tokens = int(np.median([len(chat_prompt(plain, messages)) for messages in prompts]))
        low, high = np.quantile(check / prompt, [0.25, 0.75])
        print(
            f"{name:14} {n_tokens:5} tokens: a check takes {1000 * np.median(check):.1f} ms, "
            f"{np.median(check / prompt):.3f} ({low:.3f} to {high:.3f}) of the prompt with its logits, "
            f"{np.median(check / answer):.3f} of an answer of up to {arguments.answer} tokens",
            flush=True,
        )


if __name__ == "__main__":
    main()
