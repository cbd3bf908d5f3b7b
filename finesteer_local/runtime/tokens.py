"""From text to tokens and back: the one place where a model's tokenizer runs, whatever the text holds.

llama.cpp splits text for BPE vocabularies by `std::regex` (`unicode_regex_split`), which recurses once for every letter
that a match takes: 30,000 letters without a break overflow a stack of 8 MiB and end the process. And it walks its
list of fragments from the start for every special token (`tokenizer_st_partition`), which takes minutes for 100,000.
"""

from __future__ import annotations

import ctypes
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from llama_cpp import Llama, llama_cpp

from finesteer_local.errors import PromptError

T = TypeVar("T")

MAX_RUN = 1 << 17
"""Letters without a break that are tokenised; no text that people write has more."""

_PLAIN = 4096  # bytes that any thread's stack holds
_FRAME = 1024  # bytes of stack a letter; libstdc++ takes less than 400
_STACK = 4 << 20  # bytes beside that
_SPECIALS = 1024  # special tokens that llama.cpp finds in one piece of text

_CONTROL = llama_cpp.LLAMA_TOKEN_ATTR_CONTROL | llama_cpp.LLAMA_TOKEN_ATTR_UNKNOWN
_USER = llama_cpp.LLAMA_TOKEN_ATTR_USER_DEFINED

# What one match of any pre-tokenizer's pattern takes at most: words with the line ends after them. EXAONE's goes on
# over single spaces, and SuperBPE's looks at all digits that are left, for every digit.
_RUN = re.compile(r"\S+\s*|\s+", re.ASCII)
_RUNS = {"exaone-moe": re.compile(r"(?:[^\W\d]|\s|[^\x00-\x7f])+|\S+\s*")}
_MAX_DIGITS = {"superbpe": 2048}


@dataclass(frozen=True)
class Special:
    """A token that llama.cpp looks for in text before anything else."""

    text: bytes
    control: bool  # found only where special tokens are asked for
    left: bool  # takes the blanks before it along
    right: bool  # and those after it


def tokenise(
    llama: Llama, make: Callable[[bytes, bool, bool], list[int]], text: bytes, add_bos: bool, special: bool
) -> list[int]:
    """Tokens of `text`, those that `make(text, add_bos, special)` gives, without its ways to end or hang the process.

    Long text is tokenised on a thread with a large stack. Between special tokens it is tokenised piece by piece:
    llama.cpp looks at every fragment between them alone, so the tokens are the same.

    Raises:
        PromptError: more than `MAX_RUN` letters without a break, or special tokens that cannot be told apart.
    """
    if len(text) <= _PLAIN:
        return make(text, add_bos, special)

    pieces = list(_pieces(llama, text, special))

    def whole() -> list[int]:
        tokens: list[int] = []
        for i, piece in enumerate(pieces):
            tokens += make(piece, add_bos and i == 0, special)
        return tokens

    if llama_cpp.llama_vocab_type(vocab_of(llama)) != llama_cpp.LLAMA_VOCAB_TYPE_BPE:
        return whole()
    return _with_stack(_STACK + _FRAME * max(_longest_run(llama, piece) for piece in pieces), whole)


def vocab_of(llama: Llama) -> Any:
    """The vocabulary of the model, `llama_vocab *`."""
    return llama_cpp.llama_model_get_vocab(llama.model)


def ends_answer(vocab: Any, token: int) -> bool:
    """Whether a model with this vocabulary ends its answer with `token`."""
    return bool(llama_cpp.llama_vocab_is_eog(vocab, token))


def _longest_run(llama: Llama, text: bytes) -> int:
    """Letters that a pre-tokenizer may match at once, at most.

    Raises:
        PromptError: too many.
    """
    kind, letters = _pre_tokenizer(llama), text.decode("utf-8", "replace")
    longest = max((len(match[0]) for match in _RUNS.get(kind, _RUN).finditer(letters)), default=0)
    limit = _MAX_DIGITS.get(kind)
    if longest > MAX_RUN:
        raise PromptError(
            f"the text has {longest:,} letters without a break, and this model's tokenizer takes {MAX_RUN:,}; "
            "put spaces or line ends between them"
        )
    if limit and re.search(rf"\d{{{limit + 1}}}", letters):
        raise PromptError(
            f"the text has more than {limit:,} digits without a break, all that this model's tokenizer takes"
        )
    return longest


def _pre_tokenizer(llama: Llama) -> str:
    return str(getattr(llama, "metadata", {}).get("tokenizer.ggml.pre", ""))


_starting = threading.Lock()  # the size of stacks is the process's


