"""What a model's chat template reads: its variables, and how it needs the arguments of tool calls."""

from __future__ import annotations

import inspect
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import jinja2
from jinja2 import meta
from jinja2.sandbox import ImmutableSandboxedEnvironment
from llama_cpp import Llama, llama_chat_format

from finesteer_local.errors import PromptError, one_line
from finesteer_local.runtime.compat import chat_handlers
from finesteer_local.runtime.trainable import ChatModel

Message = Mapping[str, Any]
Form = Literal["object", "text"]

# What the chat handlers fill in themselves; a client that could would write another conversation.
_RESERVED = frozenset(inspect.signature(Llama.create_chat_completion).parameters) | {
    *("llama", "prompt", "bos_token", "eos_token", "raise_exception", "add_generation_prompt", "strftime_now")
}
_WORD = "finesteer_argument"
_CALL = {"id": "finestee1", "type": "function"}  # Mistral's templates want nine letters
_TOOL = {"type": "function", "function": {"name": "probe", "description": "", "parameters": {"type": "object"}}}


def chat_handler(llama: ChatModel) -> Any:
    """What renders this model's chats, found as `Llama.create_chat_completion` finds it."""
    chat_format = llama.chat_format or ""
    return (
        llama.chat_handler
        or chat_handlers(llama).get(chat_format)
        or llama_chat_format.get_chat_completion_handler(chat_format)
    )


def template_text(llama: Llama) -> str | None:
    """The Jinja template that renders this model's chats; None where it is none."""
    if llama.chat_handler or llama.chat_format not in chat_handlers(llama):
        return None
    name = str(llama.chat_format).removeprefix("chat_template.")
    key = "tokenizer.chat_template" if name == "default" else f"tokenizer.chat_template.{name}"
    return llama.metadata.get(key)


def template_variables(llama: Llama) -> frozenset[str]:
    """The variables of the model's chat template that a request can set, such as `enable_thinking`."""
    text = template_text(llama)
    if text is None:
        return frozenset()
    known: dict[str, frozenset[str]] = vars(llama).setdefault("_template_variables", {})
    if text not in known:
        environment = ImmutableSandboxedEnvironment(
            extensions=[llama_chat_format.Jinja2ChatFormatter.IgnoreGenerationTags, jinja2.ext.loopcontrols]
        )
        try:
            names = meta.find_undeclared_variables(environment.parse(text))
        except (jinja2.TemplateError, RecursionError):
            names = set()
        known[text] = frozenset(names - _RESERVED - environment.globals.keys())
    return known[text]


def with_arguments(llama: ChatModel, messages: Sequence[Message]) -> list[Message]:
    """`messages` with the arguments of tool calls as the template needs them: the parsed object, or else JSON as text.

    Clients send text, as OpenAI's interface has it; most templates write it as JSON once more, or go through its items.
    Text that is no JSON object stays what it is.
    """
    if not any(message.get("tool_calls") for message in messages):
        return list(messages)
    form = _form(llama)
    given = {name: [_in_form(message, name) for message in messages] for name in ("object", "text")}
    if form is None:  # the template took neither of the probes: see what it makes of this conversation
        form = "text" if rendered(llama, given["object"]) is None else "object"
    return given[form]


def _form(llama: ChatModel) -> Form | None:
    """The form that the template needs, tried once for each; None where it cannot be said."""
    handler = f"{id(llama.chat_handler)} {llama.chat_format}"
    known: dict[str, Form | None] = vars(llama).setdefault("_argument_forms", {})
    if handler not in known:
        known[handler] = _tried(llama)
    return known[handler]


