"""Keep llama.cpp away from Intel's AMX, with which many builds of it crash.

GCC up to 12 assumes that `_tile_loadconfig` reads eight bytes, and drops most of the 64 that ggml-cpu/amx/mmq.cpp
prepares for it: on a processor with AMX the first prompt of a quantised model then ends the process with a segmentation
fault (llama.cpp #20824). No caller can catch that, or see which compiler built the library. Without
its extra buffers for rearranged weights, llama.cpp computes as on processors that have no AMX. Models that others open
in the same process are their own affair.

The module needs llama_cpp alone, so that a program without FineSteer Local can run it, too (bench/startup.py).
"""

from __future__ import annotations

from llama_cpp import Llama, llama_cpp


def has_amx() -> bool:
    """Whether this build of llama.cpp would use AMX here."""
    return b"AMX_INT8 = 1" in llama_cpp.llama_print_system_info()


def without_amx(params: llama_cpp.llama_model_params) -> llama_cpp.llama_model_params:
    """Make `params`, of a model that is about to be opened, leave AMX alone on a processor that has it."""
    if params.use_extra_bufts and has_amx():  # read first: ctypes sets a field that it does not have without a word
        params.use_extra_bufts = False
    return params


class PlainLlama(Llama):
    """`llama_cpp.Llama` that leaves AMX alone."""

    # Llama.__init__ makes the parameters and opens the model in one go. Their first assignment is the one moment.
    @property
    def model_params(self) -> llama_cpp.llama_model_params:
        return self._model_params

    @model_params.setter
    def model_params(self, params: llama_cpp.llama_model_params) -> None:
        self._model_params = without_amx(params)
