"""Steering in requests and answers, and the error object: what all interfaces share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from finesteer_local.profile import MAX_STRENGTH, Profile
from finesteer_local.runtime.batch import Request
from finesteer_local.steering import Decision

T = TypeVar("T")

Many = Annotated[list[T], Field(fail_fast=True)]
"""A list that a client sends: the error names the first wrong item alone. A megabyte can hold 340,000 of them, and to
name them all would take the event loop a minute."""

_TOLD = 8  # unknown fields of one object

_NAME = r"^[a-z0-9][a-z0-9_-]{0,63}$"
ProfileName = Annotated[str, Field(pattern=_NAME, description="A profile's name, never a path.")]
Strength = Annotated[float, Field(ge=0, le=MAX_STRENGTH)]
Scope = Literal["response", "turn", "prompt"]
KindName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]{0,63}$")]
Action = Literal["leave", "report", "steer", "refuse"]
OnAnswer = Literal["report", "steer", "rewind", "stop", "off"]
KindPolicy = Annotated[dict[KindName, Action], Field(max_length=256)]


class Given(BaseModel):
    """What clients send: types are not bent, numbers are finite, unknown fields are left alone."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="ignore")

    @field_validator("*", mode="after")
    @classmethod
    def _is_unicode(cls, value: Any) -> Any:
        """JSON can escape half a letter (a lone surrogate), which no tokenizer reads."""
        for text in value if isinstance(value, list) else (value,):
            if isinstance(text, str):
                try:
                    text.encode()
                except UnicodeEncodeError:
                    raise ValueError("is not Unicode text") from None
        return value


class GivenExactly(Given):
    """As `Given`, but an unknown field is an error: a misspelt one would be a silent unsteered answer."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _few_unknown(cls, data: Any) -> Any:
        """Name a few unknown fields where there are very many."""
        if not isinstance(data, Mapping):
            return data
        unknown = data.keys() - cls.field_names()
        if len(unknown) <= _TOLD:
            return data
        told = [name for name in data if name in unknown][:_TOLD]
        return {name: data[name] for name in data if name not in unknown} | {name: data[name] for name in told}

    @classmethod
    def field_names(cls) -> frozenset[str]:
        """The fields as clients name them."""
        return frozenset(field.alias or name for name, field in cls.model_fields.items())


class WantedProfile(GivenExactly):
    """A profile to steer with."""

    name: ProfileName
    strength: Strength | None = Field(
        None, description="Left out: the server's strength where it is active there, else the profile's own."
    )
    policy: KindPolicy | None = Field(
        None, description="What is done about each kind of request; kinds left out are as the server has them."
    )
    on_answer: OnAnswer | None = Field(
        None,
        description="What is done once the answer shows what its prompt hid, where the profile reads answers: "
        "`report`, `steer` the rest, `rewind` to before it and steer, `stop`; left out, as the server has it.",
    )


class Steering(GivenExactly):
    """How one request is steered."""

    profiles: Many[WantedProfile] | None = Field(
        None, max_length=64, description="Instead of the server's defaults; left out, those."
    )
    scope: Scope | None = Field(None, description="Which tokens; left out, the server's or else the profile's own.")
    skip_thinking: bool | None = Field(
        None, description="Leave the thoughts of a reasoning model unsteered; left out, as the server was started."
    )
    explain: bool = Field(True, description="Whether decisions name their experts.")


def _object_or_false(value: Any) -> Any:
    """Pydantic takes 0 for false, and says of all else that it should be false: that would switch steering off."""
    if not (value is None or value is False or isinstance(value, Mapping | Steering)):
        raise ValueError("leave it out for the server's profiles, name some in an object, or give false for none")
    return value


SteeringField = Annotated[
    Steering | Literal[False] | None,
    BeforeValidator(_object_or_false),
    Field(description="Profiles for this request; false steers nothing; left out, the server's defaults."),
]


class Expert(BaseModel):
    """An expert's part in a vector, averaged over the layers."""

    name: str
    weight: float


class KindOut(BaseModel):
    """How likely a prompt is of a kind of request."""

    name: str
    probability: float


class AnswerReadingOut(BaseModel):
    """What a profile that reads the answer has found in it so far."""

    action: OnAnswer = Field(description="What is done once its gate opens, or was done.")
    threshold: float
    score: float | None = Field(
        description="Of the last token read, or of the one that opened it; in a moderation the highest."
    )
    opened_at: int | None = Field(description="The answer's tokens when it opened, thoughts included; null while shut.")
    taken_back: int = Field(description="How many of these were taken back.")