def _with_stack(size: int, work: Callable[[], T]) -> T:
    """What `work` returns or raises, run on a thread with a stack of `size` bytes."""
    found: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            found.append(work())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, name="finesteer-tokens", daemon=True)
    with _starting:
        before = threading.stack_size((size + 0xFFFF) & ~0xFFFF)
        try:
            thread.start()
        except RuntimeError as error:
            raise PromptError(
                f"there is no memory for tokenising such long text ({size >> 20:,} MiB); shorten it"
            ) from error
        finally:
            threading.stack_size(before)
    thread.join()
    if failed:
        raise failed[0]
    return found[0]


# --- back to text

_BYTES = 64  # of a token's text, unless it is longer


def texts_of(vocab: Any, tokens: Iterable[int], special: bool) -> Iterator[bytes]:
    """The text of each token, that of control tokens only with `special`.

    llama-cpp-python's own `detokenize` leaves out a token of more than 32 bytes, such as the blanks before deeply
    indented code.
    """
    size, buffer = _BYTES, ctypes.create_string_buffer(_BYTES)
    for token in tokens:
        n = llama_cpp.llama_token_to_piece(vocab, token, buffer, size, 0, special)
        if n < 0:
            size, buffer = -n, ctypes.create_string_buffer(-n)
            n = llama_cpp.llama_token_to_piece(vocab, token, buffer, size, 0, special)
        yield ctypes.string_at(buffer, n)


def detokenise(llama: Llama, tokens: Sequence[int], special: bool) -> bytes:
    """The text of `tokens`, without the blank that some vocabularies put behind the token that begins a text."""
    text = b"".join(texts_of(vocab_of(llama), tokens, special))
    begins = len(tokens) > 0 and tokens[0] == llama.token_bos()
    return text.removeprefix(b" ") if begins else text


# --- special tokens


def specials(llama: Llama) -> tuple[Special, ...]:
    """The special tokens of a model's vocabulary; looked through once."""
    known: tuple[Special, ...] | None = vars(llama).get("_specials")
    if known is None:
        vocab = vocab_of(llama)
        known = tuple(found for token in range(llama.n_vocab()) if (found := _special(vocab, token)))
        vars(llama)["_specials"] = known
    return known


def _special(vocab: Any, token: int) -> Special | None:
    attributes = llama_cpp.llama_vocab_get_attr(vocab, token)
    if not attributes & (_CONTROL | _USER):
        return None
    text = llama_cpp.llama_vocab_get_text(vocab, token)
    left, right = attributes & llama_cpp.LLAMA_TOKEN_ATTR_LSTRIP, attributes & llama_cpp.LLAMA_TOKEN_ATTR_RSTRIP
    return Special(text, bool(attributes & _CONTROL), bool(left), bool(right)) if text else None


def specials_in(llama: Llama, text: bytes) -> list[Special]:
    """The special tokens whose text stands in `text`, the longest first."""
    if "_specials" not in vars(llama) and len(text) <= _PLAIN:
        # To look through the vocabulary takes longer than such a text.
        vocab, tokens = vocab_of(llama), set(llama.tokenize(text, add_bos=False, special=True))
        candidates = [special for token in tokens if (special := _special(vocab, token))]
    else:
        candidates = list(specials(llama))
    found = {special.text: special for special in candidates if special.text in text}
    return sorted(found.values(), key=lambda special: -len(special.text))


def _pieces(llama: Llama, text: bytes, special: bool) -> Iterator[bytes]:
    """`text`, cut behind special tokens so that llama.cpp has to find few of them at a time.

    Raises:
        PromptError: there are many where it cannot be cut.
    """
    looked_for = [one for one in specials(llama) if special or not one.control]
    counts = {one: text.count(one.text) for one in looked_for if one.text in text}
    if sum(counts.values()) <= _SPECIALS:
        yield text
        return
    ends: list[int] = []
    if not llama_cpp.llama_vocab_get_add_eos(vocab_of(llama)):  # else every piece would get an end
        for one in sorted(counts, key=lambda one: -counts[one])[:64]:
            if one.right or one.text != one.text.strip():
                continue
            if not any(_touches(one.text, other.text) for other in looked_for):
                ends += [match.end() for match in re.finditer(re.escape(one.text), text)]
    start = 0
    for end in [*sorted(ends)[_SPECIALS - 1 :: _SPECIALS], len(text)]:
        piece, start = text[start:end], end
        if sum(piece.count(one.text) for one in counts) > 8 * _SPECIALS:
            raise PromptError("the text has too many special tokens next to each other; shorten it")
        if piece:
            yield piece


def _touches(one: bytes, other: bytes) -> bool:
    """Whether an occurrence of `other` can hold only a part of an occurrence of `one`, or one and more."""
    if one != other and one in other:
        return True
    lengths = range(1, min(len(one), len(other)))
    return any(one[-n:] == other[:n] or other[-n:] == one[:n] for n in lengths)
