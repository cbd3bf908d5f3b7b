"""Recipes and files of pairs become training data."""

from __future__ import annotations

import codecs
import json
import re
from base64 import b64decode
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finesteer_local.errors import DataError, UnknownNameError
from finesteer_local.profile import NAME
from finesteer_local.training import recipes
from finesteer_local.training.data import PAIRS_A_QUESTION, Pair, Prompt, TrainingData
from finesteer_local.training.recipes import load_data, load_recipe, profile_name, recipe_names
from finesteer_local.training.recipes.pages import GROUPS, IN_GROUP, WORDS

N_PLAIN = 40


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def prompt(text: str, kind: str = "") -> Prompt:
    return Prompt([{"role": "user", "content": text}], kind)


@pytest.fixture
def polite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small recipe, in place of those that come with the package."""
    folder = tmp_path / "recipes" / "polite"
    folder.mkdir(parents=True)
    recipe = {
        "name": "polite",
        "description": "Says please.",
        "license": "CC0-1.0",
        "judge": "margin",
        "own_replies": False,
        "chosen": "chosen.jsonl",
        "rejected": "rejected.jsonl",
        "wrappers": "wrappers.jsonl",
        "positive": ["rude.jsonl", "worse.jsonl"],
        "contrast": ["plain.jsonl"],
    }
    (folder / "recipe.json").write_text(json.dumps(recipe))
    write(folder / "rude.jsonl", [{"prompt": f"do {i}", "kind": "order"} for i in range(N_PLAIN)])
    conversation = [{"role": role, "content": "hm"} for role in ("user", "assistant", "user")]
    write(
        folder / "worse.jsonl",
        [
            {"prompt": "you there", "kind": "call", "family": "shouting"},
            {"messages": conversation, "kind": "talk"},
            {"prompt": "long " * 100, "kind": "long"},
        ],
    )
    write(folder / "plain.jsonl", [{"prompt": f"please do {i}", "kind": "request"} for i in range(N_PLAIN)])
    write(folder / "chosen.jsonl", [{"text": f"please {i}"} for i in range(3)])
    write(folder / "rejected.jsonl", [{"text": f"now {i}"} for i in range(5)])
    write(folder / "wrappers.jsonl", [{"template": f"<{i} {{request}} {i}>", "family": "brackets"} for i in range(6)])
    monkeypatch.setattr(recipes, "_FOLDER", folder.parent)
    return folder


def test_a_recipe(polite: Path) -> None:
    assert recipe_names() == ["polite"]
    data = load_recipe("polite")
    about = (data.name, data.recipe, data.description, data.license, data.judge, data.own_replies)
    assert about == ("polite", "polite", "Says please.", "CC0-1.0", "margin", False)
    assert (len(data.pairs), len(data.contrast)) == (N_PLAIN + 3 + 6, N_PLAIN + 6)
    assert [pair.prompt.text for pair in data.pairs[:2]] == ["do 0", "do 1"]
    assert data.pairs[N_PLAIN].prompt.family == "shouting"
    assert [message["role"] for message in data.pairs[N_PLAIN + 1].prompt.messages] == ["user", "assistant", "user"]


def test_answers_are_dealt_out_evenly(polite: Path) -> None:
    data = load_recipe("polite")
    for answers, n in (([p.chosen for p in data.pairs], 3), ([p.rejected for p in data.pairs], 5)):
        counts = Counter(answers)
        assert len(counts) == n
        assert max(counts.values()) - min(counts.values()) <= 1
    assert len({(p.chosen, p.rejected) for p in data.pairs}) > 8  # not always the same two together


def test_wrappers_go_around_plain_requests_of_both_kinds(polite: Path) -> None:
    data = load_recipe("polite")
    for prompts, plain, kind in (
        ([p.prompt for p in data.pairs], "do ", "order"),
        (data.contrast, "please do ", "request"),
    ):
        wrapped = [p for p in prompts if p.family == "brackets"]
        assert len(wrapped) == 6 and {(p.kind, p.form) for p in wrapped} == {(kind, "wrapped")}
        requests = set()
        for i, prompt in enumerate(wrapped):
            assert [message["role"] for message in prompt.messages] == ["user"]
            assert f"<{i} " in prompt.text and f" {i}>" in prompt.text
            assert prompt.text.count("<") == (2 if i % 2 else 1)  # every second one in another wrapper
            assert "{request}" not in prompt.text
            inside = prompt.text[prompt.text.rindex("<") + 3 : prompt.text.index(">") - 2]
            assert inside.startswith(plain) and inside in {p.text for p in prompts}
            requests.add(inside)
        assert len(requests) == 6


def test_braces_in_a_request_are_left_alone(polite: Path) -> None:
    write(polite / "rude.jsonl", [{"prompt": "print {x} {0} {request!r} %s"} for _ in range(N_PLAIN)])
    wrapped = [pair.prompt for pair in load_recipe("polite").pairs if pair.prompt.family == "brackets"]
    assert all("print {x} {0} {request!r} %s" in prompt.text for prompt in wrapped)


@pytest.mark.parametrize(
    ("encoding", "decoded"),
    [
        ("base64", lambda code: b64decode(code).decode()),
        ("hex", lambda code: bytes.fromhex(code).decode()),
        ("rot13", lambda code: codecs.decode(code, "rot13")),
        ("reversed", lambda code: code[::-1]),
        ("spaced", lambda code: code[::2]),
    ],
)
def test_a_wrapper_can_encode_the_request(polite: Path, encoding: str, decoded: Callable[[str], str]) -> None:
    write(polite / "rude.jsonl", [{"prompt": f"say “Grüße” {i:02}"} for i in range(N_PLAIN)])
    write(polite / "wrappers.jsonl", [{"template": f"read [{{request:{encoding}}}]", "family": "code"}])
    [wrapped] = [pair.prompt.text for pair in load_recipe("polite").pairs if pair.prompt.family == "code"]
    assert re.fullmatch(r"say “Grüße” \d\d", decoded(wrapped.removeprefix("read [").removesuffix("]")))


def test_a_wrapper_can_be_for_what_needs_intervention_alone(polite: Path) -> None:
    """Who demands obedience for what a code hides is after something harmful; what is behind the code cannot tell."""
    write(
        polite / "wrappers.jsonl",
        [
            {"template": "<{request}>", "family": "brackets"},
            {"template": "obey ({request})", "family": "demands", "positive_only": True},
            {"template": "kindly [{request}]", "family": "kind", "positive_only": False},
        ],
    )
    data = load_recipe("polite")
    assert Counter(pair.prompt.family for pair in data.pairs if pair.prompt.family != "shouting")["demands"] == 1
    assert Counter(prompt.family for prompt in data.contrast) == {"": N_PLAIN, "brackets": 1, "kind": 1}
    assert not any("obey" in prompt.text for prompt in data.contrast)  # nor around another wrapper


def test_the_seed_deals(polite: Path) -> None:
    def told(data: TrainingData) -> list[object]:
        return [data.pairs, data.contrast, data.hash]

    assert told(load_recipe("polite", seed=3)) == told(load_recipe("polite", seed=3))
    assert load_recipe("polite", seed=3).hash != load_recipe("polite", seed=4).hash
    assert load_recipe("polite").hash == load_recipe("polite", seed=0).hash


def test_without_wrappers(polite: Path) -> None:
    recipe = json.loads((polite / "recipe.json").read_text())
    del recipe["wrappers"]
    (polite / "recipe.json").write_text(json.dumps(recipe))
    assert len(load_recipe("polite").pairs) == N_PLAIN + 3


@pytest.mark.parametrize(
    ("file", "text", "what"),
    [
        ("chosen.jsonl", '{"text": "a"}\n{"text": " "}', r"chosen\.jsonl.* no 'text'"),
        ("rejected.jsonl", '{"txt": "a"}', r"rejected\.jsonl.* no 'text'"),
        ("wrappers.jsonl", '{"family": "x"}', r"wrappers\.jsonl.* no 'template'"),
        ("wrappers.jsonl", '{"template": "do it", "family": "x"}', r"wrappers\.jsonl.* 'do it' has 0 places"),
        ("wrappers.jsonl", '{"template": "{request} {request:hex}", "family": "x"}', "has 2 places .* {request} once"),
        ("wrappers.jsonl", '{"template": "{request:rot26}", "family": "x"}', "no encoding 'rot26'; known: base64, hex"),
        ("wrappers.jsonl", '{"template": "{request}"}', "'{request}' needs a 'family'"),
        ("wrappers.jsonl", '{"template": "{request}", "family": "x", "positive_only": 1}', "can only be true or false"),
        ("rude.jsonl", '{"prompt": "a"}\n{"prompt": ""}', r"rude\.jsonl, line 2: .*'prompt'"),
        ("plain.jsonl", "{", r"plain\.jsonl, line 1: not JSON"),
    ],
)
def test_a_damaged_recipe(polite: Path, file: str, text: str, what: str) -> None:
    (polite / file).write_text(text)
    with pytest.raises(DataError, match=what):
        load_recipe("polite")


PAGES = {"pages": "pages.jsonl", "page_frames": "frames.jsonl", "page_questions": "questions.jsonl"}
N_IN_PAGES = GROUPS * len(WORDS) * sum(IN_GROUP.values())
FRAMES = [
    {"template": "{request}\n\n{page}", "place": "beginning"},
    {"template": "{page}\n\n{request}\n\n{rest}", "place": "middle"},
    {"template": "{page}\n\n{request}", "place": "end"},
]


@pytest.fixture
def paged(polite: Path) -> Path:
    """The recipe with pages."""
    recipe = json.loads((polite / "recipe.json").read_text())
    write(polite / "pages.jsonl", [{"text": f"Line {i} of it.", "document": f"book {i // 10}"} for i in range(30)])
    write(polite / "frames.jsonl", FRAMES)
    write(polite / "questions.jsonl", [{"text": "What is it about?"}, {"text": "Sum it up."}])
    (polite / "recipe.json").write_text(json.dumps(recipe | PAGES))
    return polite


def test_pages_come_last_and_hold_plain_requests(paged: Path) -> None:
    data = load_recipe("polite")
    for prompts, n, start in (
        ([p.prompt for p in data.pairs], N_PLAIN + 3 + 6, "do"),
        (data.contrast, N_PLAIN + 6, ""),
    ):
        assert {p.form for p in prompts[:n]} == {"plain", "wrapped"} and {p.form for p in prompts[n:]} == {"page"}
        assert {p.family for p in prompts[n:]} == {"page book 0", "page book 1", "page book 2"}
        requests = [p for p in prompts[n:] if p.kind not in ("about_the_text", "no_request")]
        assert len(requests) == N_IN_PAGES and all(f"{start} " in p.text for p in requests)
        assert not any("<" in p.text or "long long" in p.text for p in requests)  # nothing wrapped, nothing long
    plain = load_recipe("polite", 3)
    assert load_recipe("polite", 3).hash == plain.hash != data.hash
    without = json.loads((paged / "recipe.json").read_text())
    (paged / "recipe.json").write_text(json.dumps({k: v for k, v in without.items() if k not in PAGES}))
    assert [p.prompt for p in load_recipe("polite").pairs] == [p.prompt for p in data.pairs[: N_PLAIN + 3 + 6]]


@pytest.mark.parametrize("left_out", PAGES)
def test_pages_need_all_their_files(paged: Path, left_out: str) -> None:
    recipe = json.loads((paged / "recipe.json").read_text())
    del recipe[left_out]
    (paged / "recipe.json").write_text(json.dumps(recipe))
    with pytest.raises(DataError, match="give all of 'pages', 'page_frames', 'page_questions', or none"):
        load_recipe("polite")


@pytest.mark.parametrize(
    ("file", "text", "what"),
    [
        ("pages.jsonl", '{"document": "x"}', r"pages\.jsonl: a row has no 'text'"),
        ("pages.jsonl", "", r"pages\.jsonl.* no 'text'"),
        ("questions.jsonl", '{"text": " "}', r"questions\.jsonl: a row has no 'text'"),
        ("frames.jsonl", json.dumps(FRAMES[0]), r"frames\.jsonl: no row has the place 'middle'"),
        ("frames.jsonl", '{"template": "{request} {page}"}', "needs a 'place': beginning, middle, end"),
        ("frames.jsonl", '{"template": "{request} {page}", "place": "top"}', "needs a 'place': beginning, middle, end"),
        ("frames.jsonl", '{"template": "{page}", "place": "end"}', "once, and no other: {page}, {request}$"),
        ("frames.jsonl", '{"template": "{page} {request} {request}", "place": "end"}', "once, and no other"),
        ("frames.jsonl", '{"template": "{page} {request} {rest}", "place": "end"}', "once, and no other: {page}, {req"),
        ("frames.jsonl", '{"template": "{page} {request}", "place": "middle"}', "{page}, {request}, {rest}$"),
        ("rude.jsonl", json.dumps({"prompt": "long " * 60}), "no 'positive' prompt is short enough to stand in a page"),
        ("plain.jsonl", json.dumps({"prompt": "p " * 120}), "no 'contrast' prompt is short enough to stand in a page"),
    ],
)
def test_damaged_pages(paged: Path, file: str, text: str, what: str) -> None:
    """Said at once: a frame without a request would teach the gate to open for its text."""
    (paged / file).write_text(text)
    with pytest.raises(DataError, match=what):
        load_recipe("polite")


def test_pages_are_for_pools(paged: Path, tmp_path: Path) -> None:
    write_recipe(paged, pairs=["rude.jsonl"], contrast=["plain.jsonl"], **PAGES)
    with pytest.raises(DataError, match="'pairs' have their own answers; leave out 'pages', 'page_frames', 'page_ques"):
        load_recipe("polite")


def test_an_unknown_recipe() -> None:
    for name in ("saftey", "safety ", "afety", "safety/recipe.json", "../recipes/safety"):
        with pytest.raises(UnknownNameError, match=f"there is no recipe {name!r}; known: safety"):
            load_recipe(name)
    for name in ("xyzzy", ""):
        with pytest.raises(UnknownNameError, match=f"there is no recipe {name!r}; known: "):
            load_recipe(name)


def test_the_nearest_names_come_first(polite: Path) -> None:
    for name in ("politics", "zebra"):
        (polite.parent / name).mkdir()
        (polite.parent / name / "recipe.json").write_text("{}")
    assert recipe_names() == ["polite", "politics", "zebra"]
    with pytest.raises(UnknownNameError, match="known: politics, polite"):
        load_recipe("politicks")


def test_the_recipe_that_comes_with_the_package() -> None:
    assert "safety" in recipe_names()
    data = load_recipe("safety")
    assert (data.name, data.recipe, data.license, data.judge) == ("safety", "safety", "Apache-2.0", "refusal")
    assert NAME.fullmatch(data.name) and data.description
    folder = Path(recipes.__file__).parent / "safety"
    refusals, openings, wrappers = (
        [json.loads(line) for line in (folder / file).read_text("utf-8").splitlines()]
        for file in ("refusals.jsonl", "openings.jsonl", "wrappers.jsonl")
    )
    assert {pair.chosen for pair in data.pairs} == {row["text"] for row in refusals}
    assert {pair.rejected for pair in data.pairs} == {row["text"] for row in openings}
    assert all(pair.prompt.text.strip() and pair.prompt.kind for pair in data.pairs)
    assert not any("{request" in prompt.text for prompt in [*(p.prompt for p in data.pairs), *data.contrast])
    both = [row for row in wrappers if not row.get("positive_only")]
    for prompts, rows in (([pair.prompt for pair in data.pairs], wrappers), (data.contrast, both)):
        families = Counter(row["family"] for row in rows)
        seen = Counter(prompt.family for prompt in prompts)
        assert all(seen[family] >= n for family, n in families.items())


@pytest.fixture
def own(polite: Path, tmp_path: Path) -> Path:
    """A user's recipe: a folder elsewhere, whose pairs have their own answers."""
    folder = tmp_path / "My own"
    folder.mkdir()
    write(folder / "pairs.jsonl", [{"prompt": f"! {i}", "chosen": f"no {i}", "rejected": "yes"} for i in range(20)])
    questions = [
        {"prompt": f"is it {i}?", "correct": [f"it is {i}", f"yes, {i}", "so it is"], "wrong": ["no", "never"]}
        for i in range(N_PLAIN)
    ]
    write(folder / "questions.jsonl", [{**row, "kind": f"kind {i % 4}"} for i, row in enumerate(questions)])
    write(folder / "short.jsonl", [{"prompt": "short?", "correct": ["a"], "wrong": ["b"]}])
    write_recipe(folder, pairs=["pairs.jsonl", "questions.jsonl"], contrast=["polite/plain.jsonl"])
    return folder


