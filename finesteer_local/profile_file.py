"""Profiles as GGUF files: the keys and tensors of format version 1."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter, ReaderField
from numpy.typing import NDArray

from finesteer_local.errors import ProfileError, one_line
from finesteer_local.gguf_file import DamagedGGUF, open_gguf, read_header
from finesteer_local.identity import ModelIdentity
from finesteer_local.profile import ARCHITECTURE, FORMAT_VERSION, Profile
from finesteer_local.steering import (
    AlwaysGate,
    AnswerGate,
    ConditionGate,
    ContrastiveGate,
    Experts,
    Gate,
    Kind,
    Kinds,
    SubspaceGate,
)

log = logging.getLogger("finesteer_local")
Array = NDArray[np.float32]

LENGTH_DECAY = "length_decay"
GATE_WINDOW = "gate_window"
EXPERTS_BY_KIND = "experts_by_kind"
FEATURES = frozenset({LENGTH_DECAY, GATE_WINDOW, EXPERTS_BY_KIND})
"""What this version knows of the names that `finesteer.requires` may hold: later additions that change a decision."""
KINDS = "kinds"
ANSWER_GATE = "answer_gate"
PARTS = frozenset({KINDS, ANSWER_GATE})
"""What this version knows of the names that `finesteer.optional` may hold: parts whose tensors (`NAME.*`) tell more
than a decision needs. A reader that does not know one leaves it out, and says so."""

_MAX_BYTES = 1 << 30
_MAX_ITEMS = 1 << 16  # keys, array items and tensors
_MAX_MODEL_ITEMS = 1 << 24
# Tensor names of one layer's experts, in the order of the fields of `Experts`.
_EXPERT_TENSORS = (
    ("experts.{}.prototypes", "prototypes"),
    ("experts.{}.router.weight", "router_weight"),
    ("experts.{}.router.bias", "router_bias"),
    ("residual.{}.basis", "residual_basis"),
    ("residual.{}.beta.0.weight", "hidden_weight"),
    ("residual.{}.beta.0.bias", "hidden_bias"),
    ("residual.{}.beta.2.weight", "output_weight"),
    ("residual.{}.beta.2.bias", "output_bias"),
)
# Of the kinds, in the order of the fields of `Kinds`; the hidden layer may be missing.
_KINDS_TENSORS = (
    ("kinds.weight", "weight"),
    ("kinds.bias", "bias"),
    ("kinds.hidden.weight", "hidden_weight"),
    ("kinds.hidden.bias", "hidden_bias"),
)
_KINDS_NUMBERS = ("slope", "offset")
_ANSWER_COUNTS, _ANSWER_NUMBERS = ("layer", "first", "every"), ("bias", "decay", "threshold")
# Tensors and float64 keys of each gate kind; both are also the gate's fields.
_GATES: dict[str, tuple[type[Any], tuple[str, ...], tuple[str, ...]]] = {
    SubspaceGate.kind: (SubspaceGate, ("mean", "basis", "calibration"), ("eps", "gamma", "floor")),
    ContrastiveGate.kind: (
        ContrastiveGate,
        ("mean", "scale", "query", "value_weight", "last_weight"),
        ("bias", "low", "high"),
    ),
    ConditionGate.kind: (ConditionGate, ("direction",), ("limit", "sign", "over_prompt")),
    AlwaysGate.kind: (AlwaysGate, (), ()),
}


def write_profile(profile: Profile, path: Path) -> None:
    """Write `profile` to `path`; `Profile.save` does it safely."""
    writer = GGUFWriter(path, ARCHITECTURE)

    def add_text(key: str, text: str) -> None:
        writer.add_key_value(key, text, GGUFValueType.STRING)  # add_string leaves an empty text out

    add_text("general.type", "adapter")
    add_text("general.name", profile.name)
    add_text("general.description", profile.description)
    add_text("general.license", profile.license)
    writer.add_uint32("finesteer.format_version", FORMAT_VERSION)
    model = profile.model
    add_text("finesteer.model.fingerprint", model.fingerprint)
    add_text("finesteer.model.name", model.name)
    add_text("finesteer.model.architecture", model.architecture)
    writer.add_uint32("finesteer.model.embedding_length", model.n_embd)
    writer.add_uint32("finesteer.model.block_count", model.n_layer)
    writer.add_uint32("finesteer.model.vocab_size", model.n_vocab)
    add_text("finesteer.chat_template_hash", model.template_hash)
    writer.add_array("finesteer.layers", profile.layers)
    writer.add_float64("finesteer.strength", profile.strength)
    writer.add_float64("finesteer.answer_strength", profile.answer_strength)
    window = getattr(profile.gate, "window", 0)
    by_kind = any(experts.by_kind for experts in profile.experts.values())
    used = {LENGTH_DECAY: profile.length_decay, GATE_WINDOW: window, EXPERTS_BY_KIND: by_kind}
    if required := [name for name, value in used.items() if value]:
        writer.add_array("finesteer.requires", required)
    if profile.length_decay:
        writer.add_float64("finesteer.length_decay", profile.length_decay)
    if window:
        writer.add_uint32("finesteer.gate.window", window)
    add_text("finesteer.scope", profile.scope)
    add_text("finesteer.training", profile.training_json())
    add_text("finesteer.gate.kind", profile.gate.kind)
    writer.add_uint32("finesteer.gate.layer", profile.gate_layer)
    _, tensors, numbers = _GATES[profile.gate.kind]
    for name in numbers:
        writer.add_float64(f"finesteer.gate.{name}", getattr(profile.gate, name))
    for name in tensors:
        writer.add_tensor(f"gate.{name}", np.ascontiguousarray(getattr(profile.gate, name)))
    has = ((KINDS, profile.kinds), (ANSWER_GATE, profile.answer_gate))
    if optional := [name for name, part in has if part is not None]:
        writer.add_array("finesteer.optional", optional)
    if profile.kinds is not None:
        writer.add_array("finesteer.kinds.names", list(profile.kinds.names))
        add_text("finesteer.kinds.about", _about_json(profile.kinds))
        if by_kind:
            writer.add_array("finesteer.kinds.experts", [kind.expert for kind in profile.kinds.kinds])
        for name in _KINDS_NUMBERS:
            writer.add_float64(f"finesteer.kinds.{name}", getattr(profile.kinds, name))
        for name, attribute in _KINDS_TENSORS:
            if (array := getattr(profile.kinds, attribute)) is not None:
                writer.add_tensor(name, np.ascontiguousarray(array))
    if profile.answer_gate is not None:
        for name in _ANSWER_COUNTS:
            writer.add_uint32(f"finesteer.answer_gate.{name}", getattr(profile.answer_gate, name))
        for name in _ANSWER_NUMBERS:
            writer.add_float64(f"finesteer.answer_gate.{name}", getattr(profile.answer_gate, name))
        add_text("finesteer.answer_gate.action", profile.answer_gate.action)
        writer.add_tensor("answer_gate.weight", np.ascontiguousarray(profile.answer_gate.weight))
    for layer in profile.layers:
        experts = profile.experts[layer]
        if experts.labels:
            writer.add_array(f"finesteer.experts.{layer}.labels", list(experts.labels))
        for name, attribute in _EXPERT_TENSORS:
            array = getattr(experts, attribute)
            if array.size:  # GGUF has no empty tensors: a residual of rank 0 is left out
                writer.add_tensor(name.format(layer), np.ascontiguousarray(array))
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _about_json(kinds: Kinds) -> str:
    about = {
        kind.name: {
            "about": kind.about,
            "action": kind.action,
            "alone": kind.alone,
            "words": list(kind.words),
            "mlcommons": list(kind.mlcommons),
            "openai": list(kind.openai),
        }
        for kind in kinds.kinds
    }
    return json.dumps(about, ensure_ascii=False)


def read_profile(path: Path) -> Profile:
    """Read and check the profile at `path`; raises `ProfileError` that names what is wrong."""
    return _File(path).profile()


def _other_kind(path: Path) -> str:
    """What a GGUF file holds that is no profile, and what to do with it; empty where it may be one."""
    try:
        values = read_header(path, max_items=_MAX_MODEL_ITEMS).values
    except (DamagedGGUF, OSError):
        return ""
    architecture = values.get("general.architecture")
    if architecture == "controlvector":
        return f"it is a control vector of llama.cpp; make a profile of it: finesteer-local import {path.name}"
    if isinstance(architecture, str) and f"{architecture}.block_count" in values:
        return f"it is a model (architecture {architecture!r}), not a profile; name a profile, or leave it out"
    return ""


class _File:
    """A GGUF file whose every access is checked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            size = path.stat().st_size
            with path.open("rb") as file:
                magic = file.read(4)
        except OSError as error:
            raise ProfileError(f"cannot read the profile {path}: {error.strerror}") from error
        if magic != b"GGUF":
            raise self.error("it is not a GGUF file")
        if size > _MAX_BYTES:
            raise self.error(_other_kind(path) or f"it is larger than {_MAX_BYTES >> 20} MiB")
        try:
            reader = open_gguf(path, max_items=_MAX_ITEMS)
        except DamagedGGUF as error:
            raise self.error(_other_kind(path) or error.problem) from error
        self.fields = {name: (field.types, self._contents(name, field)) for name, field in reader.fields.items()}
        self.tensors = {tensor.name: tensor for tensor in reader.tensors}
        self._unread = set(self.tensors)

    def _contents(self, name: str, field: ReaderField) -> Any:
        try:
            return field.contents()
        except UnicodeDecodeError as error:
            raise self.error(f"key {name} is damaged: not UTF-8") from error

    def error(self, what: str) -> ProfileError:
        return ProfileError(one_line(f"the profile {self.path} cannot be used: {what}"))

    def get(self, key: str, kind: GGUFValueType, *, array: bool = False) -> Any:
        if key not in self.fields:
            raise self.error(f"key {key} is missing")
        types, value = self.fields[key]
        if types != ([GGUFValueType.ARRAY, kind] if array else [kind]):
            raise self.error(f"key {key} has the wrong type")
        return value

    def text(self, key: str, *, optional: bool = False) -> str:
        if optional and key not in self.fields:
            return ""  # gguf's writer leaves empty strings out
        return str(self.get(key, GGUFValueType.STRING))

    def count(self, key: str) -> int:
        return int(self.get(key, GGUFValueType.UINT32))

    def number(self, key: str, default: float | None = None) -> float:
        if default is not None and key not in self.fields:
            return default
        return float(self.get(key, GGUFValueType.FLOAT64))

    def tensor(self, name: str) -> Array:
        if name not in self.tensors:
            raise self.error(f"tensor {name} is missing")
        self._unread.discard(name)
        tensor = self.tensors[name]
        if tensor.tensor_type not in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
            raise self.error(f"tensor {name} has type {tensor.tensor_type.name}, expected F32 or F16")
        return np.array(tensor.data, np.float32)  # a copy: the file may change or go away

    def profile(self) -> Profile:
        if self.text("general.architecture") != ARCHITECTURE:
            raise self.error(
                _other_kind(self.path)
                or f"its architecture is {self.text('general.architecture')!r}, not {ARCHITECTURE!r}"
            )
        version = self.count("finesteer.format_version")
        if version != FORMAT_VERSION:
            raise self.error(
                f"its format_version {version} needs a newer finesteer-local (this reads {FORMAT_VERSION})"
            )
        if unknown := set(self.texts("finesteer.requires")) - FEATURES:
            raise self.error(f"its key finesteer.requires names {min(unknown)!r}: it needs a newer finesteer-local")
        model = ModelIdentity(
            fingerprint=self.text("finesteer.model.fingerprint"),
            name=self.text("finesteer.model.name", optional=True),
            architecture=self.text("finesteer.model.architecture"),
            n_embd=self.count("finesteer.model.embedding_length"),
            n_layer=self.count("finesteer.model.block_count"),
            n_vocab=self.count("finesteer.model.vocab_size"),
            template_hash=self.text("finesteer.chat_template_hash", optional=True),
        )
        layers = self.layers()
        optional = self.texts("finesteer.optional")
        by_kind = EXPERTS_BY_KIND in self.texts("finesteer.requires")
        parts: dict[str, Any] = {
            "name": self.text("general.name"),
            "description": self.text("general.description", optional=True),
            "license": self.text("general.license", optional=True),
            "model": model,
            "gate": self.gate(),
            "gate_layer": self.count("finesteer.gate.layer"),
            "experts": {layer: self.experts(layer, model.n_embd, by_kind) for layer in layers},
            "strength": self.number("finesteer.strength"),
            "answer_strength": self.number("finesteer.answer_strength", default=1.0),
            "length_decay": self.number("finesteer.length_decay", default=0.0),
            "scope": self.text("finesteer.scope"),
            "kinds": self.kinds() if KINDS in optional else None,
            "answer_gate": self.answer_gate() if ANSWER_GATE in optional else None,
            "training": self.json_object("finesteer.training"),
        }
        for part in sorted(set(optional) - PARTS):
            log.warning("the profile %s has a part %r that this version does not know; it is left out", self.path, part)
            self._unread -= {name for name in self._unread if name.startswith(f"{part}.")}
        if self._unread:
            raise self.error(f"tensor {min(self._unread)} does not belong in a profile")
        try:
            return Profile(**parts)
        except ProfileError as error:
            raise self.error(str(error).removeprefix("profile ")) from error

    def texts(self, key: str) -> list[str]:
        """A list of texts that may be missing."""
        found: list[str] = self.get(key, GGUFValueType.STRING, array=True) if key in self.fields else []
        return found

    def json_object(self, key: str) -> dict[str, Any]:
        try:
            found = json.loads(self.text(key))
        except (ValueError, RecursionError) as error:
            raise self.error(f"key {key} is not JSON") from error
        if not isinstance(found, dict):
            raise self.error(f"key {key} is not a JSON object")
        return found

    def layers(self) -> list[int]:
        types, values = self.fields.get("finesteer.layers", ([], None))
        integers = (GGUFValueType.INT32, GGUFValueType.UINT32)
        if len(types) != 2 or types[0] != GGUFValueType.ARRAY or types[1] not in integers or not values:
            raise self.error("key finesteer.layers must be a list of layer numbers")
        if len(set(values)) != len(values):
            raise self.error("key finesteer.layers names a layer twice")
        return [int(layer) for layer in values]

    def gate(self) -> Gate:
        kind = self.text("finesteer.gate.kind")
        if kind not in _GATES:
            raise self.error(f"gate kind {kind!r} needs a newer finesteer-local")
        gate, tensors, numbers = _GATES[kind]
        arguments: dict[str, Any] = {name: self.tensor(f"gate.{name}") for name in tensors}
        arguments |= {name: self.number(f"finesteer.gate.{name}") for name in numbers}
        if gate is ContrastiveGate and "finesteer.gate.window" in self.fields:
            arguments["window"] = self.count("finesteer.gate.window")
        made: Gate = gate(**arguments)
        return made

    def experts(self, layer: int, n_embd: int, by_kind: bool) -> Experts:
        if any(name.startswith(f"residual.{layer}.") for name in self.tensors):
            arrays = {attribute: self.tensor(name.format(layer)) for name, attribute in _EXPERT_TENSORS}
        else:
            arrays = {attribute: self.tensor(name.format(layer)) for name, attribute in _EXPERT_TENSORS[:3]}
            for attribute, shape in (
                ("residual_basis", (n_embd, 0)),
                ("hidden_weight", (n_embd, 0)),
                ("hidden_bias", (0,)),
                ("output_weight", (0, 0)),
                ("output_bias", (0,)),
            ):
                arrays[attribute] = np.zeros(shape, np.float32)
        return Experts(**arrays, labels=tuple(self.texts(f"finesteer.experts.{layer}.labels")), by_kind=by_kind)

    def kinds(self) -> Kinds:
        about = self.json_object("finesteer.kinds.about") if "finesteer.kinds.about" in self.fields else {}
        deep = "kinds.hidden.weight" in self.tensors
        there = _KINDS_TENSORS if deep else _KINDS_TENSORS[:2]
        arrays: dict[str, Any] = {attribute: self.tensor(name) for name, attribute in there}
        arrays |= {name: self.number(f"finesteer.kinds.{name}") for name in _KINDS_NUMBERS}
        names, experts = self.texts("finesteer.kinds.names"), self.texts("finesteer.kinds.experts")
        if len(experts or names) != len(names):
            raise self.error(f"key finesteer.kinds.experts has {len(experts)} entries for {len(names)} kinds")
        kinds = [self.kind(name, about.get(name, {})) for name in names]
        if experts:
            kinds = [replace(kind, expert=expert) for kind, expert in zip(kinds, experts, strict=True)]
        return Kinds(tuple(kinds), **arrays)

    def answer_gate(self) -> AnswerGate:
        values: dict[str, Any] = {name: self.count(f"finesteer.answer_gate.{name}") for name in _ANSWER_COUNTS}
        values |= {name: self.number(f"finesteer.answer_gate.{name}") for name in _ANSWER_NUMBERS}
        action = self.text("finesteer.answer_gate.action")
        return AnswerGate(weight=self.tensor("answer_gate.weight"), action=action, **values)

    def kind(self, name: str, about: Any) -> Kind:
        if not isinstance(about, dict):
            raise self.error(f"key finesteer.kinds.about: {name!r} is not an object")
        values: dict[str, Any] = {}
        for field in ("about", "action"):
            if field in about:
                values[field] = about[field]
        for field in ("words", "mlcommons", "openai"):
            if isinstance(about.get(field), list):
                values[field] = tuple(about[field])
            elif field in about:
                raise self.error(f"key finesteer.kinds.about: {field!r} of {name!r} is not a list")
        alone = about.get("alone", 0.0)
        if isinstance(alone, bool) or not isinstance(alone, int | float):
            raise self.error(f"key finesteer.kinds.about: 'alone' of {name!r} is not a number")
        texts = (each for value in values.values() for each in (value if isinstance(value, tuple) else (value,)))
        if not all(isinstance(each, str) for each in texts):
            raise self.error(f"key finesteer.kinds.about: {name!r} has a value that is not text")
        return Kind(name, **values, alone=float(alone))
