"""What the tests of published clients share: a tool, a schema, and a server whose answers are never long."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from finesteer_local.server.settings import Limits
from serving import Served, served
from templates import QWEN3
from tiny import make_profile, write_tiny_model

QUESTION = "What is a comet?"
TOWNS = ("Ulm", "Bern")
COLOURS = ("red", "blue")


class Weather(BaseModel):
    """The weather of a town."""

    model_config = ConfigDict(extra="forbid")  # a tiny model would make up properties for ever

    town: Literal["Ulm", "Bern"]
    dry: bool


class Paint(BaseModel):
    """Paint something."""

    model_config = ConfigDict(extra="forbid")

    colour: Literal["red", "blue"]


WEATHER = {
    "type": "function",
    "function": {"name": "weather", "description": "The weather", "parameters": Weather.model_json_schema()},
}
PAINT = {
    "type": "function",
    "function": {"name": "paint", "description": "Paint it", "parameters": Paint.model_json_schema()},
}


def is_weather(arguments: Any) -> bool:
    return Weather.model_validate(arguments).town in TOWNS


@contextmanager
def client_server(folder: Path) -> Iterator[Served]:
    """The tiny model with a template that tells of tools, steered by a profile."""
    path = write_tiny_model(folder / "tools.gguf", chat_template=QWEN3)
    profiles = (make_profile(path, name="firm", scope="turn", strength=2.0),)
    with served(path, profiles=profiles, limits=Limits(max_tokens=100)) as found:
        yield found