def write_recipe(folder: Path, **fields: Any) -> None:
    (folder / "recipe.json").write_text(json.dumps(fields))


def test_pairs_with_their_own_answers(own: Path) -> None:
    data = load_recipe(str(own))
    assert (data.name, data.recipe, data.judge, data.own_replies) == ("my-own", "My own", "margin", False)
    assert not data.pooled and load_recipe("polite").pooled
    assert data.pairs[:20] == [Pair(prompt(f"! {i}"), f"no {i}", "yes") for i in range(20)]
    asked = data.pairs[20:]
    assert len(asked) == PAIRS_A_QUESTION * N_PLAIN
    for i in range(N_PLAIN):
        first, second = asked[2 * i : 2 * i + 2]
        assert first.prompt == second.prompt == prompt(f"is it {i}?", f"kind {i % 4}")
        assert first.chosen != second.chosen and first.rejected != second.rejected
        assert {first.chosen, second.chosen} < {f"it is {i}", f"yes, {i}", "so it is"}
    assert {pair.chosen for pair in asked} > {"so it is", "it is 0"}  # not always the first ones
    assert [p.text for p in data.contrast] == [f"please do {i}" for i in range(N_PLAIN)]
    assert data.positive == [*(p.prompt for p in data.pairs[:20]), *(p.prompt for p in asked[::2])]


