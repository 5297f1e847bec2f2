"""A chat on LlamaIndex's class for Ollama, with calls of tools: root, model, prompt, plain or streamed."""

import sys

from llama_index.core.llms import ChatMessage, ImageBlock, MessageRole, TextBlock
from llama_index.core.tools import FunctionTool
from llama_index.llms.ollama import Ollama
from ollama import Client
from tools import used

root, model, prompt, how = sys.argv[1:]


def run(command: str) -> str:
    """Run a command."""
    return used("run", {"command": command})[0]


def look(path: str) -> str:
    """Look at an image."""
    return used("look", {"path": path})[1]


tools = [FunctionTool.from_defaults(run), FunctionTool.from_defaults(look)]
chat = Ollama(
    model=model, base_url=root, client=Client(root, headers={"authorization": "Bearer dummy"}), request_timeout=60
)
assert chat.metadata.context_window
messages = [ChatMessage(role=MessageRole.USER, content=prompt)]
while True:
    if how == "plain":
        answer = chat.chat_with_tools(tools, chat_history=messages)
    else:
        *_, answer = chat.stream_chat_with_tools(tools, chat_history=messages)  # each has all of the text so far
    calls = chat.get_tool_calls_from_response(answer, error_on_no_tool_call=False)
    if not calls:
        print(answer.message.content)
        break
    messages.append(answer.message)
    for call in calls:
        text, image = used(call.tool_name, call.tool_kwargs)
        more = {"tool_call_id": call.tool_id}
        messages.append(ChatMessage(role=MessageRole.TOOL, content=text, additional_kwargs=more))
        if image:
            blocks = [TextBlock(text="see"), ImageBlock(image=image.encode())]
            messages.append(ChatMessage(role=MessageRole.USER, blocks=blocks))
