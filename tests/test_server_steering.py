"""Profiles by request, the server's defaults, what is required, and decisions without an answer."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finesteer_local import catalog
from finesteer_local.profile import Profile
from finesteer_local.steering import Experts
from serving import Served, served
from templates import R1
from tiny import make_profile, write_tiny_model


@pytest.fixture(scope="module")
def profiles(tiny: Path) -> dict[str, Profile]:
    return {
        "firm": make_profile(tiny, name="firm", scope="turn", strength=2.0, seed=1, description="Stays firm."),
        "warm": make_profile(tiny, name="warm", scope="response", gate="partly", seed=2),
        "shy": make_profile(tiny, name="shy", scope="turn", seed=3),
    }


@pytest.fixture(scope="module")
def free(tiny: Path, profiles: dict[str, Profile]) -> Iterator[Served]:
    with served(tiny, profiles=(profiles["firm"], profiles["warm"])) as found:
        yield found


@pytest.fixture(scope="module")
def bound(tiny: Path, profiles: dict[str, Profile]) -> Iterator[Served]:
    with served(tiny, profiles=(profiles["firm"], profiles["warm"]), required=frozenset({"firm"})) as found:
        yield found


@pytest.fixture
def server(free: Served) -> Iterator[Served]:
    before = free.http.get("/v1/steering").json()
    del before["required"]  # that of the server's start, which no request changes
    yield free
    restored = free.http.put("/v1/steering", json=before)
    assert restored.status_code == 200, restored.text


def decided(served: Served, steering: Any = ..., **fields: Any) -> list[tuple[str, float, str]]:
    answer = served.chat(steering=steering, max_tokens=1, **fields)
    assert answer.status_code == 200, answer.text
    return [(d["profile"], d["strength"], d["scope"]) for d in answer.json()["steering"]["decisions"]]


def refused(served: Served, steering: Any) -> dict[str, Any]:
    answer = served.chat(steering=steering)
    assert answer.status_code == 400, answer.text
    return answer.json()["error"]


DEFAULT = [("firm", 2.0, "turn"), ("warm", 1.0, "response")]


def test_what_a_request_says(server: Served) -> None:
    assert decided(server) == decided(server, None) == decided(server, {}) == DEFAULT
    assert decided(server, False) == decided(server, {"profiles": []}) == []
    assert decided(server, {"profiles": [{"name": "warm"}]}) == DEFAULT[1:]
    assert decided(server, {"profiles": [{"name": "warm", "strength": 0.5}, {"name": "firm"}]}) == [
        ("warm", 0.5, "response"),
        ("firm", 2.0, "turn"),
    ]
    assert decided(server, {"scope": "prompt"}) == [("firm", 2.0, "prompt"), ("warm", 1.0, "prompt")]
    assert decided(server) == DEFAULT  # nothing is left behind


def test_strength_zero_decides_and_changes_nothing(server: Served) -> None:
    plain = server.chat(steering=False).json()["choices"][0]["message"]
    off = server.chat(steering={"profiles": [{"name": "firm", "strength": 0}]}).json()
    assert off["choices"][0]["message"] == plain
    assert off["steering"]["decisions"][0]["g"] == 1.0 and not off["steering"]["decisions"][0]["open"]
    assert server.chat().json()["choices"][0]["message"] != plain


@pytest.mark.parametrize(
    ("steering", "param"),
    [
        (True, "steering"),
        ("firm", "steering"),
        ({"profile": "firm"}, "steering.profile"),
        ({"profiles": ["firm"]}, "steering.profiles.0"),
        ({"profiles": [{"name": "nobody"}]}, "steering.profiles.0.name"),
        ({"profiles": [{"name": "../firm"}]}, "steering.profiles.0.name"),
        ({"profiles": [{"name": "/etc/passwd"}]}, "steering.profiles.0.name"),
        ({"profiles": [{"name": "firm"}, {"name": "warm", "strength": -1}]}, "steering.profiles.1.strength"),
        ({"profiles": [{"name": "firm", "strength": 1e9}]}, "steering.profiles.0.strength"),
        ({"profiles": [{"name": "firm", "stength": 1}]}, "steering.profiles.0.stength"),
        ({"profiles": [{"name": "firm"}, {"name": "firm"}]}, "steering.profiles"),
        ({"scope": "answer"}, "steering.scope"),
    ],
)
def test_what_is_wrong_is_an_error_never_an_unsteered_answer(server: Served, steering: Any, param: str) -> None:
    assert refused(server, steering)["param"] == param


def test_profiles_come_by_name_never_by_path(server: Served, tiny: Path, tmp_path: Path) -> None:
    file = tmp_path / "shy.gguf"
    make_profile(tiny, name="shy").save(file)
    for name in (str(file), "shy.gguf", "shy"):
        assert "name" in refused(server, {"profiles": [{"name": name}]})["param"]


def test_the_catalogue_serves_profiles_for_this_model(
    server: Served, tiny: Path, tmp_path: Path, profiles: dict[str, Profile]
) -> None:
    add(profiles["shy"], tmp_path)
    other = write_tiny_model(tmp_path / "other.gguf", nudge=0.5)
    add(make_profile(other, name="foreign"), tmp_path)
    listed = server.http.get("/v1/steering/profiles").json()["profiles"]
    assert [(p["name"], p["active"], p["required"]) for p in listed] == [
        ("firm", True, False),
        ("shy", False, False),
        ("warm", True, False),
    ]
    assert listed[0] == {
        "name": "firm",
        "description": "Stays firm.",
        "strength": 2.0,
        "scope": "turn",
        "gate": {"kind": "always", "layer": 1, "threshold": 0.0},
        "layers": [2],
        "experts": ["expert a", "expert b", "expert c", "expert d"],
        "kinds": [],
        "on_answer": "off",
        "takes_corrections": False,
        "active": True,
        "required": False,
    }
    assert decided(server, {"profiles": [{"name": "shy"}]}) == [("shy", 1.0, "turn")]
    assert refused(server, {"profiles": [{"name": "foreign"}]})["code"] == "unknown_profile"


def test_vectors_that_do_not_differ_have_no_names(server: Served, tiny: Path, tmp_path: Path) -> None:
    add(make_profile(tiny, name="shy", experts={2: Experts.fixed(np.ones(64, np.float32))}), tmp_path)
    [listed] = [p for p in server.http.get("/v1/steering/profiles").json()["profiles"] if p["name"] == "shy"]
    assert (listed["layers"], listed["experts"]) == ([2], [])
    [decision] = server.chat(steering={"profiles": [{"name": "shy"}]}).json()["steering"]["decisions"]
    assert decision["open"] and decision["experts"] == []


def add(profile: Profile, tmp_path: Path) -> Path:
    file = tmp_path / "new.gguf"
    profile.save(file)
    return catalog.add_profile(file, replace=True)


def test_a_profile_that_is_replaced_is_read_again(server: Served, tiny: Path, tmp_path: Path) -> None:
    def text() -> str:
        answer = server.chat(steering={"profiles": [{"name": "shy", "strength": 3}]})
        return answer.json()["choices"][0]["message"]["content"]

    add(make_profile(tiny, name="shy", seed=7), tmp_path)
    before = text()
    path = add(make_profile(tiny, name="shy", seed=8), tmp_path)
    assert text() != before
    shutil.copyfile(tiny, path)  # no profile any more
    assert refused(server, {"profiles": [{"name": "shy"}]})["param"] == "steering.profiles.0.name"
    assert "shy" not in str(server.http.get("/v1/steering/profiles").json())


def test_the_defaults_are_swapped_while_it_runs(server: Served) -> None:
    assert server.http.get("/v1/steering").json() == {
        "profiles": [
            {"name": "firm", "strength": 2.0, "policy": {}, "on_answer": None},
            {"name": "warm", "strength": 1.0, "policy": {}, "on_answer": None},
        ],
        "scope": None,
        "required": [],
    }
    wanted = {"profiles": [{"name": "warm", "strength": 3.0}, {"name": "firm"}], "scope": "prompt"}
    answer = server.http.put("/v1/steering", json=wanted)
    assert answer.status_code == 200
    assert answer.json() == server.http.get("/v1/steering").json()
    listed = [(profile["name"], profile["strength"]) for profile in answer.json()["profiles"]]
    assert listed == [("warm", 3.0), ("firm", 2.0)]
    assert decided(server) == [("warm", 3.0, "prompt"), ("firm", 2.0, "prompt")]
    # Named without a strength, a profile has the server's.
    assert decided(server, {"profiles": [{"name": "warm"}]}) == [("warm", 3.0, "prompt")]
    assert server.http.put("/v1/steering", json={"profiles": []}).json()["profiles"] == []
    assert decided(server) == []


@pytest.mark.parametrize(
    ("wanted", "param"),
    [
        ({}, "profiles"),
        ({"profiles": [{"name": "nobody"}]}, "profiles.0.name"),
        ({"profiles": [{"name": "firm", "strength": 1e9}]}, "profiles.0.strength"),
        ({"profiles": [], "scope": "all"}, "scope"),
        ({"profiles": [], "required": []}, "required"),
    ],
)
def test_a_swap_that_fails_changes_nothing(server: Served, wanted: Any, param: str) -> None:
    before = server.http.get("/v1/steering").json()
    answer = server.http.put("/v1/steering", json=wanted)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert server.http.get("/v1/steering").json() == before


def test_explain_decides_and_generates_nothing(server: Served) -> None:
    messages = [{"role": "user", "content": "Hello there"}]
    answer = server.post("/v1/steering/explain", {"messages": messages})
    assert answer.json() == server.chat().json()["steering"]
    off = {"messages": messages, "steering": {"profiles": [{"name": "warm"}], "explain": False}}
    [decision] = server.post("/v1/steering/explain", off).json()["decisions"]
    assert decision["profile"] == "warm" and "experts" not in decision
    assert server.post("/v1/steering/explain", {"messages": messages, "steering": False}).json() == {"decisions": []}


# --- what is required ---


def test_a_required_profile_can_be_strengthened(bound: Served) -> None:
    assert bound.http.get("/v1/steering").json()["required"] == ["firm"]
    assert decided(bound) == DEFAULT
    assert decided(bound, {"profiles": [{"name": "warm"}]}) == DEFAULT  # it is there all the same
    assert decided(bound, {"profiles": []}) == DEFAULT[:1]
    assert decided(bound, {"profiles": [{"name": "firm", "strength": 2.5}], "scope": "prompt"}) == [
        ("firm", 2.5, "prompt")
    ]
    listed = bound.http.get("/v1/steering/profiles").json()["profiles"]
    assert [(p["name"], p["required"]) for p in listed] == [("firm", True), ("warm", False)]


@pytest.mark.parametrize(
    "steering",
    [
        False,
        {"profiles": [{"name": "firm", "strength": 1.99}]},
        {"profiles": [{"name": "firm", "strength": 0}]},
        {"scope": "response"},
        {"profiles": [{"name": "warm"}], "scope": "response"},
    ],
)
def test_a_required_profile_can_not_be_weakened(bound: Served, steering: Any) -> None:
    assert refused(bound, steering)["code"] == "required"
    for path, body in (
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/steering/explain", {"messages": [{"role": "user", "content": "x"}]}),
        ("/api/generate", {"model": "tiny", "prompt": "x"}),
        ("/api/generate", {"model": "tiny", "prompt": "x", "raw": True}),
        ("/api/chat", {"model": "tiny", "messages": [{"role": "user", "content": "x"}]}),
    ):
        assert bound.post(path, {**body, "steering": steering}).status_code == 400, path


@pytest.mark.parametrize(
    "wanted",
    [
        {"profiles": []},
        {"profiles": [{"name": "warm"}]},
        {"profiles": [{"name": "firm", "strength": 1}]},
        {"profiles": [{"name": "firm"}], "scope": "response"},
    ],
)
def test_nor_can_the_defaults_weaken_it(bound: Served, wanted: Any) -> None:
    answer = bound.http.put("/v1/steering", json=wanted)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "required")
    assert decided(bound) == DEFAULT


def test_a_stronger_default_is_no_stronger_requirement(tiny: Path, profiles: dict[str, Profile]) -> None:
    with served(tiny, profiles=(profiles["firm"],), required=frozenset({"firm"}), strength=2.5) as server:
        assert decided(server) == [("firm", 2.5, "turn")]
        assert refused(server, {"profiles": [{"name": "firm", "strength": 2.4}]})["code"] == "required"
        server.http.put("/v1/steering", json={"profiles": [{"name": "firm", "strength": 4}]})
        assert decided(server) == [("firm", 4, "turn")]
        assert decided(server, {"profiles": []}) == [("firm", 4, "turn")]
        assert decided(server, {"profiles": [{"name": "firm", "strength": 2.5}]}) == [("firm", 2.5, "turn")]
        # The name alone is not the profile's own strength, which is less.
        server.http.put("/v1/steering", json={"profiles": [{"name": "firm", "strength": 2.5}]})
        answer = server.http.put("/v1/steering", json={"profiles": [{"name": "firm"}]})
        assert answer.status_code == 400


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("r1") / "r1.gguf", chat_template=R1)


@pytest.fixture(scope="module")
def profile(model: Path) -> Profile:
    return make_profile(model, name="firm", scope="response", strength=2.0)


class TestThoughts:
    """The template opens thoughts that this model never ends: unsteered, the answer is the plain one."""

    @staticmethod
    def answer(server: Served, steering: Any) -> str:
        found = server.chat(steering=steering).json()
        assert all(decision["open"] for decision in found["steering"]["decisions"])
        return found["choices"][0]["message"]["content"]

    def test_a_request_can_skip_them(self, model: Path, profile: Profile) -> None:
        with served(model, profiles=(profile,)) as server:
            plain = self.answer(server, False)
            assert self.answer(server, {"skip_thinking": True}) == plain
            assert self.answer(server, {}) == self.answer(server, {"skip_thinking": False}) != plain
            body = {"prompt": "Hello<think>", "temperature": 0, "max_tokens": 8}
            texts = [
                server.post("/v1/completions", {**body, "steering": steering}).json()["choices"][0]["text"]
                for steering in (False, {"skip_thinking": True}, {})
            ]
            assert texts[0] == texts[1] != texts[2]

    def test_the_server_can_skip_them(self, model: Path, profile: Profile) -> None:
        with served(model, profiles=(profile,), skip_thinking=True, required=frozenset({"firm"})) as server:
            skipped = self.answer(server, None)
            assert (
                self.answer(server, {"skip_thinking": True}) == skipped != self.answer(server, {"skip_thinking": False})
            )

    def test_not_where_steering_is_required(self, model: Path, profile: Profile) -> None:
        with served(model, profiles=(profile,), required=frozenset({"firm"})) as server:
            error = refused(server, {"skip_thinking": True})
            assert (error["code"], error["param"]) == ("required", "steering.skip_thinking")
