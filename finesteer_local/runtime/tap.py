"""The hidden-state tap: llama.cpp's eval callback, narrowed to the residual stream of chosen layers.

`cb_eval` of llama_context_params sees every node of the compute graph. After the node `l_out-N` the residual stream of
layer N for every token of the micro-batch can be read (`ggml_backend_tensor_get`) and written back
(`ggml_backend_tensor_set`); a write steers all later layers in the same pass. The calls are the same on every backend.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from llama_cpp import llama_cpp as _api
from numpy.typing import NDArray

from finesteer_local.errors import SteeringError
from finesteer_local.runtime.compat import GET_SCHEDULER
from finesteer_local.runtime.ggml import function

MAX_LAYERS = 1024
Array = NDArray[np.float32]

_OnLayer = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_int32)


_READ, _ADD = 1, 2


class _Addition(ctypes.Structure):
    """Mirrors `struct finesteer_addition` of _tap.c."""

    _fields_ = (
        ("vector", ctypes.c_void_p),
        ("layer", ctypes.c_int32),
        ("start", ctypes.c_int32),
        ("stop", ctypes.c_int32),
    )


class _Filter(ctypes.Structure):
    """Mirrors `struct finesteer_filter` of _tap.c."""

    _fields_ = (
        ("get_name", ctypes.c_void_p),
        ("n_elements", ctypes.c_void_p),
        ("n_bytes", ctypes.c_void_p),
        ("is_contiguous", ctypes.c_void_p),
        ("tensor_get", ctypes.c_void_p),
        ("tensor_set", ctypes.c_void_p),
        ("on_layer", _OnLayer),
        ("wanted", ctypes.POINTER(ctypes.c_uint8)),
        ("additions", ctypes.POINTER(_Addition)),
        ("rows", ctypes.c_void_p),
        ("n_layer", ctypes.c_int32),
        ("armed", ctypes.c_int32),
        ("n_additions", ctypes.c_int32),
        ("n_added", ctypes.c_int32),
        ("n_embd", ctypes.c_int32),
    )


_get_name = function("ggml_get_name", ctypes.c_char_p, [ctypes.c_void_p])
_n_elements = function("ggml_nelements", ctypes.c_int64, [ctypes.c_void_p])
_n_bytes = function("ggml_nbytes", ctypes.c_size_t, [ctypes.c_void_p])
_is_contiguous = function("ggml_is_contiguous", ctypes.c_bool, [ctypes.c_void_p])
_tensor_get = function(
    "ggml_backend_tensor_get", None, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
)
_tensor_set = function(
    "ggml_backend_tensor_set", None, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
)
_set_callback = function(
    "ggml_backend_sched_set_eval_callback", None, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
)


def _scheduler_of() -> Any:
    """`llama_context::get_sched`; None where the library does not show it."""
    try:
        return function(GET_SCHEDULER, ctypes.c_void_p, [ctypes.c_void_p])
    except SteeringError:
        return None


_get_scheduler = _scheduler_of()


_COMPILED = Path(__file__).with_name("_tap.dll" if os.name == "nt" else "_tap.so")


def native_filter() -> tuple[Any, str]:
    """`finesteer_tap_eval` of the compiled library and "", or None and why it cannot be used."""
    if not _COMPILED.exists():
        return None, "it was not compiled when finesteer-local was installed"
    try:
        return ctypes.CDLL(str(_COMPILED)).finesteer_tap_eval, ""
    except (OSError, AttributeError) as error:
        return None, f"{_COMPILED.name} cannot be loaded: {error}"


class Rows:
    """The residual stream of one layer for the tokens of one micro-batch; valid only inside its handler.

    `n_rows` counts tokens. Rows are float32, shape (n_rows, n_embd).
    """

    def __init__(self, tensor: int, n_embd: int) -> None:
        self._tensor, self._n_embd = tensor, n_embd
        n_elements = _n_elements(tensor)
        if n_elements % n_embd or _n_bytes(tensor) != 4 * n_elements or not _is_contiguous(tensor):
            raise SteeringError("llama.cpp's l_out tensor has an unexpected shape; this architecture cannot be steered")
        self.n_rows: int = n_elements // n_embd

    def read(self, start: int, stop: int) -> Array:
        """Copy rows [start, stop) out, shape (stop - start, n_embd)."""
        self._check(start, stop)
        rows = np.empty((stop - start, self._n_embd), np.float32)
        _tensor_get(self._tensor, rows.ctypes.data, 4 * start * self._n_embd, rows.nbytes)
        return rows

    def write(self, start: int, rows: Array) -> None:
        """Replace the rows from `start` on by `rows`, shape (n, n_embd), float32."""
        rows = np.ascontiguousarray(rows, np.float32).reshape(-1, self._n_embd)
        self._check(start, start + len(rows))
        _tensor_set(self._tensor, rows.ctypes.data, 4 * start * self._n_embd, rows.nbytes)

    def _check(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self.n_rows:
            raise ValueError(f"rows {start} to {stop} are outside of {self.n_rows}")  # ggml would end the process


Handler = Callable[[int, Rows], bool]
"""Called with (layer, rows) after the layer is computed; returning False ends the pass there."""

Addition = tuple[int, int, int, Array]
"""(layer, start, stop, vector): the vector, (n_embd,), is added to the rows [start, stop) of the layer's output."""


