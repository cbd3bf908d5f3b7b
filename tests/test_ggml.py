"""ggml's exported functions."""

from __future__ import annotations

import pytest

from finesteer_local.errors import SteeringError
from finesteer_local.runtime.ggml import function


def test_a_missing_function() -> None:
    with pytest.raises(SteeringError, match="does not export ggml_no_such_thing; reinstall llama-cpp-python"):
        function("ggml_no_such_thing", None, [])
