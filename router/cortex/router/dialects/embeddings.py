"""An embeddings request, and its answer in the requested encoding.

The OpenAI SDK requests base64 by default; some workers do not support it and send numbers.
"""

import base64
import binascii
import struct
from typing import Annotated, Any

import msgspec

from cortex.functions.passing import Passing, passing
from cortex.router.dialects import gate
from cortex.router.dialects.core import lenient, wire
from cortex.router.dialects.core.chunks import Plain, Usage, map_json_errors, replace_model, tokens
from cortex.router.dialects.core.errors import BadAnswer, BadRequest, Kind
from cortex.router.dialects.core.large_object import Body
from cortex.router.dialects.core.worker_errors import fault_from_error

PLAIN = passing("openai", "embeddings")


class _Params(msgspec.Struct):
    model: str
    input: str | list[str | int | list[int]]
    encoding_format: str | None = None
    dimensions: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)] | None = None


class _Embedding(msgspec.Struct):
    embedding: str | list[float]


class _Answer(msgspec.Struct):
    data: list[_Embedding] | None = None
    model: str | None = None
    usage: Usage | None = None
    error: Any = None


_decoder = msgspec.json.Decoder(_Answer)


class EmbeddingsRequest(msgspec.Struct, frozen=True, kw_only=True):
    model: str
    fields: gate.Fields
    base64: bool
    dimensions: int | None = None
    dropped: tuple[str, ...] = ()

    def body(self, model: str) -> Body:
        """Return the body to send."""
        return wire.write(self.fields, model)

    def plain(self, body: bytes) -> Plain:
        """Return the answer in the requested encoding. Raises `BadAnswer`."""
        with map_json_errors():
            answer, body = lenient.decode(body, _decoder)
        if answer.error or answer.data is None:
            fault = fault_from_error(answer.error or "the worker's answer holds no embeddings")
            raise BadAnswer(fault.message, fault)
        self._check_dimensions(answer.data)
        if any(isinstance(item.embedding, str) is not self.base64 for item in answer.data):
            body = self._convert(body, answer.data)
        return Plain(replace_model(body, answer.model, self.model), tokens(answer.usage))

    def _check_dimensions(self, data: list[_Embedding]) -> None:
        """Raise BadRequest when the server has ignored the requested length."""
        if self.dimensions is None or not data:
            return
        length = len(_unpack(data[0].embedding))
        if length != self.dimensions:
            raise BadRequest(
                f"embeddings of this model have {length} numbers, and its server does not shorten them: leave it out",
                "dimensions",
                Kind.UNSUPPORTED,
            )

    def _convert(self, body: bytes, data: list[_Embedding]) -> bytes:
        with map_json_errors():
            answer: dict[str, Any] = msgspec.json.decode(body)
            for entry, item in zip(answer["data"], data, strict=True):
                entry["embedding"] = _pack(item.embedding) if self.base64 else _unpack(item.embedding)
            return msgspec.json.encode(answer)


@wire.parser
def read(body: bytes, passing: Passing = PLAIN) -> EmbeddingsRequest:
    """Parse a request to `/v1/embeddings`. Raises `BadRequest`."""
    params, fields = wire.read_fields(body, _Params)
    if not params.model:
        raise BadRequest("expected a name", "model")
    if params.encoding_format not in (None, "float", "base64"):
        raise BadRequest("expected float or base64", "encoding_format")
    if not params.input:
        raise BadRequest("expected at least one text", "input")
    if isinstance(params.input, list) and not isinstance(params.input[0], int) and len(params.input) > gate.MAX_INPUTS:
        raise BadRequest(f"expected at most {gate.MAX_INPUTS} texts", "input")
    result = gate.filter_fields(fields, passing)
    return EmbeddingsRequest(
        model=params.model,
        fields=result.fields,
        base64=params.encoding_format == "base64",
        dimensions=params.dimensions,
        dropped=result.dropped,
    )


def _pack(numbers: str | list[float]) -> str:
    if isinstance(numbers, str):
        return numbers
    try:
        return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()
    except (struct.error, OverflowError):
        raise BadAnswer("the worker sent an embedding with a number that is out of range") from None


def _unpack(packed: str | list[float]) -> list[float]:
    if not isinstance(packed, str):
        return packed
    try:
        data = base64.b64decode(packed, validate=True)
        return list(struct.unpack(f"<{len(data) // 4}f", data))
    except (binascii.Error, ValueError, struct.error):
        raise BadAnswer("the worker sent an embedding that is not base64") from None
