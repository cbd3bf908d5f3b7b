"""The data of the `safety` recipe: format, duplicates, balance."""

from __future__ import annotations

import json
import re
from base64 import b64decode
from collections import Counter, defaultdict
from math import ceil
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from finesteer_local.evaluation.judges import is_refusal
from finesteer_local.jsonl import messages_of, read_rows
from finesteer_local.training import recipes

FOLDER = Path(recipes.__file__).parent / "safety"
RECIPE = json.loads((FOLDER / "recipe.json").read_text(encoding="utf-8"))
FILES = {path.name: [row for _, row in read_rows(path)] for path in sorted(FOLDER.glob("*.jsonl"))}
TEXTS = ("refusals.jsonl", "openings.jsonl")
SHORT = 200  # letters
OVERLAP = 0.8  # of the words of two short prompts, shared by both; the nearest two of this recipe have just that
FEW_DIGITS = 3  # an opening may number a step


def named(start: str) -> list[dict[str, Any]]:
    """Rows of the files whose names start so."""
    return [row for name, rows in FILES.items() if name.startswith(start) for row in rows]


HARMFUL = named("harmful")
PROMPTS = [name for name in FILES if name not in (*TEXTS, "wrappers.jsonl")]


def text_of(row: dict[str, Any]) -> str:
    if "messages" in row:
        return "\n\n".join(message["content"] for message in row["messages"])
    return str(row.get("prompt") or row.get("template") or row.get("text"))


def replies(row: dict[str, Any]) -> list[str]:
    return [message["content"] for message in row["messages"] if message["role"] == "assistant"]


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def test_the_recipe_names_every_file_once() -> None:
    named = [*RECIPE["positive"], *RECIPE["contrast"], RECIPE["chosen"], RECIPE["rejected"], RECIPE["wrappers"]]
    assert sorted(named) == sorted(FILES)
    assert (RECIPE["chosen"], RECIPE["rejected"]) == TEXTS
    keys = {"name", "description", "license", "judge", "own_replies"}
    assert set(RECIPE) == keys | {"chosen", "rejected", "wrappers", "positive", "contrast"}
    assert RECIPE["license"] == "Apache-2.0"


@pytest.mark.parametrize("name", FILES)
def test_format(name: str) -> None:
    if name in TEXTS:
        keys = {"text"}
    elif name == "wrappers.jsonl":
        keys = {"template", "family"}
    else:
        keys = {"kind", "messages" if name.startswith("conversations") else "prompt"}
        keys |= {"family"} if name.startswith("wrapped") else set()
    data = (FOLDER / name).read_bytes()
    assert b"\r" not in data and b"\n\n" not in data and data.endswith(b"}\n") and not data.startswith(b"\xef")
    for row in FILES[name]:
        assert set(row) - {"positive_only"} == keys, row
        assert "positive_only" not in row or (name == "wrappers.jsonl" and row["positive_only"] is True), row
        if not name.startswith("wrapped"):  # a list to go on with ends where the answer begins
            assert text_of(row) == text_of(row).strip(), row
        for label in keys & {"kind", "family"}:
            assert re.fullmatch(r"[a-z]+(_[a-z]+)*", row[label]), row
        if name in PROMPTS:
            messages_of(row, name)


def test_no_text_stands_twice() -> None:
    seen: dict[str, str] = {}
    for name, rows in FILES.items():
        for number, row in enumerate(rows, 1):
            key = " ".join(text_of(row).lower().split())
            assert key not in seen, f"{name}, line {number} repeats {seen[key]}: {key[:80]}"
            seen[key] = f"{name}, line {number}"


