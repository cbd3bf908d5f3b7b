"""Has a model write what a behaviour is learnt from: questions, near misses, and both kinds of answers.

Questions come as JSON under a schema, a few for each of our subjects, after examples of ours: a small model left to
itself writes the same question again and again. Answers are written as in a chat, the wanted ones to a message that
tells the rule, the others without it, so that the two differ in the behaviour and in little else.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Sequence

import numpy as np

from finesteer_local.errors import DataError
from finesteer_local.runtime import SteeredLlama
from finesteer_local.runtime.batch import answers, chat_request
from finesteer_local.training.behaviour.material import Material
from finesteer_local.training.behaviour.seeds import LIMITED, NEAR, QUESTIONS, SUBJECTS, Example
from finesteer_local.training.behaviour.sentence import Behaviour
from finesteer_local.training.data import MIN_PAIRS, MIN_PROMPTS, Pair, Prompt
from finesteer_local.training.progress import Progress, quiet

WANTED = 120
"""Questions, and near misses, that teach; as many as most sentences need (docs/behaviours.md)."""
HELD_OUT = 20  # of each, beside them
A_CALL = 4  # messages that are written at once
ANSWER_TOKENS = 64
"""Longest answer: what a behaviour is shows in its beginning."""
_TEMPERATURE, _ANSWER_TEMPERATURE = 0.9, 0.7
_SHORTEST, _LONGEST = 12, 160  # letters of a message
_ALIKE = 0.8
"""Two messages that share so much of their letters (difflib) are one."""
_SAME_ANSWER = 0.9
_AROUND = re.compile(r"^(the |this )?assistant( says| answers| replies)?:\s*", re.IGNORECASE)
_SCHEMA = {
    "type": "array",
    "items": {"type": "string", "minLength": _SHORTEST, "maxLength": _LONGEST},
    "minItems": A_CALL,
    "maxItems": A_CALL,
}
_MESSAGE_TOKENS = 64  # room for one message
_AT_MOST = 16  # requests at a time
_ROUNDS = 3  # over the subjects, where one round gives too little


def write_material(llama: SteeredLlama, behaviour: Behaviour, *, seed: int = 0, progress: Progress = quiet) -> Material:
    """What the loaded model writes for a behaviour.

    Args:
        progress: called with (stage, done, total).

    Raises:
        DataError: it writes too little that is of use.
        PromptError: the model's chat template cannot be used.
    """
    llama.set_profiles([])
    wanted = WANTED + HELD_OUT
    taken: list[str] = []
    applies = LIMITED if behaviour.when else QUESTIONS
    positive = _messages(llama, behaviour, behaviour.when, applies, wanted, seed, taken, progress, "writing questions")
    near: list[str] = []
    stage = "writing near misses"
    if behaviour.exception:
        near = _messages(llama, behaviour, behaviour.exception, LIMITED, wanted, seed + 1, taken, progress, stage)
    elif behaviour.when:
        # Half of them look alike, half are about anything: a rule with a condition must leave both alone.
        near = _messages(llama, behaviour, behaviour.when, NEAR, wanted // 2, seed + 1, taken, progress, stage)
        near += _messages(
            llama, behaviour, "", QUESTIONS, wanted - wanted // 2, seed + 2, taken, progress, "writing other questions"
        )
    pairs = list(_pairs(llama, behaviour, positive, seed, progress))
    n_pairs, n_near = _held(len(pairs), MIN_PAIRS), _held(len(near), MIN_PROMPTS)
    if len(pairs) - n_pairs < MIN_PAIRS or (behaviour.selective and len(near) - n_near < MIN_PROMPTS):
        raise DataError(
            f"{llama.identity.name} wrote only {len(pairs)} questions with two different answers and {len(near)} near "
            "misses; say the behaviour otherwise, or take a larger model"
        )
    order = np.random.default_rng(seed).permutation(len(near))
    prompts = [_prompt(near[i]) for i in order]
    return Material(behaviour, pairs[n_pairs:], prompts[n_near:], pairs[:n_pairs], prompts[:n_near])


def _held(n: int, least: int) -> int:
    """How many of `n` are held out, where at least so many must be left."""
    return max(min(HELD_OUT, n - least, n // 4), 0)


def _prompt(text: str) -> Prompt:
    return Prompt([{"role": "user", "content": text}])


def _messages(
    llama: SteeredLlama,
    behaviour: Behaviour,
    limit: str,
    examples: Sequence[Example],
    wanted: int,
    seed: int,
    taken: list[str],
    progress: Progress,
    stage: str,
) -> list[str]:
    """`wanted` different messages, or fewer where the model repeats itself; they are added to `taken`."""
    found: list[str] = []
    rng = np.random.default_rng(seed)
    for turn in range(_ROUNDS):
        subjects = [SUBJECTS[i] for i in rng.permutation(len(SUBJECTS))]
        missing = -(-(wanted - len(found)) // A_CALL)
        for text in _written(llama, behaviour, limit, examples, subjects[: missing * 5 // 4 + 1], seed * 1000 + turn):
            if len(found) < wanted and is_new(text, taken):
                found.append(text)
                taken.append(text)
                progress(stage, len(found), wanted)
        if len(found) >= wanted:
            break
    progress(stage, wanted, wanted)
    return found


def _written(
    llama: SteeredLlama,
    behaviour: Behaviour,
    limit: str,
    examples: Sequence[Example],
    subjects: Sequence[str],
    seed: int,
) -> Iterator[str]:
    """Messages that the model writes about the subjects."""
    shown = []
    for example in examples:
        shown += [
            {"role": "user", "content": asked(example.rule, example.limit, example.subject, examples is NEAR)},
            {"role": "assistant", "content": json.dumps(example.messages, ensure_ascii=False)},
        ]
    requests = [
        chat_request(
            llama,
            [*shown, {"role": "user", "content": asked(behaviour.what, limit, subject, examples is NEAR)}],
            max_tokens=A_CALL * _MESSAGE_TOKENS,
            temperature=_TEMPERATURE,
            seed=seed * 100 + i,
            response_format={"type": "json_object", "schema": _SCHEMA},
        )
        for i, subject in enumerate(subjects)
    ]
    for answer in answers(llama, requests, at_most=_AT_MOST):
        try:
            written = json.loads(answer.text)
        except ValueError:  # cut off: it went on and on
            continue
        yield from (" ".join(text.split()) for text in written)


def asked(rule: str, limit: str, subject: str, near: bool = False) -> str:
    """How messages are asked for; the examples ask in the same words."""
    lines = [f"Write {A_CALL} different messages that people type to an assistant, as a JSON list."]
    if limit:
        lines.insert(0, f"An assistant has a rule: it {rule}. Limit of the rule: {limit}.")
        lines.append(
            f"The limit ({limit}) must not apply to any of them, although they are about the same things."
            if near
            else f"The limit ({limit}) must apply to every one of them."
        )
    return "\n".join([*lines, f"Subject: {subject}"])


def told(rule: str, question: str) -> str:
    """How an answer by the rule is asked for: in the message itself. Small models hardly heed a system prompt."""
    return (
        f'There is an assistant that always {rule}. Somebody asks it: "{question}"\n'
        "Write only what this assistant answers."
    )


def _bare(answer: str) -> str:
    """An answer without what some models put around one that was asked for in this way."""
    return _AROUND.sub("", answer).strip('"“” \n')


def is_new(text: str, taken: Sequence[str]) -> bool:
    """Whether a message is none that is there already, nor nearly."""
    if len(text) < _SHORTEST or not any(letter.isalpha() for letter in text):
        return False
    matcher = difflib.SequenceMatcher(None, "", text.lower(), autojunk=False)
    for other in taken:
        matcher.set_seq1(other.lower())
        if matcher.real_quick_ratio() >= _ALIKE and matcher.quick_ratio() >= _ALIKE and matcher.ratio() >= _ALIKE:
            return False
    return True


def _pairs(
    llama: SteeredLlama, behaviour: Behaviour, questions: Sequence[str], seed: int, progress: Progress
) -> Iterator[Pair]:
    """The questions with an answer under the rule and one without it, where the two differ."""
    chats = [[{"role": "user", "content": told(behaviour.what, text)}] for text in questions]
    chats += [[{"role": "user", "content": text}] for text in questions]
    written = []
    for each in llama.whole_answers(chats, ANSWER_TOKENS, _ANSWER_TEMPERATURE, seed=seed, at_most=_AT_MOST):
        written.append(each.text.strip())
        progress("writing answers", len(written), len(chats))
    n = len(questions)
    for text, chosen, rejected in zip(questions, map(_bare, written[:n]), written[n:], strict=True):
        if chosen and rejected and difflib.SequenceMatcher(None, chosen, rejected).ratio() < _SAME_ANSWER:
            yield Pair(_prompt(text), chosen, rejected)
