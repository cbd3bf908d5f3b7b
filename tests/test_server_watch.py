"""Answers that show what their prompts hid, over HTTP: what is done, what is told, what no request can weaken."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finesteer_local.profile import Profile
from serving import Served, events, served
from test_server_metrics import samples
from test_steered_watch import FIRST, held_open, watching
from tiny import make_profile


@pytest.fixture(scope="module")
def profiles(tiny: Path) -> tuple[Profile, ...]:
    shuts = replace(watching(tiny), name="watches")
    return shuts, replace(held_open(shuts), name="open"), make_profile(tiny, name="blind", gate="closed")


@pytest.fixture(scope="module")
def server(tiny: Path, profiles: tuple[Profile, ...]) -> Iterator[Served]:
    with served(tiny, profiles=profiles[:1]) as found:
        found.service.model.policy.shelf._loaded.update({profile.name: profile for profile in profiles})
        yield found


def use(name: str, **more: Any) -> dict[str, Any]:
    return {"profiles": [{"name": name, **more}]}


def content(answer: Any) -> str:
    return str(answer.json()["choices"][0]["message"]["content"])


def test_an_answer_is_taken_back(server: Served) -> None:
    made = server.chat().json()
    [decision] = made["steering"]["decisions"]
    found = decision["answer"]
    assert (found["action"], found["opened_at"], found["taken_back"]) == ("rewind", FIRST, FIRST)
    assert (decision["open"], decision["flagged"], decision["g"]) == (True, True, 1.0)
    assert made["choices"][0]["message"]["content"] == content(server.chat(steering=use("open")))
    assert made["usage"]["completion_tokens"] == 8


def test_a_stream_tells_when(server: Served) -> None:
    parts = [json.loads(part) for part in events(server.chat(stream=True)) if part != "[DONE]"]
    told = [part["steering"]["decisions"][0] for part in parts if "steering" in part]
    assert [decision["answer"]["opened_at"] for decision in told] == [None, FIRST]
    text = "".join(part["choices"][0]["delta"].get("content", "") for part in parts)
    assert text == content(server.chat())


def test_what_a_request_says(server: Served) -> None:
    plain = content(server.chat(steering=False))
    assert content(server.chat(steering=use("watches", on_answer="off"))) == plain
    reported = server.chat(steering=use("watches", on_answer="report"))
    assert content(reported) == plain
    assert reported.json()["steering"]["decisions"][0]["answer"]["action"] == "report"
    stopped = server.chat(steering=use("watches", on_answer="stop")).json()["choices"][0]
    assert (stopped["message"]["content"], stopped["finish_reason"]) == ("", "content_filter")
    steered = content(server.chat(steering=use("watches", on_answer="steer")))
    assert steered[: FIRST + 1] == plain[: FIRST + 1] and steered != plain


@pytest.mark.parametrize("stream", [False, True])
def test_the_other_interfaces(server: Served, stream: bool) -> None:
    body = {"prompt": "Hello there", "max_tokens": 8, "temperature": 0, "stream": stream}
    stops = {"steering": use("watches", on_answer="stop")}
    found = server.post("/v1/completions", {**body, **stops})
    last = json.loads(events(found)[-2]) if stream else found.json()
    assert last["choices"][0]["finish_reason"] == "content_filter"
    found = server.post("/v1/responses", {"input": "Hello there", "temperature": 0, "stream": stream, **stops})
    last = json.loads(events(found)[-1])["response"] if stream else found.json()
    assert (last["status"], last["incomplete_details"]) == ("incomplete", {"reason": "content_filter"})
    assert last["steering"]["decisions"][0]["answer"]["opened_at"] == FIRST
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "stream": stream, **stops}
    found = server.post("/api/chat", chat)
    last = json.loads(found.text.splitlines()[-1])
    assert last["done_reason"] == "content_filter"


def test_what_is_wrong_is_told(server: Served) -> None:
    for steering, param in (
        (use("watches", on_answer="erase"), "steering.profiles.0.on_answer"),
        (use("blind", on_answer="stop"), "steering.profiles.0.on_answer"),
    ):
        answer = server.chat(steering=steering)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_a_required_profile_cannot_do_less(tiny: Path, profiles: tuple[Profile, ...]) -> None:
    with served(tiny, profiles=profiles[:1], required=frozenset({"watches"}), on_answer="rewind") as server:
        for on_answer in ("off", "report", "steer"):
            answer = server.chat(steering=use("watches", on_answer=on_answer))
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "required")
            body = {"profiles": [{"name": "watches", "on_answer": on_answer}]}
            assert server.http.put("/v1/steering", json=body).status_code == 400
        for on_answer in ("rewind", "stop"):
            assert server.chat(steering=use("watches", on_answer=on_answer)).status_code == 200
        assert server.http.get("/v1/steering").json()["profiles"][0]["on_answer"] == "rewind"


def test_profiles_say_whether_they_read_answers(server: Served) -> None:
    found = {each["name"]: each["on_answer"] for each in server.http.get("/v1/steering/profiles").json()["profiles"]}
    assert found == {"watches": "rewind", "open": "off", "blind": "off"}


def test_what_is_counted(tiny: Path, profiles: tuple[Profile, ...]) -> None:
    with served(tiny, profiles=profiles[:1], look_ahead=0) as server:
        server.chat()
        parts = [json.loads(part) for part in events(server.chat(stream=True)) if part != "[DONE]"]
        found = [part["steering"]["decisions"][0]["answer"] for part in parts if "steering" in part][-1]
        assert (found["action"], found["taken_back"]) == ("rewind", 0)  # all of it had gone out
        server.chat(steering=use("watches", on_answer="stop"))
        server.wait_until_idle()
        counted = samples(server)
        # Prometheus' client tells labels in the order of their names
        assert counted["finesteer_answers_shown_total", "rewind", "watches"] == 2
        assert counted["finesteer_answers_shown_total", "stop", "watches"] == 1
        assert counted["finesteer_answers_total", "content_filter"] == 1
