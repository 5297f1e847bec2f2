"""An agent in a few lines on Ollama's Python package: root, model, prompt, plain or streamed."""

import sys

import ollama
from tools import SCHEMAS, used

root, model, prompt, how = sys.argv[1:]
client = ollama.Client(root, headers={"authorization": "Bearer dummy"})
tools = [{"type": "function", "function": {"name": n, "parameters": s}} for n, s in SCHEMAS.items()]
messages = [{"role": "user", "content": prompt}]
while True:
    request = {"model": model, "messages": messages, "tools": tools}
    pieces = [client.chat(**request)] if how == "plain" else list(client.chat(**request, stream=True))
    assert pieces[-1].done
    text = "".join(piece.message.content or "" for piece in pieces)
    calls = [call for piece in pieces for call in piece.message.tool_calls or ()]
    if not calls:
        print(text)
        break
    messages.append({"role": "assistant", "content": text, "tool_calls": calls})
    for call in calls:
        result, image = used(call.function.name, call.function.arguments)
        more = {"images": [image]} if image else {}
        messages.append({"role": "tool", "content": result, "tool_name": call.function.name, **more})