class Tap:
    """One context's eval callback. Unarmed it lets every pass run untouched.

    An exception raised by a handler cannot cross llama.cpp: it is kept, the pass ends early, and `check` raises it.
    `native` tells whether the compiled filter is in use; the Python one decides alike, bit for bit.
    """

    def __init__(self, n_embd: Callable[[], int], *, native: bool = True) -> None:
        self._n_embd = n_embd  # called late: the callback is made before the model is loaded
        self._handlers: Mapping[int, Handler] = {}
        self._additions: list[Addition] = []
        self._kept: tuple[Any, ...] = ()  # what the filter's pointers point to
        self._error: BaseException | None = None
        self._left: Any = None  # the context that `stand_aside` took the callback from
        self._wanted = (ctypes.c_uint8 * MAX_LAYERS)()
        self._filter = _Filter(
            *(ctypes.cast(f, ctypes.c_void_p).value for f in (_get_name, _n_elements, _n_bytes, _is_contiguous)),
            *(ctypes.cast(f, ctypes.c_void_p).value for f in (_tensor_get, _tensor_set)),
            on_layer=_OnLayer(self._on_layer),
            wanted=self._wanted,
            n_layer=MAX_LAYERS,
        )
        compiled = native_filter()[0] if native else None
        self.native = compiled is not None
        if compiled is None:
            self.callback = _api.ggml_backend_sched_eval_callback(self._eval)
        else:
            self.callback = ctypes.cast(compiled, _api.ggml_backend_sched_eval_callback)
        self.user_data = ctypes.cast(ctypes.pointer(self._filter), ctypes.c_void_p)

    def arm(self, handlers: Mapping[int, Handler]) -> None:
        """Call `handlers[N]` after layer N of every following pass, until `disarm`."""
        self.disarm()
        self._error = None  # of a pass that nobody checked
        self._handlers = dict(handlers)
        for layer in handlers:
            self._wanted[layer] = _READ
        self._filter.armed = 1
        self._come_back()

    def add(self, additions: Sequence[Addition], handlers: Mapping[int, Handler] | None = None) -> None:
        """Make these additions in every following pass, until `disarm`; Python is not called for them.

        `handlers` are called as by `arm`, after the additions to their layer. Each pass has to be followed by `check`.
        """
        self.disarm()
        self._handlers = dict(handlers or {})
        for layer in self._handlers:
            self._wanted[layer] |= _READ
        self._error = None
        n_embd = self._n_embd()
        table = (_Addition * len(additions))()
        vectors = [np.ascontiguousarray(vector, np.float32) for _, _, _, vector in additions]
        for entry, (layer, start, stop, _), vector in zip(table, additions, vectors, strict=True):
            if not 0 <= start < stop or vector.shape != (n_embd,):
                raise ValueError(f"rows {start} to {stop} cannot take a vector of shape {vector.shape}")
            entry.vector, entry.layer, entry.start, entry.stop = vector.ctypes.data, layer, start, stop
            self._wanted[layer] |= _ADD
        rows = np.empty((max((stop - start for _, start, stop, _ in additions), default=0), n_embd), np.float32)
        self._additions = list(additions)
        self._kept = (table, vectors, rows)
        self._filter.additions, self._filter.rows = table, rows.ctypes.data
        self._filter.n_additions, self._filter.n_added, self._filter.n_embd = len(additions), 0, n_embd
        self._filter.armed = int(bool(additions or handlers))
        self._come_back()

    def disarm(self) -> None:
        self._filter.armed = 0
        for layer in [*self._handlers, *(layer for layer, _, _, _ in self._additions)]:
            self._wanted[layer] = 0
        self._handlers, self._additions = {}, []
        self._filter.n_additions = self._filter.n_added = 0

    def stand_aside(self, ctx: Any) -> None:
        """While unarmed, take the callback out of the scheduler of `ctx`, the context that has it; arming puts it back.

        llama.cpp puts the callback in with every graph that it builds, and then computes copies of the graph, which
        have no number (`ggml_graph_view`): a worker is sent all of it for every token instead of being told to
        compute it again, and CUDA compares it with the last one node by node. So this comes before every pass, and
        helps those that use the graph of the pass before, as the tokens of an answer do.
        """
        if _get_scheduler is not None and not self._filter.armed:
            _set_callback(_get_scheduler(ctx), None, None)
            self._left = ctx

    def _come_back(self) -> None:
        if self._left is not None and self._filter.armed:
            _set_callback(_get_scheduler(self._left), ctypes.cast(self.callback, ctypes.c_void_p), self.user_data)
            self._left = None

    def check(self) -> None:
        """Raise what a handler raised since the last check, if anything.

        Raises:
            SteeringError: the pass did not make all its additions.
        """
        error, self._error = self._error, None
        n_added, self._filter.n_added = self._filter.n_added, 0
        if error is not None:
            raise error
        if n_added != self._filter.n_additions:
            raise SteeringError(f"llama.cpp let {n_added} of {self._filter.n_additions} vectors be added")

    def _on_layer(self, tensor: int, layer: int) -> bool:
        if self._error is not None:
            return False
        try:
            return self._handlers[layer](layer, Rows(tensor, self._n_embd()))
        except BaseException as error:  # KeyboardInterrupt too: nothing may unwind through C
            self._error = error
            return False

    def _eval(self, tensor: int, ask: bool, _user_data: int) -> bool:
        """The Python twin of `finesteer_tap_eval` in _tap.c."""
        if not self._filter.armed:
            return not ask
        name = _get_name(tensor)
        if not name.startswith(b"l_out-") or not name[6:].isdigit():
            return not ask
        layer = int(name[6:])
        if layer >= MAX_LAYERS or not self._wanted[layer]:
            return not ask
        if ask:
            return True
        if self._wanted[layer] & _ADD:
            self._add(tensor, layer)
        return not self._wanted[layer] & _READ or self._on_layer(tensor, layer)

    def _add(self, tensor: int, layer: int) -> None:
        """The Python twin of `add` in _tap.c."""
        try:
            rows = Rows(tensor, self._n_embd())
            for at, start, stop, vector in self._additions:
                if at == layer and stop <= rows.n_rows:
                    rows.write(start, rows.read(start, stop) + vector)
                    self._filter.n_added += 1
        except BaseException as error:
            self._error = error
