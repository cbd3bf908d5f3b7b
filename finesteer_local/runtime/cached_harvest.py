"""Hidden states through the cache: what was harvested before is taken from there, the rest is read and kept.

A prompt's states are found by the SHA-256 of its tokens, in a folder named by the model file's content, the layer and
the type of the numbers. So neither training twice nor another command reads the same prompt again, and a harvest that
was interrupted goes on where it stopped: it finds its own unfinished segment by the prompts that it was to read.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from llama_cpp import __version__ as llama_cpp_version
from numpy.typing import NDArray

from finesteer_local import paths, state_cache
from finesteer_local.errors import StorageError
from finesteer_local.runtime.harvest import Reader
from finesteer_local.runtime.packing import StatesRequest
from finesteer_local.runtime.trainable import TrainableModel

METHOD = 1
"""Counted up when the same prompts would be read to other numbers."""
_RECORD = np.dtype([("key", "V16"), ("first", "<i4"), ("n", "<i4")])
_HEAD = struct.Struct("<8sIxxxxQ")  # magic, CRC-32 of the states, rows
_MAGIC = b"fslstate"
_PART = ".part"
_SAVE = 64  # prompts between two savings of an unfinished segment
_SAMPLES = 16  # blocks of a model file that stand for its content
_BLOCK = 1 << 16

States = NDArray[Any]  # float16 or float32, (n_tokens, n_embd)


@dataclass(frozen=True)
class Harvest:
    """Hidden states of many requests, end to end: `states[layer][offsets[i]:offsets[i + 1]]` is request i's."""

    states: dict[int, States]  # by layer, each (n_tokens, n_embd), memory-mapped
    offsets: NDArray[np.int64]  # (n + 1,)


def read_states(
    llama: TrainableModel,
    requests: Sequence[StatesRequest],
    layers: Sequence[int],
    *,
    kind: type[np.float16] | type[np.float32] = np.float16,
    progress: Callable[[int, int], None] = lambda done, total: None,
    reader: Callable[[Sequence[StatesRequest]], Reader] | None = None,
) -> Harvest:
    """Hidden states of `requests` at `layers`, unsteered, from the cache as far as it has them.

    Args:
        requests: prompts' tokens and the first token that is asked for.
        kind: of the numbers; what float16 cannot hold is cut to its largest value.
        progress: called with (done, total) as prompts are read; what the cache has counts as done.
        reader: makes what reads the requests that the cache does not have; the model's own without.

    Raises:
        PromptError, SteeringError: see `Harvester`.
        StorageError: there is no room or no right to keep the states.
    """
    limit = state_cache.limit()
    model = _model_key(llama)
    stores = [_Store(model, layer, np.dtype(kind), Path(llama.model_path).name) for layer in layers]
    state_cache.trim(limit, spare=state_cache.IN_USE)  # what is used now was touched just before
    keys = [_key(request.tokens) for request in requests]
    missing: dict[bytes, StatesRequest] = {}  # every prompt once, from the first token that anybody asks for
    n_missing = 0
    for key, request in zip(keys, requests, strict=True):
        if not all(store.has(key, request.first) for store in stores):
            n_missing += 1
            if key not in missing or request.first < missing[key].first:
                missing[key] = request
    n_known = len(requests) - n_missing
    if n_known:
        progress(n_known, len(requests))
    if missing:
        n_twice = n_missing - len(missing)

        def report(done: int) -> None:
            progress(n_known + done + (n_twice if done == len(missing) else 0), len(requests))

        make = reader or (lambda _: llama.reader(layers))
        _harvest(llama, missing, layers, stores, make, report)
    lengths = [len(request.tokens) - request.first for request in requests]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    states = {layer: store.collect(keys, offsets, llama.n_embd()) for layer, store in zip(layers, stores, strict=True)}
    # What this deletes stays readable while it is mapped; Windows does not delete it then.
    state_cache.trim(limit, spare=state_cache.IN_USE)
    return Harvest(states, offsets)


def n_missing(
    llama: TrainableModel,
    requests: Sequence[StatesRequest],
    layers: Sequence[int],
    *,
    kind: type[np.float16] | type[np.float32] = np.float16,
) -> int:
    """How many of the requests `read_states` would have to read, because the cache does not have them."""
    model = _model_key(llama)
    stores = [_Store(model, layer, np.dtype(kind), Path(llama.model_path).name) for layer in layers]
    return sum(not all(store.has(_key(request.tokens), request.first) for store in stores) for request in requests)


