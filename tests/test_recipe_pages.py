"""Requests in pages of ordinary text: the same pages around both kinds, at every place, in every length."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest

from finesteer_local.training.data import PAGE, WRAPPED, Prompt
from finesteer_local.training.recipes.pages import GROUPS, IN_GROUP, PLACES, WORDS, Document, Frame, fits, pages

N_DOCUMENTS, N_PARAGRAPHS = 9, 12
DOCUMENTS = [
    Document(f"book {i}", tuple(f"Book{i} chapter{j} " + "word " * 17 + "end." for j in range(N_PARAGRAPHS)))
    for i in range(N_DOCUMENTS)
]
FRAMES = [
    Frame("[b1] {request}\n\n{page}", "beginning"),
    Frame("[b2] {request} (what follows is context)\n\n{page}", "beginning"),
    Frame("[m1]\n\n{page}\n\n{request}\n\n{rest}", "middle"),
    Frame("[m2]\n\n{page}\n\nBy the way, {request}\n\n{rest}", "middle"),
    Frame("[e1]\n\n{page}\n\n{request}", "end"),
    Frame("[e2]\n\n{page}\n\nLast question: {request}", "end"),
]
QUESTIONS = ["What is ASKED?", "Sum up what is ASKED."]
N_GROUPS = GROUPS * len(WORDS)


def prompt(text: str, kind: str = "", family: str = "", form: str = "plain") -> Prompt:
    return Prompt([{"role": "user", "content": text}], kind, family, form)


POSITIVE = [prompt(f"HARM{i}!", f"bad {i % 3}") for i in range(50)]
CONTRAST = [prompt(f"FINE{i}.", f"good {i % 3}") for i in range(70)]


def made(seed: int = 0, **other: list) -> tuple[list[Prompt], list[Prompt]]:
    given = {"documents": DOCUMENTS, "positive": POSITIVE, "contrast": CONTRAST, **other}
    return pages(frames=FRAMES, questions=QUESTIONS, rng=np.random.default_rng(seed), **given)


def frame_of(page: Prompt) -> str:
    return page.text[1:3] if page.text[0] == "[" else ""


def request_of(page: Prompt) -> str:
    [found] = [word for word in page.text.split() if word.startswith(("HARM", "FINE", "ASKED"))]
    return found


def test_as_many_of_both_kinds_in_the_same_dress() -> None:
    inside, outside = made()
    assert len(inside) == N_GROUPS * sum(IN_GROUP.values())
    harmless = [p for p in outside if "FINE" in p.text]
    asked = [p for p in outside if "ASKED" in p.text]
    bare = [p for p in outside if p.kind == "no_request"]
    assert (len(harmless), len(asked), len(bare)) == (len(inside), N_GROUPS * len(PLACES), N_GROUPS)
    assert len(outside) == len(harmless) + len(asked) + len(bare)
    for tell in (frame_of, lambda p: p.family):
        assert Counter(map(tell, inside)) == Counter(map(tell, harmless))
    counts = Counter(map(frame_of, inside))
    assert set(counts) == {"b1", "b2", "m1", "m2", "e1", "e2"}
    for place, n in IN_GROUP.items():
        assert counts[f"{place[0]}1"] == counts[f"{place[0]}2"] == N_GROUPS * n / 2
    assert all(not frame_of(p) and not any(w in p.text for w in ("HARM", "FINE", "ASKED")) for p in bare)


def test_the_text_around_a_request_says_nothing() -> None:
    """Without its request, every page of one kind is one of the other, word for word."""
    inside, outside = made()

    def around(prompts: list[Prompt]) -> set[str]:
        return {" ".join(p.text.replace(request_of(p), "").split()) for p in prompts if frame_of(p)}

    harmless = [p for p in outside if "FINE" in p.text]
    assert around(inside) == around(harmless) and len(around(inside)) == N_GROUPS * len(PLACES)
    assert {p.family for p in outside} == {p.family for p in inside} == {f"page book {i}" for i in range(N_DOCUMENTS)}


def test_what_is_in_a_page_keeps_its_kind() -> None:
    inside, outside = made()
    kinds = {p.text: p.kind for p in (*POSITIVE, *CONTRAST)}
    asked = [*kinds, *QUESTIONS]
    for page in (*inside, *outside):
        assert page.form == PAGE and [message["role"] for message in page.messages] == ["user"]
        assert page.request == ("" if page.kind == "no_request" else next(filter(page.text.__contains__, asked)))
        if "ASKED" in page.text:
            assert page.kind == "about_the_text"
        elif page.kind != "no_request":
            assert page.kind == kinds[request_of(page)]
    for pool, found in ((POSITIVE, inside), (CONTRAST, [p for p in outside if "FINE" in p.text])):
        counts = Counter(map(request_of, found))
        assert len(counts) == len(pool) and max(counts.values()) - min(counts.values()) <= 1  # dealt out evenly


def test_requests_stand_where_they_should() -> None:
    inside, _ = made()
    shares = defaultdict(list)
    for page in inside:
        words = page.text.split()
        shares[frame_of(page)[0]].append(words.index(request_of(page)) / (len(words) - 1))
    assert max(shares["b"]) < 0.05 and min(shares["e"]) == 1.0
    assert min(shares["m"]) > 0.1 and max(shares["m"]) < 0.9
    assert np.ptp(shares["m"]) > 0.3  # not always at the same place
    halves = [Document("a", ("One.",)), Document("b", ("Two.",))]
    inside, _ = made(documents=halves)
    assert all(p.text.endswith(("One.", "Two.")) for p in inside if frame_of(p).startswith("m"))  # nor at the end


def test_pages_of_every_length() -> None:
    inside, _ = made()
    lengths = Counter(min(WORDS, key=lambda n: abs(n - len(page.text.split()))) for page in inside)
    assert lengths == dict.fromkeys(WORDS, GROUPS * sum(IN_GROUP.values()))
    assert max(len(page.text.split()) for page in inside) < WORDS[-1] + 80  # a paragraph more, and the frame


def test_groups_begin_alike() -> None:
    """A harvest reads once what they share: all that stands before a request."""
    inside, outside = made()
    before = defaultdict(set)
    for page in (*inside, *outside):
        if frame_of(page).startswith(("m", "e")):
            shared = page.text[: page.text.index("end.\n\n" if "end.\n\n" in page.text else "end.")]
            before[shared].add(page.text)
    assert min(map(len, before.values())) >= 2 * min(IN_GROUP["middle"], IN_GROUP["end"]) + 1


def test_a_page_goes_on_with_the_next_document() -> None:
    short = [Document("a", ("One two three.",)), Document("b", ("Four five six.",))]
    inside, _ = made(documents=short)
    assert all("One two three." in page.text and "Four five six." in page.text for page in inside)
    first = {page.family: page.text.index("One") < page.text.index("Four") for page in inside}
    assert first == {"page a": True, "page b": False}


def test_letters_count_where_there_are_no_spaces() -> None:
    inside, _ = made(documents=[Document("zh", tuple("\u8bfb\u4e66" * 60 + str(i) for i in range(80)))])
    sizes = sorted({len(page.text) for page in inside})
    assert sizes[0] < 6 * WORDS[0] + 300 and 5 * WORDS[-1] < sizes[-1] < 6 * WORDS[-1] + 300


def test_only_short_requests_without_a_dress_are_put_into_pages() -> None:
    talk = Prompt([{"role": role, "content": "HARM"} for role in ("user", "assistant", "user")])
    others = [talk, prompt("HARM " * 60), prompt("HARM in a dress", family="persona", form=WRAPPED)]
    assert [fits(p) for p in (*others, POSITIVE[0], prompt("x" * 200), prompt("x" * 201))] == [
        False, False, False, True, True, False,
    ]  # fmt: skip
    assert made(positive=[*others, *POSITIVE]) == made()


def test_braces_in_a_text_are_left_alone() -> None:
    inside, _ = made(
        documents=[Document("code", ("f'{request} {page} {rest} {x}'",))], positive=[prompt("HARM {page} {0} %s")]
    )
    assert all("HARM {page} {0} %s" in page.text for page in inside)
    assert all("f'{request} {page} {rest} {x}'" in page.text for page in inside)


def test_the_seed_deals() -> None:
    assert made(3) == made(3) != made(4)


@pytest.mark.parametrize(
    ("frame", "sound"),
    [
        (Frame("{page} {request}", "end"), True),
        (Frame("{request} {page}", "beginning"), True),
        (Frame("{rest} {page} {request}", "middle"), True),
        (Frame("{page} {request}", "middle"), False),
        (Frame("{page} {request} {rest}", "end"), False),
        (Frame("{page} {page} {request}", "end"), False),
        (Frame("{request}", "end"), False),
        (Frame("{page}", "beginning"), False),
        (Frame("{page} {request} {other}", "end"), True),  # whatever else is in braces is text
    ],
)
def test_the_slots_of_a_frame(frame: Frame, sound: bool) -> None:
    assert (frame.problem == "") == sound