def _tried(llama: ChatModel) -> Form | None:
    arguments = {_WORD: {"x": True}}
    for tail in ([{"role": "tool", "tool_call_id": _CALL["id"], "name": "probe", "content": "1"}], []):
        texts = []
        for value in (arguments, json.dumps(arguments)):
            call = {**_CALL, "function": {"name": "probe", "arguments": value}}
            asked: list[Message] = [
                {"role": "user", "content": "1"},
                {"role": "assistant", "content": "", "tool_calls": [call]},
                *tail,
            ]
            texts.append(rendered(llama, asked, tools=[_TOOL]))
        of_object, of_text = texts
        if of_object is not None:
            # Written out without a filter, an object is Python's, and the text is the JSON that was meant.
            is_python = f"{{'{_WORD}'" in of_object and of_text is not None
            return "text" if is_python else "object"
        if of_text is not None:
            return "text"
    return None


def _in_form(message: Message, form: str) -> Message:
    calls = message.get("tool_calls")
    if not calls:
        return message
    return {**message, "tool_calls": [_call_in_form(call, form) for call in calls]}


def _call_in_form(call: Any, form: str) -> Any:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or "arguments" not in function:
        return call
    arguments = function["arguments"]
    if form == "text" and isinstance(arguments, Mapping):
        arguments = json.dumps(arguments, ensure_ascii=False)
    elif form == "object" and isinstance(arguments, str):
        arguments = _parsed(arguments)
    return {**call, "function": {**function, "arguments": arguments}}


def _parsed(text: str) -> Any:
    if not text.strip():
        return {}  # a call without arguments, as some clients write it
    try:
        found = json.loads(text)
        json.dumps(found, ensure_ascii=False, allow_nan=False).encode()  # what a template could not write
    except (ValueError, RecursionError):
        return text
    return found if isinstance(found, dict) else text


class BrokenTemplateError(PromptError):
    """The model's chat template is no template: chats cannot be rendered, text can be continued."""


class _Formatter(llama_chat_format.Jinja2ChatFormatter):
    """As llama-cpp-python's; a template with an error is one only once a chat is to be rendered."""

    broken: BrokenTemplateError | None = None

    def __init__(self, template: str, *args: Any, **kwargs: Any) -> None:
        try:
            super().__init__(template, *args, **kwargs)
        except (jinja2.TemplateError, RecursionError) as error:
            line = f" in line {error.lineno}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
            self.broken = BrokenTemplateError(
                f"the model's chat template has an error{line}: {one_line(str(error)) or type(error).__name__}; "
                "fetch the model again, or continue text without a template (run --raw, /v1/completions)"
            )

    def __call__(self, **kwargs: Any) -> llama_chat_format.ChatFormatterResponse:
        if self.broken:
            raise self.broken
        return super().__call__(**kwargs)


_making = threading.Lock()


@contextmanager
def tolerant_templates() -> Iterator[None]:
    """In the block a `Llama` can be made whose chat template has errors; `BrokenTemplateError` says so in a chat."""
    with _making:
        theirs = llama_chat_format.Jinja2ChatFormatter
        llama_chat_format.Jinja2ChatFormatter = _Formatter  # type: ignore[misc]
        try:
            yield
        finally:
            llama_chat_format.Jinja2ChatFormatter = theirs  # type: ignore[misc]


class _Text(Exception):
    def __init__(self, text: str) -> None:
        self.text = text


class _TextOnly:
    """Looks like the model to a chat handler, up to the point where it has rendered the chat."""

    def __init__(self, llama: ChatModel) -> None:
        self._llama = llama

    def __getattr__(self, name: str) -> Any:
        return getattr(self._llama, name)

    def tokenize(self, text: bytes, *_: Any, **__: Any) -> list[int]:
        raise _Text(text.decode())

    def create_completion(self, prompt: Any, **_: Any) -> Any:
        raise _Text(str(prompt))


def rendered(llama: ChatModel, messages: Sequence[Message], **options: Any) -> str | None:
    """The text of a chat; None where the template rejects it."""
    try:
        chat_handler(llama)(llama=_TextOnly(llama), messages=list(messages), **options)
    except _Text as rendered:
        return rendered.text
    except Exception:  # a template is a program that came with the model
        return None
    return None
