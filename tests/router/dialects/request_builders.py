"""Build minimal requests of each dialect, with the fields of a test added."""

import json
from typing import Any

import pytest

from cortex.router.dialects.chat import request as chat
from cortex.router.dialects.core.errors import BadRequest, Fault
from cortex.router.dialects.core.traits import Traits
from cortex.router.dialects.messages import request as messages
from cortex.router.dialects.responses import request as responses

Json = dict[str, Any]

PLAIN = Traits()
INLINE = Traits(inline_system=True)
VISION = Traits(vision=True)
THINKING = Traits(reasoning_field="reasoning_content")

PNG = "iVBORw0KGgo="


def user(*content: Any) -> Json:
    return {
        "role": "user",
        "content": content[0] if len(content) == 1 and isinstance(content[0], str) else list(content),
    }


def assistant(*content: Any) -> Json:
    return user(*content) | {"role": "assistant"}


def text(content: str) -> Json:
    return {"type": "text", "text": content}


def image() -> Json:
    return {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}


def use(id: str, name: str = "f", **input: Any) -> Json:
    return {"type": "tool_use", "id": id, "name": name, "input": input}


def result(id: str, content: Any = "done", **more: Any) -> Json:
    return {"type": "tool_result", "tool_use_id": id, "content": content} | more


def tool(name: str = "f", **more: Any) -> Json:
    return {"name": name, "description": "d", "input_schema": {"type": "object", "properties": {}}} | more


def messages_body(**fields: Any) -> bytes:
    base = {"model": "m", "max_tokens": 4096, "messages": [user("hi")]}
    return json.dumps(base | fields).encode()


def messages_request(traits: Traits = PLAIN, **fields: Any) -> messages.MessagesRequest:
    return messages.read(messages_body(**fields), traits)


def responses_request(traits: Traits = PLAIN, **fields: Any) -> responses.ResponsesRequest:
    return responses.read(json.dumps({"model": "m", "input": "hi"} | fields).encode(), traits)


def chat_request(traits: Traits = PLAIN, **fields: Any) -> chat.ChatRequest:
    base = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    return chat.read(json.dumps(base | fields).encode(), traits)


def body_of(parsed: messages.MessagesRequest | responses.ResponsesRequest | chat.ChatRequest) -> Json:
    """Return the body that the worker receives."""
    actual: Json = json.loads(bytes(parsed.body("worker")))
    return actual


def refusal_of(ask: Any, **fields: Any) -> Fault:
    """Return the fault of a request that must be refused."""
    with pytest.raises(BadRequest) as caught:
        ask(**fields)
    return caught.value.fault()