class DecisionOut(BaseModel):
    """What one profile decided for one prompt."""

    profile: str
    g: float = Field(description="The gate's value, 0 (closed) to 1.")
    open: bool = Field(description="Whether the answer is steered.")
    flagged: bool = Field(description="Whether the gate opened, and such requests are not left alone.")
    action: Action | None = Field(description="What is done; null while the gate is closed.")
    kinds: list[KindOut] = Field(default_factory=list, description="Likeliest first; none where the profile has none.")
    score: float
    threshold: float
    strength: float
    answer_strength: float
    scope: Scope
    gate_layer: int
    layers: list[int]
    experts: list[Expert] = Field(default_factory=list, description="Heaviest first; none while the gate is closed.")
    answer: AnswerReadingOut | None = Field(None, description="Null where the answer is not read.")


class Decisions(BaseModel):
    """The decisions of all active profiles, in their order."""

    decisions: list[DecisionOut]


class ActiveProfile(GivenExactly):
    """A profile that the server steers with by default."""

    name: ProfileName
    strength: Strength | None = Field(None, description="Left out in a PUT: the profile's own.")
    policy: KindPolicy = Field(default_factory=dict, description="What is done about kinds of request; else `steer`.")
    on_answer: OnAnswer | None = Field(
        None, description="What is done once an answer shows what its prompt hid; null is the profile's own."
    )


class Defaults(GivenExactly):
    """How requests are steered that do not say how."""

    profiles: Many[ActiveProfile] = Field(max_length=64)
    scope: Scope | None = None


class DefaultsNow(BaseModel):
    """The defaults, and what no request can weaken."""

    profiles: list[ActiveProfile]
    scope: Scope | None
    required: list[str]


class GateOut(BaseModel):
    """A profile's gate."""

    kind: str
    layer: int
    threshold: float


class ProfileOut(BaseModel):
    """A profile that fits the model."""

    name: str
    description: str
    strength: float
    scope: Scope
    gate: GateOut
    layers: list[int]
    experts: list[str]
    kinds: list[str] = Field(description="Kinds of request that it tells apart.")
    on_answer: OnAnswer = Field(
        description="What it does once an answer shows what its prompt hid; off: it reads none."
    )
    takes_corrections: bool = Field(description="Whether `/v1/steering/corrections` keeps corrections of it.")
    active: bool
    required: bool


class Profiles(BaseModel):
    """The profiles that requests can name."""

    profiles: list[ProfileOut]


class ErrorOut(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """An error, as OpenAI's API has it."""

    error: ErrorOut


ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorBody, "description": "The request is wrong."},
    401: {"model": ErrorBody, "description": "The key is missing or wrong."},
    403: {"model": ErrorBody, "description": "A page of another origin, or a Host that is not this server."},
    404: {"model": ErrorBody, "description": "No such model."},
    408: {"model": ErrorBody, "description": "The request's body did not come."},
    413: {"model": ErrorBody, "description": "The request is too large."},
    429: {"model": ErrorBody, "description": "Too many requests wait; try again after `Retry-After` seconds."},
    500: {"model": ErrorBody, "description": "The server failed."},
    503: {"model": ErrorBody, "description": "The model is loading, or the server is stopping."},
}


def describe(
    request: Request, decisions: Sequence[Decision], steering: Steering | Literal[False] | None
) -> dict[str, Any]:
    """A `Decisions`: what was decided for `request`, told as its field `steering` asks."""
    found = [steer.profile.decision_json(decision) for steer, decision in zip(request.steer, decisions, strict=True)]
    if not getattr(steering, "explain", True):
        for decision in found:
            del decision["experts"]
    return {"decisions": found}


def describe_profile(profile: Profile, *, active: bool, required: bool, takes_corrections: bool) -> ProfileOut:
    """A profile as `/v1/steering/profiles` lists it."""
    first = profile.experts[profile.layers[0]]
    names = first.labels or tuple(f"expert {i + 1}" for i in range(len(first.prototypes)))
    names = names if first.distinguishes else ()  # nobody will meet them
    return ProfileOut(
        name=profile.name,
        description=profile.description,
        strength=profile.strength,
        scope=profile.scope,  # type: ignore[arg-type]
        gate=GateOut(kind=profile.gate.kind, layer=profile.gate_layer, threshold=float(profile.gate.threshold)),
        layers=profile.layers,
        experts=list(names),
        kinds=list(profile.kinds.names) if profile.kinds else [],
        on_answer=profile.answer_gate.action if profile.answer_gate else "off",  # type: ignore[arg-type]
        takes_corrections=takes_corrections,
        active=active,
        required=required,
    )
