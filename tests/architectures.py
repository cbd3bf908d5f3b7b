"""What holds for each model family: tried on tiny models, and written as the table of docs/models.md.

    python tests/architectures.py

writes the table anew; `test_architectures` checks that it is current.
"""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from unittest.mock import patch

import numpy as np
from llama_cpp import llama_cpp

from finesteer_local.errors import SteeringError
from finesteer_local.identity import read_model_identity
from finesteer_local.profile import Profile
from finesteer_local.runtime import open_model
from finesteer_local.runtime.batch import GREEDY, BatchEngine, Request, Steer
from finesteer_local.runtime.quiet import unlogged
from finesteer_local.training import learn, trials
from finesteer_local.training.data import MIN_PAIRS, Pair, Prompt, TrainingData
from finesteer_local.training.settings import TrainingSettings
from finesteer_local.training.train import train
from reference import answer, control, greedy, logits, plain_llama, read, steered_llama, whole_pass
from tiny import make_profile
from tiny_architectures import FAMILIES, N_LAYER, E, write_family

DOCUMENT = Path(__file__).parents[1] / "docs" / "models.md"
PROMPT = [int(token) for token in np.random.default_rng(1).integers(3, 250, 40)]
N_ANSWER = 6
STEERED, GATE = (1, 2), 1
_BEGIN, _END = "<!-- table: python tests/architectures.py -->\n", "<!-- end of the table -->\n"


@dataclass(frozen=True)
class Findings:
    """What holds for one family; all but `refusal` is False where steering is refused."""

    tap: bool = False
    """Every layer's output is seen, finite, a row a token."""
    exact: bool = False
    """A prompt and an answer that a profile steers have the logits of a control vector, bit for bit."""
    closed: bool = False
    """Under a closed gate, tokens and logits are those of llama-cpp-python, bit for bit."""
    at_once: bool = False
    """Requests answered together get what each gets alone."""
    fingerprint: bool = False
    """It is the same in float16, another for other weights."""
    trains: bool = False
    """A profile is trained, written, read, and steers."""
    refusal: str = ""


def examine(name: str, folder: Path) -> Findings:
    """Try everything on the family's tiny model, written to `folder`."""
    path = write_family(folder / f"{name}.gguf", name)
    try:
        with closing(steered_llama(path)) as llama:
            llama.set_profiles([make_profile(path, layers=STEERED, gate_layer=GATE)])
    except SteeringError as error:
        return Findings(fingerprint=_fingerprint(name, path), refusal=str(error))
    return Findings(_tap(path), _exact(path), _closed(path), _at_once(path), _fingerprint(name, path), _trains(path))


def _tap(path: Path) -> bool:
    states = whole_pass(path, PROMPT, range(N_LAYER))
    return states.shape == (N_LAYER, len(PROMPT), E) and bool(np.isfinite(states).all())


def _exact(path: Path) -> bool:
    profile = make_profile(path, layers=STEERED, gate_layer=GATE)
    with closing(steered_llama(path, profiles=[profile])) as llama, closing(plain_llama(path)) as plain:
        unsteered = read(plain, PROMPT)
        tokens = answer(llama, PROMPT, N_ANSWER)
        decision = llama.last_decision
        assert decision is not None
        llama.forget()
        llama.eval(PROMPT)
        steered = logits(llama)
        reference = read(plain, PROMPT, [(0, decision.vectors)])
        control(plain, decision.answer_vectors)
        return (
            np.array_equal(steered, reference)
            and not np.array_equal(steered, unsteered)
            and tokens == greedy(plain, N_ANSWER)
        )


def _closed(path: Path) -> bool:
    closed = make_profile(path, layers=STEERED, gate_layer=GATE, gate="closed")
    with closing(steered_llama(path, profiles=[closed])) as llama, closing(plain_llama(path)) as plain:
        same = answer(llama, PROMPT, N_ANSWER) == answer(plain, PROMPT, N_ANSWER)
        return same and np.array_equal(logits(llama), logits(plain))


