"""From chat messages to prompt tokens, by llama-cpp-python's own chat handlers.

The handler renders, tokenises and then calls `llama.create_completion(prompt=tokens)`. A stand-in for the model that
keeps those tokens and stops there gives exactly the prompt that a chat request would read, whatever the chat format.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llama_cpp import Llama, llama_chat_format

from finesteer_local.runtime.contents import Guard, guard, tokenise_guarded
from finesteer_local.runtime.template import chat_handler, rendered, with_arguments
from finesteer_local.runtime.thinking import opened_at
from finesteer_local.runtime.tokens import specials
from finesteer_local.runtime.trainable import ChatModel

PLAIN_FORMAT = "finesteer-plain"
TOOL_ROLES = ("tool", "function", "ipython")
Message = Mapping[str, Any]

_REMEMBERED = 32  # renderings

# Noncharacters of Unicode: no tokenizer merges them with their neighbours, and no user types them. A message's first
# letter can share its first byte, which may be a token, with one of the two but not with the other.
_SENTINELS = ("\ufffe", "\U0001fffe")


@llama_chat_format.register_chat_format(PLAIN_FORMAT)  # type: ignore[untyped-decorator]
def _plain_format(messages: Sequence[Message], **_: Any) -> llama_chat_format.ChatFormatterResponse:
    """The chat format for models that bring no template: speakers' names before their words."""
    names = {"user": "User", "assistant": "Assistant"}
    turns = [
        f"{names[m['role']]}: {m['content']}" if m["role"] in names else str(m["content"])
        for m in messages
        if m.get("content")
    ]
    return llama_chat_format.ChatFormatterResponse(
        prompt="\n\n".join([*turns, "Assistant:"]), stop=["\nUser:", "\n\nUser"]
    )


class _Captured(Exception):
    def __init__(self, tokens: list[int], arguments: dict[str, Any]) -> None:
        self.tokens, self.arguments = tokens, arguments


class _PromptOnly:
    """Looks like the model to a chat handler, up to the point where it would generate."""

    def __init__(self, llama: ChatModel, guarded: Guard | None) -> None:
        self._llama: Any = llama
        self._guarded = guarded

    def __getattr__(self, name: str) -> Any:
        return getattr(self._llama, name)

    def create_completion(self, prompt: str | list[int], **arguments: Any) -> Any:
        tokens = self.tokenize(prompt.encode(), special=True) if isinstance(prompt, str) else prompt
        raise _Captured(list(tokens), arguments)

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        if self._guarded and special:
            return tokenise_guarded(self._llama, text, add_bos, self._guarded)
        tokens: list[int] = self._llama.tokenize(text, add_bos=add_bos, special=special)
        return tokens


def chat_prompt(llama: ChatModel, messages: Sequence[Message], **options: Any) -> list[int]:
    """Tokens of the prompt that `llama.create_chat_completion(messages, **options)` would read."""
    return chat_completion(llama, messages, **options)[0]


def chat_completion(llama: ChatModel, messages: Sequence[Message], **options: Any) -> tuple[list[int], dict[str, Any]]:
    """What `llama.create_chat_completion(messages, **options)` would ask of `create_completion`.

    Returns:
        The prompt's tokens, and the other arguments: the template's stop words and the tools' grammar are among them.
    """
    given, guarded = guarded_messages(llama, with_arguments(llama, messages), options)
    try:
        chat_handler(llama)(llama=_PromptOnly(llama, guarded), messages=given, **options)
    except _Captured as captured:
        return captured.tokens, captured.arguments
    raise RuntimeError(f"the chat handler of format {llama.chat_format!r} did not ask for a completion")


def guarded_messages(
    llama: ChatModel, messages: Sequence[Message], options: Mapping[str, Any]
) -> tuple[list[Any], Guard | None]:
    """The messages with their special tokens marked, and what tells these from the template's (`contents.guard`)."""
    return guard(llama, messages, lambda given: rendered(llama, given, **options))


def contents_stay_text(llama: Llama) -> bool:
    """Whether special tokens in a message stay text in the chats of this model (see `contents.guard`)."""
    controls = [special.text.decode("utf-8", "replace") for special in specials(llama) if special.control]
    messages = [{"role": "user", "content": f"Hello {controls[0]} there"}] if controls else []
    return not controls or guarded_messages(llama, messages, {})[1] is not None


