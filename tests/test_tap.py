"""The tap sees llama.cpp's residual stream, and what it writes goes on."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader

from finesteer_local.errors import SteeringError
from finesteer_local.runtime import tap as tap_module
from finesteer_local.runtime.tap import Handler, Rows, Tap
from finesteer_local.runtime.tapped import TappedLlama
from reference import SETTINGS, control, logits, plain_llama, read
from tiny import ARCHITECTURES, write_tiny_model

pytestmark = pytest.mark.usefixtures("device")  # exact on every device

PROMPT = np.random.default_rng(5).integers(3, 250, 21).tolist()


def tapped(path: Path, native: bool = True, **settings) -> TappedLlama:
    return TappedLlama(str(path), native_tap=native, **{**SETTINGS, **settings})


def residual_stream(path: Path, tokens: list[int]) -> list[np.ndarray]:
    """The output of every layer of a llama model, straight from the formulas: RMSNorm, RoPE, GQA, SwiGLU; float64."""
    tensors = {tensor.name: np.asarray(tensor.data, np.float64) for tensor in GGUFReader(path).tensors}
    n, heads, heads_kv, width = len(tokens), 4, 2, 16

    def rms_norm(x: np.ndarray, weight: str) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * tensors[weight]

    def rope(x: np.ndarray) -> np.ndarray:  # (n, heads, width); neighbours are rotated together
        angles = np.arange(n)[:, None] * 10000.0 ** (-np.arange(0, width, 2) / width)
        cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
        even, odd = x[..., 0::2], x[..., 1::2]
        return np.stack([even * cos - odd * sin, even * sin + odd * cos], -1).reshape(x.shape)

    x = tensors["token_embd.weight"][tokens]
    outputs = []
    for i in range(4):

        def weight(name: str, i: int = i) -> np.ndarray:
            return tensors[f"blk.{i}.{name}.weight"].T

        h = rms_norm(x, f"blk.{i}.attn_norm.weight")
        q = rope((h @ weight("attn_q")).reshape(n, heads, width))
        k = rope((h @ weight("attn_k")).reshape(n, heads_kv, width)).repeat(heads // heads_kv, 1)
        v = (h @ weight("attn_v")).reshape(n, heads_kv, width).repeat(heads // heads_kv, 1)
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(width)
        scores += np.triu(np.full((n, n), -np.inf), 1)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = np.einsum("hqk,khd->qhd", scores / scores.sum(-1, keepdims=True), v)
        x = x + mixed.reshape(n, -1) @ weight("attn_output")
        h = rms_norm(x, f"blk.{i}.ffn_norm.weight")
        gate = h @ weight("ffn_gate")
        x = x + (gate / (1 + np.exp(-gate)) * (h @ weight("ffn_up"))) @ weight("ffn_down")
        outputs.append(x)
    return outputs


def test_it_reads_the_residual_stream(tiny: Path, native_tap: bool) -> None:
    llama = tapped(tiny, native_tap, type_k=0, type_v=0)
    seen: dict[int, np.ndarray] = {}

    def look(layer: int, rows: Rows) -> bool:
        seen[layer] = rows.read(0, rows.n_rows)
        return True

    llama.tap.arm(dict.fromkeys(range(4), look))
    llama.reset()
    llama.eval(PROMPT)
    assert list(seen) == [0, 1, 2, 3]
    wanted = residual_stream(tiny, PROMPT)
    for layer in range(3):
        np.testing.assert_allclose(seen[layer], wanted[layer], atol=2e-4)
    np.testing.assert_allclose(seen[3], wanted[3][-1:], atol=2e-4)  # only the row that has logits


def test_looking_changes_nothing(tiny_model: Path, native_tap: bool) -> None:
    llama = tapped(tiny_model, native_tap)
    wanted = read(plain_llama(tiny_model), PROMPT)
    np.testing.assert_array_equal(read(llama, PROMPT), wanted)
    llama.tap.arm(dict.fromkeys(range(4), lambda layer, rows: True))
    np.testing.assert_array_equal(read(llama, PROMPT), wanted)


def test_rows_are_read_and_written_by_range(tiny_model: Path, native_tap: bool) -> None:
    """Adding a vector to the last rows is what the control vector does where the prompt is read in two parts."""
    vector = np.random.default_rng(0).standard_normal(64).astype(np.float32)
    llama = tapped(tiny_model, native_tap)
    parts = []

    def steer(layer: int, rows: Rows) -> bool:
        assert (layer, rows.n_rows) == (2, 21)
        whole = rows.read(0, 21)
        assert whole.shape == (21, 64)
        assert whole.dtype == np.float32
        np.testing.assert_array_equal(rows.read(5, 9), whole[5:9])
        rows.write(9, whole[9:] + vector)
        parts.append((whole, rows.read(0, 21)))
        return True

    llama.tap.arm({2: steer})
    got = read(llama, PROMPT)
    [(before, after)] = parts
    np.testing.assert_array_equal(after[:9], before[:9])
    np.testing.assert_array_equal(after[9:], before[9:] + vector)
    np.testing.assert_array_equal(got, read(plain_llama(tiny_model), PROMPT, [(9, {2: vector})]))


@pytest.mark.parametrize("rows", [np.ones((2, 64)), np.ones((64, 2), np.float32).T], ids=["float64", "columns"])
def test_rows_of_another_type_or_order_are_written_as_float32(tiny: Path, rows: np.ndarray) -> None:
    llama = tapped(tiny)
    seen = []

    def steer(_: int, view: Rows) -> bool:
        view.write(3, rows)
        seen.append(view.read(3, 5))
        return True

    llama.tap.arm({1: steer})
    read(llama, PROMPT)
    np.testing.assert_array_equal(seen[0], np.ones((2, 64), np.float32))


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (20, 22), (5, 4)])
def test_rows_outside_of_the_micro_batch_are_an_error_not_a_crash(tiny: Path, start: int, stop: int) -> None:
    llama = tapped(tiny)
    errors = []

    def steer(_: int, view: Rows) -> bool:
        for use in (lambda: view.read(start, stop), lambda: view.write(start, np.ones((stop - start, 64)))):
            with pytest.raises(ValueError, match=r"negative|outside"):
                use()
            errors.append(use)
        return True

    llama.tap.arm({1: steer})
    np.testing.assert_array_equal(read(llama, PROMPT), read(plain_llama(tiny), PROMPT))
    llama.tap.check()
    assert len(errors) == 2


def test_only_wanted_layers_call_python(tiny: Path, native_tap: bool) -> None:
    llama = tapped(tiny, native_tap)
    calls: list[int] = []
    llama.tap.arm(
        {1: lambda layer, rows: calls.append(layer) is None, 3: lambda layer, rows: calls.append(layer) is None}
    )
    read(llama, PROMPT)
    assert calls == [1, 3]
    llama.tap.arm({2: lambda layer, rows: calls.append(layer) is None})
    read(llama, PROMPT)
    assert calls == [1, 3, 2]
    llama.tap.disarm()
    read(llama, PROMPT)
    assert calls == [1, 3, 2]


def test_false_ends_the_pass(tiny: Path, native_tap: bool) -> None:
    llama = tapped(tiny, native_tap)
    calls: list[int] = []

    def handler(layer: int, rows: Rows) -> bool:
        calls.append(layer)
        return layer != 1

    llama.tap.arm(dict.fromkeys(range(4), handler))
    llama.reset()
    llama.eval(PROMPT)
    assert calls == [0, 1]
    llama.tap.disarm()
    np.testing.assert_array_equal(read(llama, PROMPT), read(plain_llama(tiny), PROMPT))


def test_micro_batches_are_seen_one_by_one(tiny: Path, native_tap: bool) -> None:
    llama = tapped(tiny, native_tap, n_batch=8, n_ubatch=4)
    seen: dict[int, list[np.ndarray]] = {1: [], 3: []}

    def look(layer: int, rows: Rows) -> bool:
        seen[layer].append(rows.read(0, rows.n_rows))
        return True

    llama.tap.arm(dict.fromkeys(seen, look))
    read(llama, PROMPT)
    assert [len(rows) for rows in seen[1]] == [4, 4, 4, 4, 4, 1]
    assert [len(rows) for rows in seen[3]] == [0, 1, 0, 1, 0, 1]  # of every batch only the last token has logits
    whole = tapped(tiny)
    whole.tap.arm({1: lambda layer, rows: seen[1].append(rows.read(0, rows.n_rows)) is None})
    read(whole, PROMPT)
    np.testing.assert_array_equal(np.concatenate(seen[1][:5]), seen[1][6][:20])
    np.testing.assert_allclose(seen[1][5], seen[1][6][20:], atol=1e-4)  # the last one was read alone


@pytest.mark.parametrize("error", [ValueError("boom"), KeyboardInterrupt(), SystemExit(3)], ids=repr)
def test_an_error_ends_the_pass_and_is_raised_by_check(tiny: Path, native_tap: bool, error: BaseException) -> None:
    llama = tapped(tiny, native_tap, n_batch=8, n_ubatch=4)
    calls: list[int] = []

    def handler(layer: int, rows: Rows) -> bool:
        calls.append(layer)
        raise error

    llama.tap.arm(dict.fromkeys(range(4), handler))
    llama.eval(PROMPT)
    assert calls == [0]  # and no handler is called again until it is known
    with pytest.raises(type(error)) as caught:
        llama.tap.check()
    assert caught.value is error
    llama.tap.check()
    llama.tap.disarm()
    np.testing.assert_array_equal(read(llama, PROMPT), read(plain_llama(tiny, n_batch=8, n_ubatch=4), PROMPT))


def test_an_error_that_nobody_checked_is_not_the_next_ones(tiny: Path, native_tap: bool) -> None:
    llama = tapped(tiny, native_tap)
    llama.tap.arm({0: lambda layer, rows: 1 / 0})
    llama.eval(PROMPT)
    seen = []
    llama.tap.arm({0: lambda layer, rows: seen.append(layer) is None})
    llama.eval(PROMPT)
    llama.tap.check()
    assert seen == [0]


def test_decode_rows_raises_at_once(tiny: Path) -> None:
    llama = tapped(tiny, n_batch=8)
    calls = []

    def handler(layer: int, rows: Rows) -> bool:
        calls.append(layer)
        raise ValueError("boom")

    llama.tap.arm({2: handler})
    with pytest.raises(ValueError, match="boom"):
        llama.decode_rows(PROMPT, 0)
    assert calls == [2]


NAMES = {
    b"l_out-0": 0,
    b"l_out-7": 7,
    b"l_out-07": 7,
    b"l_out-1023": 1023,
    b"l_out-1024": None,
    b"l_out-4294967303": None,
    b"l_out-99999999999999999999": None,
    b"l_out-": None,
    b"l_out": None,
    b"l_out-x": None,
    b"l_out-7 (view)": None,
    b"l_out--7": None,
    b"l_out-+7": None,
    b"l_out- 7": None,
    b"xl_out-7": None,
    b"ffn_out-7": None,
    b"": None,
}


@pytest.mark.parametrize("name", NAMES, ids=lambda name: name.decode() or "empty")
def test_both_filters_choose_the_same_nodes(monkeypatch: pytest.MonkeyPatch, name: bytes) -> None:
    """Driven as ggml's scheduler drives them: first it asks, then it shows the node that was asked for."""
    text = ctypes.create_string_buffer(name)
    get_name = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(lambda _: ctypes.addressof(text))
    as_text = ctypes.cast(get_name, ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_void_p))
    monkeypatch.setattr(tap_module, "_get_name", as_text)
    monkeypatch.setattr(tap_module, "Rows", lambda tensor, n_embd: "rows")
    layer = NAMES[name]
    for native in (True, False):
        tap = Tap(lambda: 64, native=native)
        assert tap.native == native
        calls: list = []

        def handler(layer: int, rows: Rows, calls: list = calls) -> bool:
            calls.append((layer, rows))
            return len(calls) < 2

        assert tap.callback(1, True, tap.user_data) is False
        assert tap.callback(1, False, tap.user_data) is True
        every: dict[int, Handler] = dict.fromkeys(range(tap_module.MAX_LAYERS), handler)
        tap.arm(every)
        assert tap.callback(1, True, tap.user_data) is (layer is not None)
        assert calls == []
        assert tap.callback(1, False, tap.user_data) is True
        assert calls == ([] if layer is None else [(layer, "rows")])
        assert tap.callback(1, False, tap.user_data) is (layer is None)
        if layer is not None:
            tap.arm({k: v for k, v in every.items() if k != layer})
            assert tap.callback(1, True, tap.user_data) is False
        tap.disarm()
        assert tap.callback(1, True, tap.user_data) is False
        tap.check()


