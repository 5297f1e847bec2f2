"""The same agent on the anthropic SDK."""

import sys

import anthropic
from tools import SCHEMAS, used

root, model, prompt, how = sys.argv[1:]
client = anthropic.Anthropic(base_url=root, api_key="dummy", max_retries=0)
tools = [{"name": n, "input_schema": s} for n, s in SCHEMAS.items()]
messages = [{"role": "user", "content": prompt}]
while True:
    request = {"model": model, "messages": messages, "tools": tools, "max_tokens": 1000}
    if how == "plain":
        message = client.messages.create(**request)
    else:
        with client.messages.stream(**request) as stream:
            message = stream.get_final_message()
    assert message.usage.output_tokens
    messages.append({"role": "assistant", "content": [b.model_dump(exclude_none=True) for b in message.content]})
    calls = [block for block in message.content if block.type == "tool_use"]
    if not calls:
        print("".join(block.text for block in message.content if block.type == "text"))
        break
    results = []
    for call in calls:
        text, image = used(call.name, call.input)
        content = [{"type": "text", "text": text}]
        if image:
            source = {"type": "base64", "media_type": "image/png", "data": image}
            content.append({"type": "image", "source": source})
        results.append({"type": "tool_result", "tool_use_id": call.id, "content": content})
    messages.append({"role": "user", "content": results})
