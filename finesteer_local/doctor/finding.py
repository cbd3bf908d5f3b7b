"""One line of what the doctor says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

GOOD, NOTE, BROKEN = "good", "note", "broken"


@dataclass(frozen=True)
class Finding:
    """What was looked at and what was seen.

    Attributes:
        topic: what it belongs to; findings of one topic follow each other.
        name: what was looked at.
        says: what was seen.
        state: `GOOD`; `NOTE`, something is left out or slower; `BROKEN`, something that is needed does not work.
        remedy: what to do; never empty where it is broken.
        data: the same for programs, as JSON takes it.
    """

    topic: str
    name: str
    says: str
    state: str = GOOD
    remedy: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)
