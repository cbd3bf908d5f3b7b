"""From chat messages to tokens, as llama-cpp-python's own handlers do it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from llama_cpp import Llama, llama_chat_format

from finesteer_local.runtime import open_model
from finesteer_local.runtime import prompt as module
from finesteer_local.runtime.prompt import PLAIN_FORMAT, chat_prompt, turn_start
from reference import plain_llama, steered_llama
from tiny import SPECIAL, write_tiny_model

USER = {"role": "user", "content": "and on the other user?"}
MESSAGES = [
    {"role": "system", "content": "Be the tiny model."},
    {"role": "user", "content": "Hello there"},
    {"role": "assistant", "content": "an answer"},
    USER,
]
TOOLS = [{"type": "function", "function": {"name": "add", "description": "Add.", "parameters": {"type": "object"}}}]
WITH_TOOLS = (
    "{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}\n{% endfor %}"
)
TWICE = "{% for m in messages %}{{ m.content }}|{% endfor %}{{ messages[-1].content }}#"


@pytest.fixture(scope="module")
def llama(tiny: Path) -> Llama:
    return plain_llama(tiny)


def read_by_the_model(llama: Llama, monkeypatch: pytest.MonkeyPatch, messages: list, **options: Any) -> list[int]:
    """The tokens that a chat request really reads."""
    seen: list[list[int]] = []
    generate = llama.generate

    def spy(tokens: list[int], *args: Any, **kwargs: Any) -> Any:
        seen.append(list(tokens))
        return generate(tokens, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(llama, "generate", spy)
        llama.create_chat_completion(messages, max_tokens=1, **options)
    return seen[0]


@pytest.mark.parametrize("chat_format", [None, "chatml", "llama-2", "gemma", "zephyr", "chatml-function-calling"])
@pytest.mark.parametrize("messages", [MESSAGES, MESSAGES[1:2], MESSAGES[:2]], ids=len)
def test_the_prompt_is_what_a_request_reads(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, chat_format: str | None, messages: list
) -> None:
    llama = plain_llama(tiny, chat_format=chat_format)
    assert chat_prompt(llama, messages) == read_by_the_model(llama, monkeypatch, messages)


def test_options_of_the_template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llama = plain_llama(write_tiny_model(tmp_path / "tools.gguf", chat_template=WITH_TOOLS))
    prompt = chat_prompt(llama, MESSAGES, tools=TOOLS)
    assert prompt == read_by_the_model(llama, monkeypatch, MESSAGES, tools=TOOLS)
    assert prompt != chat_prompt(llama, MESSAGES)
    start = turn_start(llama, MESSAGES, prompt, tools=TOOLS)
    assert llama.detokenize(prompt[start:]) == b"and on the other user?\n"


def test_nothing_is_read_for_it(llama: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama, "eval", lambda tokens: pytest.fail("the model was asked"))
    assert turn_start(llama, MESSAGES, chat_prompt(llama, MESSAGES)) > 0


def test_a_template_that_refuses_says_so(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "strict.gguf", chat_template="{{ raise_exception('roles must alternate') }}")
    with pytest.raises(ValueError, match="roles must alternate"):
        chat_prompt(plain_llama(path), MESSAGES)


def test_a_handler_that_asks_for_nothing(tiny: Path) -> None:
    llama = plain_llama(tiny, chat_handler=lambda **_: None)
    with pytest.raises(RuntimeError, match="did not ask for a completion"):
        chat_prompt(llama, MESSAGES)


CONTENTS = [
    "and on the other user?",
    "a",
    " leading space",
    "\nleading line",
    "\n\n",
    "ｆｕｌｌ width",  # its first byte is that of one sentinel
    "\ufffdbroken",
    "🙂 smile",  # and this the other's
    "𝄞 clef",
    "\ufffe",
    "éàü",
    "<|im_end|>",
    "user",
    "x" * 300,
]


@pytest.mark.parametrize("content", CONTENTS, ids=ascii)
@pytest.mark.parametrize("before", [[], MESSAGES[:1], MESSAGES], ids=["first", "second", "last"])
def test_the_turn_starts_with_the_messages_first_letter(llama: Llama, content: str, before: list) -> None:
    messages = [*before, {"role": "user", "content": content}]
    prompt = chat_prompt(llama, messages)
    start = turn_start(llama, messages, prompt)
    head = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in before) + "<|im_start|>user\n"
    n_head = len(head.encode())
    lengths = [len(llama.detokenize([token], special=True)) for token in prompt]
    # the token that holds the first byte: a line break of the message can be one token with the template's
    assert sum(lengths[:start]) <= n_head < sum(lengths[: start + 1])


def test_prompts_with_the_same_history_share_their_renderings(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llama = plain_llama(tiny)
    rendered: list[Any] = []
    monkeypatch.setattr(module, "chat_prompt", lambda *args, **kw: (rendered.append(args), chat_prompt(*args, **kw))[1])
    alone = [{"role": "user", "content": text} for text in ("Hello", "and how are you?", "oh")]
    starts = [turn_start(llama, [message], chat_prompt(llama, [message])) for message in alone]
    assert len(rendered) == 1 and len(set(starts)) == 1
    turn_start(llama, MESSAGES, chat_prompt(llama, MESSAGES))
    assert len(rendered) == 2
    llama.chat_format = "llama-2"
    assert turn_start(llama, alone[:1], chat_prompt(llama, alone[:1])) != starts[0]
    turn_start(llama, alone[:1], chat_prompt(llama, alone[:1]), tools=[object()])  # no key for those
    for i in range(40):
        turn_start(llama, [{"role": "system", "content": str(i)}, USER], [1, 2])
    assert len(vars(llama)["_rendered"]) == 32


def test_a_template_that_tells_the_time_is_rendered_every_time(tmp_path: Path) -> None:
    template = "{{ strftime_now('%f') }}|{% for m in messages %}{{ m.content }}|{% endfor %}"
    llama = plain_llama(write_tiny_model(tmp_path / "m.gguf", chat_template=template))
    first, second = (module._remembered_prompt(llama, [USER], {}) for _ in range(2))
    assert first != second


def test_only_the_last_user_message_counts(llama: Llama) -> None:
    messages = [*MESSAGES, {"role": "assistant", "content": "so be it"}]
    prompt = chat_prompt(llama, messages)
    start = turn_start(llama, messages, prompt)
    assert llama.detokenize(prompt[start:]).startswith(b"and on the other user?")
    assert turn_start(llama, MESSAGES[:1], chat_prompt(llama, MESSAGES[:1])) == 0
    assert turn_start(llama, [], chat_prompt(llama, [])) == 0


def test_an_empty_message_is_steered_from_what_follows_it(llama: Llama) -> None:
    messages = [{"role": "user", "content": ""}]
    prompt = chat_prompt(llama, messages)
    assert llama.detokenize(prompt[turn_start(llama, messages, prompt) :], special=True).startswith(b"<|im_end|>")


def test_a_template_that_repeats_the_message_is_steered_from_its_first_place(tmp_path: Path) -> None:
    llama = plain_llama(write_tiny_model(tmp_path / "twice.gguf", chat_template=TWICE))
    prompt = chat_prompt(llama, MESSAGES)
    start = turn_start(llama, MESSAGES, prompt)
    assert llama.detokenize(prompt[start:]) == b"and on the other user?|and on the other user?#"


def test_the_messages_are_left_as_they_are(llama: Llama) -> None:
    messages = [dict(m) for m in MESSAGES]
    turn_start(llama, messages, chat_prompt(llama, messages))
    assert messages == MESSAGES


def test_the_plain_format(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llama = plain_llama(tiny, chat_format=PLAIN_FORMAT)
    prompt = chat_prompt(llama, [*MESSAGES, {"role": "assistant", "content": None}, {"role": "tool", "content": "42"}])
    assert llama.detokenize(prompt).decode() == (
        "Be the tiny model.\n\nUser: Hello there\n\nAssistant: an answer\n\n"
        "User: and on the other user?\n\n42\n\nAssistant:"
    )
    prompt = chat_prompt(llama, MESSAGES)
    start = turn_start(llama, MESSAGES, prompt)
    assert llama.detokenize(prompt[start:]).decode().lstrip() == "and on the other user?\n\nAssistant:"
    assert read_by_the_model(llama, monkeypatch, MESSAGES) == prompt
    stops = llama_chat_format.get_chat_completion_handler(PLAIN_FORMAT)
    seen = {}
    monkeypatch.setattr(llama, "create_completion", lambda **kwargs: seen.update(kwargs) or iter(()))
    stops(llama=llama, messages=MESSAGES, stream=True)
    assert seen["stop"] == ["\nUser:", "\n\nUser"]


def test_the_token_that_ends_a_turn(tmp_path: Path, tiny: Path) -> None:
    """What the template writes behind an answer, of all that end generation; without a template, the text's end."""
    written = (
        "{% for m in messages %}{{ m.content }}{{ '<|endoftext|>' if m.role == 'assistant' else '!' }}{% endfor %}"
    )
    other = write_tiny_model(tmp_path / "other.gguf", chat_template=written)
    bare = write_tiny_model(tmp_path / "bare.gguf", chat_template="{% for m in messages %}{{ m.content }}!{% endfor %}")
    none = write_tiny_model(tmp_path / "none.gguf", chat_template=None)
    im_end, end_of_text = SPECIAL.index("<|im_end|>"), SPECIAL.index("<|endoftext|>")
    ends = [steered_llama(path).turn_end for path in (tiny, other, bare, none)]
    assert ends == [im_end, end_of_text, im_end, im_end]  # im_end is the tiny tokenizer's end of text


def test_the_token_that_ends_the_real_models_turn(smollm2: Path) -> None:
    """llama.cpp's own guess is <|endoftext|>."""
    llama = open_model(smollm2, n_ctx=256, n_threads=1)
    assert llama.detokenize([llama.turn_end], special=True) == b"<|im_end|>"
