"""Recipes: training data and settings, one folder each.

`recipe.json` of a recipe names its files: `contrast` prompts must stay untouched, and those that need intervention come
in one of two ways. Either `pairs` files bring each prompt with its own answers, or `positive` prompts are each paired
with one of the `chosen` and one of the `rejected` answers; then `wrappers`, templates, may be put around both kinds
alike, so that the gate learns
what a prompt asks for, and not how it is wrapped. docs/recipes.md has it in full.
"""

from __future__ import annotations

import base64
import codecs
import difflib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from finesteer_local.errors import DataError, UnknownNameError
from finesteer_local.jsonl import is_text, read_rows
from finesteer_local.training.data import (
    WRAPPED,
    KindOf,
    Pair,
    Prompt,
    TrainingData,
    dealt,
    in_drawn_order,
    read_pairs,
    read_prompts,
)
from finesteer_local.training.recipes.kinds import read_kinds
from finesteer_local.training.recipes.pages import PLACES, Document, Frame, fits, pages
from finesteer_local.training.recipes.phrasings import Phrasings, read_requests

_FOLDER = Path(__file__).parent
_SLOT = re.compile(r"\{request(?::(\w*))?\}")
_ENCODINGS: dict[str, Callable[[str], str]] = {
    "": str,
    "base64": lambda text: base64.b64encode(text.encode()).decode(),
    "hex": lambda text: text.encode().hex(" "),
    "reversed": lambda text: text[::-1],
    "rot13": lambda text: codecs.encode(text, "rot13"),
    "spaced": " ".join,
}
"""How a wrapper may write the request, by what stands in its slot after a colon."""
JUDGES = ("refusal", "margin")
PAGES = ("pages", "page_frames", "page_questions")
"""Files of which long prompts are made; all three or none."""
# What recipe.json may hold, and what each value must be.
_TEXTS = (
    "name",
    "description",
    "license",
    "judge",
    "kinds",
    "chosen",
    "rejected",
    "wrappers",
    "phrasings",
    *PAGES,
)
_LISTS = ("positive", "pairs", "contrast", "teachers")
_Item = TypeVar("_Item")


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.parent.name for path in _FOLDER.glob("*/recipe.json"))


def load_recipe(name: str, seed: int = 0) -> TrainingData:
    """The data of a named recipe, or of a folder with a `recipe.json`; answers and wrappers are dealt out by `seed`.

    Raises:
        UnknownNameError: there is no such recipe; the message offers the nearest.
        DataError: a file of the recipe is damaged.
    """
    if name in recipe_names():
        folder = _FOLDER / name
    elif name and Path(name).is_dir():
        folder = Path(name)
    else:
        near = difflib.get_close_matches(name, recipe_names(), 3, 0.0)
        raise UnknownNameError(f"there is no recipe {name!r}; known: {', '.join(near)}")
    recipe = _read_recipe(folder)
    rng = np.random.default_rng(seed)
    read = _reader(folder, recipe.get("phrasings"))
    if "contrast" in recipe:
        contrast = _files(folder, recipe["contrast"], read, lambda prompt: prompt.kind, rng)
    else:
        contrast = list(load_recipe("safety", seed).contrast)
    kinds = read_kinds(_path(folder, recipe["kinds"])) if "kinds" in recipe else []
    if "pairs" in recipe:
        pairs = _files(folder, recipe["pairs"], lambda path: read_pairs(path, seed), lambda p: p.prompt.kind, rng)
    else:
        pairs, contrast = _from_pools(folder, recipe, read, contrast, kinds, rng)
    return TrainingData(
        name=recipe.get("name") or profile_name(folder.resolve().name),
        pairs=pairs,
        contrast=contrast,
        description=recipe.get("description", ""),
        license=recipe.get("license", ""),
        judge=recipe.get("judge", "margin"),
        own_replies=recipe.get("own_replies", False),
        recipe=folder.resolve().name,
        pooled="pairs" not in recipe,
        kinds=kinds,
        teachers=[_path(folder, name) for name in recipe.get("teachers", ())],
    )


