"""Chat templates with thoughts and tools, in brief, by what they do to a prompt."""

from __future__ import annotations

# Qwen3's way: tool results come inside a user turn; thoughts before the last question are dropped; the model opens
# its thoughts itself, unless `enable_thinking` is false.
QWEN3 = (
    "{%- if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{%- for message in messages %}"
    "{%- if message.role == 'tool' %}"
    "<|im_start|>user\n<tool_response>\n{{ message.content }}\n</tool_response><|im_end|>\n"
    "{%- elif message.role == 'assistant' %}<|im_start|>assistant\n"
    "{{ (message.content or '').split('</think>')[-1] }}"
    "{%- for call in message.tool_calls or [] %}<tool_call>\n{{ call.function | tojson }}\n</tool_call>{% endfor %}"
    "<|im_end|>\n"
    "{%- else %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{%- endif %}{% endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# DeepSeek R1's way: no line ends around the parts, and the generation prompt opens the thoughts.
R1 = (
    "{%- for message in messages %}"
    "{%- if message.role == 'user' %}<|im_start|>{{ message.content }}"
    "{%- elif message.role == 'tool' %}[result]{{ message.content }}[end]"
    "{%- else %}<|im_end|>{{ (message.content or '').split('</think>')[-1] }}"
    "{%- for call in message.tool_calls or [] %}[call]{{ call.function.name }}{% endfor %}<|endoftext|>"
    "{%- endif %}{% endfor %}"
    "{%- if add_generation_prompt %}<|im_end|><think>\n{% endif %}"
)

CALL = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"place": "Rome"}'}}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
        },
    }
]


def with_tool(result: str = "It rains in Rome.", question: str = "Do I need a coat?") -> list[dict]:
    """A question, the model's call, and its result; the answer is due."""
    return [
        {"role": "user", "content": question},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "1", "content": result},
    ]
