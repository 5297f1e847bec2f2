"""Turns the body of a request into the steps of its answer. Pure."""

import base64
import struct
from collections.abc import Callable, Iterable

import msgspec

from cortex.platform.fake_engine.answer import CREATED, chat_answer, embedding, text_answer
from cortex.platform.fake_engine.request import (
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    StreamOptions,
    inputs,
)
from cortex.platform.fake_engine.script import BadScript, Script
from cortex.platform.fake_engine.shapes import SHAPES
from cortex.platform.fake_engine.step import Step

DIMENSIONS = 8

_chat = msgspec.json.Decoder(ChatRequest)
_completion = msgspec.json.Decoder(CompletionRequest)
_embedding = msgspec.json.Decoder(EmbeddingRequest)


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A request's model and the steps of its answer. A step without data is a pause."""

    model: str
    stream: bool
    prompt_tokens: int
    steps: Iterable[Step]
    content_type: str = ""
    """Of an answer that is neither JSON nor a stream in the engine's shape."""


def chat_job(body: bytes, script: Script, model: str) -> Job:
    """`POST /v1/chat/completions`."""
    request = _chat.decode(body)
    if script.refuse_pattern and any(b'"pattern"' in msgspec.json.encode(t.function) for t in request.tools or ()):
        raise BadScript("Failed to parse grammar: JSON schema conversion failed: patterns are not supported")
    shape = SHAPES[script.shape]
    answer = chat_answer(request, script, model)
    return Job(
        model=request.model,
        stream=bool(request.stream),
        prompt_tokens=answer.prompt_tokens,
        steps=shape.chat_stream(answer, with_usage=_wants_usage(request.stream_options))
        if request.stream
        else whole(shape.chat_whole(answer), len(answer.deltas)),
    )


def completion_job(body: bytes, script: Script, model: str) -> Job:
    """`POST /v1/completions`."""
    request = _completion.decode(body)
    shape = SHAPES[script.shape]
    answer = text_answer(request, script, model)
    return Job(
        model=request.model,
        stream=bool(request.stream),
        prompt_tokens=answer.prompt_tokens,
        steps=shape.text_stream(answer, with_usage=_wants_usage(request.stream_options))
        if request.stream
        else whole(shape.text_whole(answer), len(answer.deltas)),
    )


def embedding_job(body: bytes, script: Script, model: str) -> Job:
    """`POST /v1/embeddings`, equal in both shapes."""
    request = _embedding.decode(body)
    texts = inputs(request.input)
    tokens = sum(map(len, texts))
    vectors = [embedding(words, model, request.dimensions or DIMENSIONS) for words in texts]
    data = [
        {
            "index": index,
            "object": "embedding",
            "embedding": _base64(vector) if request.encoding_format == "base64" else vector,
        }
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    payload = {"object": "list", "created": CREATED, "model": model, "data": data, "usage": usage}
    return Job(model=request.model, stream=False, prompt_tokens=tokens, steps=whole(payload, 0))


JOBS: dict[str, Callable[[bytes, Script, str], Job]] = {
    "/v1/chat/completions": chat_job,
    "/v1/completions": completion_job,
    "/v1/embeddings": embedding_job,
}


def whole(payload: dict[str, object], tokens: int) -> list[Step]:
    """Return the steps of an unstreamed answer: the pauses of its tokens, then the whole body."""
    return [*[Step(b"", 1)] * tokens, Step(msgspec.json.encode(payload))]


def _wants_usage(options: StreamOptions | None) -> bool:
    return bool(options and options.include_usage)


def _base64(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
