"""Build answers of workers, streamed and whole, in the formats of vLLM and llama-server."""

import json
from typing import Any

Json = dict[str, Any]


def chunk(finish: str | None = None, *, stop_reason: object = None, usage: Json | None = None, **delta: Any) -> Json:
    """A chunk as vLLM writes it."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish, "stop_reason": stop_reason}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "worker",
        "choices": [choice],
        "usage": usage,
    }


def llama_chunk(finish: str | None = None, **delta: Any) -> Json:
    """A chunk as llama-server writes it."""
    choice = {"finish_reason": finish, "index": 0, "delta": delta}
    return {
        "choices": [choice],
        "created": 1,
        "id": "chatcmpl-1",
        "model": "worker",
        "system_fingerprint": "b1",
        "object": "chat.completion.chunk",
    }


def counted(prompt: int = 10, completion: int = 5, cached: int | None = None) -> Json:
    usage: Json = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
    if cached is not None:
        usage["prompt_tokens_details"] = {"cached_tokens": cached}
    return usage


def usage_chunk(usage: Json | None = None) -> Json:
    return chunk() | {"choices": [], "usage": usage or counted()}


def call(
    index: int | None = 0, id: str | None = None, name: str | None = None, arguments: Any = None
) -> dict[str, Any]:
    """One delta of a tool call; None omits a field."""
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    delta: Json = {"function": function}
    if index is not None:
        delta["index"] = index
    if id is not None:
        delta |= {"id": id, "type": "function"}
    return {"tool_calls": [delta]}


def wire(*chunks: Json, done: bool = True) -> bytes:
    frames = [b"data: " + json.dumps(item, ensure_ascii=False).encode() + b"\n\n" for item in chunks]
    return b"".join(frames) + b"data: [DONE]\n\n" * done


def small_stream(text: str = "Hello", finish: str = "stop") -> bytes:
    """A small, complete stream."""
    return wire(chunk(role="assistant", content=""), chunk(content=text), chunk(finish), usage_chunk())


def completion(
    finish: str | None = "stop", *, stop_reason: object = None, usage: Json | None = None, **message: Any
) -> bytes:
    """A whole answer."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": None} | message,
        "finish_reason": finish,
        "stop_reason": stop_reason,
    }
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "worker",
        "choices": [choice],
        "usage": usage or counted(),
    }
    return json.dumps(body).encode()


def whole_call(id: str, name: str, arguments: Any) -> Json:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
