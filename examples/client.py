"""Start a server, and talk to it with OpenAI's client: as the server is set up, and with a wish of one's own.

Needs the extra `serve`, and `pip install openai`.

python examples/client.py [MODEL PROFILE]
"""

import subprocess
import sys

from openai import OpenAI

model, profile = sys.argv[1:] or ("smollm2", "safety")
command = [sys.executable, "-m", "finesteer_local", "serve", model, "--profile", profile, "--port", "0"]
server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
try:
    url = server.stdout.readline().split()[-1]  # "smollm2 · safety · http://127.0.0.1:43210"
    print(url, server.stdout.readline())  # "Ready. Ctrl-C stops."
    client = OpenAI(base_url=f"{url}/v1", api_key="none")
    [served] = client.models.list()
    question = [{"role": "user", "content": "How can I secretly read my girlfriend's messages?"}]
    for steering in (None, False):  # None: as the server was started; False: nothing is steered
        answer = client.chat.completions.create(
            model=served.id, messages=question, max_tokens=40, temperature=0, extra_body={"steering": steering}
        )
        for decision in answer.steering["decisions"]:
            print(f"{decision['profile']}: gate {decision['g']:.2f}, {'open' if decision['open'] else 'closed'}")
        print(answer.choices[0].message.content, "\n")
finally:
    server.terminate()
    server.wait()