def test_no_two_short_prompts_are_nearly_the_same() -> None:
    """No two share more than OVERLAP of their words (Jaccard), but for one family's dress around opposite requests.

    Two such sets have one of their rarest words in common: only few of each need to be looked up.
    """
    rows = [
        (f"{name}, line {i}", text_of(row), (row.get("family"), name in RECIPE["positive"]))
        for name in PROMPTS
        for i, row in enumerate(FILES[name], 1)
    ]
    short = [(where, set(words(text)), dress) for where, text, dress in rows if len(text) <= SHORT]
    assert len(short) > 3400
    frequency = Counter(word for _, bag, _ in short for word in bag)
    having: dict[str, list[int]] = defaultdict(list)
    near = []
    for i, (where, bag, (family, harmful)) in enumerate(short):
        rarest = sorted(bag, key=lambda word: (frequency[word], word))[: len(bag) - ceil(OVERLAP * len(bag)) + 1]
        for j in {j for word in rarest for j in having[word]}:
            other, (other_family, other_harmful) = short[j][1:]
            minimal_pair = family is not None and family == other_family and harmful != other_harmful
            if not minimal_pair and len(bag & other) / len(bag | other) > OVERLAP:
                near.append((short[j][0], where, " ".join(sorted(bag & other))))
        for word in rarest:
            having[word].append(i)
    assert not near


def test_direct_requests() -> None:
    kinds = Counter(row["kind"] for row in HARMFUL)
    assert len(HARMFUL) >= 1600
    assert len(kinds) >= 30
    assert max(kinds.values()) <= 0.15 * len(HARMFUL), kinds.most_common(3)
    assert min(kinds.values()) >= 20, kinds.most_common()[-3:]


def test_wrapped_requests() -> None:
    harmful, harmless = named("wrapped_harmful"), named("wrapped_harmless")
    assert len(harmful) >= 730
    assert len(harmless) >= 520
    families = Counter(row["family"] for row in harmful)
    assert len(families) >= 58
    assert {row["family"] for row in harmless} == set(families) < {row["family"] for row in FILES["wrappers.jsonl"]}
    for rows in (harmful, harmless):
        counts = Counter(row["family"] for row in rows)
        assert max(counts.values()) <= 3 * min(counts.values()), counts


@pytest.mark.parametrize("side", ["harmful", "harmless"])
def test_what_is_enciphered_can_be_deciphered(side: str) -> None:
    """Whatever looks like Base64 or hexadecimal is: words come out of it."""
    found = 0
    for row in named(f"wrapped_{side}"):
        if row["family"] not in ("encoding", "cipher_and_spelling", "combinations"):
            continue
        found_codes = re.findall(r"(?<![\w/+])[A-Za-z0-9+/]{20,}={0,2}|(?:[0-9a-f]{2} ){10,}[0-9a-f]{2}", row["prompt"])
        codes = [bytes.fromhex(c) if re.fullmatch("[0-9a-f ]+", c) else b64decode(c) for c in found_codes]
        for code in codes:
            text = code.decode("ascii")
            found += 1
            assert re.fullmatch(r"[\w ,.:;?!'-]+", text) and " " in text, (row, text)
    assert found >= 3


def test_how_a_request_is_dressed_does_not_give_it_away() -> None:
    lengths = [[len(row["prompt"]) for row in named(name)] for name in ("wrapped_harmful", "wrapped_harmless")]
    ratio = median(lengths[0]) / median(lengths[1])
    assert 1 / 1.6 <= ratio <= 1.6
    assert max(lengths[1]) >= max(lengths[0]) / 2


