"""Answers in llama-server's wire form (b6000 to b9900).

Its characteristics: the role chunk has a null content; reasoning is `reasoning_content`; the finish is a separate chunk
with an empty delta; `timings` are in the last chunk; each chunk names the build; all ids begin with `chatcmpl-`, also
those of text completions.
"""

from collections.abc import Iterator

from cortex.platform.fake_engine.answer import CREATED, Answer, Arguments, Call, Delta, Say, Think
from cortex.platform.fake_engine.step import DONE, Step, event

BUILD = "b9000-fake0000"


class LlamaShape:
    """llama-server's wire form."""

    content_type = "text/event-stream"
    headers_first = False

    def chat_stream(self, answer: Answer, *, with_usage: bool) -> Iterator[Step]:
        """Yield the role, the deltas, the finish, the usage if requested, and the end."""
        tail = _tail(answer, "chat.completion.chunk")

        def chunk(delta: dict[str, object], tokens: int, finish: str | None = None, **last: object) -> Step:
            choice = {"finish_reason": finish, "index": 0, "delta": delta}
            return event({"choices": [choice], **tail, **last}, tokens=tokens)

        yield chunk({"role": "assistant", "content": None}, 0)
        for delta in answer.deltas:
            yield chunk(_delta(delta), 1)
        if with_usage:
            yield chunk({}, 0, answer.finish)
            yield event({"choices": [], **tail, "usage": _usage(answer), "timings": _timings(answer)})
        else:
            yield chunk({}, 0, answer.finish, timings=_timings(answer))
        yield DONE

    def chat_whole(self, answer: Answer) -> dict[str, object]:
        """Return the same answer unstreamed."""
        message: dict[str, object] = {"role": "assistant"}
        message["content"] = answer.content if answer.content or not answer.calls else None
        if answer.reasoning:
            message["reasoning_content"] = answer.reasoning
        if answer.calls:
            message["tool_calls"] = [
                {
                    "type": "function",
                    "function": {"name": call.name, "arguments": answer.arguments(call)},
                    "id": call.digest,
                }
                for call in answer.calls
            ]
        choice = {"finish_reason": answer.finish, "index": 0, "message": message}
        return {
            "choices": [choice],
            **_tail(answer, "chat.completion"),
            "usage": _usage(answer),
            "timings": _timings(answer),
        }

    def text_stream(self, answer: Answer, *, with_usage: bool) -> Iterator[Step]:
        """Yield the texts, the finish with usage and timings, and the end."""
        tail = _tail(answer, "text_completion")
        for delta in answer.deltas:
            yield event({"choices": [_text_choice(_text(delta), None)], **tail}, tokens=1)
        last = {"usage": _usage(answer), "timings": _timings(answer)}
        yield event({"choices": [_text_choice("", answer.finish)], **tail, **last})
        yield DONE

    def text_whole(self, answer: Answer) -> dict[str, object]:
        """Return the same continuation unstreamed."""
        return {
            "choices": [_text_choice(answer.content, answer.finish)],
            **_tail(answer, "text_completion"),
            "usage": _usage(answer),
            "timings": _timings(answer),
        }

    def model_list(self, model: str) -> dict[str, object]:
        """Return the body of `GET /v1/models`, which has Ollama's list and OpenAI's."""
        entry = {"id": model, "object": "model", "created": CREATED, "owned_by": "llamacpp"}
        return {"models": [{"name": model, "model": model}], "object": "list", "data": [entry]}


def _tail(answer: Answer, kind: str) -> dict[str, object]:
    return {
        "created": CREATED,
        "id": f"chatcmpl-{answer.digest}",
        "model": answer.model,
        "system_fingerprint": BUILD,
        "object": kind,
    }


def _usage(answer: Answer) -> dict[str, object]:
    tokens = len(answer.deltas)
    return {
        "completion_tokens": tokens,
        "prompt_tokens": answer.prompt_tokens,
        "total_tokens": answer.prompt_tokens + tokens,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def _timings(answer: Answer) -> dict[str, object]:
    tokens = len(answer.deltas)
    return {
        "cache_n": 0,
        **_rate("prompt", answer.prompt_tokens, answer.ttft_s * 1000),
        **_rate("predicted", tokens, tokens / answer.tps * 1000 if answer.tps else 0.0),
    }


def _rate(phase: str, tokens: int, duration_ms: float) -> dict[str, object]:
    return {
        f"{phase}_n": tokens,
        f"{phase}_ms": duration_ms,
        f"{phase}_per_token_ms": duration_ms / tokens if tokens else 0.0,
        f"{phase}_per_second": tokens / duration_ms * 1000 if duration_ms else 0.0,
    }


def _delta(delta: Delta) -> dict[str, object]:
    match delta:
        case Think(text):
            return {"reasoning_content": text}
        case Say(text):
            return {"content": text}
        case Call(digest, name, index):
            identity = {"index": index, "id": digest, "type": "function"}
            return {"tool_calls": [{**identity, "function": {"name": name}}]}
        case Arguments(text, index):
            return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}


def _text_choice(text: str, finish: str | None) -> dict[str, object]:
    return {"text": text, "index": 0, "logprobs": None, "finish_reason": finish}


def _text(delta: Delta) -> str:
    return delta.text if isinstance(delta, Say) else ""