def _read_recipe(folder: Path) -> dict[str, Any]:
    """`recipe.json`, with every value of the right type; raises `DataError`."""
    file = folder / "recipe.json"
    try:
        recipe = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read {file}: {(error.strerror or str(error)).lower()}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: not JSON") from error
    if not isinstance(recipe, dict):
        raise DataError(f"{file}: not a JSON object")
    for key, value in recipe.items():
        if key in _TEXTS:
            sound = is_text(value)
        elif key in _LISTS:
            sound = isinstance(value, list) and bool(value)
        elif key == "own_replies":
            sound = isinstance(value, bool)
        else:
            raise DataError(f"{file}: unknown field {key!r}; known: {', '.join((*_TEXTS, *_LISTS, 'own_replies'))}")
        if not sound:
            raise DataError(f"{file}: the field {key!r} cannot be {json.dumps(value)[:60]}")
    if recipe.get("judge", "margin") not in JUDGES:
        raise DataError(f"{file}: judge {recipe['judge']!r} is none of {', '.join(JUDGES)}")
    pools = [key for key in ("positive", "chosen", "rejected", "wrappers", *PAGES) if key in recipe]
    if "pairs" in recipe and pools:
        raise DataError(f"{file}: 'pairs' have their own answers; leave out {', '.join(map(repr, pools))}")
    if "pairs" not in recipe and not {"positive", "chosen", "rejected"} <= set(pools):
        raise DataError(f"{file}: give either 'pairs', or 'positive', 'chosen' and 'rejected'")
    if 0 < len(set(pools) & set(PAGES)) < len(PAGES):
        raise DataError(f"{file}: give all of {', '.join(map(repr, PAGES))}, or none")
    return recipe


def _path(folder: Path, name: object) -> Path:
    """The file that a recipe names: in its own folder, or RECIPE/FILE among those that come with the package."""
    if isinstance(name, str):
        for root in (folder, _FOLDER):
            path = (root / name).resolve()
            if path.is_relative_to(root.resolve()) and path.is_file():
                return root / name
    raise DataError(
        f"{folder / 'recipe.json'}: no file {name!r} in its folder, nor as RECIPE/FILE of a recipe that comes along"
    )


def _files(
    folder: Path,
    entries: Sequence[Any],
    read: Callable[[Path], list[_Item]],
    kind: Callable[[_Item], str],
    rng: np.random.Generator,
) -> list[_Item]:
    """What the files of a recipe's list hold.

    An entry is a file's name, or an object: its `file`, only those `kinds`, and `at_most` so many, drawn by `rng`.
    """
    items: list[_Item] = []
    for entry in entries:
        part = entry if isinstance(entry, dict) else {"file": entry}
        where = f"{folder / 'recipe.json'}: {json.dumps(entry)[:60]}"
        kinds, at_most = part.get("kinds"), part.get("at_most")
        if unknown := set(part) - {"file", "kinds", "at_most"}:
            raise DataError(f"{where}: unknown field {min(unknown)!r}; known: file, kinds, at_most")
        if kinds is not None and not (isinstance(kinds, list) and kinds and all(map(is_text, kinds))):
            raise DataError(f"{where}: 'kinds' must be a list of names")
        if at_most is not None and (type(at_most) is not int or at_most < 1):
            raise DataError(f"{where}: 'at_most' must be a whole number from 1")
        found = read(_path(folder, part.get("file")))
        if kinds is not None:
            if missing := set(kinds) - set(map(kind, found)):
                raise DataError(f"{where}: nothing in the file is of kind {min(missing)!r}")
            found = [item for item in found if kind(item) in kinds]
        if at_most is not None and len(found) > at_most:
            found = [found[i] for i in sorted(rng.permutation(len(found))[:at_most])]
        items += found
    return items


