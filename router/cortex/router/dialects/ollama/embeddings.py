"""Ollama's two embeddings requests as a worker's: `/api/embed`, and the older `/api/embeddings` of one text."""

from typing import Annotated

import msgspec

from cortex.functions.passing import Passing
from cortex.router.dialects import embeddings, gate
from cortex.router.dialects.core import wire
from cortex.router.dialects.core.chunks import Plain, map_json_errors
from cortex.router.dialects.core.errors import BadRequest
from cortex.router.dialects.core.large_object import Body


class _Embed(msgspec.Struct):
    model: str
    input: str | list[str]
    dimensions: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)] | None = None


class _Older(msgspec.Struct):
    model: str
    prompt: str


class _Data(msgspec.Struct):
    embedding: list[float]


class _Answer(msgspec.Struct):
    data: list[_Data]


class Embedded(msgspec.Struct):
    """The answer of `/api/embed`."""

    model: str
    embeddings: list[list[float]]
    prompt_eval_count: int


class EmbedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A parsed request; `is_older`: its answer has one embedding."""

    request: embeddings.EmbeddingsRequest
    is_older: bool = False
    dropped: tuple[str, ...] = ()

    def body(self, model: str) -> Body:
        """Return the body to send."""
        return self.request.body(model)

    def plain(self, body: bytes) -> Plain:
        """Return the answer in Ollama's form. Raises BadAnswer."""
        plain = self.request.plain(body)
        with map_json_errors():
            vectors = [one.embedding for one in msgspec.json.decode(plain.body, type=_Answer).data]
        if self.is_older:
            return Plain(msgspec.json.encode({"embedding": vectors[0] if vectors else []}), plain.tokens)
        embedded = Embedded(self.request.model, vectors, plain.tokens.input)
        return Plain(msgspec.json.encode(embedded), plain.tokens)


@wire.parser
def read(body: bytes, passing: Passing = embeddings.PLAIN) -> EmbedRequest:
    """Parse a request to `/api/embed`. Raises BadRequest."""
    params, fields = wire.read_fields(body, _Embed)
    request = _request(params.model, {"input": params.input, "dimensions": params.dimensions}, passing)
    unused = gate.unused_fields(fields, frozenset(_Embed.__struct_fields__))
    return EmbedRequest(request=request, is_older=False, dropped=(*request.dropped, *unused))


@wire.parser
def read_older(body: bytes, passing: Passing = embeddings.PLAIN) -> EmbedRequest:
    """Parse a request to `/api/embeddings`. Raises BadRequest."""
    params, fields = wire.read_fields(body, _Older)
    if not params.prompt:
        raise BadRequest("expected a text", "prompt")
    request = _request(params.model, {"input": params.prompt}, passing)
    unused = gate.unused_fields(fields, frozenset(_Older.__struct_fields__))
    return EmbedRequest(request=request, is_older=True, dropped=(*request.dropped, *unused))


def _request(model: str, fields: dict[str, object], passing: Passing) -> embeddings.EmbeddingsRequest:
    """Return the same request in OpenAI's form."""
    sent = {"model": model, "encoding_format": "float", **{k: v for k, v in fields.items() if v is not None}}
    return embeddings.read(msgspec.json.encode(sent), passing)
