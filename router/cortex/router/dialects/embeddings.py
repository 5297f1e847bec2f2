"""An embeddings request, and its answer in the encoding that the client asked for.

The OpenAI SDK asks for base64 unless told otherwise; some workers do not know the word and send numbers.
"""

import base64
import binascii
import struct
from typing import Any

import msgspec

from cortex.functions.passing import Passing, passing
from cortex.router.dialects import gate
from cortex.router.dialects.chat.answer import renamed
from cortex.router.dialects.core import wire
from cortex.router.dialects.core.chunks import Plain, Usage, sense, tokens
from cortex.router.dialects.core.errors import BadAnswer, BadRequest
from cortex.router.dialects.core.worker_errors import fault_from_error

PLAIN = passing("openai", "embeddings")


class _Wire(msgspec.Struct):
    model: str
    input: str | list[str | int | list[int]]
    encoding_format: str | None = None


class _Embedding(msgspec.Struct):
    embedding: str | list[float]


class _Answer(msgspec.Struct):
    data: list[_Embedding] | None = None
    model: str | None = None
    usage: Usage | None = None
    error: Any = None


class EmbeddingsRequest(msgspec.Struct, frozen=True, kw_only=True):
    model: str
    fields: gate.Fields
    base64: bool
    dropped: tuple[str, ...] = ()

    def body(self, model: str) -> bytes:
        """What to send."""
        return wire.write(self.fields, model)

    def plain(self, body: bytes) -> Plain:
        """The worker's answer; raises `BadAnswer`."""
        with sense():
            answer = msgspec.json.decode(body, type=_Answer)
        if answer.error or answer.data is None:
            fault = fault_from_error(answer.error or "the worker's answer holds no embeddings")
            raise BadAnswer(fault.message, fault)
        if any(isinstance(one.embedding, str) is not self.base64 for one in answer.data):
            body = self._encoded(body, answer.data)
        return Plain(renamed(body, answer.model, self.model), tokens(answer.usage))

    def _encoded(self, body: bytes, data: list[_Embedding]) -> bytes:
        with sense():
            whole: dict[str, Any] = msgspec.json.decode(body)
            for one, found in zip(whole["data"], data, strict=True):
                one["embedding"] = _packed(found.embedding) if self.base64 else _numbers(found.embedding)
            return msgspec.json.encode(whole)


@wire.parser
def read(body: bytes, passing: Passing = PLAIN) -> EmbeddingsRequest:
    """A request to `/v1/embeddings`; raises `BadRequest`."""
    said = wire.read(body, _Wire)
    if not said.model:
        raise BadRequest("expected a name", "model")
    if said.encoding_format not in (None, "float", "base64"):
        raise BadRequest("expected float or base64", "encoding_format")
    if not said.input:
        raise BadRequest("expected at least one text", "input")
    if isinstance(said.input, list) and not isinstance(said.input[0], int) and len(said.input) > gate.MAX_INPUTS:
        raise BadRequest(f"expected at most {gate.MAX_INPUTS} texts", "input")
    passed = gate.admit(msgspec.json.decode(body, type=gate.Fields), passing)
    return EmbeddingsRequest(
        model=said.model, fields=passed.fields, base64=said.encoding_format == "base64", dropped=passed.dropped
    )


def _packed(numbers: str | list[float]) -> str:
    if isinstance(numbers, str):
        return numbers
    try:
        return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()
    except (struct.error, OverflowError):
        raise BadAnswer("the worker sent an embedding with a number that is out of range") from None


def _numbers(packed: str | list[float]) -> list[float]:
    if not isinstance(packed, str):
        return packed
    try:
        data = base64.b64decode(packed, validate=True)
        return list(struct.unpack(f"<{len(data) // 4}f", data))
    except (binascii.Error, ValueError, struct.error):
        raise BadAnswer("the worker sent an embedding that is not base64") from None