def _harvest(
    llama: TrainableModel,
    missing: Mapping[bytes, StatesRequest],
    layers: Sequence[int],
    stores: Sequence[_Store],
    make: Callable[[Sequence[StatesRequest]], Reader],
    report: Callable[[int], None],
) -> None:
    """Read what is missing into a new segment of every store."""
    requests = list(missing.values())
    with _segments(stores, missing, llama.n_embd()) as segments:
        # A prompt is done once all its layers are: a run that goes on reads exactly what this one does.
        done = np.logical_and.reduce([segment.done for segment in segments])
        n_done = int(done.sum())
        if n_done:
            report(n_done)
        reader = make(requests)
        try:
            for i, states in reader.harvest(requests, lambda i: bool(done[i])):
                if done[i]:  # read again, to the same numbers, with the rest of its batch
                    continue
                for segment, layer in zip(segments, layers, strict=True):
                    segment.put(i, states[reader.layers.index(layer)])
                done[i] = True
                n_done += 1
                if n_done % _SAVE == 0:
                    for segment in segments:
                        segment.save()
                report(n_done)
        finally:
            reader.close()
        for segment, store in zip(segments, stores, strict=True):
            store.add(segment.finish())


class _Store:
    """The segments of one model, layer and type."""

    def __init__(self, model: str, layer: int, kind: np.dtype[Any], model_name: str) -> None:
        self.folder = state_cache.folder() / f"{model}-{layer}-{kind.str[1:]}"
        self.kind, self.layer, self.model_name = kind, layer, model_name
        self.names: list[str] = []
        self._maps: list[States] = []
        self._at: dict[bytes, tuple[int, int, int]] = {}  # segment, row after the last token, first token
        with suppress(OSError):
            for index in sorted(self.folder.glob("*" + state_cache.INDEX)):
                if not self.add(index.name.removesuffix(state_cache.INDEX)):
                    state_cache.delete(self.stem(index.name.removesuffix(state_cache.INDEX)))

    def stem(self, name: str) -> Path:
        return self.folder / name

    def add(self, name: str) -> bool:
        """Take a finished segment in; gives whether it is sound."""
        index = self.stem(name + state_cache.INDEX)
        try:
            magic, crc, n_rows = _HEAD.unpack(index.open("rb").read(_HEAD.size))
            records = np.fromfile(index, _RECORD, offset=_HEAD.size)
            states = np.load(self.stem(name + ".npy"), mmap_mode="r", allow_pickle=False)
            sound = magic == _MAGIC and states.dtype == self.kind and states.ndim == 2 and len(states) == n_rows
            sound = sound and (records["n"] > 0).all() and int(records["n"].sum(dtype=np.int64)) == n_rows
            sound = sound and _crc(states) == crc
        except (OSError, ValueError, struct.error, EOFError):
            return False
        if not sound:
            return False
        row = 0
        for key, first, n in records.tolist():
            row += n
            if not self.has(key, first):
                self._at[key] = len(self.names), row, first
        self.names.append(name)
        self._maps.append(states)
        with suppress(OSError):
            os.utime(index)  # used now
        return True

    def has(self, key: bytes, first: int) -> bool:
        """Whether the tokens from `first` on are there of the prompt with this key."""
        found = self._at.get(key)
        return found is not None and found[2] <= first

    def collect(self, keys: Sequence[bytes], offsets: NDArray[np.int64], n_embd: int) -> States:
        """These prompts' states, end to end, (n_tokens, n_embd); a segment itself where it holds just those."""
        places = [self._at[key][:2] for key in keys]  # segment, and the row after the prompt's last token
        if not places:
            return np.empty((0, n_embd), self.kind)
        segment = self._maps[places[0][0]]
        if len(segment) == offsets[-1] and places == [(places[0][0], end) for end in offsets[1:].tolist()]:
            return segment
        # A file without a name: it goes when the array does, whatever ends the process.
        with _storing(self.folder), tempfile.TemporaryFile(dir=self.folder) as file:
            _reserve(file, int(offsets[-1]) * n_embd * self.kind.itemsize)
            states: States = np.memmap(file, self.kind, "r+", shape=(int(offsets[-1]), n_embd))
            for (index, end), start, stop in zip(places, offsets, offsets[1:], strict=False):
                states[start:stop] = self._maps[index][end - (stop - start) : end]
        return states


