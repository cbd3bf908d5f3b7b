"""`llama_cpp.Llama`'s own chats: special tokens in contents stay text, tool calls reach the template whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from finesteer_local.runtime.contents import Guard, tokenise_guarded
from finesteer_local.runtime.prompt import Message, guarded_messages
from finesteer_local.runtime.tapped import TappedLlama
from finesteer_local.runtime.template import with_arguments

TEMPLATE_OPTIONS = ("functions", "function_call", "tools", "tool_choice")  # create_chat_completion's order


class Chat(NamedTuple):
    """A chat whose prompt is being made."""

    messages: list[Message]
    options: Mapping[str, Any]  # of `TEMPLATE_OPTIONS`, those that were given
    guard: Guard | None


class ChatLlama(TappedLlama):
    """A `TappedLlama` that knows which chat a prompt is made of.

    Attributes:
        chat: set while `create_chat_completion` makes a prompt and asks for its completion.
    """

    chat: Chat | None = None

    def create_chat_completion(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
        """As `Llama.create_chat_completion`.

        The arguments of tool calls reach the template in the form that it needs (`template.with_arguments`).
        """
        messages = with_arguments(self, messages)
        given = {**dict(zip(TEMPLATE_OPTIONS, args, strict=False)), **kwargs}
        options = {name: given[name] for name in TEMPLATE_OPTIONS if given.get(name) is not None}
        guarded, guard = guarded_messages(self, messages, options)
        self.chat = Chat(messages, options, guard)
        try:
            return super().create_chat_completion(guarded, *args, **kwargs)
        finally:
            self.chat = None

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """As `Llama.tokenize`, for any text; special tokens in a chat's contents stay text (`contents.guard`)."""
        chat = self.chat
        if not (special and chat and chat.guard):
            return super().tokenize(text, add_bos, special)
        self.chat = chat._replace(guard=None)  # it tokenises the parts by this method
        try:
            return tokenise_guarded(self, text, add_bos, chat.guard)
        finally:
            self.chat = chat

    def without_marks(self, prompt: str | list[int]) -> str | list[int]:
        """The prompt that `create_completion` was given; as tokens where special tokens are marked in it."""
        if isinstance(prompt, str) and self.chat and self.chat.guard:
            return self.tokenize(prompt.encode(), special=True)  # a stream would do it too late
        return prompt
