"""`POST /v1/moderations` through the published client, and policy by kind in the server."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from finesteer_local.profile import Profile
from finesteer_local.server.moderations_schemas import CATEGORIES
from finesteer_local.server.settings import Limits
from serving import Served, served
from tiny import make_answer_gate, make_kinds, make_profile, write_tiny_model

NAMES = ("fraud", "hate", "drugs")
TEXTS = [f"{word} {i}" for i in range(6) for word in ("hello there", "the user is in the house", "on and on", "in")]


def guard(model: Path, gate: str = "selective", name: str = "guard", **changes: Any) -> Profile:
    kinds = make_kinds(64, np.random.default_rng(5), names=NAMES)
    return make_profile(model, name=name, gate=gate, kinds=kinds, strength=2.0, **changes)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("moderations") / "tiny.gguf")


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[Served]:
    with served(model, profiles=(guard(model),), limits=Limits(max_tokens=24)) as found:
        yield found


@pytest.fixture(scope="module")
def client(server: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")


def results(server: Served, **fields: Any) -> list[dict[str, Any]]:
    response = server.post("/v1/moderations", fields)
    assert response.status_code == 200, response.text
    found: list[dict[str, Any]] = response.json()["results"]
    return found


def test_the_published_client(client: openai.OpenAI) -> None:
    for options in ({}, {"model": "omni-moderation-latest"}, {"model": "tiny"}):
        found = client.moderations.create(input=TEXTS, **options)
        assert found.model == "tiny" and found.id.startswith("modr-") and len(found.results) == len(TEXTS)
        assert {result.flagged for result in found.results} == {True, False}
        for result in found.results:
            assert set(result.categories.to_dict()) == set(CATEGORIES)
            assert result.categories.illicit == result.flagged
            assert 0 < result.category_scores.illicit < 1 and result.category_scores.hate == 0
            assert result.category_applied_input_types.illicit == ["text"]
            kinds = result.to_dict()["kinds"]
            assert set(kinds) == set(NAMES) and max(kinds.values()) == result.category_scores.illicit
    [one] = client.moderations.create(input=TEXTS[0]).results
    assert one == found.results[0]
    [parts] = client.moderations.create(input=[{"type": "text", "text": TEXTS[0]}]).results
    assert parts == one


def test_many_beside_chats(server: Served) -> None:
    """Each result is that of the call alone, and none is lost; `benchmarks/moderation.py` has more of them."""
    bodies: list[dict[str, Any]] = [{"input": text} for text in TEXTS]
    bodies += [{"input": TEXTS[i : i + 3]} for i in range(0, 12, 3)]
    bodies += [{"input": [{"role": "user", "content": text}]} for text in TEXTS[:6]]
    alone = [results(server, **body) for body in bodies]
    chats = [{"messages": [{"role": "user", "content": text}], "max_tokens": 8} for text in TEXTS[:5]]

    def answer(number: int) -> str:
        response = server.post("/v1/chat/completions", {**chats[number % len(chats)], "temperature": 0})
        assert response.status_code == 200, response.text
        return str(response.json()["choices"][0]["message"]["content"])

    wanted = [answer(number) for number in range(len(chats))]
    with ThreadPoolExecutor(3) as callers, ThreadPoolExecutor(2) as talkers:
        said = talkers.map(answer, range(20))
        found = callers.map(lambda number: results(server, **bodies[number % len(bodies)]), range(50))
        assert [*found] == [alone[number % len(bodies)] for number in range(50)]
        assert [*said] == [wanted[number % len(chats)] for number in range(20)]


def test_a_conversation(server: Served) -> None:
    talk = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "yes?"}]
    asked = [*talk, {"role": "user", "content": "the user is in the house"}]
    [found] = results(server, input=asked)
    [answered] = results(server, input=[*asked, {"role": "assistant", "content": "I see"}])
    # nobody reads it here
    assert found == answered and found != results(server, input="the user is in the house")[0]


def test_what_was_answered(model: Path) -> None:
    asked: list[dict[str, Any]] = [{"role": "user", "content": "hello there"}]
    answered = [*asked, {"role": "assistant", "content": "on and on and on"}]
    opens = guard(model, gate="closed", answer_gate=make_answer_gate(64, threshold=-1e6, first=4))
    with served(model, profiles=(opens,)) as server:
        [alone], [found] = results(server, input=asked), results(server, input=answered)
        assert not alone["flagged"] and alone["decisions"][0]["answer"] is None
        [decision] = found["decisions"]
        assert found["flagged"] and decision["flagged"] and decision["action"] == "report"
        assert decision["answer"]["opened_at"] == 4 and decision["answer"]["score"] > decision["answer"]["threshold"]
        # the request's own kinds and scores, of which the likeliest is what a flagged one counts as
        assert found["kinds"] == alone["kinds"] and found["category_scores"] == alone["category_scores"]
        assert found["likely_kinds"] == [max(found["kinds"], key=found["kinds"].get)]
        assert [name for name, holds in found["categories"].items() if holds] == ["illicit"]
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
        [moderation] = client.moderations.create(input=answered).results  # type: ignore[arg-type]
        assert moderation.flagged and moderation.categories.illicit
        off = {"profiles": [{"name": "guard", "on_answer": "off"}]}
        assert results(server, input=answered, steering=off) == [alone]
        page = server.http.get("/metrics").text
        assert 'finesteer_answers_shown_total{action="report",profile="guard"} 2.0' in page
        too_long = server.post("/v1/moderations", {"input": [*asked, {**answered[-1], "content": "a " * 5000}]})
        error = too_long.json()["error"]
        assert (too_long.status_code, error["code"]) == (400, "context_length_exceeded")
        assert error["param"] == "input" and "its answer" in error["message"]
    with served(model, profiles=(opens,), required=frozenset({"guard"})) as server:
        assert server.post("/v1/moderations", {"input": answered, "steering": off}).status_code == 400


def test_it_is_what_a_chat_says_of_itself(server: Served) -> None:
    for text in TEXTS[:4]:
        [found] = results(server, input=text)
        [decision] = server.chat(text).json()["steering"]["decisions"]
        assert found["flagged"] == decision["flagged"] == (decision["action"] == "steer")
        assert found["decisions"][0]["score"] == pytest.approx(decision["score"], abs=1e-4)
        assert {k["name"]: k["probability"] for k in decision["kinds"]} == pytest.approx(found["kinds"], abs=1e-4)


def test_many_calls_beside_chats(server: Served) -> None:
    """Each is what it is alone, and none is lost."""
    wanted = {text: results(server, input=text) for text in TEXTS}
    answers = {text: server.chat(text).json()["choices"] for text in TEXTS[:6]}

    def ask(i: int) -> bool:
        if i % 3:
            text = TEXTS[i % len(TEXTS)]
            return results(server, input=text) == wanted[text]
        text = TEXTS[i % 6]
        return bool(server.chat(text).json()["choices"] == answers[text])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(90)))
    server.wait_until_idle()


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({}, "input", "required"),
        ({"input": " "}, None, "empty"),
        ({"input": []}, "input", "at least 1"),
        ({"input": ["a"] * 33}, "input", "32 inputs"),
        ({"input": [{"role": "system", "content": "be kind"}]}, "input", "nothing to check"),
        ({"input": "a " * 5000}, "input", "context"),
        ({"input": "a", "model": "gpt-9"}, "model", "no other"),
        ({"input": "a", "steering": False}, "steering", "no profile to check with"),
        ({"input": [{"type": "image_url", "image_url": {"url": "x"}}]}, "input", ""),
    ],
)
def test_what_is_wrong_is_told(server: Served, fields: dict[str, Any], param: str | None, said: str) -> None:
    response = server.post("/v1/moderations", fields)
    assert response.status_code in (400, 404), response.text
    error = response.json()["error"]
    assert said in error["message"]
    if param:
        assert error["param"].split(".")[0] == param


def test_without_a_profile_or_kinds(model: Path) -> None:
    with served(model) as plain:
        assert plain.post("/v1/moderations", {"input": "hello"}).json()["error"]["code"] == "no_profile"
    with served(model, profiles=(make_profile(model, gate="open"),)) as mute:
        [found] = results(mute, input="hello")
        assert found["flagged"] and not any(found["categories"].values()) and found["kinds"] == {}


# --- policy


def every(action: str) -> dict[str, str]:
    return dict.fromkeys(NAMES, action)


def test_the_servers_policy(model: Path) -> None:
    with served(model) as plain:
        own = plain.chat().json()["choices"]
    profiles = (guard(model, gate="partly"),)
    with served(model, profiles=profiles, kinds=every("leave")) as left:
        answer = left.chat().json()
        assert answer["choices"] == own and not answer["steering"]["decisions"][0]["flagged"]
        assert not results(left, input="Hello there")[0]["flagged"]
        assert left.http.get("/v1/steering").json()["profiles"][0]["policy"] == every("leave")
        # A request may ask for more or, where nothing is required, for less.
        wanted = {"profiles": [{"name": "guard", "policy": every("refuse")}]}
        refused = left.chat(steering=wanted).json()["choices"][0]
        assert refused["message"]["content"].endswith(" here.") and refused["finish_reason"] == "stop"
        assert refused["message"]["refusal"] == refused["message"]["content"]
        assert left.chat(steering={"profiles": [{"name": "guard"}]}).json()["choices"] == own
    with served(model, profiles=profiles, kinds=every("refuse")) as refusing:
        assert results(refusing, input="Hello there")[0]["flagged"]
        answer = refusing.chat().json()
        assert answer["usage"]["completion_tokens"] == 0 and answer["choices"][0]["message"]["content"].endswith(
            "here."
        )
        assert answer["steering"]["decisions"][0]["action"] == "refuse"
        text = refusing.post(
            "/api/chat", {"model": "tiny", "messages": [{"role": "user", "content": "Hello there"}]}
        ).text
        assert " here." in text


def test_a_refusal_is_no_tool_call(model: Path) -> None:
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
    chosen = {"type": "function", "function": {"name": "weather"}}
    with served(model, profiles=(guard(model, gate="partly"),), kinds=every("refuse")) as server:
        [choice] = server.chat(tools=[tool], tool_choice=chosen).json()["choices"]
        assert choice["message"]["content"].endswith("here.") and "tool_calls" not in choice["message"]


def test_requests_do_not_weaken_what_is_required(model: Path) -> None:
    profiles = (guard(model, gate="partly"),)
    with served(model, profiles=profiles, required=frozenset({"guard"}), kinds={"fraud": "refuse"}) as server:

        def with_policy(policy: dict[str, str]) -> Any:
            return server.chat(steering={"profiles": [{"name": "guard", "policy": policy}]})

        for policy, kind in (
            ({"fraud": "steer"}, "fraud"),
            ({"hate": "leave"}, "hate"),
            ({"drugs": "report"}, "drugs"),
        ):
            response = with_policy(policy)
            assert response.status_code == 400 and response.json()["error"]["code"] == "required"
            assert f"of the kind {kind}" in response.json()["error"]["message"]
        assert with_policy(every("refuse")).status_code == 200
        assert with_policy({"hate": "refuse"}).status_code == 200  # fraud is refused all the same
        put = server.http.put("/v1/steering", json={"profiles": [{"name": "guard", "policy": {"hate": "leave"}}]})
        assert put.status_code == 400 and put.json()["error"]["code"] == "required"
        less = server.http.put("/v1/steering", json={"profiles": [{"name": "guard"}]})
        assert less.status_code == 400  # fraud was to be refused
        more = {"profiles": [{"name": "guard", "policy": every("refuse")}]}
        assert server.http.put("/v1/steering", json=more).json()["profiles"][0]["policy"] == every("refuse")


def test_a_kind_that_there_is_not(server: Served) -> None:
    response = server.chat(steering={"profiles": [{"name": "guard", "policy": {"theft": "leave"}}]})
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["param"], error["code"]) == ("steering.profiles.0.policy", "unknown_kind")
    assert "it has: fraud, hate, drugs" in error["message"]
    assert server.chat(steering={"profiles": [{"name": "guard", "policy": {"fraud": "forgive"}}]}).status_code == 400
    assert server.http.get("/v1/steering/profiles").json()["profiles"][0]["kinds"] == [*NAMES]
