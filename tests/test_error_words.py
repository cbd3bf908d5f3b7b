"""Errors that say what is wrong and lead to what works, where the obvious reading is another."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter

from cli import call, error_of, good
from finesteer_local.doctor import installation
from finesteer_local.errors import DataError, FineSteerError, ModelError, ProfileError
from finesteer_local.identity import read_model_identity
from finesteer_local.jsonl import read_rows
from finesteer_local.profile import Profile
from finesteer_local.runtime import open_model
from finesteer_local.server.settings import ServerSettings, check_address
from finesteer_local.training.data import MIN_PAIRS, Pair, Prompt, TrainingData
from reference import steered_llama
from serving import Served
from tiny import make_profile


@pytest.fixture(scope="module")
def profile(tiny: Path) -> Profile:
    return make_profile(tiny)


@pytest.mark.parametrize("steering", [True, 0, 1, 0.5])
def test_steering_that_is_neither_false_nor_an_object(server: Served, steering: object) -> None:
    error = server.chat(steering=steering).json()["error"]
    assert error["param"] == "steering" and "give false for none" in error["message"]
    assert server.chat(steering=False).status_code == 200


def test_a_bias_for_a_token_that_there_is_not(server: Served) -> None:
    for answer in (
        server.chat(logit_bias={"99999": 1}),
        server.post("/v1/completions", {"prompt": "Hello", "logit_bias": {"99999": 1}}),
    ):
        error = answer.json()["error"]
        assert answer.status_code == 400 and error["param"] == "logit_bias"


def test_parts_of_a_split_model(tiny: Path, tmp_path: Path) -> None:
    first, second = (tmp_path / f"model-0000{i}-of-00002.gguf" for i in (1, 2))
    shutil.copy(tiny, first)
    with pytest.raises(ModelError, match=r"model-00002-of-00002.gguf, a part of model-00001-of-00002.gguf: No such"):
        read_model_identity(first)
    shutil.copy(tiny, second)
    with pytest.raises(ModelError, match=r"is a later part of a split model; give its first: .*00001-of-00002"):
        open_model(second)


def test_what_is_no_profile(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"it is a model \(architecture 'llama'\), not a profile"):
        Profile.load(tiny)
    path = tmp_path / "vector.gguf"
    writer = GGUFWriter(path, "controlvector")
    writer.add_tensor("direction.1", np.ones(64, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert "finesteer-local import vector.gguf" in error_of("run", tiny, "--profile", path, "Hello")


def test_a_single_profile_is_one(tiny: Path, tmp_path: Path, profile: Profile) -> None:
    profile.save(tmp_path / "one.gguf")
    for given in (str(tmp_path / "one.gguf"), tmp_path / "one.gguf", profile):
        assert [p.name for p in steered_llama(tiny, profiles=given).profiles] == [profile.name]


def test_an_ipv6_address_as_in_a_url() -> None:
    check_address("[::1]", None)
    assert ServerSettings(Path("m.gguf"), "m", host="[::1]").host == "::1"


def test_doctor_tells_the_model_from_its_profile(tiny: Path) -> None:
    found = call("doctor", tiny, "--profile", "no-such", "--json")
    findings = {one["name"]: one for one in json.loads(found.stdout)["findings"]}
    assert found.exit_code == 1 and findings["opens"]["state"] == "good"
    assert findings["profile no-such"]["state"] == "broken" and "no-such" in findings["profile no-such"]["remedy"]


def test_doctor_counts_what_this_python_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        "click>=8",
        'lm-eval>=0.4; python_version >= "3.10" and extra == "dev"',
        'gone>=1; python_version < "3.0"',
        'httpx[http2]>=99; extra == "serve" and python_version >= "3.8"',
    ]
    monkeypatch.setattr(installation.importlib.metadata, "requires", lambda name: lines)
    found = {one.name: one for one in installation._versions()}
    assert not {"lm-eval", "gone", "httpx"} & found.keys()
    assert {"click", "extra serve"} <= found.keys()


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
def test_numbers_that_json_does_not_have(tmp_path: Path, number: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(f'{{"prompt": "Hi", "n": 1.5e3}}\n{{"prompt": "Hi", "n": [{number}]}}\n')
    with pytest.raises(DataError, match=r"line 2: not JSON \("):
        list(read_rows(file))


def test_a_saved_chat_with_a_byte_order_mark(tiny: Path, tmp_path: Path) -> None:
    file = tmp_path / "chat.json"
    good("chat", tiny, "--max-tokens", "2", stdin=f"Hello\n/save {file}\n")
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert "loaded 1 question" in good("chat", tiny, stdin=f"/load {file}\n").stderr


@pytest.mark.parametrize("closed", ["0<&-", "0<&- 1>&-", "2>&-", "0<&- 1>&- 2>&-"])
@pytest.mark.parametrize("arguments", [["run", "MODEL", "-"], ["chat", "MODEL"], ["run", "MODEL", "--jsonl", "-"]])
def test_streams_that_are_closed(tiny: Path, arguments: list[str], closed: str) -> None:
    given = [str(tiny) if one == "MODEL" else one for one in arguments]
    line = f'"$@" --threads 1 {closed}'
    ran = subprocess.run(
        ["sh", "-c", line, "sh", sys.executable, "-m", "finesteer_local", *given],
        stdin=subprocess.DEVNULL,
        capture_output=True,
    )
    assert b"Traceback" not in ran.stderr and ran.returncode in (0, 1)


def test_one_prompt_is_too_few_to_train_a_gate_on() -> None:
    prompt = Prompt([{"role": "user", "content": "Hello"}])
    pairs = [Pair(prompt, f"yes {i}", f"no {i}") for i in range(MIN_PAIRS)]
    with pytest.raises(DataError, match="1 different prompt, too few to train a gate on; give at least 8"):
        TrainingData("test", pairs, [prompt])


@pytest.mark.parametrize("ctx", [257, 300, 511])
def test_a_context_that_is_no_multiple_of_256(tiny: Path, ctx: int) -> None:
    llama = steered_llama(tiny, n_ctx=ctx)
    assert llama.create_completion("Hello " * 40, max_tokens=None, temperature=0.0)["choices"][0]["finish_reason"]
    assert llama.n_tokens == llama.n_ctx() - 1  # the last token was not read any more
    lines = "\n".join(["Tell me something about the weather in the city, please"] * 5)
    told = call(
        "chat", tiny, "--ctx", ctx, "--temperature", "0", "--max-tokens", "60", stdin=lines + "\n/save /dev/stdout\n"
    )
    assert told.exit_code in (0, 1) and "Traceback" not in told.stderr


@pytest.mark.parametrize("host", ["http://localhost", "http://127.0.0.1:8080", "localhost/"])
def test_a_url_is_no_host(host: str) -> None:
    with pytest.raises(FineSteerError, match="takes a name or an address"):
        check_address(host, "key")
