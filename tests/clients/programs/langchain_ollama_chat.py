"""An agent in a few lines on LangChain's class for Ollama: root, model, prompt, plain or streamed."""

import sys

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_ollama import ChatOllama
from tools import SCHEMAS, used

root, model, prompt, how = sys.argv[1:]
tools = [{"type": "function", "function": {"name": n, "description": n, "parameters": s}} for n, s in SCHEMAS.items()]
headers = {"headers": {"authorization": "Bearer dummy"}}
chat = ChatOllama(model=model, base_url=root, client_kwargs=headers, validate_model_on_init=True).bind_tools(tools)
messages = [HumanMessage(prompt)]
while True:
    if how == "plain":
        answer = chat.invoke(messages)
    else:
        pieces = list(chat.stream(messages))
        answer = sum(pieces[1:], pieces[0])
    if not answer.tool_calls:
        print(answer.content)
        break
    messages.append(answer)
    for call in answer.tool_calls:
        text, image = used(call["name"], call["args"])
        messages.append(ToolMessage(text, tool_call_id=call["id"]))
        if image:
            url = {"url": f"data:image/png;base64,{image}"}
            messages.append(HumanMessage([{"type": "text", "text": "see"}, {"type": "image_url", "image_url": url}]))
