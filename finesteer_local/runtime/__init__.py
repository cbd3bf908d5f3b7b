"""llama.cpp: the hidden-state tap, and the steered model. Nothing else imports llama_cpp."""

from finesteer_local.runtime.amx import has_amx
from finesteer_local.runtime.load import open_model, uses_plain_format
from finesteer_local.runtime.quiet import unlogged
from finesteer_local.runtime.steered import SteeredLlama

__all__ = ["SteeredLlama", "open_model", "uses_plain_format"]

with unlogged():  # asked for the first time, llama.cpp lists the GPUs that it finds
    has_amx()
