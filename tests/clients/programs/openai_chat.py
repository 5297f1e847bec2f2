"""An agent in a few lines on the openai SDK's chat completions: root, model, prompt, plain or streamed."""

import sys

import openai
from tools import SCHEMAS, used

root, model, prompt, how = sys.argv[1:]
client = openai.OpenAI(base_url=f"{root}/v1", api_key="dummy", max_retries=0)
tools = [{"type": "function", "function": {"name": n, "parameters": s}} for n, s in SCHEMAS.items()]
messages = [{"role": "user", "content": prompt}]
while True:
    request = {"model": model, "messages": messages, "tools": tools}
    if how == "plain":
        message = client.chat.completions.create(**request).choices[0].message
    else:
        with client.chat.completions.stream(**request, stream_options={"include_usage": True}) as stream:
            completion = stream.get_final_completion()
        assert completion.usage and completion.usage.total_tokens
        message = completion.choices[0].message
    if not message.tool_calls:
        print(message.content)
        break
    calls = [
        c.model_dump(include={"id": True, "type": True, "function": {"name", "arguments"}}) for c in message.tool_calls
    ]
    messages.append({"role": "assistant", "content": message.content, "tool_calls": calls})
    for call in message.tool_calls:
        text, image = used(call.function.name, call.function.arguments)
        content = [{"type": "text", "text": text}]
        if image:
            content.append({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}})
        messages.append({"role": "tool", "tool_call_id": call.id, "content": content if image else text})
