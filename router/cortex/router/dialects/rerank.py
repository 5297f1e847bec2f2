"""A rerank request: engines agree on its shape. The name of the model is changed, both ways, and texts alone pass."""

from typing import Any

import msgspec

from cortex.functions.passing import Passing, passing
from cortex.router.dialects import gate
from cortex.router.dialects.chat.answer import renamed
from cortex.router.dialects.core import images, wire
from cortex.router.dialects.core.chunks import Plain, Usage, sense, tokens
from cortex.router.dialects.core.errors import BadAnswer, BadRequest, Kind
from cortex.router.dialects.core.worker_errors import fault_from_error

PLAIN = passing("openai", "rerank")


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


class RerankRequest(msgspec.Struct, frozen=True, kw_only=True):
    model: str
    fields: gate.Fields
    dropped: tuple[str, ...] = ()

    def body(self, model: str) -> bytes:
        """What to send."""
        return wire.write(self.fields, model)

    def plain(self, body: bytes) -> Plain:
        """The worker's answer; raises `BadAnswer`."""
        with sense():
            answer = msgspec.json.decode(body, type=_Answer)
        if answer.error or answer.results is None:
            fault = fault_from_error(answer.error or "the worker's answer holds no results")
            raise BadAnswer(fault.message, fault)
        return Plain(renamed(body, answer.model, self.model), tokens(answer.usage))


@wire.parser
def read(body: bytes, passing: Passing = PLAIN) -> RerankRequest:
    """A request to `/v1/rerank`; raises `BadRequest`."""
    said = wire.read(body, _Wire)
    if not said.model:
        raise BadRequest("expected a name", "model")
    if not said.documents:
        raise BadRequest("expected at least one document", "documents")
    if len(said.documents) > gate.MAX_INPUTS:
        raise BadRequest(f"expected at most {gate.MAX_INPUTS} documents", "documents")
    for index, document in enumerate(said.documents):
        if isinstance(document, dict):
            _check(document, passing, f"documents[{index}]")
    passed = gate.admit(msgspec.json.decode(body, type=gate.Fields), passing)
    return RerankRequest(model=said.model, fields=passed.fields, dropped=passed.dropped)


def _check(document: dict[str, Any], passing: Passing, at: str) -> None:
    """A document is its text; contents of other kinds pass where an operator says so, as data."""
    for name in document.keys() - {"text"}:
        if f"documents.{name}" not in passing.allow:
            raise BadRequest("only the text of a document is taken here", f"{at}.{name}", Kind.UNSUPPORTED)
        images.refuse_addresses(document[name], f"{at}.{name}")
