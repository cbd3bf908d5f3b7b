"""What the server remembers of answers for clients that refer to them instead of sending them again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from finesteer_local.server.errors import ApiError
from finesteer_local.server.responses_schemas import Item, ReferenceItem

MAX_BYTES = 16 << 20
_OVERHEAD = 512  # bytes of an entry beside its text, about


class Memory:
    """The items of the last answers and their conversations, up to `MAX_BYTES` of text; gone when the server ends.

    For one thread: the event loop's.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes, self._bytes = max_bytes, 0
        self._known: OrderedDict[str, tuple[int, list[Item]]] = OrderedDict()

    def keep(self, name: str, items: Sequence[Item]) -> None:
        """Remember `items` by the id of one of them, or of the answer that they led to."""
        size = _OVERHEAD + sum(_OVERHEAD + len(item.model_dump_json()) for item in items)
        if name in self._known:
            self._bytes -= self._known.pop(name)[0]
        self._known[name] = (size, list(items))
        self._bytes += size
        while self._bytes > self._max_bytes:
            self._bytes -= self._known.popitem(last=False)[1][0]

    def conversation(self, previous: str | None, items: Sequence[Item]) -> list[Item]:
        """All of a conversation, without references.

        Raises:
            ApiError: something of it is not, or no longer, remembered.
        """
        found = [] if previous is None else list(self._recall(previous, "previous_response_id"))
        for i, item in enumerate(items):
            found += self._recall(item.id, f"input.{i}.id") if isinstance(item, ReferenceItem) else [item]
        return found

    def _recall(self, name: str, param: str) -> list[Item]:
        if name not in self._known:
            raise ApiError(400, f"{name} is not, or no longer, remembered; send the conversation in full", param=param)
        self._known.move_to_end(name)
        return self._known[name][1]