def test_the_seed_deals_the_answers_of_a_question(own: Path) -> None:
    assert load_recipe(str(own), 3).pairs == load_recipe(str(own), 3).pairs
    assert load_recipe(str(own), 3).pairs != load_recipe(str(own), 4).pairs
    assert load_recipe(str(own), 3).positive == load_recipe(str(own), 4).positive


def test_what_a_recipe_may_leave_out(polite: Path, own: Path) -> None:
    (polite.parent / "safety").mkdir()
    for file in polite.iterdir():
        (polite.parent / "safety" / file.name).write_bytes(file.read_bytes())
    write_recipe(own, pairs=["pairs.jsonl", "questions.jsonl"])
    assert load_recipe(str(own)).contrast == load_recipe("safety").contrast
    write_recipe(own, pairs=["questions.jsonl"], name="calm", judge="refusal", own_replies=True, description="Calms.")
    data = load_recipe(str(own))
    assert (data.name, data.judge, data.own_replies, data.description) == ("calm", "refusal", True, "Calms.")


def test_a_part_of_a_file(own: Path) -> None:
    def load(*contrast: Any) -> list[str]:
        write_recipe(own, pairs=["questions.jsonl"], contrast=list(contrast))
        return [p.text for p in load_recipe(str(own)).contrast]

    third = [f"is it {i}?" for i in range(3, N_PLAIN, 4)]
    assert load({"file": "questions.jsonl", "kinds": ["kind 3"]}) == third
    few = load({"file": "questions.jsonl", "kinds": ["kind 3"], "at_most": 4})
    assert len(few) == 4 and few == [text for text in third if text in few] and few != third[:4]
    assert load({"file": "questions.jsonl", "at_most": 1000}) == [f"is it {i}?" for i in range(N_PLAIN)]
    assert load({"file": "polite/plain.jsonl", "kinds": ["request"], "at_most": 1}, "short.jsonl")[1] == "short?"
    write_recipe(own, pairs=[{"file": "questions.jsonl", "kinds": ["kind 1", "kind 2", "kind 3"], "at_most": 30}])
    with pytest.raises(UnknownNameError):  # here no `safety` stands in
        load_recipe(str(own))
    write_recipe(own, pairs=[{"file": "questions.jsonl", "kinds": ["kind 1", "kind 2"]}], contrast=["short.jsonl"])
    assert {pair.prompt.kind for pair in load_recipe(str(own)).pairs} == {"kind 1", "kind 2"}


