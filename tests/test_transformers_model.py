"""Training's other backend: a Hugging Face directory gives what the GGUF file of the same model gives."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cli import error_of, good
from finesteer_local.errors import MissingExtraError, ModelError
from finesteer_local.identity import read_model_identity
from finesteer_local.profile import Profile
from finesteer_local.runtime import open_model
from finesteer_local.runtime.harvest import Harvester
from finesteer_local.runtime.prompt import chat_prompt, greedy_answer, turn_start, unsteered_parts
from finesteer_local.runtime.trainable import Asked
from tiny import make_profile, write_tiny_model

pytest.importorskip("sklearn")
pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

from finesteer_local.training.data import Prompt  # noqa: E402
from finesteer_local.training.model_data import whole_answers  # noqa: E402
from finesteer_local.training.transformers_model import TransformersModel  # noqa: E402
from finesteer_local.training.weights import weights_of  # noqa: E402
from hugging_face import write_directory  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread", "short_answers")


MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {
        "role": "user",
        "content": "The user in the inn: 12 34? And the other one, who came in later with the user of the inn?",
    },
]
Two = tuple[Path, Path]


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def two(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Two:
    """A GGUF file, and the directory of the same model."""
    folder = tmp_path_factory.mktemp("two")
    gguf = write_tiny_model(folder / "model.gguf", request.param)
    return gguf, write_directory(gguf, folder / "tiny-hf")


def test_identity(two: Two) -> None:
    gguf, folder = two
    expected = read_model_identity(gguf)
    assert TransformersModel(folder).identity == replace(expected, name="tiny-hf")
    assert TransformersModel(folder, gguf=gguf).identity == expected


def test_prompts_states_answers_and_scores(two: Two) -> None:
    gguf, folder = two
    llama, other = open_model(gguf, n_threads=1), TransformersModel(folder)
    prompt = chat_prompt(llama, MESSAGES)
    assert chat_prompt(other, MESSAGES) == prompt
    turn = turn_start(llama, MESSAGES, prompt)
    assert turn_start(other, MESSAGES, prompt) == turn > 0
    assert other.tokenize(b"and the user", add_bos=False) == llama.tokenize(b"and the user", add_bos=False)
    assert other.detokenize(prompt[4:12]) == llama.detokenize(prompt[4:12])
    whole = [model.detokenize(prompt, special=True) for model in (llama, other)]
    assert whole[0] == whole[1] and MESSAGES[-1]["content"].encode() in whole[0]
    layers = [0, 2, 3]
    answer = llama.tokenize(b"the inner", add_bos=False)
    for read in ("turn_states", "answer_states"):
        argument = turn if read == "turn_states" else answer
        a, b = (getattr(model.reader(layers), read)(prompt, argument) for model in (llama, other))
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, atol=1e-2)  # llama.cpp keeps keys and values in float16
    assert greedy_answer(llama, MESSAGES, 12) == greedy_answer(other, MESSAGES, 12)
    for x, y in zip(*(m.answer_logprobs(prompt, [answer, answer[:1]]) for m in (llama, other)), strict=True):
        np.testing.assert_allclose(x, y, atol=5e-3)


def test_what_training_asks_of_both(two: Two) -> None:
    """Its size, and the token that ends a turn; whole answers, as far as they go."""
    gguf, folder = two
    llama, other = open_model(gguf, n_threads=1), TransformersModel(folder)
    assert other.n_parameters == llama.n_parameters > 10_000
    assert other.turn_end == llama.turn_end == llama.tokenize(b"<|im_end|>", add_bos=False, special=True)[0]
    assert weights_of(other) is other.model
    prompts = [Prompt(MESSAGES), Prompt([{"role": "user", "content": "And in the inn?"}])]
    for prompt, (text, ended) in zip(prompts, whole_answers(other, prompts, 9, 0.8), strict=True):
        assert (text, ended) == (greedy_answer(llama, prompt.messages, 9), False)  # it never ends by itself
    first = other.tokenize(greedy_answer(llama, MESSAGES, 1).encode(), add_bos=False)[0]
    other._ends = {first: None}
    assert [*whole_answers(other, prompts[:1], 9, 0.8)] == [("", True)]


@pytest.mark.parametrize("scope", ["response", "turn", "prompt"])
@pytest.mark.parametrize("gate", ["open", "partly", "partly, windowed"])
def test_steered_as_llama_cpp_steers(two: Two, scope: str, gate: str) -> None:
    gguf, folder = two
    profile = make_profile(gguf, gate=gate, layers=(1, 2), gate_layer=1, scope=scope, strength=2.0, length_decay=0.5)
    llama, other = open_model(gguf, n_threads=1), TransformersModel(folder)
    plain = greedy_answer(other, MESSAGES, 12)
    for model in (llama, other):
        model.set_profiles([profile], strength=1.5)
    prompt = chat_prompt(llama, MESSAGES)
    turn = turn_start(llama, MESSAGES, prompt)
    answer = llama.tokenize(b"the inner", add_bos=False)
    scores = [model.answer_logprobs(prompt, [answer], turn=turn)[0] for model in (llama, other)]
    np.testing.assert_allclose(*scores, atol=5e-3)
    for model in (llama, other):
        [first], [second, third] = model.many_logprobs(
            [Asked(prompt, [answer], turn), Asked(prompt, [answer[:2], answer])]
        )
        np.testing.assert_array_equal(first, model.answer_logprobs(prompt, [answer], turn=turn)[0])
        for one, wanted in zip((second, third), model.answer_logprobs(prompt, [answer[:2], answer]), strict=True):
            np.testing.assert_array_equal(one, wanted)
    assert greedy_answer(llama, MESSAGES, 12) == greedy_answer(other, MESSAGES, 12) != plain
    [decision] = other.decide(prompt, turn).decisions
    assert decision.g == pytest.approx(llama.last_decision.g, abs=1e-4)
    assert decision.strength == llama.last_decision.strength
    assert (decision.strength < 1.5) == (scope != "response")  # the longer ones are long enough to get less


def test_what_stays_unsteered_and_answers_that_get_less(two: Two) -> None:
    """Tool results are left alone, and the answer's tokens get their share of the vector."""
    gguf, folder = two
    profile = make_profile(gguf, layers=(1, 2), gate_layer=1, answer_strength=0.4)
    llama, other = open_model(gguf, n_threads=1), TransformersModel(folder)
    talk = [*MESSAGES, {"role": "tool", "content": "the inn is on the other side of the inner user"}]
    prompt = chat_prompt(llama, talk)
    parts = unsteered_parts(llama, talk, prompt, skip_thinking=False)
    assert parts.tools and unsteered_parts(other, talk, prompt, skip_thinking=False) == parts
    for model in (llama, other):
        model.set_profiles([profile])
    assert greedy_answer(llama, talk, 12) == greedy_answer(other, talk, 12)
    request = other.decide(prompt, turn_start(other, talk, prompt), parts)
    assert [segment.vectors == {} for segment in request.plan] == [False, True, False]
    [decision] = llama.last_decisions
    for layer, vector in request.vectors.items():
        np.testing.assert_allclose(vector, 0.4 * decision.vectors[layer], atol=1e-3)


