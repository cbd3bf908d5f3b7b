"""How often a profile's gate opens on requests inside pages of ordinary text.

    python benchmarks/pages.py MODEL -p PROFILE --suite harmful.jsonl [--requests 24] [--tokens 1000,3000]

Every request stands as a paragraph of its own at the beginning, in the middle and at the end of a text (`pages.jsonl`,
which no recipe holds). Prints the share of pages on which the gate opens, by place and length, and that of the requests
alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from finesteer_local.catalog import resolve_model, resolve_profile
from finesteer_local.profile import Profile
from finesteer_local.runtime import open_model
from finesteer_local.runtime.harvest import Harvester
from finesteer_local.runtime.packing import StatesRequest
from finesteer_local.runtime.prompt import chat_prompt, turn_start
from finesteer_local.training.data import read_prompts, spread

TEXT = Path(__file__).with_suffix(".jsonl")
PLACES = {"at the beginning": 0.0, "in the middle": 0.5, "at the end": 1.0}


@click.command()
@click.argument("model")
@click.option("-p", "--profile", required=True)
@click.option("--suite", type=click.Path(path_type=Path), multiple=True, required=True)
@click.option("--requests", default=24, show_default=True, help="Of each suite, from all over it.")
@click.option("--tokens", default="1000,3000", show_default=True)
@click.option("--threads", type=int)
def main(model: str, profile: str, suite: Sequence[Path], requests: int, tokens: str, threads: int | None) -> None:
    lengths = [int(n) for n in tokens.split(",")]
    paragraphs = [json.loads(line)["text"] for line in TEXT.read_text("utf-8").splitlines()]
    with closing(open_model(resolve_model(model), n_ctx=max(lengths) + 1024, n_threads=threads)) as llama:
        gate = Profile.load(resolve_profile(profile, llama.identity))
        sizes = [len(llama.tokenize(text.encode(), add_bos=False)) + 1 for text in paragraphs]

        def page(start: int, length: int) -> list[str]:
            """Paragraphs of about `length` tokens, from `start` on."""
            order = [(start + i) % len(paragraphs) for i in range(len(paragraphs))]
            total = np.cumsum([sizes[i] for i in order])
            return [paragraphs[i] for i in order[: int(np.searchsorted(total, length)) + 1]]

        table = Table("suite", "requests", "alone", *(f"{n:,} tokens, {place}" for n in lengths for place in PLACES))
        for path in suite:
            asked = [prompt.text for prompt in spread(read_prompts(path), requests)]
            texts = [asked]
            for length in lengths:
                for share in PLACES.values():
                    pages = [page(5 * (i % 3), length) for i in range(len(asked))]  # few: what is shared is read once
                    cuts = [round(share * len(each)) for each in pages]
                    texts.append(
                        ["\n\n".join([*p[:cut], q, *p[cut:]]) for p, cut, q in zip(pages, cuts, asked, strict=True)]
                    )
            found = [_share_open(llama, gate, each) for each in texts]
            table.add_row(path.stem, str(len(asked)), *(f"{share:.2f}" for share in found))
        Console().print(table)


def _share_open(llama, gate: Profile, texts: Sequence[str]) -> float:  # type: ignore[no-untyped-def]
    """The share of prompts on which the gate opens."""
    requests = []
    for text in texts:
        messages = [{"role": "user", "content": text}]
        prompt = chat_prompt(llama, messages)
        requests.append(StatesRequest(prompt, turn_start(llama, messages, prompt)))
    reader = Harvester(llama, [gate.gate_layer])
    try:
        opened = [gate.decide(states[0]).g > 0 for _, states in reader.harvest(requests)]
    finally:
        reader.close()
    return float(np.mean(opened))


if __name__ == "__main__":
    main()
