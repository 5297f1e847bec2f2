"""A rerank request: engines agree on its shape, so only the name of the model is changed, both ways."""

from typing import Any

import msgspec

from cortex.router.dialects import wire
from cortex.router.dialects.chat_answer import renamed
from cortex.router.dialects.chunks import Plain, Usage, sense, tokens
from cortex.router.dialects.errors import BadAnswer, BadRequest
from cortex.router.dialects.worker_errors import fault_from_error


class _Wire(msgspec.Struct):
    model: str
    query: str
    documents: list[str | dict[str, Any]]
    top_n: int | None = None


class _Answer(msgspec.Struct):
    results: list[Any] | None = None
    model: str | None = None
    usage: Usage | None = None
    error: Any = None


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    model: str
    whole: bytes

    def body(self, model: str) -> bytes:
        """What to send."""
        return wire.renamed(self.whole, self.model, model)

    def plain(self, body: bytes) -> Plain:
        """The worker's answer; raises `BadAnswer`."""
        with sense():
            answer = msgspec.json.decode(body, type=_Answer)
        if answer.error or answer.results is None:
            fault = fault_from_error(answer.error or "the worker's answer holds no results")
            raise BadAnswer(fault.message, fault)
        return Plain(renamed(body, answer.model, self.model), tokens(answer.usage))


@wire.parser
def read(body: bytes) -> Asked:
    """A request to `/v1/rerank`; raises `BadRequest`."""
    said = wire.read(body, _Wire)
    if not said.model:
        raise BadRequest("expected a name", "model")
    if not said.documents:
        raise BadRequest("expected at least one document", "documents")
    return Asked(model=said.model, whole=body)
