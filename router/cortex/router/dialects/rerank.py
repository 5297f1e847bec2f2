"""A rerank request, which has one format for all engines: the model's name is replaced, and documents are text only."""

from typing import Any

import msgspec

from cortex.functions.passing import Passing, passing
from cortex.router.dialects import gate
from cortex.router.dialects.core import images, lenient, wire
from cortex.router.dialects.core.chunks import Plain, Usage, map_json_errors, replace_model, tokens
from cortex.router.dialects.core.errors import BadAnswer, BadRequest, Kind
from cortex.router.dialects.core.large_object import Body
from cortex.router.dialects.core.worker_errors import fault_from_error

PLAIN = passing("openai", "rerank")


class _Params(msgspec.Struct):
    model: str
    query: str
    documents: list[str | dict[str, Any]]
    top_n: int | None = None


class _Answer(msgspec.Struct):
    results: list[Any] | None = None
    model: str | None = None
    usage: Usage | None = None
    error: Any = None


_decoder = msgspec.json.Decoder(_Answer)


class RerankRequest(msgspec.Struct, frozen=True, kw_only=True):
    model: str
    fields: gate.Fields
    dropped: tuple[str, ...] = ()

    def body(self, model: str) -> Body:
        """Return the body to send."""
        return wire.write(self.fields, model)

    def plain(self, body: bytes) -> Plain:
        """Return the answer with the client's model name. Raises `BadAnswer`."""
        with map_json_errors():
            answer, body = lenient.decode(body, _decoder)
        if answer.error or answer.results is None:
            fault = fault_from_error(answer.error or "the worker's answer holds no results")
            raise BadAnswer(fault.message, fault)
        return Plain(replace_model(body, answer.model, self.model), tokens(answer.usage))


@wire.parser
def read(body: bytes, passing: Passing = PLAIN) -> RerankRequest:
    """Parse a request to `/v1/rerank`. Raises `BadRequest`."""
    params, fields = wire.read_fields(body, _Params)
    if not params.model:
        raise BadRequest("expected a name", "model")
    if not params.documents:
        raise BadRequest("expected at least one document", "documents")
    if len(params.documents) > gate.MAX_INPUTS:
        raise BadRequest(f"expected at most {gate.MAX_INPUTS} documents", "documents")
    for index, document in enumerate(params.documents):
        if isinstance(document, dict):
            _check(document, passing, f"documents[{index}]")
    result = gate.filter_fields(fields, passing)
    return RerankRequest(model=params.model, fields=result.fields, dropped=result.dropped)


def _check(document: dict[str, Any], passing: Passing, at: str) -> None:
    """Raise BadRequest for a field besides `text` that the operator does not allow, or for an address in one."""
    for name in document.keys() - {"text"}:
        if f"documents.{name}" not in passing.allow:
            raise BadRequest("only the text of a document is accepted", f"{at}.{name}", Kind.UNSUPPORTED)
        images.refuse_addresses(document[name], f"{at}.{name}")
