"""Read answers as clients do: parse the frames, or let a real SDK accumulate them over a canned transport."""

import json
from collections.abc import Callable, Iterable
from typing import Any

import anthropic
import httpx2
import openai

from cortex.router.dialects.core.sse import SSEDecoder
from cortex.router.dialects.core.stream import Stream

Json = dict[str, Any]


def split(wire: bytes, size: int) -> list[bytes]:
    return [wire[at : at + size] for at in range(0, len(wire), size)]


def run(stream: Stream, pieces: Iterable[bytes]) -> bytes:
    return b"".join([stream.feed(piece) for piece in pieces]) + stream.close()


def replay(stream: Callable[[], Stream], wire: bytes) -> bytes:
    """Return the client's stream; assert that pieces and bytes after its end do not matter."""
    whole = run(stream(), [wire])
    assert run(stream(), split(wire, 1)) == whole
    if wire.endswith(b"data: [DONE]\n\n"):
        assert run(stream(), [wire + b'data: {"choices":[{"delta":{"content":"tail"}}]}\n\nda']) == whole
    return whole


def events(wire: bytes) -> list[Json]:
    """Return the named events; assert that name and type agree."""
    decoder = SSEDecoder()
    frames = decoder.feed(wire) + decoder.close()
    actual: list[Json] = [json.loads(frame.data) for frame in frames]
    assert [frame.event.decode() for frame in frames] == [event["type"] for event in actual]
    return actual


def pieces(wire: bytes) -> list[Json | str]:
    """The data of a chat stream; `[DONE]` stays a string."""
    decoder = SSEDecoder()
    frames = decoder.feed(wire) + decoder.close()
    return [json.loads(frame.data) if frame.data[:1] == b"{" else frame.data.decode() for frame in frames]


class _Canned(httpx2.BaseTransport):
    def __init__(self) -> None:
        self.status, self.body, self.stream, self.headers = 200, b"", False, dict[str, str]()

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        kind = "text/event-stream" if self.stream else "application/json"
        return httpx2.Response(self.status, headers={"content-type": kind} | self.headers, content=self.body)


_canned = _Canned()
_http = httpx2.Client(transport=_canned)
_anthropic = anthropic.Anthropic(api_key="k", base_url="http://test", http_client=_http, max_retries=0)
_openai = openai.OpenAI(api_key="k", base_url="http://test/v1", http_client=_http, max_retries=0)


def _can(body: bytes, stream: bool, status: int = 200) -> None:
    _canned.body, _canned.stream, _canned.status = body, stream, status


def _messages_request() -> Any:
    return {"model": "m", "max_tokens": 100, "messages": [{"role": "user", "content": "hi"}]}


def anthropic_streamed(wire: bytes) -> Json:
    """Return the message that the SDK accumulates from a stream."""
    _can(wire, stream=True)
    with _anthropic.messages.stream(**_messages_request()) as stream:
        return stream.get_final_message().to_dict()


def anthropic_plain(body: bytes, status: int = 200) -> Json:
    _can(body, stream=False, status=status)
    message: anthropic.types.Message = _anthropic.messages.create(**_messages_request())
    return message.to_dict()


def responses_streamed(wire: bytes) -> Json:
    _can(wire, stream=True)
    with _openai.responses.stream(model="m", input="hi") as stream:
        return _openai_dict(stream.get_final_response())


def responses_raw(wire: bytes) -> list[Json]:
    """Return the events of a stream, which may fail or be incomplete."""
    _can(wire, stream=True)
    return [_openai_dict(event) for event in _openai.responses.create(model="m", input="hi", stream=True)]


def responses_plain(body: bytes, status: int = 200) -> Json:
    _can(body, stream=False, status=status)
    return _openai_dict(_openai.responses.create(model="m", input="hi"))


def chat_streamed(wire: bytes) -> Json:
    _can(wire, stream=True)
    messages: Any = [{"role": "user", "content": "hi"}]
    with _openai.chat.completions.stream(model="m", messages=messages) as stream:
        stream.until_done()  # `get_final_completion` raises for a truncated answer
        return _openai_dict(stream.current_completion_snapshot)


def chat_plain(body: bytes, status: int = 200) -> Json:
    _can(body, stream=False, status=status)
    messages: Any = [{"role": "user", "content": "hi"}]
    return _openai_dict(_openai.chat.completions.create(model="m", messages=messages))


def embedded(body: bytes) -> list[float]:
    _can(body, stream=False)
    return _openai.embeddings.create(model="m", input="hi").data[0].embedding


def _openai_dict(value: Any) -> Json:
    # `parsed` belongs to the SDK's own stream helper.
    dumped: Json = json.loads(value.model_dump_json(exclude_none=True, warnings=False))
    return dumped
