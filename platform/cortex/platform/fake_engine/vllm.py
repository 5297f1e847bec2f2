"""Answers in vLLM's wire form (0.11 to 0.33).

Its characteristics: the role chunk has an empty content; reasoning is `reasoning`; the finish is in the last token's
chunk, which is empty for "stop", because the end-of-sequence token has no text; the usage chunk has no choices;
unstreamed answers have every field, including nulls.
"""

from collections.abc import Iterator

from cortex.platform.fake_engine.answer import CREATED, Answer, Arguments, Call, Delta, Say, Think
from cortex.platform.fake_engine.step import DONE, Step, event


class VllmShape:
    """vLLM's wire form."""

    content_type = "text/event-stream; charset=utf-8"
    headers_first = True

    def chat_stream(self, answer: Answer, *, with_usage: bool) -> Iterator[Step]:
        """Yield the role, the deltas, the finish, the usage if requested, and the end."""
        head = _head(answer, f"chatcmpl-{answer.digest}", "chat.completion.chunk")

        def chunk(delta: dict[str, object], tokens: int, **finish: object) -> Step:
            choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None, **finish}
            return event({**head, "choices": [choice]}, tokens=tokens)

        finish = {"finish_reason": answer.finish, "stop_reason": None}
        deltas, ending = _split_ending(answer)
        yield chunk({"role": "assistant", "content": ""}, 0)
        for delta in deltas:
            yield chunk(_delta(delta), 1)
        yield chunk(_delta(ending), 1, **finish) if ending else chunk({"content": ""}, 0, **finish)
        if with_usage:
            yield event({**head, "choices": [], "usage": _usage(answer)})
        yield DONE

    def chat_whole(self, answer: Answer) -> dict[str, object]:
        """Return the same answer unstreamed."""
        message = {
            "role": "assistant",
            "content": answer.content if answer.content or not answer.calls else None,
            "refusal": None,
            "annotations": None,
            "audio": None,
            "function_call": None,
            "tool_calls": _tool_calls(answer),
            "reasoning": answer.reasoning or None,
        }
        choice = {
            "index": 0,
            "message": message,
            "logprobs": None,
            "finish_reason": answer.finish,
            "stop_reason": None,
            "token_ids": None,
        }
        return {
            **_head(answer, f"chatcmpl-{answer.digest}", "chat.completion"),
            "choices": [choice],
            "service_tier": None,
            "system_fingerprint": None,
            "usage": {**_usage(answer), "prompt_tokens_details": None},
            "prompt_logprobs": None,
            "prompt_token_ids": None,
            "kv_transfer_params": None,
        }

    def text_stream(self, answer: Answer, *, with_usage: bool) -> Iterator[Step]:
        """Yield the texts, the finish, the usage if requested, and the end."""
        head = _head(answer, f"cmpl-{answer.digest}", "text_completion")

        def chunk(text: str, tokens: int, finish: str | None) -> Step:
            choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish, "stop_reason": None}
            return event({**head, "choices": [choice]}, tokens=tokens)

        deltas, ending = _split_ending(answer)
        for delta in deltas:
            yield chunk(_text(delta), 1, None)
        yield chunk(_text(ending), 1, answer.finish) if ending else chunk("", 0, answer.finish)
        if with_usage:
            yield event({**head, "choices": [], "usage": _usage(answer)})
        yield DONE

    def text_whole(self, answer: Answer) -> dict[str, object]:
        """Return the same continuation unstreamed."""
        choice = {
            "index": 0,
            "text": answer.content,
            "logprobs": None,
            "finish_reason": answer.finish,
            "stop_reason": None,
            "prompt_logprobs": None,
        }
        return {
            **_head(answer, f"cmpl-{answer.digest}", "text_completion"),
            "choices": [choice],
            "service_tier": None,
            "system_fingerprint": None,
            "usage": {**_usage(answer), "prompt_tokens_details": None},
            "kv_transfer_params": None,
        }

    def model_list(self, model: str) -> dict[str, object]:
        """Return the body of `GET /v1/models`."""
        entry = {
            "id": model,
            "object": "model",
            "created": CREATED,
            "owned_by": "vllm",
            "root": model,
            "parent": None,
            "max_model_len": 32768,
        }
        return {"object": "list", "data": [entry]}


def _split_ending(answer: Answer) -> tuple[tuple[Delta, ...], Delta | None]:
    """Return the deltas, and separately the one in whose chunk the finish is, if there is one."""
    if answer.finish == "length" and answer.deltas:
        return answer.deltas[:-1], answer.deltas[-1]
    return answer.deltas, None


def _head(answer: Answer, identity: str, kind: str) -> dict[str, object]:
    return {"id": identity, "object": kind, "created": CREATED, "model": answer.model}


def _usage(answer: Answer) -> dict[str, object]:
    tokens = len(answer.deltas)
    return {
        "prompt_tokens": answer.prompt_tokens,
        "total_tokens": answer.prompt_tokens + tokens,
        "completion_tokens": tokens,
    }


def _delta(delta: Delta) -> dict[str, object]:
    match delta:
        case Think(text):
            return {"reasoning": text}
        case Say(text):
            return {"content": text}
        case Call(digest, name, index):
            identity = {"id": f"chatcmpl-tool-{digest}", "type": "function"}
            return {"tool_calls": [{**identity, "index": index, "function": {"name": name}}]}
        case Arguments(text, index):
            return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}


def _tool_calls(answer: Answer) -> list[dict[str, object]]:
    return [
        {
            "id": f"chatcmpl-tool-{call.digest}",
            "type": "function",
            "function": {"name": call.name, "arguments": answer.arguments(call)},
        }
        for call in answer.calls
    ]


def _text(delta: Delta) -> str:
    return delta.text if isinstance(delta, Say) else ""
