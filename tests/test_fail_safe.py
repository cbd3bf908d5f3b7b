"""A profile that cannot be applied is an error, never a silent unsteered answer; and the model is usable afterwards."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from llama_cpp import llama_cpp

from finesteer_local.errors import ProfileError, ProfileMismatchError, SteeringError
from finesteer_local.runtime import SteeredLlama
from finesteer_local.steering import AlwaysGate
from reference import answer, control, greedy, logits, plain_llama, read, steered_llama
from tiny import PLACEHOLDER, make_profile, write_tiny_model

pytestmark = pytest.mark.usefixtures("device")  # exact on every device

PROMPT = list(range(40, 65))
SMALL = {"n_batch": 16, "n_ubatch": 8}


@pytest.fixture(scope="module")
def nan_for_one_token(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("nan") / "nan.gguf", nan_token=True)


@dataclass(frozen=True, eq=False)
class FailingGate(AlwaysGate):
    error: BaseException

    def score(self, h: np.ndarray, summary: np.ndarray) -> float:
        raise self.error


def works(llama: SteeredLlama, path: Path, **settings) -> None:
    """The next request is answered, steered, as by a fresh model; and nothing is left when the profile goes."""
    profile = make_profile(path, strength=2.0)
    llama.set_profiles([profile])
    got = answer(llama, PROMPT)
    plain = plain_llama(path, **settings)
    wanted = read(plain, PROMPT, [(0, llama.last_decision.vectors)])
    assert llama.last_decision.open
    assert got == greedy(plain, 8)
    control(plain, {})
    wanted = read(plain, PROMPT)
    llama.set_profiles([])
    next(llama.generate(PROMPT, temp=0.0))
    np.testing.assert_array_equal(logits(llama), wanted)


@pytest.mark.parametrize("settings", [{}, SMALL], ids=["one batch", "micro-batches"])
@pytest.mark.parametrize("gate", ["open", "closed", "closed, last token"])
def test_a_hidden_state_that_is_not_finite(nan_for_one_token: Path, gate: str, settings: dict) -> None:
    path = nan_for_one_token
    llama = steered_llama(path, profiles=[make_profile(path, gate=gate)], **settings)
    answer(llama, PROMPT, 2)
    text = f"the user {PLACEHOLDER} and the other one in turn"
    for stream in (False, True):
        with pytest.raises(SteeringError, match="hidden state is not finite"):
            list(llama.create_completion(text, max_tokens=4, stream=stream))
        assert llama.last_decisions == ()
        assert llama.n_tokens == 0
    with pytest.raises(SteeringError, match="hidden state is not finite"):
        llama.create_chat_completion([{"role": "user", "content": text}])
    works(llama, path, **settings)


@pytest.mark.parametrize("tensor", ["blk.0.ffn_down.weight", "blk.2.attn_output.weight"])
def test_a_model_whose_weights_are_not_finite(tmp_path: Path, tensor: str) -> None:
    path = write_tiny_model(tmp_path / "nan.gguf", nan_tensor=tensor)
    with pytest.raises(SteeringError, match="hidden state is not finite"):
        steered_llama(path, profiles=[make_profile(path, gate_layer=2, layers=(3,))])
    steered_llama(path)  # without a profile it is llama-cpp-python's own affair


@pytest.mark.parametrize("settings", [{}, SMALL], ids=["one batch", "micro-batches"])
def test_a_vector_that_is_not_finite(tiny: Path, settings: dict) -> None:
    profile = make_profile(tiny)
    experts = replace(profile.experts[2], prototypes=np.full((4, 64), 3e38, np.float32))
    huge = replace(profile, experts={2: experts})
    llama = steered_llama(tiny, profiles=[huge], strength=100.0, **settings)
    with np.errstate(over="ignore"), pytest.raises(SteeringError, match="profile 'test': layer 2's vector"):
        answer(llama, PROMPT, 1)
    works(llama, tiny, **settings)


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt(), MemoryError()], ids=repr)
@pytest.mark.parametrize("settings", [{}, SMALL], ids=["one batch", "micro-batches"])
def test_an_error_inside_the_callback(tiny: Path, native_tap: bool, settings: dict, error: BaseException) -> None:
    profile = make_profile(tiny, gate=FailingGate(error))
    llama = steered_llama(tiny, native_tap=native_tap, **settings)
    answer(llama, PROMPT, 3)
    llama.set_profiles([profile])
    tokens: list[int] = []
    with pytest.raises(type(error)) as caught:
        for token in llama.generate([*PROMPT, *PROMPT], temp=0.0):
            tokens.append(token)
    assert caught.value is error
    assert tokens == []
    works(llama, tiny, **settings)


def test_an_error_while_the_prompt_is_steered(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The decision was taken, some rows were written: nothing of that prompt may be reused."""
    from finesteer_local.runtime.tap import Rows

    llama = steered_llama(tiny, profiles=[make_profile(tiny, layers=(2, 3), strength=3.0)])
    write, calls = Rows.write, []

    def broken(self: Rows, start: int, rows: np.ndarray) -> None:
        calls.append(start)
        write(self, start, rows)
        raise OSError("lost the device")

    llama.set_profiles([make_profile(tiny, layers=(1, 2), strength=3.0)])
    with monkeypatch.context() as patch:
        patch.setattr(Rows, "write", broken)
        with pytest.raises(OSError, match="lost the device"):
            answer(llama, PROMPT, 1)
    assert len(calls) == 1
    works(llama, tiny)


