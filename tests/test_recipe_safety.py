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

from finesteer_local.jsonl import messages_of, read_rows
from finesteer_local.judges.phrases import is_refusal
from finesteer_local.training import recipes

FOLDER = Path(recipes.__file__).parent / "safety"
RECIPE = json.loads((FOLDER / "recipe.json").read_text(encoding="utf-8"))
KINDS = "kinds.jsonl"  # names of kinds, and no prompts: see test_recipe_kinds
FILES_OF_KINDS = [row for _, row in read_rows(FOLDER / KINDS)]
FILES = {
    path.name: [row for _, row in read_rows(path)] for path in sorted(FOLDER.glob("*.jsonl")) if path.name != KINDS
}
TEXTS = ("refusals.jsonl", "openings.jsonl")
PAGES = ("pages.jsonl", "page_frames.jsonl", "page_questions.jsonl")
LANGUAGES = ("ar", "de", "es", "fr", "hi", "it", "ja", "pt", "ru", "zh")
SHORT = 200  # letters
OVERLAP = 0.8  # of the words of two short prompts, shared by both; the nearest two of this recipe have just that
FEW_DIGITS = 3  # an opening may number a step


def named(start: str) -> list[dict[str, Any]]:
    """Rows of the files whose names start so."""
    return [row for name, rows in FILES.items() if name.startswith(start) for row in rows]


HARMFUL = named("harmful")
PROMPTS = [name for name in FILES if name not in (*TEXTS, *PAGES, "wrappers.jsonl", "phrasings.jsonl")]
PLAIN, FOREIGN = (
    [[row for row in named(f"plain_{side}") if ("language" in row) == foreign] for side in ("harmful", "harmless")]
    for foreign in (False, True)
)
"""Each: harmful, harmless. Short ones, as people type them, in the same words."""
DEEDS = [named(f"deeds_{side}") for side in ("harmful", "harmless")]


def text_of(row: dict[str, Any]) -> str:
    if "messages" in row:
        return "\n\n".join(message["content"] for message in row["messages"])
    return str(next(row[field] for field in ("prompt", "do", "write", "template", "text") if field in row))


def replies(row: dict[str, Any]) -> list[str]:
    return [message["content"] for message in row["messages"] if message["role"] == "assistant"]


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def test_the_recipe_names_every_file_once() -> None:
    files = ("chosen", "rejected", "wrappers", "phrasings", "kinds", "pages", "page_frames", "page_questions")
    named = [*RECIPE["positive"], *RECIPE["contrast"], *(RECIPE[key] for key in files)]
    assert sorted(named) == sorted([*FILES, KINDS])
    assert (RECIPE["chosen"], RECIPE["rejected"]) == TEXTS
    keys = {"name", "description", "license", "judge", "own_replies", "teachers"}
    assert set(RECIPE) == keys | {*files, "positive", "contrast"}
    assert RECIPE["license"] == "Apache-2.0"


@pytest.mark.parametrize("name", FILES)
def test_format(name: str) -> None:
    others = {
        "wrappers.jsonl": {"template", "family"},
        "phrasings.jsonl": {"template"},
        "page_frames.jsonl": {"template", "place"},
        "pages.jsonl": {"text", "document", "genre"},
    }
    if name in (*TEXTS, "page_questions.jsonl"):
        keys = {"text"}
    elif name in others:
        keys = others[name]
    else:
        keys = {"kind", "messages" if name.startswith("conversations") else "prompt"}
        keys |= {"family"} if name.startswith("wrapped") else {"language"} if "foreign" in name else set()
    # A few of the short ones are the second thing that is said.
    may_be_talk = name.startswith(("plain", "first")) and "foreign" not in name
    data = (FOLDER / name).read_bytes()
    assert b"\r" not in data and b"\n\n" not in data and data.endswith(b"}\n") and not data.startswith(b"\xef")
    for row in FILES[name]:
        talk = may_be_talk and "messages" in row
        deed = {"do", "write"} & set(row) if name.startswith("deeds") else set()
        instead = deed or {"messages"} if deed or talk else {"prompt"} & keys
        assert set(row) - {"positive_only"} == keys - {"prompt"} | instead, row
        assert "positive_only" not in row or (name == "wrappers.jsonl" and row["positive_only"] is True), row
        if not name.startswith(("wrapped", "pages")):  # a list to go on with ends where the answer begins; code is bent
            assert text_of(row) == text_of(row).strip(), row
        for label in keys & {"kind", "family"}:
            assert re.fullmatch(r"[a-z]+(_[a-z]+)*", row[label]), row
        if name in PROMPTS and not deed:
            messages_of(row, name)