def _at_once(path: Path) -> bool:
    steer = (Steer(make_profile(path, layers=STEERED, gate_layer=GATE)),)
    requests = [
        Request(PROMPT[i:], steer=steer if i % 2 else (), sampling=GREEDY, max_tokens=N_ANSWER + 4 - i)
        for i in range(4)
    ]

    def answers(*wanted: Request) -> list[str]:
        with BatchEngine(llama, n_parallel=len(wanted), n_ctx=256) as engine:
            return [stream.result().text for stream in [engine.submit(request) for request in wanted]]

    with closing(steered_llama(path)) as llama:
        return answers(*requests) == [answers(request)[0] for request in requests]


def _fingerprint(name: str, path: Path) -> bool:
    half = path.with_name(f"{name}-f16.gguf")
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_F16
    with unlogged():
        assert llama_cpp.llama_model_quantize(str(path).encode(), str(half).encode(), ctypes.byref(parameters)) == 0
    other = write_family(path.with_name(f"{name}-other.gguf"), name, seed=1)
    mine, quantised, others = (read_model_identity(each).fingerprint for each in (path, half, other))
    return mine == quantised != others


def _prompt(text: str) -> Prompt:
    return Prompt([{"role": "user", "content": text}], "", "")


def _trains(path: Path) -> bool:
    pairs = [Pair(_prompt(f"! {i}"), f"no {i % 5} {i}", f"{i} sure {i % 6}") for i in range(MIN_PAIRS)]
    data = TrainingData("tiny", pairs, [_prompt(f"what is {i}?") for i in range(MIN_PAIRS)], judge="refusal")
    with (
        patch.object(learn, "REPLY_TOKENS", 4),
        patch.object(trials, "ANSWER_TOKENS", 4),
        closing(open_model(path, n_threads=1)) as llama,
    ):
        profile = train(llama, data, TrainingSettings(layer=GATE))
        profile.save(path.with_suffix(".profile"))
        llama.set_profiles([Profile.load(path.with_suffix(".profile"))])
        answer(llama, PROMPT, 2)
        return llama.last_decision is not None and np.isfinite(llama.last_decision.score)


def table(found: dict[str, Findings]) -> str:
    """The table of docs/models.md."""
    columns = [each.name for each in fields(Findings) if each.name != "refusal"]
    titles = ["family", "architecture", "kind", "seen", *(column.replace("_", " ") for column in columns[1:])]
    lines = [f"| {' | '.join(titles)} |", "| --- " * len(titles) + "|"]
    for name, findings in found.items():
        family = FAMILIES[name]
        marks = ["refused" if findings.refusal and c != "fingerprint" else _mark(getattr(findings, c)) for c in columns]
        lines.append(f"| {name} | `{family.architecture}` | {family.kind} | {' | '.join(marks)} |")
    refused = [f"- `{FAMILIES[name].architecture}`: {f.refusal}" for name, f in found.items() if f.refusal]
    steered = sum(not findings.refusal for findings in found.values())
    head = f"Of these {len(found)} families {steered} are steered, {len(refused)} are refused.\n"
    return "\n".join([head, *lines, "", "What the refused ones say:", "", *refused, ""])


def _mark(holds: bool) -> str:
    return "yes" if holds else "**no**"


def document(found: dict[str, Findings]) -> str:
    """docs/models.md with this table in it."""
    before, rest = DOCUMENT.read_text(encoding="utf-8").split(_BEGIN)
    return before + _BEGIN + "\n" + table(found) + "\n" + _END + rest.split(_END)[1]


@contextmanager
def _own_home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, {"FINESTEER_HOME": folder}):
        yield Path(folder)


def main() -> None:
    with unlogged(), _own_home() as folder:
        found = {name: examine(name, folder) for name in FAMILIES}
    DOCUMENT.write_text(document(found), encoding="utf-8")


if __name__ == "__main__":
    main()
