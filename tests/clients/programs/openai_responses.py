"""The same agent on the openai SDK's responses."""

import sys

import openai
from tools import SCHEMAS, used

root, model, prompt, how = sys.argv[1:]
client = openai.OpenAI(base_url=f"{root}/v1", api_key="dummy", max_retries=0)
tools = [{"type": "function", "name": n, "parameters": s, "strict": False} for n, s in SCHEMAS.items()]
items = [{"role": "user", "content": prompt}]
while True:
    request = {"model": model, "input": items, "tools": tools, "store": False}
    if how == "plain":
        response = client.responses.create(**request)
    else:
        with client.responses.stream(**request) as stream:
            response = stream.get_final_response()
    assert response.usage and response.usage.total_tokens
    calls = [item for item in response.output if item.type == "function_call"]
    if not calls:
        print(response.output_text)
        break
    items += [item.model_dump(exclude_none=True, exclude={"parsed_arguments"}) for item in response.output]
    for call in calls:
        text, image = used(call.name, call.arguments)
        output = [{"type": "input_text", "text": text}]
        if image:
            output.append({"type": "input_image", "image_url": f"data:image/png;base64,{image}"})
        items.append({"type": "function_call_output", "call_id": call.call_id, "output": output if image else text})
