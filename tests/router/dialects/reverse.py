"""The reverse translation, for round-trip tests: a chat request as an Anthropic one, Anthropic events as chat chunks.

It covers what both dialects express; cortex has no use for it.
"""

import json
from typing import Any

Json = dict[str, Any]

FINISH = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length", "tool_use": "tool_calls"}


def request(chat: Json) -> Json:
    """Translate a chat request whose message order both dialects allow."""
    body: Json = {"model": chat["model"], "max_tokens": chat.get("max_tokens", 100), "messages": []}
    turns: list[Json] = body["messages"]
    for message in chat["messages"]:
        role, content = message["role"], message.get("content")
        if role == "system" and not turns:
            body["system"] = content
        elif role == "tool":
            block = {"type": "tool_result", "tool_use_id": message["tool_call_id"], "content": content}
            if not turns or turns[-1]["role"] != "user":
                turns.append({"role": "user", "content": []})
            turns[-1]["content"].append(block)
        else:
            blocks = [{"type": "text", "text": content}] if content else []
            blocks += [_use(call) for call in message.get("tool_calls") or ()]
            if role == "user" and turns and turns[-1]["role"] == "user":
                turns[-1]["content"] += blocks
            else:
                turns.append({"role": role, "content": blocks})
    if chat.get("tools"):
        body["tools"] = [_tool(tool["function"]) for tool in chat["tools"]]
    if "stop" in chat:
        body["stop_sequences"] = chat["stop"]
    for name in ("temperature", "top_p", "stream"):
        if name in chat:
            body[name] = chat[name]
    return body


def _use(call: Json) -> Json:
    function = call["function"]
    return {"type": "tool_use", "id": call["id"], "name": function["name"], "input": json.loads(function["arguments"])}


def _tool(function: Json) -> Json:
    return {"name": function["name"], "input_schema": function["parameters"]}


def chunks(events: list[Json]) -> list[Json]:
    """Translate the events of a message into chunks of a chat stream."""
    actual: list[Json] = []
    calls = -1

    def add(delta: Json, finish: str | None = None) -> None:
        actual.append({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})

    for event in events:
        match event["type"]:
            case "message_start":
                add({"role": "assistant", "content": ""})
            case "content_block_start" if event["content_block"]["type"] == "tool_use":
                calls += 1
                block = event["content_block"]
                function = {"name": block["name"], "arguments": ""}
                add({"tool_calls": [{"index": calls, "id": block["id"], "type": "function", "function": function}]})
            case "content_block_delta":
                match event["delta"]:
                    case {"type": "text_delta", "text": text}:
                        add({"content": text})
                    case {"type": "thinking_delta", "thinking": text}:
                        add({"reasoning_content": text})
                    case {"type": "input_json_delta", "partial_json": text}:
                        add({"tool_calls": [{"index": calls, "function": {"arguments": text}}]})
            case "message_delta":
                add({}, FINISH[event["delta"]["stop_reason"]])
                usage = event["usage"]
                prompt = usage["input_tokens"] + usage["cache_read_input_tokens"]
                tokens = {"prompt_tokens": prompt, "completion_tokens": usage["output_tokens"]}
                details = {"cached_tokens": usage["cache_read_input_tokens"]}
                actual.append({"choices": [], "usage": tokens | {"prompt_tokens_details": details}})
    return actual