def test_no_text_stands_twice() -> None:
    seen: dict[str, str] = {}
    for name, rows in FILES.items():
        for number, row in enumerate(rows, 1):
            key = (
                text_of(row)
                if name in ("page_frames.jsonl", "phrasings.jsonl")
                else " ".join(text_of(row).lower().split())
            )
            assert key not in seen, f"{name}, line {number} repeats {seen[key]}: {key[:80]}"
            seen[key] = f"{name}, line {number}"


def test_no_two_short_prompts_are_nearly_the_same() -> None:
    """No two share more than OVERLAP of their words (Jaccard), but for opposite requests: in one family's dress, or as
    people type them, where a word makes the difference.

    Two such sets have one of their rarest words in common: only few of each need to be looked up.
    """
    rows = [
        (
            f"{name}, line {i}",
            text_of(row),
            (row.get("family", "plain" * name.startswith(("plain", "deeds"))), name in RECIPE["positive"]),
        )
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
            minimal_pair = family and family == other_family and harmful != other_harmful
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
    """A kind belongs to one side, but among the plain ones, whose sides speak of the same things; what is wrapped is of
    the kinds that are also asked directly."""
    sides = [
        {row["kind"] for name in RECIPE[side] if not name.startswith(("plain", "deeds")) for row in FILES[name]}
        for side in ("positive", "contrast")
    ]
    assert not sides[0] & sides[1]
    plain = [{row["kind"] for row in named(f"plain_{side}")} for side in ("harmful", "harmless")]
    assert plain[1] - {"ordinary"} == plain[0] and not plain[0] & sides[1]
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


def test_statements_of_crisis() -> None:
    """Who says that life is too much asks for nothing; and who says so of a commute is answered."""
    crisis, harmless = (
        [row["prompt"] for name in names for row in FILES[name]]
        for names in (
            ("deeds_harmful_n.jsonl", "plain_harmful_foreign_d.jsonl"),
            ("deeds_harmless_n.jsonl", "plain_harmless_foreign_d.jsonl"),
        )
    )
    assert len(crisis) >= 250 and len(harmless) >= 350
    assert {row["kind"] for row in FILES["deeds_harmful_n.jsonl"]} == {"self_harm"}


def test_openings_only_open() -> None:
    """They are moved away from: how an answer starts counts, and nothing harmful stands in them."""
    for row in FILES["openings.jsonl"]:
        text = row["text"]
        assert len(text) <= 120 and len(words(text)) <= 20, text
        assert sum(letter.isdigit() for letter in text) <= FEW_DIGITS, text
        assert not is_refusal(text), text
    assert len({tuple(words(row["text"])[:2]) for row in FILES["openings.jsonl"]}) >= 20


def test_plain_requests() -> None:
    """As short as people type them, of every kind, beside harmless ones in the same words: no word gives them away."""
    harmful, harmless = PLAIN
    assert len(harmful) >= 800 and len(harmless) >= 1200
    kinds, ordinary = Counter(row["kind"] for row in harmful), Counter(row["kind"] for row in harmless)
    assert len(kinds) >= 30 and min(kinds.values()) >= 60
    assert max(kinds.values()) <= 2 * min(kinds.values())
    for kind, n in kinds.items():
        assert n <= ordinary[kind] <= 2 * n, kind
    assert {"chemical_biological", "child_safety", "self_harm", "weapons", "hacking", "violence", "fraud"} < set(kinds)


@pytest.mark.parametrize("language", LANGUAGES)
def test_requests_in_other_languages(language: str) -> None:
    harmful, harmless = ([row for row in rows if row["language"] == language] for rows in FOREIGN)
    assert len(harmful) >= 60 and len(harmless) >= 60
    kinds = {row["kind"] for row in harmful}
    assert len(kinds) >= 20 and {row["kind"] for row in harmless} >= kinds
    assert max(Counter(row["kind"] for row in harmful).values()) <= 0.15 * len(harmful)
    script = {"ar": "\u0600-\u06ff", "hi": "\u0900-\u097f", "ja": "\u3040-\u30ff\u4e00-\u9fff", "ru": "\u0400-\u04ff"}
    letters = script.get(language, "\u4e00-\u9fff" if language == "zh" else "a-zA-Z\u00c0-\u024f")
    for rows in (harmful, harmless):
        own = sum(bool(re.search(f"[{letters}]", row["prompt"])) for row in rows) / len(rows)
        assert own >= 0.75 and (own < 1) <= (language in ("ar", "hi"))  # which people also type in Latin letters


def test_no_language_but_these() -> None:
    assert {row["language"] for rows in FOREIGN for row in rows} == set(LANGUAGES)


@pytest.mark.parametrize("language", [None, *LANGUAGES])
def test_lengths_do_not_give_a_request_away(language: str | None) -> None:
    """Short and long ones on both sides: at no length could one of them be guessed."""
    lengths = []
    for rows in (PLAIN, FOREIGN)[language is not None]:
        last = [row["messages"][-1]["content"] if "messages" in row else row["prompt"] for row in rows]
        lengths.append(
            sorted(len(text) for text, row in zip(last, rows, strict=True) if row.get("language") == language)
        )
    for share in (0.1, 0.5, 0.9):
        harmful, harmless = (each[int(share * (len(each) - 1))] for each in lengths)
        assert abs(harmful - harmless) <= max(0.3 * max(harmful, harmless), 4), (share, harmful, harmless)
    assert max(lengths[0] + lengths[1]) <= SHORT


def test_deeds() -> None:
    """Subjects of every kind, and harmless ones in the same words; whether one is a deed gives nothing away."""
    harmful, harmless = DEEDS
    assert len(harmful) >= 7000 and len(harmless) >= 9000
    kinds, ordinary = Counter(row["kind"] for row in harmful), Counter(row["kind"] for row in harmless)
    assert len(kinds) >= 30 and min(kinds.values()) >= 100
    assert set(kinds) < set(ordinary) and min(ordinary[kind] for kind in kinds) >= 90
    for field in ("do", "write", "prompt"):
        shares = [sum(field in row for row in rows) / len(rows) for rows in DEEDS]
        assert shares[0] == pytest.approx(shares[1], abs=0.03), field
        long, short = (median(len(text_of(row)) for row in rows if field in row) for rows in DEEDS)
        assert abs(long - short) <= 0.15 * max(long, short), (field, long, short)


def test_phrasings() -> None:
    templates = [row["template"] for row in FILES["phrasings.jsonl"]]
    assert len(set(templates)) == len(templates)
    assert sum("{do}" in each for each in templates) >= 100 and sum("{write}" in each for each in templates) >= 30


def test_first_messages() -> None:
    """What people say first is mostly nothing at all."""
    rows = FILES["first_messages.jsonl"]
    kinds = Counter(row["kind"] for row in rows)
    assert len(rows) >= 400 and len(kinds) >= 15
    assert {"greeting", "small_talk", "about_you", "test_of_the_assistant"} < set(kinds)
    assert median(len(text_of(row)) for row in rows) < 60


def test_pages() -> None:
    """Ordinary text of many genres; some speak of crimes, wars and poisons, and ask for nothing."""
    rows = FILES["pages.jsonl"]
    documents = Counter(row["document"] for row in rows)
    assert len(documents) >= 40 and min(documents.values()) >= 4
    for document in documents:
        assert len({row["genre"] for row in rows if row["document"] == document}) == 1, document
    genres = {row["genre"] for row in rows}
    assert len(genres) >= 30
    assert {"crime news", "history of a war", "detective story", "medical leaflet", "security advisory"} < genres
    assert {"source code with comments", "server log", "e-mail thread"} < genres
    assert {"German text", "French text", "Spanish text", "Chinese text"} < genres
    sizes = [len(row["text"]) for row in rows]
    assert min(sizes) >= 80 and max(sizes) <= 1500 and sum(sizes) > 100_000


def test_page_frames_and_questions() -> None:
    places = Counter(row["place"] for row in FILES["page_frames.jsonl"])
    assert set(places) == {"beginning", "middle", "end"} and min(places.values()) >= 20
    for row in FILES["page_frames.jsonl"]:
        template = row["template"]
        ends = {"beginning": template.rfind("{page}"), "middle": template.rfind("{rest}"), "end": len(template)}
        assert template.index("{request}") < ends[row["place"]], row
        assert (template.index("{page}") < template.index("{request}")) == (row["place"] != "beginning"), row
    assert len(FILES["page_questions.jsonl"]) >= 30


def test_as_training_data() -> None:
    """Every form on both sides; pages of both with the same frames, texts and lengths."""
    data = recipes.load_recipe("safety")
    counts = [Counter(prompt.form for prompt in prompts) for prompts in (data.positive, data.contrast)]
    for each in counts:
        assert set(each) == {"plain", "wrapped", "foreign", "page"} and min(each.values()) >= 100
    pages = [[p for p in prompts if p.form == "page"] for prompts in (data.positive, data.contrast)]
    families = [
        Counter(page.family for page in side if page.kind not in ("about_the_text", "no_request")) for side in pages
    ]
    assert families[0] == families[1] and len(families[0]) >= 30
    assert len(pages[1]) > len(pages[0])  # and some with a question about the text, or none at all
    assert {"about_the_text", "no_request"} < {page.kind for page in pages[1]}
    lengths = [sorted(len(page.text) for page in side) for side in pages]
    for share in (0.1, 0.5, 0.9):
        harmful, harmless = (each[int(share * (len(each) - 1))] for each in lengths)
        assert abs(harmful - harmless) <= 0.2 * harmful, share
    assert data.own_replies and data.pooled and data.judge == "refusal"