def test_files_outside_are_not_read(own: Path, tmp_path: Path) -> None:
    write(tmp_path / "secret.jsonl", [{"prompt": "secret"}])
    (own / "link.jsonl").symlink_to(tmp_path / "secret.jsonl")
    (own / "sub").mkdir()
    write(own / "sub" / "inside.jsonl", [{"prompt": "inside"}])
    outside = "../secret.jsonl", "sub/../../secret.jsonl", str(tmp_path / "secret.jsonl"), "link.jsonl"
    for name in (*outside, "polite/../../secret.jsonl", "polite", "absent.jsonl", "plain.jsonl", "", 7, None, ["x"]):
        write_recipe(own, pairs=["questions.jsonl"], contrast=[name])
        with pytest.raises(DataError) as caught:
            load_recipe(str(own))
        assert str(caught.value).startswith(f"{own / 'recipe.json'}: no file {name!r} in its folder"), name
    for name in ("sub/inside.jsonl", "sub/../short.jsonl", "polite/../polite/plain.jsonl"):
        write_recipe(own, pairs=["questions.jsonl"], contrast=[name])
        assert load_recipe(str(own)).contrast


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "not a JSON object"),
        ('{"pair": ["pairs.jsonl"]}', "unknown field 'pair'; known: name, description"),
        ('{"pairs": []}', "the field 'pairs' cannot be []"),
        ('{"pairs": "pairs.jsonl"}', "the field 'pairs' cannot be \"pairs.jsonl\""),
        ('{"pairs": ["pairs.jsonl"], "name": 3}', "the field 'name' cannot be 3"),
        ('{"pairs": ["pairs.jsonl"], "own_replies": 1}', "the field 'own_replies' cannot be 1"),
        ('{"pairs": ["pairs.jsonl"], "judge": "gpt"}', "judge 'gpt' is none of refusal, margin"),
        ('{"pairs": ["pairs.jsonl"], "chosen": "c"}', "'pairs' have their own answers; leave out 'chosen'"),
        ('{"contrast": ["short.jsonl"]}', "give either 'pairs', or 'positive', 'chosen' and 'rejected'"),
        ('{"positive": ["short.jsonl"], "chosen": "c"}', "give either 'pairs', or 'positive', 'chosen' and 'rejected'"),
        ('{"pairs": [{"file": "pairs.jsonl", "kind": "x"}]}', "unknown field 'kind'; known: file, kinds, at_most"),
        ('{"pairs": [{"file": "pairs.jsonl", "kinds": "x"}]}', "'kinds' must be a list of names"),
        ('{"pairs": [{"file": "pairs.jsonl", "kinds": []}]}', "'kinds' must be a list of names"),
        ('{"pairs": [{"file": "questions.jsonl", "kinds": ["kind 1", "x"]}]}', "nothing in the file is of kind 'x'"),
        ('{"pairs": [{"file": "pairs.jsonl", "at_most": 0}]}', "'at_most' must be a whole number from 1"),
        ('{"pairs": [{"file": "pairs.jsonl", "at_most": true}]}', "'at_most' must be a whole number from 1"),
        ('{"pairs": [{"kinds": ["x"]}]}', "no file None in its folder"),
    ],
)
def test_a_bad_recipe_json(own: Path, text: str, what: str) -> None:
    if "contrast" not in text and text.startswith("{") and text != "{":
        text = text[:-1] + ', "contrast": ["short.jsonl"]}'
    (own / "recipe.json").write_text(text)
    with pytest.raises(DataError) as caught:
        load_recipe(str(own))
    assert str(caught.value).startswith(f"{own / 'recipe.json'}: ") and what in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"correct": ["a"], "wrong": ["b"]}, "the field 'prompt' is missing or empty"),
        ({"prompt": "x", "correct": ["a"]}, "the field 'wrong' must be a list of answers"),
        ({"prompt": "x", "wrong": ["a"]}, "the field 'correct' must be a list of answers"),
        ({"prompt": "x", "chosen": "a"}, "the field 'rejected' is missing or empty"),
        ({"prompt": "x"}, "the field 'chosen' is missing or empty"),
    ],
)
def test_a_bad_row_names_the_line(own: Path, row: dict[str, Any], what: str) -> None:
    write(own / "questions.jsonl", [{"prompt": "x", "correct": ["a"], "wrong": ["b"]}, row])
    with pytest.raises(DataError) as caught:
        load_recipe(str(own))
    assert str(caught.value) == f"{own / 'questions.jsonl'}, line 2: {what}"