def test_without_the_compiled_filter_the_twin_is_used(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = read(tapped(tiny), PROMPT)
    monkeypatch.setattr(tap_module, "_COMPILED", Path("_tap.none"))
    llama = tapped(tiny)
    assert llama.tap.native is False
    np.testing.assert_array_equal(read(llama, PROMPT), wanted)


def test_a_tensor_of_an_unexpected_shape(tiny: Path) -> None:
    llama = tapped(tiny)
    llama.tap._n_embd = lambda: 48  # 21 rows of 64 are 28 of 48; one more is not
    llama.tap.arm({1: lambda layer, rows: True})
    llama.eval(PROMPT[:2])
    with pytest.raises(SteeringError, match="unexpected shape"):
        llama.tap.check()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_layers_and_cuts(tmp_path: Path, architecture: str) -> None:
    llama = tapped(write_tiny_model(tmp_path / "tiny.gguf", architecture, n_layer=3))
    assert llama.n_layer == 3
    wanted = read(llama, PROMPT)
    llama.eval([50, 51])
    assert llama.keep(20) == 20
    llama.n_tokens = 20
    llama.eval(PROMPT[20:])
    np.testing.assert_allclose(logits(llama), wanted, atol=1e-4)
    assert llama.keep(0) == 0
    llama.forget()
    assert llama.n_tokens == 0
    np.testing.assert_array_equal(read(llama, PROMPT), wanted)


def test_recurrent_memory_is_cleared_instead_of_cut(tmp_path: Path) -> None:
    llama = tapped(write_tiny_model(tmp_path / "mamba.gguf", "mamba"))
    read(llama, PROMPT)
    assert llama.keep(len(PROMPT)) == len(PROMPT)
    assert llama.keep(10) == 0
    assert llama.n_tokens == 0


# --- vectors that are known before the pass


def added(path: Path, native: bool, additions: list, n: int = 2) -> list[np.ndarray]:
    """The logits of `n` tokens after PROMPT; the additions are made while PROMPT is read."""
    llama = tapped(path, native)
    llama.tap.add(additions)
    llama.decode_rows(PROMPT, 0)
    llama.tap.disarm()
    found = [logits(llama)]
    for i in range(n - 1):
        llama.decode_rows([5 + i], len(PROMPT) + i)
        found.append(logits(llama))
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_additions_are_what_a_handler_would_write(tmp_path: Path, architecture: str, native_tap: bool) -> None:
    path = write_tiny_model(tmp_path / "model.gguf", architecture)
    rng = np.random.default_rng(3)
    a, b, c = rng.standard_normal((3, 64)).astype(np.float32)
    found = added(path, native_tap, [(1, 4, 9, a), (1, 9, 21, b), (2, 20, 21, c), (2, 0, 2, c)])

    llama = tapped(path, native_tap)
    due = {1: [(4, 9, a), (9, 21, b)], 2: [(20, 21, c), (0, 2, c)]}

    def steer(layer: int, rows: Rows) -> bool:
        for start, stop, vector in due[layer]:
            rows.write(start, rows.read(start, stop) + vector)
        return True

    llama.tap.arm(dict.fromkeys(due, steer))
    llama.decode_rows(PROMPT, 0)
    llama.tap.disarm()
    assert np.array_equal(found[0], logits(llama))
    llama.decode_rows([5], len(PROMPT))
    assert np.array_equal(found[1], logits(llama))
    assert not np.array_equal(found[0], read(tapped(path), PROMPT))


def test_an_addition_to_all_rows_is_the_control_vector(tiny: Path, native_tap: bool) -> None:
    vector = np.random.default_rng(4).standard_normal(64).astype(np.float32)
    assert np.array_equal(
        added(tiny, native_tap, [(2, 0, len(PROMPT), vector)], 1)[0],
        read(plain_llama(tiny), PROMPT, [(0, {2: vector})]),
    )


def test_an_addition_that_was_not_made_is_an_error(tiny: Path, native_tap: bool) -> None:
    llama = tapped(tiny, native_tap)
    vector = np.ones(64, np.float32)
    for addition in ((2, 0, len(PROMPT) + 1, vector), (9, 0, 1, vector)):  # too many rows, no such layer
        llama.forget()
        llama.tap.add([(1, 0, 1, vector), addition])
        with pytest.raises(SteeringError, match="1 of 2"):
            llama.decode_rows(PROMPT, 0)
    llama.tap.add([(1, 0, 1, vector)])
    llama.forget()
    llama.decode_rows(PROMPT, 0)  # counted anew
    llama.decode_rows(PROMPT, len(PROMPT))


def test_a_handler_sees_what_was_added_as_it_sees_a_control_vector(tiny: Path, native_tap: bool) -> None:
    llama, vector = tapped(tiny, native_tap), np.random.default_rng(4).standard_normal(64).astype(np.float32)
    seen: dict[int, np.ndarray] = {}

    def look(layer: int, rows: Rows) -> bool:
        seen[layer] = rows.read(0, rows.n_rows)
        return True

    llama.tap.add([(1, 2, 4, vector)], {1: look, 2: look})
    llama.decode_rows(PROMPT, 0)
    llama.tap.disarm()
    added, seen = seen, {}
    llama.forget()
    llama.tap.add([], {1: look})
    llama.decode_rows(PROMPT, 0)
    wanted = seen[1].copy()
    wanted[2:4] += vector
    np.testing.assert_array_equal(added[1], wanted)
    assert sorted(added) == [1, 2] and sorted(seen) == [1]
    llama.tap.disarm()
    llama.decode_rows([5], len(PROMPT))
    assert len(seen[1]) == len(PROMPT)  # nobody looks any more


def test_additions_end_with_disarm(tiny: Path, native_tap: bool) -> None:
    llama = tapped(tiny, native_tap)
    llama.tap.add([(2, 0, 1, np.ones(64, np.float32))])
    llama.tap.disarm()
    llama.decode_rows(PROMPT, 0)
    assert np.array_equal(logits(llama), read(tapped(tiny), PROMPT))
    llama.tap.add([])
    llama.forget()
    llama.decode_rows(PROMPT, 0)
    assert np.array_equal(logits(llama), read(tapped(tiny), PROMPT))


@pytest.mark.parametrize(("start", "stop", "width"), [(-1, 1, 64), (2, 2, 64), (3, 2, 64), (0, 1, 63)])
def test_additions_that_make_no_sense(tiny: Path, start: int, stop: int, width: int) -> None:
    with pytest.raises(ValueError, match="cannot take"):
        tapped(tiny).tap.add([(1, start, stop, np.ones(width, np.float32))])


@pytest.mark.skipif(tap_module._get_scheduler is None, reason="this llama.cpp does not show its scheduler")
def test_it_stands_aside_and_comes_back(tiny: Path, native_tap: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes of one token use the graph of the pass before them, which has no callback then."""
    asked = []
    if not native_tap:
        of_node = Tap._eval
        monkeypatch.setattr(Tap, "_eval", lambda self, *rest: asked.append(1) or of_node(self, *rest))
    llama, plain = tapped(tiny, native_tap), plain_llama(tiny)
    llama.decode_rows(PROMPT, 0)
    read(plain, PROMPT)
    vector = np.random.default_rng(4).standard_normal(64).astype(np.float32)
    seen: list[int] = []
    for n, kind in enumerate(["aside", "aside", "seen", "aside", "added", "aside", "aside"], len(PROMPT)):
        if kind == "seen":
            llama.tap.arm({2: lambda layer, rows: seen.append(layer) or True})
        elif kind == "added":
            llama.tap.add([(2, 0, 1, vector)])
        llama.tap.stand_aside(llama.ctx)
        asked.clear()
        llama.decode_rows([7], n)  # raises where the vector was not added
        assert native_tap or bool(asked) == (kind != "aside" or n == len(PROMPT)), (n, kind)
        llama.tap.disarm()
        control(plain, {2: vector} if kind == "added" else {})
        plain.eval([7])
        assert np.array_equal(logits(llama), logits(plain)), (n, kind)
    assert seen == [2]


def test_without_the_schedulers_name(tiny: Path, native_tap: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tap_module, "_get_scheduler", None)
    llama = tapped(tiny, native_tap)
    for n in range(3):
        llama.tap.stand_aside(llama.ctx)
        llama.decode_rows([7], n)
    llama.tap.arm({2: lambda layer, rows: False})
    llama.decode_rows([7], 3)
