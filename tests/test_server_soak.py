"""A crowd of hostile requests among plain ones: every plain answer is its own, and the server lives.

How late answers are is measured by `benchmarks/soak.py`, which makes the same requests on a real server.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import hostile
from finesteer_local.server.settings import Limits
from serving import Served, served
from tiny import make_profile

HOSTILE, PLAIN, ATTACKERS = 84, 40, 3


@pytest.fixture(scope="module")
def server(tiny: Path) -> Iterator[Served]:
    limits = Limits(max_tokens=32)
    with served(tiny, profiles=(make_profile(tiny, name="firm", gate="selective"),), limits=limits) as found:
        yield found


def test_plain_requests_among_hostile_ones(server: Served) -> None:
    with hostile.client(server.url) as http:
        alone = [hostile.ask(http, number)[0] for number in range(hostile.N_PLAIN)]
    assert all(answer.startswith("[") for answer in alone)
    statuses: Counter[int] = Counter()
    over = threading.Event()

    def attacks(worker: int) -> None:
        with hostile.client(server.url) as http:
            for number in range(worker, HOSTILE, ATTACKERS):
                statuses[hostile.attack(http, number)] += 1

    def health() -> None:
        with hostile.client(server.url) as http:
            while not over.wait(0.2):
                assert http.get("/health").json() == {"status": "ok"}

    with ThreadPoolExecutor(ATTACKERS + 1) as pool, hostile.client(server.url) as http:
        watching = pool.submit(health)
        attacking = [pool.submit(attacks, worker) for worker in range(ATTACKERS)]
        try:
            number = 0
            while number < PLAIN or not all(work.done() for work in attacking):
                answer, _ = hostile.ask(http, number)
                assert answer == alone[number % hostile.N_PLAIN], hostile.plain(number)
                number += 1
        finally:
            for work in attacking:
                work.result()
            over.set()
        watching.result()
    assert not statuses.keys() - hostile.STATUSES, statuses
    assert statuses[400] > HOSTILE / 4 and statuses[200] > HOSTILE / 10, statuses
    server.wait_until_idle()
    with hostile.client(server.url) as http:
        assert [hostile.ask(http, number)[0] for number in range(hostile.N_PLAIN)] == alone
