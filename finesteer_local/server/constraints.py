"""What an answer has to fit: a client's grammar or schema, or the call of a tool.

Compiling may take seconds, so it has threads of its own: all other requests are prepared meanwhile.
"""

from __future__ import annotations

from finesteer_local.errors import PromptError
from finesteer_local.runtime.constraint import ANY_OBJECT, Compiled, compiled, json_schema
from finesteer_local.server.chat_schemas import ChatRequest
from finesteer_local.server.completions_schemas import CompletionRequest
from finesteer_local.server.conversation_schemas import AllowedToolsChoice, NamedTool, Tool
from finesteer_local.server.errors import ApiError
from finesteer_local.server.service import Model, Service
from finesteer_local.server.tool_calls import arguments_schema, choice_schema


async def compiled_for(service: Service, wanted: ChatRequest | CompletionRequest) -> Compiled | None:
    """What the answer to a request has to fit.

    Raises:
        ApiError: it cannot be kept to, or the request says two things.
    """
    called = tools_of(wanted)[1] if isinstance(wanted, ChatRequest) else []
    format_ = wanted.response_format
    if called:  # a response_format is about text, which such an answer has none of
        if wanted.grammar is not None:
            message = "a tool that is called brings its own grammar; leave out the other"
            raise ApiError(400, message, param="tool_choice")
        param, schema = "tools", arguments_schema(called[0]) if len(called) == 1 else choice_schema(called)
    elif format_ is not None and format_.type != "text":
        if wanted.grammar is not None:
            raise ApiError(400, "give a grammar or a response_format, not both", param="grammar")
        found = format_.schema_to_fit
        param, schema = "response_format", dict(ANY_OBJECT) if found is None else found
    elif wanted.grammar is not None:
        param, schema = "grammar", {}
    else:
        return None
    grammar = wanted.grammar if param == "grammar" else None

    def work(model: Model) -> Compiled:
        return compiled(model.llama, json_schema(schema) if grammar is None else grammar)

    try:
        return await service.compile(work)
    except PromptError as error:
        raise ApiError(400, str(error), param=param) from error


def tools_of(wanted: ChatRequest) -> tuple[list[Tool], list[Tool]]:
    """The tools that the template tells of, and those of which one has to be called."""
    tools, choice = list(wanted.tools or []), wanted.tool_choice
    if choice is None or choice == "auto":
        return tools, []
    if choice == "none":
        return [], []
    if choice == "required":
        names = [tool.function.name for tool in tools]
    elif isinstance(choice, NamedTool):
        names = [choice.function.name]
    else:
        assert isinstance(choice, AllowedToolsChoice)
        names = [tool.function.name for tool in choice.allowed_tools.tools]
    there = {tool.function.name: tool for tool in tools}
    for name in names:
        if name not in there:
            raise ApiError(400, f"tools holds no function {name!r}", param="tool_choice")
    chosen = [tool for name, tool in there.items() if name in names]
    if not chosen:
        raise ApiError(400, "there are no tools to call; give some, or leave it out", param="tool_choice")
    if isinstance(choice, AllowedToolsChoice):
        return chosen, chosen if choice.allowed_tools.mode == "required" else []
    return tools, chosen
