"""`/v1/steering/corrections`: what is kept, for whom, and what is not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from finesteer_local import corrections
from finesteer_local.corrections import LEAVE, STEER, Correction
from finesteer_local.server.settings import Limits, ServerSettings
from serving import Served, served
from tiny import make_profile

PATH = "/v1/steering/corrections"
TEXTS = [f"{word} {i}" for i in range(6) for word in ("hello there", "the user is in the house", "on and on", "in")]


@pytest.fixture(scope="module")
def server(tiny: Path) -> Iterator[Served]:
    profiles = (make_profile(tiny, name="guard", gate="selective"), make_profile(tiny, name="firm", gate="open"))
    with served(tiny, profiles=profiles) as found:
        yield found


def asked(text: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": "be kind"}, {"role": "user", "content": text}]


def decided(server: Served, text: str) -> dict[str, Any]:
    body = {"messages": asked(text)}
    found: dict[str, Any] = server.post("/v1/steering/explain", body).json()["decisions"][0]
    return found


def where(server: Served, is_open: bool) -> str:
    return next(text for text in TEXTS if decided(server, text)["open"] == is_open)


def keep(server: Served, text: str, should: str, **fields: Any) -> Any:
    return server.post(PATH, {"messages": asked(text), "profile": "guard", "should": should, **fields})


@pytest.mark.parametrize(("is_open", "should"), [(True, LEAVE), (False, STEER)])
def test_kept_as_a_chat_keeps_it(server: Served, tiny: Path, is_open: bool, should: str) -> None:
    text = where(server, is_open)
    answer = keep(server, text, should)
    assert answer.status_code == 200, answer.text
    found, decision = answer.json(), decided(server, text)
    [row] = corrections.kept()
    assert (row.id, row.profile, row.should, row.messages) == (found["id"], "guard", should, asked(text))
    assert (row.fingerprint, row.model_path) == (server.service.model.llama.identity.fingerprint, str(tiny))
    assert row.score == found["score"] == pytest.approx(decision["score"], abs=1e-3)
    assert row.threshold == found["threshold"] == pytest.approx(decision["threshold"], abs=1e-3)
    assert found["refit"] == "finesteer-local profiles refit guard"
    # What follows the question is not kept, and the same turn counts once.
    talk = [*asked(text), {"role": "assistant", "content": "yes?"}]
    assert keep(server, text, should, messages=talk).json()["id"] == row.id
    assert len(corrections.kept()) == 1
    assert found["id"] in [each["id"] for each in server.http.get(PATH).json()["corrections"]]
    assert text not in server.http.get(PATH).text
    assert server.http.delete(f"{PATH}/{row.id}").json() == {"id": row.id, "deleted": True}
    assert corrections.kept() == [] and server.http.get(PATH).json() == {"corrections": []}


def test_what_was_decided_so_is_not_kept(server: Served) -> None:
    for is_open, should, said in ((True, STEER, "steers"), (False, LEAVE, "leaves")):
        error = keep(server, where(server, is_open), should).json()["error"]
        assert (error["code"], error["param"]) == ("decided_so", "should") and said in error["message"]
    assert corrections.kept() == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "system", "content": "be kind"}]}, "messages"),
        ({"messages": [{"role": "user", "content": " "}]}, "messages"),
        ({"messages": [{"role": "assistant", "content": ""}, {"role": "user", "content": "a"}]}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}, {"role": "user", "content": "a"}]}, "messages"),
        ({"messages": [{"role": "user", "content": "a", "name": "b"}]}, "messages"),
        ({"messages": [{"role": "user", "content": "a"}] * 513}, "messages"),
        ({"messages": [{"role": "user", "content": "a " * 5000}]}, "messages"),
        ({"profile": "nobody"}, "profile"),
        ({"profile": "../guard"}, "profile"),
        ({"profile": "/etc/passwd"}, "profile"),
        ({"profile": "firm"}, "profile"),
        ({"should": "both"}, "should"),
        ({"file": "/tmp/x"}, "file"),
        ({"model": "gpt-9"}, "model"),
    ],
)
def test_what_is_wrong_is_told_and_not_kept(server: Served, fields: dict[str, Any], param: str) -> None:
    answer = keep(server, "a", **{"should": STEER, **fields})
    assert answer.status_code in (400, 404), answer.text
    assert answer.json()["error"]["param"].split(".")[0] == param
    assert not corrections.file().exists()


def test_clients_reach_only_what_came_through_the_server(server: Served) -> None:
    own = corrections.keep(Correction("guard", "ab" * 32, asked("my secret"), LEAVE))
    answer = server.http.delete(f"{PATH}/{own.id}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_correction")
    assert server.http.delete(f"{PATH}/{own.id[:1]}").status_code == 404
    assert own.id not in server.http.get(PATH).text and corrections.kept() == [own]
    # What was deleted by command is gone for clients too.
    kept = keep(server, where(server, is_open=True), LEAVE).json()["id"]
    corrections.delete_all()
    assert server.http.delete(f"{PATH}/{kept}").json()["deleted"]


def test_a_damaged_file_is_left_alone_and_its_place_not_told(server: Served, home: Path) -> None:
    corrections.file().parent.mkdir(parents=True, exist_ok=True)
    corrections.file().write_text("{}\n")
    answer = keep(server, where(server, is_open=True), LEAVE)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "corrections_unavailable")
    assert str(home) not in answer.text and corrections.file().read_text() == "{}\n"


def test_the_file_has_a_limit(tiny: Path) -> None:
    profile = make_profile(tiny, name="guard", gate="partly")
    with served(tiny, profiles=(profile,), limits=Limits(corrections=1000)) as server:
        assert keep(server, "a", LEAVE).status_code == 200
        answers = [keep(server, f"a {i}", LEAVE) for i in range(12)]
        assert answers[-1].json()["error"]["code"] == "corrections_full"
        assert corrections.file().stat().st_size < 1500


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, True),
        ({"host": "::1"}, True),
        ({"api_key": "k"}, False),
        ({"host": "0.0.0.0", "api_key": "k"}, False),
        ({"host_names": frozenset({"chat.example.org"})}, False),
        ({"corrections": False}, False),
        ({"corrections": True, "host": "0.0.0.0", "api_key": "k"}, True),
    ],
)
def test_who_may_keep_any(settings: dict[str, Any], kept: bool) -> None:
    assert ServerSettings(Path("model.gguf"), "tiny", **settings).keeps_corrections is kept


def test_a_server_that_keeps_none_says_so(tiny: Path) -> None:
    with served(tiny, profiles=(make_profile(tiny, name="guard", gate="partly"),), api_key="key") as server:
        [listed] = server.http.get("/v1/steering/profiles").json()["profiles"]
        assert listed["takes_corrections"] is False
        answers = [keep(server, "a", LEAVE), server.http.get(PATH), server.http.delete(f"{PATH}/0")]
        assert [(a.status_code, a.json()["error"]["code"]) for a in answers] == [(403, "corrections_off")] * 3
    assert not corrections.file().exists()


def test_the_list_of_profiles_says_of_which(server: Served) -> None:
    listed = server.http.get("/v1/steering/profiles").json()["profiles"]
    assert {each["name"]: each["takes_corrections"] for each in listed} == {"guard": True, "firm": False}
