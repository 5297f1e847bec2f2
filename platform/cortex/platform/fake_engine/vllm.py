"""Answers as vLLM words them (0.11 to 0.33).

Its marks: the role chunk has an empty content; reasoning is `reasoning`; the finish rides on the last token's
chunk, which is an empty one for "stop", because the end-of-sequence token has no text; the usage chunk has no
choices; whole answers carry every field, nulls and all.
"""

from collections.abc import Iterator

from cortex.platform.fake_engine.answer import CREATED, Answer, Arguments, Call, Delta, Say, Think
from cortex.platform.fake_engine.step import DONE, Step, event


class VllmShape:
    """vLLM's wording."""

    content_type = "text/event-stream; charset=utf-8"
    headers_first = True

    def chat_stream(self, answer: Answer, *, with_usage: bool) -> Iterator[Step]:
        """Role, deltas, finish, usage if asked for, done."""
        head = _head(answer, f"chatcmpl-{answer.digest}", "chat.completion.chunk")

        def chunk(delta: dict[str, object], tokens: int, **finish: object) -> Step:
            choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None, **finish}
            return event({**head, "choices": [choice]}, tokens=tokens)

        finish = {"finish_reason": answer.finish, "stop_reason": None}
        deltas, ending = _ending_apart(answer)
        yield chunk({"role": "assistant", "content": ""}, 0)
        for delta in deltas:
            yield chunk(_delta(delta), 1)
        yield chunk(_delta(ending), 1, **finish) if ending else chunk({"content": ""}, 0, **finish)
        if with_usage:
            yield event({**head, "choices": [], "usage": _usage(answer)})
        yield DONE

    def chat_whole(self, answer: Answer) -> dict[str, object]:
        """The same answer in one piece."""
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
        """Texts, finish, usage if asked for, done."""
        head = _head(answer, f"cmpl-{answer.digest}", "text_completion")

        def chunk(text: str, tokens: int, finish: str | None) -> Step:
            choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish, "stop_reason": None}
            return event({**head, "choices": [choice]}, tokens=tokens)

        deltas, ending = _ending_apart(answer)
        for delta in deltas:
            yield chunk(_text(delta), 1, None)
        yield chunk(_text(ending), 1, answer.finish) if ending else chunk("", 0, answer.finish)
        if with_usage:
            yield event({**head, "choices": [], "usage": _usage(answer)})
        yield DONE

    def text_whole(self, answer: Answer) -> dict[str, object]:
        """The same continuation in one piece."""
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
        """`GET /v1/models`."""
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


def _ending_apart(answer: Answer) -> tuple[tuple[Delta, ...], Delta | None]:
    """The deltas, and apart from them the one that carries the finish, if a token does."""
    if answer.finish == "length" and answer.deltas:
        return answer.deltas[:-1], answer.deltas[-1]
    return answer.deltas, None


def _head(answer: Answer, identity: str, kind: str) -> dict[str, object]:
    return {"id": identity, "object": kind, "created": CREATED, "model": answer.model}


def _usage(answer: Answer) -> dict[str, object]:
    said = len(answer.deltas)
    return {
        "prompt_tokens": answer.prompt_tokens,
        "total_tokens": answer.prompt_tokens + said,
        "completion_tokens": said,
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
