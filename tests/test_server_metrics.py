"""What Prometheus reads."""

from __future__ import annotations

from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from serving import Served, served
from tiny import make_profile


def samples(server: Served) -> dict[tuple[str, ...], float]:
    page = server.http.get("/metrics")
    assert page.headers["content-type"].startswith("text/plain")
    found = {}
    for family in text_string_to_metric_families(page.text):
        for sample in family.samples:
            found[(sample.name, *sample.labels.values())] = sample.value
    return found


def test_what_is_counted(tiny: Path) -> None:
    profiles = (make_profile(tiny, name="wide"), make_profile(tiny, name="shut", gate="closed"))
    with served(tiny, profiles=profiles) as server:
        usage = [server.chat("Hello", max_tokens=n).json()["usage"] for n in (3, 4)]
        server.chat(stream=True)
        server.chat(temperature=-1)
        server.http.get("/v1/made/up/by/a/client")
        server.wait_until_idle()
        found = samples(server)
        for reason, n in (("length", 3), ("stop", None)):
            assert found.get(("finesteer_answers_total", reason)) == n
        prompts = sum(u["prompt_tokens"] for u in usage)
        assert found["finesteer_tokens_total", "prompt"] > prompts
        assert found["finesteer_tokens_total", "answer"] == 3 + 4 + 8
        assert found["finesteer_gate_decisions_total", "true", "wide"] == 3
        assert found["finesteer_gate_decisions_total", "false", "shut"] == 3
        chats = ("finesteer_http_requests_total", "POST", "/v1/chat/completions")
        assert (found[(*chats, "200")], found[(*chats, "400")]) == (3, 1)
        assert found["finesteer_http_requests_total", "other", "other", "404"] == 1
        assert not [labels for labels in found if "made" in str(labels)]
        for name in ("queue", "first_token", "answer"):
            assert found[(f"finesteer_{name}_seconds_count",)] == 3
        assert found[("finesteer_http_request_seconds_count", "/v1/chat/completions")] == 4
        assert (found[("finesteer_places",)], found[("finesteer_model_loaded",)]) == (4, 1)
        assert found[("finesteer_requests_running",)] == found[("finesteer_requests_waiting",)] == 0


def test_two_servers_count_apart(tiny: Path) -> None:
    with served(tiny) as one, served(tiny) as other:
        one.chat()
        assert ("finesteer_answers_total", "length") in samples(one)
        assert ("finesteer_answers_total", "length") not in samples(other)