class _Segment:
    """A segment that is being filled."""

    def __init__(self, store: _Store, name: str, prompts: Mapping[bytes, StatesRequest], n_embd: int) -> None:
        self.store, self.name = store, name
        self._part, self._mark = store.stem(name + _PART), store.stem(name + ".done")
        records = [(key, request.first, len(request.tokens) - request.first) for key, request in prompts.items()]
        self._records = np.array(records, _RECORD)
        self._offsets = np.concatenate([[0], np.cumsum(self._records["n"], dtype=np.int64)])
        shape = (int(self._offsets[-1]), n_embd)
        with _storing(self._part):
            self.done = self._read_done(len(records), shape)
            if not self.done.any():
                np.lib.format.open_memmap(self._part, mode="w+", dtype=store.kind, shape=shape)
                with self._part.open("r+b") as file:
                    _reserve(file, self._part.stat().st_size)
            self.states: np.memmap[Any, Any] = np.lib.format.open_memmap(self._part, mode="r+")
        self._limit = float(np.finfo(store.kind).max)  # the first token of a text can have activations of 1e5

    def _read_done(self, n: int, shape: tuple[int, int]) -> NDArray[np.bool_]:
        with suppress(OSError, ValueError, EOFError):
            done = np.fromfile(self._mark, np.bool_)
            states = np.load(self._part, mmap_mode="r", allow_pickle=False)
            if len(done) == n and states.shape == shape and states.dtype == self.store.kind:
                return done
        return np.zeros(n, np.bool_)

    def put(self, i: int, states: NDArray[np.float32]) -> None:
        """Keep the states (n, n_embd) of prompt `i`."""
        self.states[self._offsets[i] : self._offsets[i + 1]] = np.clip(states, -self._limit, self._limit)
        self.done[i] = True

    def save(self) -> None:
        """What is done so far outlives the process from here on."""
        self.states.flush()
        with paths.atomic_write(self._mark) as temporary:
            temporary.write_bytes(self.done.tobytes())

    def finish(self) -> str:
        """Close the segment; gives its name."""
        self.states.flush()
        head = _HEAD.pack(_MAGIC, _crc(self.states), len(self.states))
        del self.states
        with _storing(self._part):
            os.replace(self._part, self.store.stem(self.name + ".npy"))
        with paths.atomic_write(self.store.stem(self.name + state_cache.INDEX)) as temporary:
            temporary.write_bytes(head + self._records.tobytes())
        with suppress(OSError):
            self._mark.unlink()
        return self.name


@contextmanager
def _segments(
    stores: Sequence[_Store], prompts: Mapping[bytes, StatesRequest], n_embd: int
) -> Iterator[list[_Segment]]:
    """New segments for these prompts, or their unfinished ones; two processes never fill the same."""
    digest = hashlib.sha256(repr([store.layer for store in stores]).encode())  # layers are read together
    for key, request in prompts.items():
        digest.update(key + struct.pack("<i", request.first))
    name = digest.hexdigest()[:24]
    for store in stores:
        about = paths.ensure_dir(store.folder) / state_cache.ABOUT
        if not about.exists():
            with paths.atomic_write(about) as temporary:
                text = {"model": store.model_name, "layer": store.layer, "kind": store.kind.name}
                temporary.write_text(json.dumps(text), encoding="utf-8")
    from filelock import FileLock, Timeout  # slow to import, and needed only here

    # A file of its own: Windows renames none that is locked.
    lock = FileLock(stores[0].stem(name + ".lock"), blocking=False)
    with _storing(Path(lock.lock_file)):
        try:
            lock.acquire()
        except Timeout:  # another process is at it
            name += f"-{os.getpid()}"
        except NotImplementedError:
            pass  # this file system cannot lock
    try:
        yield [_Segment(store, name, prompts, n_embd) for store in stores]
    finally:
        lock.release()


@contextmanager
def _storing(path: Path) -> Iterator[None]:
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error


def _reserve(file: IO[bytes], n_bytes: int) -> None:
    """Take the room now: a memory map into a hole of a full disk would kill the process."""
    file.truncate(n_bytes)
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), 0, n_bytes)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # not every file system can
                raise


def _crc(states: States) -> int:
    crc = 0
    for start in range(0, len(states), 1 << 14):
        crc = zlib.crc32(np.ascontiguousarray(states[start : start + (1 << 14)]).view(np.uint8).data, crc)
    return crc


def _key(tokens: Sequence[int] | NDArray[np.int32]) -> bytes:
    return hashlib.sha256(np.asarray(tokens, "<i4").tobytes()).digest()[:16]


def _model_key(llama: TrainableModel) -> str:
    """A hash of the model file's content and of everything else that decides a hidden state.

    The chat template is not part of it, because requests are tokens. The fingerprint would not do, because it is the
    same for every quantisation of one model: so the file's size and samples of its content are hashed.
    """
    path = Path(llama.model_path)
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    digest, sizes = hashlib.sha256(), []
    for each in files:
        with each.open("rb") as file:
            sizes.append(file.seek(0, os.SEEK_END))
            for i in range(_SAMPLES):
                file.seek(sizes[-1] * i // _SAMPLES)
                digest.update(file.read(_BLOCK))
    parts = [METHOD, llama_cpp_version, llama.identity.fingerprint, sizes, *llama.settings_of_states]
    digest.update(json.dumps(parts).encode())
    return digest.hexdigest()[:24]