@dataclass(frozen=True)
class Unsteered:
    """The parts of a prompt that no scope reaches, as token indices.

    Attributes:
        tools: [start, stop) of each tool result; gates do not read them either.
        thinking: first token of the thoughts in which the prompt ends, if it does and they are to be left alone.
    """

    tools: tuple[tuple[int, int], ...] = ()
    thinking: int | None = None

    @property
    def borders(self) -> list[int]:
        """Tokens where steering may stop or go on."""
        thinking = [] if self.thinking is None else [self.thinking]
        return [*(border for span in self.tools for border in span), *thinking]

    def holds(self, token: int) -> bool:
        """Whether a token of the prompt is in one of these parts."""
        if self.thinking is not None and token >= self.thinking:
            return True
        return any(start <= token < stop for start, stop in self.tools)

    def outside(self, start: int, stop: int) -> int:
        """How many of the tokens [start, stop) are in none of these parts."""
        if self.thinking is not None:
            stop = min(stop, self.thinking)
        held = sum(max(min(end, stop) - max(begin, start), 0) for begin, end in self.tools)
        return max(stop - start - held, 0)


NOTHING = Unsteered()


def turn_start(llama: ChatModel, messages: Sequence[Message], prompt: Sequence[int], **options: Any) -> int:
    """Index in `prompt` of the first token of the last user message; 0 where there is none."""
    last = max((i for i, m in enumerate(messages) if m.get("role") == "user"), default=None)
    return 0 if last is None else _around(llama, messages, last, prompt, options)[0]


def unsteered_parts(
    llama: ChatModel, messages: Sequence[Message], prompt: Sequence[int], *, skip_thinking: bool, **options: Any
) -> Unsteered:
    """The parts of a chat's prompt that are never steered; thoughts that its template opens, with `skip_thinking`."""
    given = [i for i, m in enumerate(messages) if m.get("role") in ("user", *TOOL_ROLES)]
    tools, end = [], 0
    for i in given:
        is_tool = messages[i]["role"] in TOOL_ROLES
        if is_tool or (skip_thinking and i == given[-1]):
            start, end = _around(llama, messages, i, prompt, options)
            stop = min(end, len(prompt) - 1)  # the last token is where the answer begins
            if is_tool and start < stop:
                tools.append((start, stop))
    thinking = opened_at(prompt, token_text(llama), end) if skip_thinking else None
    return Unsteered(tuple(tools), thinking)


def token_text(llama: ChatModel) -> Callable[[int], bytes]:
    """What gives a token's text, that of special tokens too."""
    return lambda token: llama.detokenize([token], special=True)


def _around(
    llama: ChatModel, messages: Sequence[Message], i: int, prompt: Sequence[int], options: Mapping[str, Any]
) -> tuple[int, int]:
    """Where the words of message `i` start and stop in `prompt`, as token indices.

    The prompt is rendered again with these words replaced: what all share comes before the message, or after it. So
    nothing that the words say can move the borders. Prompts that differ in this message alone share the renderings.
    """
    before = after = len(prompt)
    backwards = list(reversed(prompt))
    for sentinel in _stand_ins(messages[i].get("content")):
        other = [{**m, "content": sentinel} if j == i else m for j, m in enumerate(messages)]
        rendered = _remembered_prompt(llama, other, options)
        before = Llama.longest_token_prefix(prompt[:before], rendered)
        after = Llama.longest_token_prefix(backwards[:after], rendered[::-1])
    return before, len(prompt) - after


def _stand_ins(content: Any) -> Sequence[str]:
    """What the words of a message are replaced by: one is enough where their first letter is known."""
    if not isinstance(content, str):
        return _SENTINELS
    first = content.strip().encode("utf-8", "replace")[:1]  # templates strip
    return [sentinel for sentinel in _SENTINELS if sentinel.encode()[:1] != first][:1]


def _remembered_prompt(llama: ChatModel, messages: Sequence[Message], options: Mapping[str, Any]) -> list[int]:
    """As `chat_prompt`; the last few are remembered."""
    known: OrderedDict[str, list[int]] = vars(llama).setdefault("_rendered", OrderedDict())
    try:
        handler = id(llama.chat_handler) if llama.chat_handler else llama.chat_format
        key = json.dumps([handler, messages, options])
    except (TypeError, ValueError):  # tools may hold anything
        return chat_prompt(llama, messages, **options)
    found = known.get(key)
    if found is None or _tells_time(llama):
        found = known[key] = chat_prompt(llama, messages, **options)
        if len(known) > _REMEMBERED:
            known.popitem(last=False)
    return found


def _tells_time(llama: ChatModel) -> bool:
    """Whether the model's templates may render the same messages differently tomorrow, as far as can be seen."""
    if not hasattr(llama, "metadata"):
        return True
    return any("strftime" in text for key, text in llama.metadata.items() if key.startswith("tokenizer.chat_template"))


def greedy_answer(llama: Llama, messages: Sequence[Message], max_tokens: int) -> str:
    """The model's greedy answer to a chat, as it is steered now, without a repeat penalty."""
    chat: Any = list(messages)
    answer: Any = llama.create_chat_completion(chat, max_tokens=max_tokens, temperature=0.0, repeat_penalty=1.0)
    return str(answer["choices"][0]["message"]["content"] or "")
