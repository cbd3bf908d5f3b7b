"""The OpenAPI document is true: schemathesis sends what it allows, and what it does not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.generation.modes import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from finesteer_local.server.app import create_app
from finesteer_local.server.settings import Limits, ServerSettings
from serving import Served, served
from tiny import make_profile

DOCUMENT: dict[str, Any] = create_app(ServerSettings(Path("model.gguf"), "tiny")).openapi()
OPERATIONS = [f"{method.upper()} {path}" for path, methods in DOCUMENT["paths"].items() for method in methods]


@pytest.fixture(scope="module")
def server(tiny: Path) -> Iterator[Served]:
    limits = Limits(max_tokens=4, parallel=2)
    with served(tiny, limits=limits, profiles=(make_profile(tiny, name="firm"),)) as found:
        yield found


# Without a body there is nothing that can be wrong.
CASES = [(operation, GenerationMode.POSITIVE) for operation in OPERATIONS] + [
    (operation, GenerationMode.NEGATIVE)
    for operation in OPERATIONS
    if "requestBody" in DOCUMENT["paths"][operation.split()[1]][operation.split()[0].lower()]
]


@pytest.mark.parametrize(("operation", "mode"), CASES, ids=lambda value: getattr(value, "value", value))
def test_the_document_is_kept(server: Served, operation: str, mode: GenerationMode) -> None:
    method, path = operation.split()
    schema = schemathesis.openapi.from_dict(server.http.get("/openapi.json").json())
    found = schema[path][method]

    # Bounded: every example is a request that a model may answer.
    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
    @given(found.as_strategy(generation_mode=mode))
    def keeps(case: Any) -> None:
        # A name that there is not, or a prompt longer than the context, is refused: no schema can say so.
        response = case.call_and_validate(base_url=server.url, timeout=60, excluded_checks=[positive_data_acceptance])
        assert response.status_code in (200, 400, 404)
        if response.status_code == 400 and mode is GenerationMode.POSITIVE:
            assert response.json()["error"]

    keeps()


def test_every_route_tells_its_errors() -> None:
    for path, methods in DOCUMENT["paths"].items():
        for operation in methods.values():
            assert "422" not in operation["responses"]
            if path not in ("/health", "/metrics"):
                assert {"400", "401", "403", "404", "413", "429", "503"} <= operation["responses"].keys()
            assert operation["operationId"] and operation.get("description")
    assert "HTTPValidationError" not in DOCUMENT["components"]["schemas"]
    assert {"POST /v1/chat/completions", "POST /api/chat", "PUT /v1/steering"} <= set(OPERATIONS)