def _from_pools(
    folder: Path,
    recipe: dict[str, Any],
    read: Callable[[Path], list[Prompt]],
    contrast: list[Prompt],
    kinds: Sequence[KindOf],
    rng: np.random.Generator,
) -> tuple[list[Pair], list[Prompt]]:
    """Pairs of `positive` prompts with answers from the two pools, and all contrast prompts, wrapped ones included."""
    positive = _files(folder, recipe["positive"], read, lambda prompt: prompt.kind, rng)
    wrappers = _wrappers(folder, recipe.get("wrappers"))
    plain = positive, contrast
    # Generators of their own: what else a recipe holds changes few of these prompts.
    for_wrappers, for_pages = rng.spawn(2)
    positive = plain[0] + _wrapped(wrappers, plain[0], for_wrappers)
    contrast = plain[1] + _wrapped([row for row in wrappers if not row.get("positive_only")], plain[1], for_wrappers)
    if "pages" in recipe:
        for label, prompts in (("positive", plain[0]), ("contrast", plain[1])):
            if not any(map(fits, prompts)):
                raise DataError(f"{folder / 'recipe.json'}: no {label!r} prompt is short enough to stand in a page")
        inside, outside = pages(*_page_files(folder, recipe), *plain, for_pages)
        positive, contrast = positive + inside, contrast + outside
    chosen = _chosen(folder, recipe["chosen"], positive, kinds, rng)
    rejected = [row["text"] for row in _rows(folder, recipe["rejected"], "text")]
    n = len(positive)
    dealings = zip(positive, chosen, dealt(n, len(rejected), rng), strict=True)
    return [Pair(prompt, answer, rejected[j]) for prompt, answer, j in dealings], contrast


def _chosen(
    folder: Path, file: str, prompts: Sequence[Prompt], kinds: Sequence[KindOf], rng: np.random.Generator
) -> list[str]:
    """One of the chosen answers for every prompt: one of its kind's expert, else one that names no expert."""
    pools: dict[str, list[str]] = {}
    for row in _rows(folder, file, "text"):
        pools.setdefault(str(row.get("expert") or ""), []).append(row["text"])
    if unknown := set(pools) - {"", *(each.kind.expert for each in kinds)}:
        raise DataError(f"{_path(folder, file)}: no kind has the expert {min(unknown)!r}")
    experts = {kind: each.kind.expert for each in reversed(kinds) for kind in each.of}
    wanted = [expert if (expert := experts.get(prompt.kind, "")) in pools else "" for prompt in prompts]
    if "" in wanted and "" not in pools:
        raise DataError(f"{_path(folder, file)}: every answer has an 'expert', and some prompts have none")
    answers = {expert: iter(dealt(wanted.count(expert), len(pools[expert]), rng)) for expert in sorted(set(wanted))}
    return [pools[expert][next(answers[expert])] for expert in wanted]


def _reader(folder: Path, file: str | None) -> Callable[[Path], list[Prompt]]:
    """What reads the recipe's files of prompts: with its phrasings around deeds, where it has any."""
    if file is None:
        return read_prompts
    templates = [row["template"] for row in _rows(folder, file, "template")]
    try:
        phrasings = Phrasings(templates)
    except DataError as error:
        raise DataError(f"{_path(folder, file)}: {error}") from error
    return lambda path: read_requests(path, phrasings)


def _rows(folder: Path, file: str | None, field: str) -> list[dict[str, Any]]:
    if file is None:
        return []
    path = _path(folder, file)
    rows = [row for _, row in read_rows(path)]
    if not rows or not all(isinstance(row.get(field), str) and row[field].strip() for row in rows):
        raise DataError(f"{path}: a row has no {field!r}")
    return rows


