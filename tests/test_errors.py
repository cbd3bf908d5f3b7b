"""One family of errors, each also a fitting built-in."""

from __future__ import annotations

import inspect
import pickle

import pytest

import finesteer_local
from finesteer_local import errors
from finesteer_local.errors import FineSteerError

FAMILY = {name: cls for name, cls in vars(errors).items() if inspect.isclass(cls)}
BUILT_IN = {
    "ModelError": ValueError,
    "ProfileError": ValueError,
    "ProfileMismatchError": ValueError,
    "UnknownNameError": LookupError,
    "DataError": ValueError,
    "PromptError": ValueError,
    "ContextLengthError": ValueError,
    "OptionError": ValueError,
    "SteeringError": RuntimeError,
    "JudgeError": RuntimeError,
    "QueueFullError": RuntimeError,
    "EngineClosedError": RuntimeError,
    "EngineError": RuntimeError,
    "StalledError": TimeoutError,
    "WorkerError": ConnectionError,
    "DownloadError": OSError,
    "StorageError": OSError,
    "MissingExtraError": ImportError,
}
GIVEN = {"ContextLengthError": [4_096, 512, "what to do"]}
SAID = {"ContextLengthError": "the prompt has 4,096 tokens, the context only 512; what to do"}


def test_the_family_is_complete() -> None:
    assert {*FAMILY} == {"FineSteerError", *BUILT_IN}


@pytest.mark.parametrize("name", BUILT_IN)
def test_each_is_of_the_family_and_a_built_in(name: str) -> None:
    error = FAMILY[name](*GIVEN.get(name, ["what is wrong; what to do"]))
    assert isinstance(error, FineSteerError)
    assert isinstance(error, BUILT_IN[name])
    assert str(error) == SAID.get(name, "what is wrong; what to do")
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), vars(copy)) == (str(error), vars(error))
    with pytest.raises(BUILT_IN[name]):
        raise error


def test_a_mismatch_is_a_profile_error() -> None:
    assert issubclass(errors.ProfileMismatchError, errors.ProfileError)


@pytest.mark.parametrize("name", FAMILY)
def test_each_is_public_and_documented(name: str) -> None:
    assert getattr(finesteer_local, name) is FAMILY[name]
    assert name in finesteer_local.__all__
    assert FAMILY[name].__doc__
