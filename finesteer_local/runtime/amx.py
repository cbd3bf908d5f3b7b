"""Keep llama.cpp away from Intel's AMX, with which many builds of it crash.

GCC up to 12 takes it that `_tile_loadconfig` reads eight bytes, and drops most of the 64 that ggml-cpu/amx/mmq.cpp
prepares for it: on a processor with AMX the first prompt of a quantised model then ends the process with a segmentation
fault (llama.cpp #20824). No caller can catch that, or see which compiler it was. Without its extra buffers for
rearranged weights, llama.cpp computes as on processors that have no AMX.

The module needs llama_cpp alone, so that a program without FineSteer Local can run it, too (bench/startup.py).
"""

from __future__ import annotations

from functools import wraps

from llama_cpp import llama_cpp


def has_amx() -> bool:
    """Whether this build of llama.cpp would use AMX here."""
    return b"AMX_INT8 = 1" in llama_cpp.llama_print_system_info()


def avoid_amx() -> None:
    """Let every model that this process opens, `llama_cpp.Llama`'s included, do without, where there is AMX."""
    if not has_amx():
        return
    defaults = llama_cpp.llama_model_default_params

    @wraps(defaults)
    def without() -> llama_cpp.llama_model_params:
        params: llama_cpp.llama_model_params = defaults()
        params.use_extra_bufts = False
        return params

    llama_cpp.llama_model_default_params = without  # where Llama.__init__ looks it up
