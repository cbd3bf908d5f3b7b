"""Chat with a steered model; an empty line ends it.

python examples/chat.py [MODEL PROFILE]
"""

import sys

from finesteer_local import catalog, open_model

model, profile = sys.argv[1:] or ("smollm2", "safety")
llama = open_model(catalog.resolve_model(model))
llama.set_profiles(catalog.resolve_profile(profile, llama.identity))
messages = []
while question := input("> "):
    messages.append({"role": "user", "content": question})
    answer = llama.create_chat_completion(messages, max_tokens=200)["choices"][0]["message"]
    messages.append(answer)
    print(answer["content"], "[steered]" if llama.last_decision.open else "[not steered]")
