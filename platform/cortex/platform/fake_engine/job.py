"""A request made ready to serve: body in, steps out. Pure, so that the server has only paths, pace and sockets."""

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
    """What was asked for by name, and all that will be sent for it. Steps without data only take their time."""

    model: str
    stream: bool
    prompt_tokens: int
    steps: Iterable[Step]


def chat_job(body: bytes, script: Script, model: str) -> Job:
    """`POST /v1/chat/completions`."""
    asked = _chat.decode(body)
    if script.refuse_pattern and any(b'"pattern"' in msgspec.json.encode(t.function) for t in asked.tools or ()):
        raise BadScript("Failed to parse grammar: JSON schema conversion failed: patterns are not supported")
    shape = SHAPES[script.shape]
    answer = chat_answer(asked, script, model)
    return Job(
        model=asked.model,
        stream=bool(asked.stream),
        prompt_tokens=answer.prompt_tokens,
        steps=shape.chat_stream(answer, with_usage=_wants_usage(asked.stream_options))
        if asked.stream
        else _whole(shape.chat_whole(answer), len(answer.deltas)),
    )


def completion_job(body: bytes, script: Script, model: str) -> Job:
    """`POST /v1/completions`."""
    asked = _completion.decode(body)
    shape = SHAPES[script.shape]
    answer = text_answer(asked, script, model)
    return Job(
        model=asked.model,
        stream=bool(asked.stream),
        prompt_tokens=answer.prompt_tokens,
        steps=shape.text_stream(answer, with_usage=_wants_usage(asked.stream_options))
        if asked.stream
        else _whole(shape.text_whole(answer), len(answer.deltas)),
    )


def embedding_job(body: bytes, script: Script, model: str) -> Job:
    """`POST /v1/embeddings`: the same wording in both shapes."""
    asked = _embedding.decode(body)
    texts = inputs(asked.input)
    tokens = sum(map(len, texts))
    vectors = [embedding(words, model, asked.dimensions or DIMENSIONS) for words in texts]
    data = [
        {
            "index": index,
            "object": "embedding",
            "embedding": _base64(vector) if asked.encoding_format == "base64" else vector,
        }
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    whole = {"object": "list", "created": CREATED, "model": model, "data": data, "usage": usage}
    return Job(model=asked.model, stream=False, prompt_tokens=tokens, steps=_whole(whole, 0))


JOBS: dict[str, Callable[[bytes, Script, str], Job]] = {
    "/v1/chat/completions": chat_job,
    "/v1/completions": completion_job,
    "/v1/embeddings": embedding_job,
}


def _whole(payload: dict[str, object], tokens: int) -> list[Step]:
    """An answer that takes the time of its tokens and comes in one piece."""
    return [*[Step(b"", 1)] * tokens, Step(msgspec.json.encode(payload))]


def _wants_usage(options: StreamOptions | None) -> bool:
    return bool(options and options.include_usage)


def _base64(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