def test_training_on_both(two: Two, tmp_path: Path) -> None:
    """The same data, the same seed: decisions on the GGUF file agree."""
    gguf, folder = two
    pairs, contrast = tmp_path / "pairs.jsonl", tmp_path / "contrast.jsonl"
    rows = [{"prompt": f"zz qq {i} zz {i * 7}?", "chosen": "no no no", "rejected": f"the inner {i}"} for i in range(32)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    others = [{"prompt": f"the user and the other {i}"} for i in range(40)]
    contrast.write_text("".join(json.dumps(row) + "\n" for row in others))
    tail = ("--data", pairs, "--contrast", contrast, "--name", "both", "--layer", "2", "--threads", "1")
    good("train", gguf, *tail, "-o", tmp_path / "a.gguf")
    said = good("train", folder, "--backend", "transformers", *tail, "-o", tmp_path / "b.gguf")
    assert "Trained both for tiny-hf" in said.stdout
    ours, theirs = Profile.load(tmp_path / "a.gguf"), Profile.load(tmp_path / "b.gguf")
    assert theirs.model.fingerprint == ours.model.fingerprint == read_model_identity(gguf).fingerprint
    llama = open_model(gguf, profiles=[tmp_path / "b.gguf"], n_threads=1)  # it fits the GGUF file
    harvester = Harvester(llama, [2])
    cosines, agree = [], []
    for text in [row["prompt"] for row in (*rows, *others)]:
        prompt = chat_prompt(llama, [{"role": "user", "content": text}])
        states = harvester.turn_states(prompt, turn_start(llama, [{"role": "user", "content": text}], prompt))[0]
        a, b = (profile.gate.score(states[-1], profile.gate.summary(states)) for profile in (ours, theirs))
        agree.append((ours.gate.value(a) > 0) == (theirs.gate.value(b) > 0))
        v, w = (p.experts[2].mix(p.experts[2].alpha(states[-1]), p.experts[2].beta(states[-1])) for p in (ours, theirs))
        cosines.append(float(v @ w / (np.linalg.norm(v) * np.linalg.norm(w))))
    assert min(cosines) > 0.99, cosines
    assert np.mean(agree) >= 0.95, np.mean(agree)


def test_what_is_no_model_of_theirs(two: Two, tmp_path: Path) -> None:
    gguf, folder = two
    with pytest.raises(ModelError, match=r"it has no config\.json"):
        TransformersModel(tmp_path)
    other = write_tiny_model(tmp_path / "tuned.gguf", read_model_identity(gguf).architecture, nudge=0.01)
    with pytest.raises(ModelError, match="is not of the model in"):
        TransformersModel(folder, gguf=other)
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match="are pickles and are not loaded"):
        TransformersModel(copy)
    (copy / "pytorch_model.bin").rename(copy / "model.safetensors")
    (copy / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="transformers cannot load"):
        TransformersModel(copy)
    assert "it has no config.json" in error_of("train", tmp_path, "--backend", "transformers", "--recipe", "safety")
    assert "--gguf goes with" in error_of("train", gguf, "--gguf", gguf, code=2)


def test_without_the_extra(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"extra transformers.*; install with: pip install .*\[transformers\]"):
        TransformersModel(two[1])