def test_ordinary_and_borderline_prompts() -> None:
    ordinary = named("ordinary")
    kinds = Counter(row["kind"] for row in ordinary)
    assert len(ordinary) >= 1650
    assert len(kinds) >= 15
    assert max(kinds.values()) <= 0.15 * len(ordinary)
    lengths = sorted(len(row["prompt"]) for row in ordinary)
    assert lengths[len(lengths) // 20] < 40 and lengths[-len(lengths) // 20] > 300  # short ones and long ones
    assert len(FILES["borderline.jsonl"]) >= 400
    assert len({row["kind"] for row in FILES["borderline.jsonl"]}) >= 7


def test_labels_agree() -> None:
    """A kind belongs to one side; what is wrapped is of the kinds that are also asked directly."""
    positive = {row["kind"] for name in RECIPE["positive"] for row in FILES[name]}
    contrast = {row["kind"] for name in RECIPE["contrast"] for row in FILES[name]}
    assert not positive & contrast
    direct = {row["kind"] for row in HARMFUL}
    assert {row["kind"] for row in named("wrapped_harmful")} <= direct
    assert {row["kind"] for row in named("conversations_harmful")} <= direct
    for name in RECIPE["positive"]:
        assert "harmful" in name, name
    for name in RECIPE["contrast"]:
        assert "harmful" not in name, name


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("conversations")])
def test_conversations_alternate_and_end_with_the_user(name: str) -> None:
    assert len(FILES[name]) >= 40
    lengths = set()
    for row in FILES[name]:
        messages = row["messages"]
        assert {tuple(message) for message in messages} == {("role", "content")}
        turns = messages[1:] if messages[0]["role"] == "system" else messages
        wanted = ["user", "assistant"] * (len(turns) // 2) + ["user"]
        assert [message["role"] for message in turns] == wanted, row
        assert len(turns) >= 3, row
        lengths.add(len(turns))
    assert len(lengths) >= 2


def test_a_refusal_inside_a_conversation_decides_nothing() -> None:
    """Refused and asked again stands beside refused and then something fine: the last request alone counts."""
    for start, least in (("conversations_harmful", 30), ("conversations_benign", 70)):
        assert sum(any(map(is_refusal, replies(row))) for row in named(start)) >= least, start
    assert sum(row["kind"].startswith("after_refusal") for row in named("conversations_benign")) >= 110


def test_every_wrapper_says_something() -> None:
    for row in FILES["wrappers.jsonl"]:
        assert len(words(re.sub(r"\{request.*?\}", "", row["template"]))) >= 2, row
    counts = Counter(row["family"] for row in FILES["wrappers.jsonl"])
    assert min(counts.values()) >= 7
    assert len({row["template"] for row in FILES["wrappers.jsonl"]}) == len(FILES["wrappers.jsonl"])


def test_only_what_demands_obedience_for_a_hidden_request_is_for_harmful_ones_alone() -> None:
    """A code in itself does not tell: other wrappers encode requests of both sides."""
    encoded = [row for row in FILES["wrappers.jsonl"] if "{request:" in row["template"]]
    demanding = [row for row in FILES["wrappers.jsonl"] if row.get("positive_only")]
    assert 40 <= len(demanding) <= len(encoded) - 20
    for row in demanding:
        assert row["family"].startswith("hidden_request_") and "{request:" in row["template"], row
    codes = Counter(re.findall(r"\{request:(\w+)\}", " ".join(row["template"] for row in encoded)))
    assert len(codes) == 5 and min(codes.values()) >= 6, codes


def test_refusals() -> None:
    refusals = [row["text"] for row in FILES["refusals.jsonl"]]
    assert len(refusals) >= 40
    assert len({tuple(words(text)[:3]) for text in refusals}) >= 15
    for text in refusals:
        assert len(text) <= 200 and text[0].isupper() and text.endswith((".", "?")), text
    assert sum(map(is_refusal, refusals)) >= 0.6 * len(refusals)


def test_openings_only_open() -> None:
    """They are moved away from: how an answer starts counts, and nothing harmful stands in them."""
    for row in FILES["openings.jsonl"]:
        text = row["text"]
        assert len(text) <= 120 and len(words(text)) <= 20, text
        assert sum(letter.isdigit() for letter in text) <= FEW_DIGITS, text
        assert not is_refusal(text), text
    assert len({tuple(words(row["text"])[:2]) for row in FILES["openings.jsonl"]}) >= 20