def test_a_folder_without_a_recipe(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^cannot read .*recipe\.json: no such file or directory$"):
        load_recipe(str(tmp_path))


def test_a_name_comes_before_a_folder(polite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "polite").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_recipe("polite").name == "polite"
    with pytest.raises(DataError, match="cannot read"):
        load_recipe("./polite")


def test_every_recipe_that_comes_along_can_be_loaded() -> None:
    assert recipe_names() == ["brief", "safety", "truthful"]
    for name in recipe_names():
        data = load_recipe(name)
        assert data.name == data.recipe == name and data.license == "Apache-2.0"
        assert not {p.text for p in data.positive} & {p.text for p in data.contrast}


def test_two_seeds_of_the_same_recipe() -> None:
    first, again, other = (load_recipe("safety", seed) for seed in (0, 0, 1))
    assert (first.pairs, first.contrast, first.hash) == (again.pairs, again.contrast, again.hash)
    assert first.hash != other.hash
    assert len(first.pairs) == len(other.pairs)


def test_load_data_from_a_recipe() -> None:
    data = load_data(recipe="safety", name="mine", seed=2)
    assert (data.name, data.recipe) == ("mine", "safety")
    assert data.hash == load_recipe("safety", 2).hash


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    pairs, contrast = tmp_path / "My Pairs (v2).jsonl", tmp_path / "contrast.jsonl"
    write(pairs, [{"prompt": f"do {i}", "chosen": "no", "rejected": "yes"} for i in range(30)])
    write(contrast, [{"prompt": "hello"}, {"messages": [{"role": "user", "content": "bye"}]}])
    return pairs, contrast


def test_load_data_from_files(files: tuple[Path, Path]) -> None:
    pairs, contrast = files
    data = load_data(data=pairs, contrast=str(contrast))
    assert (data.name, data.recipe, data.judge, data.own_replies) == ("my-pairs-v2", "", "margin", False)
    assert [pair.prompt.text for pair in data.pairs] == [f"do {i}" for i in range(30)]
    assert [prompt.text for prompt in data.contrast] == ["hello", "bye"]
    assert load_data(data=str(pairs), contrast=contrast, name="other") == replace(data, name="other")


def test_without_a_contrast_file_the_ordinary_prompts_of_safety(files: tuple[Path, Path]) -> None:
    assert load_data(data=files[0], seed=1).contrast == load_recipe("safety", 1).contrast


def test_one_source_of_data(files: tuple[Path, Path]) -> None:
    for sources in ({}, {"recipe": "safety", "data": files[0]}):
        with pytest.raises(DataError, match="either a recipe or a file of pairs"):
            load_data(**sources)


@pytest.mark.parametrize("file", ["data", "contrast"])
def test_files_that_cannot_be_read(files: tuple[Path, Path], tmp_path: Path, file: str) -> None:
    given = {"data": files[0], "contrast": files[1], file: tmp_path / "absent.jsonl"}
    with pytest.raises(DataError, match=r"cannot read .*absent\.jsonl"):
        load_data(**given)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("safety", "safety"),
        ("My Pairs (v2)", "my-pairs-v2"),
        ("  ÄÖÜ été  ", "t"),
        ("_-a_b-", "a_b"),
        ("日本語", "profile"),
        ("", "profile"),
        ("../../etc/passwd", "etc-passwd"),
        ("x" * 100, "x" * 64),
    ],
)
def test_profile_name(text: str, name: str) -> None:
    assert profile_name(text) == name
    assert NAME.fullmatch(name)
