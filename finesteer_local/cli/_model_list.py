"""The rows of `models list`: the catalogue, the models folder, and the models of other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finesteer_local import catalog, sources
from finesteer_local.errors import ModelError
from finesteer_local.identity import read_model_identity
from finesteer_local.sources.facts import Facts, read_facts


def model_rows() -> list[dict[str, Any]]:
    """One row a model: those on this machine first, program by program.

    `steerable` is None for a model that is not here, else false where the file says that it cannot be (`problem`).
    """
    shapes = set(catalog.profile_models())
    rows = [
        _row(
            model.name,
            "catalogue" if model.entry else "models folder",
            model.size,
            model.path,
            shapes,
            license=model.entry.license if model.entry else None,
            description=model.entry.description if model.entry else None,
        )
        for model in catalog.installed_models()
    ]
    rows += [
        _row(found.name, found.source, found.size, found.path, shapes, found.quantisation, found.problem)
        for found in sources.found_models()
    ]
    installed = {row["name"] for row in rows}
    return rows + [
        {
            "name": name,
            "source": "catalogue",
            "size": entry.size,
            "path": None,
            "quantisation": sources.quantisation_of(entry.filename) or None,
            "architecture": entry.architecture,
            "steerable": None,
            "problem": None,
            "profiles": [],
            "license": entry.license,
            "description": entry.description,
        }
        for name, entry in catalog.load_catalog().items()
        if name not in installed
    ]


def _row(
    name: str,
    source: str,
    n_bytes: int,
    path: Path,
    shapes: set[tuple[str, int, int]],
    quantisation: str = "",
    problem: str = "",
    **more: str | None,
) -> dict[str, Any]:
    facts = Facts() if problem else read_facts(path)
    problem = problem or facts.problem or facts.unsteerable
    profiles: list[str] = []
    # Reading the fingerprint takes a walk over the whole vocabulary: only where a profile may fit.
    if not problem and (facts.architecture, facts.n_embd, facts.n_layer) in shapes:
        try:
            profiles = [each for each, _ in catalog.profile_paths(read_model_identity(path).fingerprint)]
        except ModelError as error:
            problem = str(error).replace(f"{path}: ", "").replace(f"{path} ", "")
    return {
        "name": name,
        "source": source,
        "size": n_bytes,
        "path": str(path),
        "quantisation": quantisation or facts.quantisation or sources.quantisation_of(path.name) or None,
        "architecture": facts.architecture or None,
        "steerable": not problem,
        "problem": problem or None,
        "profiles": profiles,
        "license": None,
        "description": None,
        **more,
    }
