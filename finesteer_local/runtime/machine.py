"""What llama.cpp says of its build, of this machine, and of where a model lies."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import llama_cpp as llama_cpp_python
from llama_cpp import llama_cpp

from finesteer_local.runtime.compat import log_callback
from finesteer_local.runtime.ggml import function

# enum ggml_backend_dev_type
_KINDS = ("processor", "GPU", "integrated GPU", "accelerator", "several devices")
_NO_GPU = (b"CPU", b"RPC", b"BLAS")  # names of back ends

_LAYER = re.compile(r"layer +(\d+) assigned to device ([^,\s]+)")
_BUFFER = re.compile(r"(\S+) +(model|KV|RS|compute|output) buffer size = +([\d.]+) MiB")


@dataclass(frozen=True)
class Device:
    """Something that llama.cpp can compute on. Memory is in bytes; 0 where its driver does not say."""

    name: str
    description: str
    kind: str
    free: int
    total: int


def version() -> str:
    """The version of llama-cpp-python."""
    return str(llama_cpp_python.__version__)


def system_info() -> str:
    """The processor's features that this build uses (`llama_print_system_info`)."""
    return " ".join(llama_cpp.llama_print_system_info().decode("utf-8", "replace").split())


def supports_gpu() -> bool:
    """Whether this build can put layers on a GPU, be there one or not."""
    if not llama_cpp.llama_supports_gpu_offload():
        return False
    # llama.cpp says yes for RPC alone, too.
    count = function("ggml_backend_reg_count", ctypes.c_size_t, [])
    get = function("ggml_backend_reg_get", ctypes.c_void_p, [ctypes.c_size_t])
    name = function("ggml_backend_reg_name", ctypes.c_char_p, [ctypes.c_void_p])
    return any(name(get(i)).partition(b"[")[0] not in _NO_GPU for i in range(count()))


def has_accelerator() -> bool:
    """Whether there is a device that takes layers: a GPU, or another machine (`rpc.use_workers`)."""
    by_type = function("ggml_backend_dev_by_type", ctypes.c_void_p, [ctypes.c_int])
    return any(by_type(_KINDS.index(kind)) for kind in ("GPU", "integrated GPU"))


def supports_rpc() -> bool:
    """Whether this build can put layers on other machines."""
    return bool(llama_cpp.llama_supports_rpc())


def devices() -> list[Device]:
    """All devices that this build of llama.cpp knows here (`ggml_backend_dev_get`), and those of added workers."""
    count = function("ggml_backend_dev_count", ctypes.c_size_t, [])
    get = function("ggml_backend_dev_get", ctypes.c_void_p, [ctypes.c_size_t])
    name = function("ggml_backend_dev_name", ctypes.c_char_p, [ctypes.c_void_p])
    description = function("ggml_backend_dev_description", ctypes.c_char_p, [ctypes.c_void_p])
    kind = function("ggml_backend_dev_type", ctypes.c_int, [ctypes.c_void_p])
    registry = function("ggml_backend_dev_backend_reg", ctypes.c_void_p, [ctypes.c_void_p])
    registry_name = function("ggml_backend_reg_name", ctypes.c_char_p, [ctypes.c_void_p])
    size = ctypes.POINTER(ctypes.c_size_t)
    memory = function("ggml_backend_dev_memory", None, [ctypes.c_void_p, size, size])
    found = []
    for i in range(count()):
        device, free, total = get(i), ctypes.c_size_t(), ctypes.c_size_t()
        memory(device, ctypes.byref(free), ctypes.byref(total))
        number, is_rpc = kind(device), registry_name(registry(device)) == b"RPC"
        found.append(
            Device(
                name=name(device).decode("utf-8", "replace"),
                description=description(device).decode("utf-8", "replace").strip(),
                kind="other machine" if is_rpc else _KINDS[number] if 0 <= number < len(_KINDS) else "other",
                free=free.value,
                total=total.value,
            )
        )
    return found


@dataclass
class Placement:
    """Where a model lies, as llama.cpp's log tells while it is loaded (public functions do not)."""

    layers: dict[int, str] = field(default_factory=dict)
    """Layer -> name of its device; the number after the last layer is the output's."""
    buffers: dict[str, dict[str, float]] = field(default_factory=dict)
    """`model`, `KV`, `RS` (recurrent state), `compute` or `output` -> name of the memory -> MiB."""

    def read(self, line: str) -> None:
        """Take from a line of the log what it tells."""
        if match := _LAYER.search(line):
            self.layers[int(match[1])] = match[2]
        elif match := _BUFFER.search(line):
            sizes = self.buffers.setdefault(match[2], {})
            sizes[match[1]] = float(match[3])


@contextmanager
def watch_placement() -> Iterator[Placement]:
    """Read llama.cpp's log, instead of showing it, while a model is loaded in the block."""
    placement = Placement()

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
    def listen(_level: int, text: bytes, _data: ctypes.c_void_p) -> None:
        placement.read(text.decode("utf-8", "replace"))

    llama_cpp.llama_log_set(listen, ctypes.c_void_p(0))
    try:
        yield placement
    finally:
        llama_cpp.llama_log_set(log_callback(), ctypes.c_void_p(0))