def test_a_batch_that_llama_cpp_refuses(tiny: Path) -> None:
    llama = steered_llama(tiny, profiles=[make_profile(tiny)])
    answer(llama, PROMPT, 3)
    with pytest.raises(RuntimeError, match="llama_decode"):
        llama.eval(PROMPT * 40)  # more than the context holds, as an answer
    llama.reset()
    with pytest.raises(RuntimeError, match="llama_decode"):
        llama.eval(PROMPT * 40)  # and as a prompt
    works(llama, tiny)


@pytest.mark.parametrize("settings", [{}, SMALL], ids=["one batch", "micro-batches"])
def test_a_control_vector_that_llama_cpp_refuses(tiny: Path, settings: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    llama = steered_llama(tiny, profiles=[make_profile(tiny)], **settings)
    real = llama_cpp.llama_set_adapter_cvec
    with monkeypatch.context() as patch:
        patch.setattr(llama_cpp, "llama_set_adapter_cvec", lambda *args: -1 if args[1] is not None else real(*args))
        with pytest.raises(SteeringError, match="refused the control vector"):
            answer(llama, PROMPT, 1)
    works(llama, tiny, **settings)


@pytest.mark.parametrize("hidden", [0, 1, 2, 3, 10])
def test_a_layer_that_llama_cpp_does_not_show(tiny: Path, hidden: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe looks at one layer only: a gate that never reads, or rows that are never steered, are found out too."""
    profiles = [make_profile(tiny, name="a", gate_layer=0, layers=(2,)), make_profile(tiny, name="b", layers=(1, 2))]
    if hidden == 3:
        profiles = [make_profile(tiny, name="c", gate_layer=3, layers=(3,))]
    if hidden == 10:  # not the first gate, and not the last
        profiles = [make_profile(tiny, name=f"g{i}", gate_layer=i, layers=(2,)) for i in range(3)]
        hidden = 1
    llama = steered_llama(tiny, profiles=profiles)
    arm = llama.tap.arm
    with monkeypatch.context() as patch:
        patch.setattr(llama.tap, "arm", lambda handlers: arm({k: v for k, v in handlers.items() if k != hidden}))
        with pytest.raises(SteeringError, match="did not show the layers"):
            answer(llama, PROMPT, 1)
    works(llama, tiny)


class TestModels:
    def test_another_quantisation_is_accepted(self, tiny: Path, tmp_path: Path) -> None:
        path = write_tiny_model(tmp_path / "f16.gguf", weight_type=np.float16)
        llama = steered_llama(path, profiles=[make_profile(tiny)])
        answer(llama, PROMPT, 1)
        assert llama.last_decision.open

    @pytest.mark.parametrize(
        "changes", [{"nudge": 1e-3}, {"seed": 1}, {"n_layer": 5}, {"architecture": "qwen2"}, {"n_embd": 96}], ids=str
    )
    def test_a_fine_tune_and_another_model_are_refused(self, tiny: Path, tmp_path: Path, changes: dict) -> None:
        path = write_tiny_model(tmp_path / "other.gguf", name="Other", **changes)
        profile = make_profile(tiny)
        with pytest.raises(
            ProfileMismatchError, match=r"profile 'test' was trained for 'Tiny', not for 'Other'"
        ) as error:
            steered_llama(path, profiles=[profile])
        assert "train MODEL --recipe test" in str(error.value)
        assert "\n" not in str(error.value)
        llama = steered_llama(path)
        wanted = answer(plain_llama(path), PROMPT)
        with pytest.raises(ProfileMismatchError):
            llama.set_profiles([profile])
        assert answer(llama, PROMPT) == wanted

    def test_a_profile_file(self, tiny: Path, tmp_path: Path) -> None:
        make_profile(tiny).save(tmp_path / "test.gguf")
        for path in (tmp_path / "test.gguf", str(tmp_path / "test.gguf")):
            llama = steered_llama(tiny, profiles=[path])
            answer(llama, PROMPT, 1)
            assert llama.last_decision.open
        with pytest.raises(ProfileError, match="cannot read the profile"):
            steered_llama(tiny, profiles=[tmp_path / "none.gguf"])
        with pytest.raises(ProfileError, match="architecture"):
            steered_llama(tiny, profiles=[tiny])
