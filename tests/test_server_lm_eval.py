"""EleutherAI's lm-eval over the server: answers get the same log-probabilities as in `finesteer-local eval`."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from finesteer_local.evaluation.choices import score_all
from finesteer_local.evaluation.interventions import ProfileSteering
from finesteer_local.evaluation.journal import Journal
from finesteer_local.evaluation.suites import read_suite
from finesteer_local.profile import Profile
from finesteer_local.runtime import open_model
from serving import Served, served
from tiny import make_experts, make_profile

TASK = Path(__file__).with_name("lm_eval")

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("lm_eval"), reason="lm-eval is not installed")


def lm_eval(server: Served, folder: Path) -> tuple[float, list[list[float]]]:
    """The task's accuracy, and each question's log-likelihoods in the order of its answers."""
    arguments = f"model={server.service.settings.name},base_url={server.url}/v1/completions,num_concurrent=4"
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "local-completions", "--model_args", arguments]
    command += ["--tasks", "everyday", "--include_path", str(TASK), "--output_path", str(folder), "--log_samples"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hub")}
    done = subprocess.run(command, env={**os.environ, **offline}, cwd=TASK, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
    [results], [samples] = folder.rglob("results_*.json"), folder.rglob("samples_*.jsonl")
    rows = sorted(map(json.loads, samples.read_text("utf-8").splitlines()), key=lambda row: row["doc_id"])
    accuracy = json.loads(results.read_text("utf-8"))["results"]["everyday"]["acc,none"]
    return accuracy, [[float(answer[0]) for answer in row["filtered_resps"]] for row in rows]


@pytest.fixture(scope="module")
def firm(smollm2: Path) -> Profile:
    """One vector for all tokens: lm-eval does not say where a prompt ends, on which gates and routers depend."""
    profile = make_profile(smollm2, name="firm", layers=(12,), gate_layer=12, strength=0.4)
    expert = make_experts(profile.model.n_embd, np.random.default_rng(0), n_experts=1, rank=0, width=0)
    return replace(profile, experts={12: expert})


@pytest.fixture(scope="module")
def server(smollm2: Path, firm: Profile) -> Iterator[Served]:
    with served(smollm2, name="smollm2", profiles=(firm,), ctx=512, threads=2) as found:
        yield found


def own(model: Path, profiles: Sequence[Profile], folder: Path) -> tuple[float, list[list[float]]]:
    """The same from what `finesteer-local eval` scores questions with: MC1, and the answers' log-probabilities."""
    journal, llama = Journal(folder / "journal.jsonl"), open_model(model, n_ctx=512, n_threads=2)
    scores = score_all(llama, ProfileSteering(tuple(profiles)), read_suite(TASK / "everyday.jsonl").cases, journal)
    llama.close()
    journal.close()
    rows = map(json.loads, (folder / "journal.jsonl").read_text("utf-8").splitlines())
    return float(np.mean([score.mc1 for score in scores])), [value["logprobs"] for _, value in rows]


@pytest.mark.parametrize("steered", [False, True], ids=["unsteered", "steered"])
def test_scores_are_those_of_our_own_eval(
    server: Served, smollm2: Path, firm: Profile, tmp_path: Path, steered: bool
) -> None:
    active = [firm] if steered else []
    wanted = {"profiles": [{"name": profile.name} for profile in active]}
    assert server.http.put("/v1/steering", json=wanted).status_code == 200
    accuracy, logprobs = lm_eval(server, tmp_path / "theirs")
    mc1, expected = own(smollm2, active, tmp_path)
    assert abs(accuracy - mc1) <= 0.005
    assert len(logprobs) == len(expected)
    for theirs, ours in zip(logprobs, expected, strict=True):
        assert theirs == pytest.approx(ours, abs=0.005)
    answer = server.post("/v1/completions", {"prompt": "hello", "max_tokens": 1}).json()["choices"][0]
    assert [decision["profile"] for decision in answer["steering"]["decisions"]] == [p.name for p in active]
