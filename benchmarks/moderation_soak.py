"""Moderation calls beside chats on a running server: is each result that of the call alone, and is none lost?

    finesteer-local serve MODEL --profile safety --port 8080
    python benchmarks/moderation_soak.py http://127.0.0.1:8080/v1 [--calls 500] [--chats 200] [--at-once 8]

Calls are texts, lists and conversations from the built-in suites, through the published `openai` client.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai

from finesteer_local.evaluation.suites import load_suites

SUITES = ("plain", "harmful", "borderline", "benign")
DIFFERENT = 40  # calls, and a quarter of that chats; the others repeat them


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--calls", type=int, default=500)
    parser.add_argument("--chats", type=int, default=200)
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=16, help="of a chat's answer")
    arguments = parser.parse_args()
    client = openai.OpenAI(base_url=arguments.url, api_key="none", max_retries=8, timeout=600)
    texts = [case.text for suite in load_suites(SUITES, DIFFERENT // len(SUITES)) for case in suite.cases]
    inputs: list[Any] = [
        text if i % 3 == 0 else [text, *texts[:2]] if i % 3 == 1 else [{"type": "text", "text": text}]
        for i, text in enumerate(texts)
    ]
    model = client.models.list().data[0].id

    def check(number: int) -> Any:
        return client.moderations.create(input=inputs[number % len(inputs)]).results

    def chat(number: int) -> str | None:
        talk: list[Any] = [{"role": "user", "content": texts[number % (DIFFERENT // 4)]}]
        said = client.chat.completions.create(
            model=model, messages=talk, max_tokens=arguments.tokens, temperature=0, seed=1
        )
        return said.choices[0].message.content

    alone, wanted = [check(number) for number in range(len(inputs))], [chat(number) for number in range(DIFFERENT // 4)]
    started = time.perf_counter()
    with ThreadPoolExecutor(arguments.at_once) as callers, ThreadPoolExecutor(arguments.at_once // 2 + 1) as talkers:
        said = talkers.map(chat, range(arguments.chats))
        checked = [
            found == alone[number % len(inputs)]
            for number, found in enumerate(callers.map(check, range(arguments.calls)))
        ]
        answered = [answer == wanted[number % len(wanted)] for number, answer in enumerate(said)]
    print(
        f"{sum(checked)} of {arguments.calls} moderation calls and {sum(answered)} of {arguments.chats} chats equal to "
        f"the same alone, in {time.perf_counter() - started:.0f} s"
    )


if __name__ == "__main__":
    main()