def _page_files(folder: Path, recipe: dict[str, Any]) -> tuple[list[Document], list[Frame], list[str]]:
    """What `pages` takes; raises `DataError`."""
    documents: dict[str, list[str]] = {}
    for row in _rows(folder, recipe["pages"], "text"):
        documents.setdefault(str(row.get("document") or ""), []).append(row["text"])
    where = _path(folder, recipe["page_frames"])
    frames = [Frame(row["template"], str(row.get("place"))) for row in _rows(folder, recipe["page_frames"], "template")]
    for frame in frames:
        if frame.place not in PLACES:
            raise DataError(f"{where}: {frame.template[:60]!r} needs a 'place': {', '.join(PLACES)}")
        if problem := frame.problem:
            raise DataError(f"{where}: {frame.template[:60]!r} {problem}")
    for place in PLACES:
        if not any(frame.place == place for frame in frames):
            raise DataError(f"{where}: no row has the place {place!r}")
    questions = [row["text"] for row in _rows(folder, recipe["page_questions"], "text")]
    return [Document(name, tuple(parts)) for name, parts in documents.items()], frames, questions


def _wrappers(folder: Path, file: str | None) -> list[dict[str, Any]]:
    rows = _rows(folder, file, "template")
    where = _path(folder, file) if rows else None
    for row in rows:
        slots = _SLOT.findall(row["template"])
        shown = f"{where}: {row['template'][:60]!r}"
        if len(slots) != 1:
            raise DataError(f"{shown} has {len(slots)} places for a request; write {{request}} once")
        if slots[0] not in _ENCODINGS:
            raise DataError(f"{shown}: no encoding {slots[0]!r}; known: {', '.join(filter(None, _ENCODINGS))}")
        if not isinstance(row.get("family"), str) or not isinstance(row.get("positive_only", False), bool):
            raise DataError(f"{shown} needs a 'family', and 'positive_only' can only be true or false")
    return rows


def _wrapped(wrappers: list[dict[str, Any]], prompts: list[Prompt], rng: np.random.Generator) -> list[Prompt]:
    """Every wrapper once, around a plain prompt of its own; every second one inside another wrapper."""
    plain = [p for p in prompts if not p.family and len(p.messages) == 1 and len(p.text) < 300]
    outer = rng.permutation(len(wrappers))
    wrapped = []
    for i, (row, prompt) in enumerate(zip(wrappers, in_drawn_order(plain, "wrapped"), strict=False)):
        text = _dressed(row["template"], prompt.text)
        if i % 2 and len(text) < 600:
            text = _dressed(wrappers[outer[i]]["template"], text)
        message = {"role": "user", "content": text}
        wrapped.append(Prompt([message], prompt.kind, row["family"], WRAPPED, prompt.text))
    return wrapped


def _dressed(template: str, text: str) -> str:
    return _SLOT.sub(lambda slot: _ENCODINGS[slot[1] or ""](text), template)


def load_data(
    *,
    recipe: str | None = None,
    data: str | Path | None = None,
    contrast: str | Path | None = None,
    name: str | None = None,
    seed: int = 0,
) -> TrainingData:
    """Training data from a recipe, or from a file of pairs.

    Raises:
        DataError, UnknownNameError: the data cannot be used.
    """
    if (recipe is None) == (data is None):
        raise DataError("give either a recipe or a file of pairs to train on")
    if recipe is not None:
        loaded = load_recipe(recipe, seed)
        return replace(loaded, name=name) if name else loaded
    assert data is not None
    path = Path(data)
    pairs = read_pairs(path)
    prompts = read_prompts(Path(contrast)) if contrast else list(load_recipe("safety", seed).contrast)
    return TrainingData(name=name or profile_name(path.stem), pairs=pairs, contrast=prompts)


def profile_name(text: str) -> str:
    """The nearest valid profile name: lower-case letters, digits, `-` and `_`."""
    cleaned = re.sub(r"[^a-z0-9_-]+", "-", text.lower()).strip("-_")[:64]
    return cleaned or "profile"
