"""The OpenAPI document is true: schemathesis sends what it allows, and what it does not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.core.transport import Response

from finesteer_local.server.settings import Limits
from serving import Served, served
from tiny import make_profile

# Bounds: every example is a request that a model answers.
SMALL = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@pytest.fixture(scope="module")
def server(tiny: Path) -> Iterator[Served]:
    limits = Limits(max_tokens=4, parallel=2)
    with served(tiny, limits=limits, profiles=(make_profile(tiny, name="firm"),)) as found:
        yield found


@pytest.fixture(scope="module")
def api(server: Served) -> Any:
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


schema = schemathesis.pytest.from_fixture("api")


@schema.parametrize()
@SMALL
def test_the_document_is_kept(case: Any, server: Served) -> None:
    response: Response = case.call_and_validate(timeout=60)
    assert response.status_code < 500


def test_every_route_tells_its_errors(server: Served) -> None:
    document = server.http.get("/openapi.json").json()
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert "422" not in operation["responses"]
            if path not in ("/health", "/metrics"):
                assert {"400", "401", "403", "404", "413", "429", "503"} <= operation["responses"].keys()
            assert operation["operationId"] and operation.get("description")
    assert "HTTPValidationError" not in document["components"]["schemas"]
