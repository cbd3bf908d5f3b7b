"""One profile, every quantisation: llama.cpp's own quantiser leaves the fingerprint alone; a fine-tune does not."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from finesteer_local.errors import ProfileMismatchError
from finesteer_local.identity import read_model_identity
from finesteer_local.runtime import open_model
from tiny import make_profile, write_tiny_model

_file = Path(__file__).parents[1] / "benchmarks" / "quantisations.py"
_spec = importlib.util.spec_from_file_location("quantisations", _file)
assert _spec and _spec.loader
quantisations = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(quantisations)


@pytest.mark.parametrize("kind", quantisations.TYPES)
def test_the_profile_fits_every_quantisation(tmp_path: Path, kind: str) -> None:
    model = write_tiny_model(tmp_path / "m.gguf", n_embd=256)  # Q2_K needs 256 columns a row
    quantised = quantisations.quantise(model, tmp_path / f"{kind}.gguf", kind)
    assert quantised.stat().st_size < 0.8 * model.stat().st_size
    assert read_model_identity(quantised) == read_model_identity(model)
    profile = make_profile(model, gate="partly")
    llama = open_model(quantised, profiles=[profile], n_threads=1)
    llama.create_chat_completion([{"role": "user", "content": "hello"}], max_tokens=2)
    assert llama.last_decision is not None and llama.last_decision.open
    tuned = write_tiny_model(tmp_path / "tuned.gguf", n_embd=256, nudge=1e-3)
    again = quantisations.quantise(tuned, tmp_path / "tuned-q.gguf", kind)
    for other in (tuned, again):
        with pytest.raises(ProfileMismatchError, match="another model or a fine-tune"):
            open_model(other, profiles=[profile], n_threads=1)
