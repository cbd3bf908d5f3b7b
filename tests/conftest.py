"""What every test gets: a home of its own, and the one real model where it asks for it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from llama_cpp import llama_cpp

from finesteer_local import catalog
from finesteer_local.runtime import machine
from finesteer_local.runtime.rpc import INSTALL
from tiny import ARCHITECTURES, write_tiny_model
from workers import everything_offloaded, lasting_worker, on_worker

if TYPE_CHECKING:  # only the server's tests load what it needs
    import openai

    from finesteer_local.profile import Profile
    from serving import Served

pytest_plugins = ["not_run", "web"]

_USERS_HOME = os.environ.get("FINESTEER_HOME")

# A shell starts its background jobs with Ctrl-C ignored, and they pass that on: tests of Ctrl-C would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)


# What a test with the fixture `device` leaves out on a worker and on a GPU, for time: what a device cannot change.
_ONLY_HERE = {"native_tap": [False], "tiny_model": ["qwen2"]}
_EVERYTHING = ("test_tap", "test_probe")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device",
        choices=("local", "rpc", "gpu"),
        default="local",
        help="where the models of tests with the fixture `device` lie; rpc and gpu run nothing else",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out tests on other devices; but for `local`, `_ONLY_HERE` and what `local(argument=[values])` names too."""
    device = config.getoption("--device")
    left_out = [item for item in items if _values(item).get("device", "local") != device or _is_left_out(item)]
    config.hook.pytest_deselected(items=left_out)
    gone = set(map(id, left_out))
    items[:] = [item for item in items if id(item) not in gone]


def _values(item: pytest.Item) -> dict[str, Any]:
    """What a test's arguments are in this round of it."""
    return item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}


def _is_left_out(item: pytest.Item) -> bool:
    values = _values(item)
    if values.get("device", "local") == "local":
        return False
    rules = [mark.kwargs for mark in item.iter_markers("local")]
    if any(not rule for rule in rules):
        return True
    if item.module.__name__ not in _EVERYTHING:
        rules.append(_ONLY_HERE)
    return any(values.get(name) in others for rule in rules for name, others in rule.items())


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Cache and data of this test alone; nothing of the user's is read or written."""
    home = tmp_path / "home"
    monkeypatch.setenv("FINESTEER_HOME", str(home))
    return home


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The real SmolLM2 135M, from the user's own cache; pulled there once if need be."""
    with pytest.MonkeyPatch.context() as patch:
        if _USERS_HOME is None:
            patch.delenv("FINESTEER_HOME", raising=False)
        else:
            patch.setenv("FINESTEER_HOME", _USERS_HOME)
        return catalog.resolve_model("smollm2")


@pytest.fixture
def smollm2_by_name(smollm2: Path, home: Path) -> str:
    """The name `smollm2`, for which the test's own home now has the file."""
    link = home / "cache" / "models" / smollm2.name
    link.parent.mkdir(parents=True)
    link.symlink_to(smollm2)
    return "smollm2"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama model."""
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "llama.gguf")


@pytest.fixture(scope="session", params=ARCHITECTURES)
def tiny_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of each architecture."""
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / f"{request.param}.gguf", request.param)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """PyTorch computes in one thread: tests beside each other would wait for each other's."""
    import torch  # only tests of training load it

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def in_float32() -> Iterator[None]:
    """Weights for PyTorch are float32 on every machine, whatever it multiplies fastest."""
    import torch

    from finesteer_local.training import weights

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights, "fast_dtype", lambda: torch.float32)
        yield


@pytest.fixture
def weights_in(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A model's weights for PyTorch in a given precision, whatever this machine multiplies fastest."""
    from finesteer_local.training import weights

    def opened(dtype: Any, llama: Any) -> Any:
        monkeypatch.setattr(weights, "fast_dtype", lambda: dtype)
        return weights.weights_of(llama)

    return opened


@pytest.fixture(scope="module")
def short_answers() -> Iterator[None]:
    """Training asks the model for a few tokens at a time: a random model ends no answer."""
    from finesteer_local.training import learn, own_answers, trials

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learn, "REPLY_TOKENS", 6)
        patch.setattr(trials, "ANSWER_TOKENS", 6)
        patch.setattr(trials, "WHOLE_TOKENS", 6)
        patch.setattr(own_answers, "TOKENS", 6)
        yield


@pytest.fixture(scope="module")
def server(tiny: Path, profile: Profile) -> Iterator[Served]:
    """The tiny model, served with the `profile` of the test's module."""
    from serving import served

    with served(tiny, profiles=(profile,)) as found:
        yield found


@pytest.fixture(scope="module")
def client(server: Served) -> Iterator[openai.OpenAI]:
    """OpenAI's own client of `server`."""
    import openai

    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as found:
        yield found


@pytest.fixture(params=[True, False], ids=["native", "python"])
def native_tap(request: pytest.FixtureRequest) -> bool:
    """The compiled filter, and its Python twin."""
    return bool(request.param)


@pytest.fixture(scope="session")
def worker() -> str:
    """The endpoint of a worker that serves this process alone."""
    if not llama_cpp.llama_supports_rpc():
        pytest.skip(f"llama-cpp-python has no RPC: {INSTALL}")
    return lasting_worker()


@pytest.fixture(scope="module", params=["local", "rpc", "gpu"])
def device(request: pytest.FixtureRequest) -> Iterator[None]:
    """Where models lie: in this process, on a worker, whose tensors are not this process's memory, or on a GPU."""
    if request.param == "local":
        yield
    elif request.param == "rpc":
        with on_worker(request.getfixturevalue("worker")):
            yield
    else:
        if not machine.supports_gpu() or not machine.has_accelerator():
            pytest.skip("llama.cpp sees no GPU")
        with everything_offloaded():
            yield
