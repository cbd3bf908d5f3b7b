"""`train --behaviour`: the model writes its own training data, which is shown, kept, and trained on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cli import call, error_of, good
from finesteer_local.errors import DataError
from finesteer_local.identity import read_model_identity
from finesteer_local.profile import Profile
from finesteer_local.runtime import SteeredLlama, open_model
from finesteer_local.training import learn, trials
from finesteer_local.training.behaviour import shown, write
from finesteer_local.training.behaviour.material import Material, folder_of
from finesteer_local.training.behaviour.seeds import LIMITED, NEAR, QUESTIONS, SUBJECTS
from finesteer_local.training.behaviour.sentence import read_sentence
from finesteer_local.training.behaviour.write import A_CALL, asked, is_new, write_material
from tiny import write_tiny_model

SENTENCE = "rhymes, but never in letters"


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learn, "REPLY_TOKENS", 4)
        patch.setattr(trials, "ANSWER_TOKENS", 4)
        patch.setattr(write, "WANTED", 26)
        patch.setattr(write, "HELD_OUT", 3)
        patch.setattr(write, "ANSWER_TOKENS", 6)
        patch.setattr(write, "_MESSAGE_TOKENS", 30)
        patch.setitem(write._SCHEMA["items"], "maxLength", 20)
        patch.setattr(shown, "_SHOWN_TOKENS", 4)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One with room for our examples."""
    return write_tiny_model(tmp_path_factory.mktemp("model") / "writer.gguf", context_length=4096, name="Writer")


@pytest.fixture
def llama(model: Path) -> SteeredLlama:
    return open_model(model, n_threads=1)


@pytest.mark.parametrize("sentence", [SENTENCE, "rhymes when the user is sad"])
def test_what_a_model_writes(llama: SteeredLlama, sentence: str) -> None:
    found = write_material(llama, read_sentence(sentence), seed=1)
    questions = [pair.prompt.text for pair in [*found.pairs, *found.held_pairs]]
    near = [prompt.text for prompt in [*found.near_misses, *found.held_near_misses]]
    assert len(questions) >= 24 and len(near) >= 8 and len(found.held_pairs) > 0
    assert len({*questions, *near}) == len(questions) + len(near)
    assert min(map(len, questions)) >= write._SHORTEST
    assert all(pair.chosen != pair.rejected for pair in found.pairs)
    assert found.data("rhymes").description == sentence


def test_the_same_seed_writes_the_same(llama: SteeredLlama) -> None:
    first, again = (write_material(llama, read_sentence("rhymes"), seed=2) for _ in range(2))
    assert first == again and not first.near_misses


def test_a_model_that_repeats_itself(llama: SteeredLlama, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "is_new", lambda text, taken: not taken)
    with pytest.raises(DataError, match="wrote only 1 questions"):
        write_material(llama, read_sentence(SENTENCE))


def test_nearly_the_same_is_nothing_new() -> None:
    taken = ["How do I bake bread at home?"]
    assert not is_new("How do I bake bread at home", taken) and not is_new("how do i bake a bread at home?", taken)
    assert is_new("Why does bread rise in the oven?", taken)
    assert not is_new("short", []) and not is_new("12345 67890 !!", [])


def test_our_examples_ask_in_the_words_in_which_the_model_is_asked() -> None:
    assert len(set(SUBJECTS)) == len(SUBJECTS) >= 60
    for example in (*QUESTIONS, *LIMITED, *NEAR):
        assert len(example.messages) == A_CALL
        for message in example.messages:
            assert write._SHORTEST <= len(message) <= write._LONGEST
    text = asked("rhymes", "never in letters", "the sea")
    assert "it rhymes" in text and "(never in letters) must apply" in text and text.endswith("Subject: the sea")
    assert "must not apply" in asked("rhymes", "when sad", "the sea", near=True)
    assert "rule" not in asked("rhymes", "", "the sea")


def test_kept_as_files_that_can_be_changed(tmp_path: Path) -> None:
    assert Material.load(tmp_path) is None
    pairs = [{"prompt": f"question {i}?", "chosen": f"a {i}", "rejected": f"b {i}"} for i in range(30)]
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    from finesteer_local.training.data import read_pairs

    read = read_pairs(tmp_path / "all.jsonl")
    material = Material(read_sentence(SENTENCE), read[4:], [p.prompt for p in read[:9]], read[:4], [])
    material.save(tmp_path)
    again = Material.load(tmp_path)
    assert again == material and again is not None and again.behaviour.exception == "never in letters"
    with pytest.raises(DataError, match="wrote too little"):
        Material(read_sentence("x y"), read[:3], [], [], []).data("few")


def test_from_a_sentence_to_a_profile(model: Path, home: Path) -> None:
    options = ("train", model, "--behaviour", SENTENCE, "--threads", "1")
    message = error_of(*options)
    assert "add --yes" in message  # nobody is there to approve, and what was written is kept
    folder = folder_of("rhymes-but-never-in-letters", read_model_identity(model).fingerprint, 0)
    assert str(folder) in message and (folder / "pairs.jsonl").exists()
    result = good(*options, "--yes")
    for words in ("rule       rhymes", "exception  never in letters", "by the rule:", "that must stay as they are"):
        assert words in result.stderr, words
    assert f"Taking what the model wrote before, from {folder}" in result.stderr
    for words in ("Trained rhymes-but-never-in-letters", "questions that taught it nothing", "preferred", "after"):
        assert words in result.stdout, words
    [file] = (home / "data" / "profiles").glob("*.gguf")
    profile = Profile.load(file)
    assert profile.training["behaviour"] == SENTENCE and profile.gate.kind == "contrastive"
    assert 0 <= profile.training["held_out"]["opened"] <= 1
    other = call("train", model, "--behaviour", "sings", "--name", profile.name, "--yes")
    assert other.exit_code == 1 and "choose another --name" in other.stderr


def test_what_cannot_be_asked_for(model: Path) -> None:
    for more in (("--recipe", "brief"), ("--data", "x.jsonl"), ("--backend", "transformers")):
        assert call("train", model, "--behaviour", SENTENCE, *more).exit_code == 2
    assert call("train", model, "--yes").exit_code == 2
    assert "the behaviour is empty" in error_of("train", model, "--behaviour", " ", "--yes")
