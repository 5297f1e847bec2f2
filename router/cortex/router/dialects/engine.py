"""Engines' own routes: requests to a worker's tokenizer, template, infill, scores and state, and the parts of the
answers that clients see. Pure.

The routes are an allowlist (`own` in `functions/servers.py`), and so are their fields (`functions/passing.py`). A name
in a request selects a function; the path that a worker gets is always one of the constants here. `/props` and `/slots`
show no prompt, no path and no argument of a host.
"""

from collections.abc import Callable, Set
from typing import Annotated, Any
from urllib.parse import parse_qs

import msgspec
from msgspec import Struct

from cortex.functions.passing import FIELDS
from cortex.router.dialects import gate
from cortex.router.dialects.chat import request as chat
from cortex.router.dialects.core import lenient, wire
from cortex.router.dialects.core.chunks import Plain, Tokens, Usage, count, map_json_errors, replace_model, tokens
from cortex.router.dialects.core.chunks import truncation as truncated_answer
from cortex.router.dialects.core.errors import BadAnswer, BadRequest, Dialect, Fault, openai_error
from cortex.router.dialects.core.large_object import Body
from cortex.router.dialects.core.sse import Event, comment
from cortex.router.dialects.core.stream import FrameStream, is_empty
from cortex.router.dialects.core.traits import Traits

UPSTREAM = "/upstream/"
"""Before a function's name and one of the paths, for clients that send no model."""
STATES = ("/props", "/slots")
"""A worker's reports about itself, by GET."""


class Route(Struct, frozen=True):
    """One route by POST: its dialect, and the worker's path."""

    dialect: Dialect
    path: str


ROUTES = {
    "/tokenize": Route("tokenize", "/tokenize"),
    "/detokenize": Route("detokenize", "/detokenize"),
    "/apply-template": Route("apply_template", "/apply-template"),
    "/infill": Route("infill", "/infill"),
    "/score": Route("score", "/score"),
    "/v1/score": Route("score", "/score"),
    "/pooling": Route("pooling", "/pooling"),
    "/v1/pooling": Route("pooling", "/pooling"),
}
"""By the client's path."""
PATHS = (*ROUTES, *STATES)


def below(path: str) -> tuple[str, str] | None:
    """Split `/upstream/NAME/PATH` into the function's name and one of `PATHS`; None for any other path."""
    rest = path.removeprefix(UPSTREAM)
    if rest == path:
        return None
    for known in sorted(PATHS, key=len, reverse=True):
        if rest.endswith(known) and (name := rest.removesuffix(known)):
            return name, known
    return None


def model_in(query: bytes) -> str:
    """Return the model of a query string; empty without one."""
    try:
        return parse_qs(query.decode("latin-1"), max_num_fields=20).get("model", [""])[0]
    except ValueError:
        return ""


def no_name() -> BadRequest:
    """Return the error for a request that names no function."""
    return BadRequest(f"field required, or ?model=NAME, or the path {UPSTREAM}NAME/…", "model")


_Texts = str | list[str]


class _Params(Struct):
    """The fields of all routes."""

    model: str | None = None
    messages: Any = None
    content: str | list[str | int] | None = None
    tokens: list[int] | None = None
    prompt: str | list[int] | None = None
    input_prefix: str | None = None
    input_suffix: str | None = None
    n_predict: Annotated[int, msgspec.Meta(ge=-1, le=2**31 - 1)] | None = None
    """Of infill: the output limit. -1 is none."""
    stream: bool | None = None
    text_1: _Texts | None = None
    text_2: _Texts | None = None
    queries: _Texts | None = None
    documents: _Texts | None = None
    input: str | list[str | int | list[int]] | None = None


class EngineRequest(Struct, frozen=True, kw_only=True):
    """A request to send. `dropped` are the fields that are not forwarded."""

    model: str
    fields: gate.Fields
    stream: bool = False
    dropped: tuple[str, ...] = ()

    def body(self, model: str) -> Body:
        """Return the body to send."""
        return wire.write(self.fields, model)

    def answer(self) -> "Reply":
        return Reply(self.model)


@wire.parser
def with_name(body: bytes, name: str) -> tuple[str, bytes]:
    """Return the function's name, and the body with it; a `name` from the path or the query takes precedence. Raises
    BadRequest."""
    params, fields = wire.read_fields(body, _Model)
    name = name or params.model or ""
    if not name:
        raise no_name()
    return name, bytes(wire.write(fields | {"model": msgspec.Raw(b"null")}, name))


class _Model(Struct):
    model: str | None = None


@wire.parser
def read(route: Route, body: bytes, traits: Callable[[Dialect], Traits]) -> EngineRequest:
    """Parse a request to a route. Raises BadRequest."""
    params, fields = wire.read_fields(body, _Params)
    model = params.model or ""
    passing = traits(route.dialect).passing
    if route.dialect == "apply_template" or (params.messages is not None and "prompt" in passing.fields):
        parsed = chat.read(body, traits("chat"))
        return EngineRequest(model=model, fields=parsed.prompt(), dropped=parsed.dropped)
    if route.dialect == "infill":
        fields.pop("n_predict", None)
    result = gate.filter_fields(fields, passing)
    _check(_REQUIRED[route.dialect], params, result.fields, passing.fields)
    limit = None
    if route.dialect == "infill":
        limit = traits("infill").output_tokens(None if params.n_predict == -1 else params.n_predict)
    changed = {} if limit is None else {"n_predict": msgspec.Raw(msgspec.json.encode(limit))}
    return EngineRequest(
        model=model, fields=result.fields | changed, stream=bool(params.stream), dropped=result.dropped
    )


_REQUIRED: dict[Dialect, tuple[tuple[str, ...], ...]] = {
    "tokenize": (("content",), ("prompt",)),
    "detokenize": (("tokens",),),
    "infill": (("input_prefix", "input_suffix"),),
    "score": (("text_1", "text_2"), ("queries", "documents")),
    "pooling": (("input",),),
}
"""Groups of fields: a request has those of one group that its server takes."""


def _check(groups: tuple[tuple[str, ...], ...], params: _Params, fields: gate.Fields, taken: Set[str]) -> None:
    """Raise BadRequest for a request that lacks its route's fields, and for one with too many texts."""
    missing = [
        [name for name in group if name not in fields or getattr(params, name) is None]
        for group in groups
        if taken >= set(group)
    ]
    if missing and all(missing):
        raise BadRequest("field required", missing[0][0])
    for name in ("text_1", "text_2", "queries", "documents", "input"):
        value = getattr(params, name)
        if isinstance(value, list) and len(value) > gate.MAX_INPUTS and not isinstance(value[0], int):
            raise BadRequest(f"expected at most {gate.MAX_INPUTS} texts", name)


class _Answer(Struct):
    model: str | None = None
    usage: Usage | None = None
    stop: bool | None = None
    tokens_evaluated: int | None = None
    tokens_predicted: int | None = None
    error: Any = None


_decoder = msgspec.json.Decoder(_Answer)


def _tokens(answer: _Answer) -> Tokens:
    if answer.tokens_evaluated is None and answer.tokens_predicted is None:
        return tokens(answer.usage)
    return Tokens(input=count(answer.tokens_evaluated), output=count(answer.tokens_predicted))


class Reply(Struct, frozen=True):
    """The worker's answer with the client's name of the model."""

    model: str

    def plain(self, body: bytes) -> Plain:
        """Return the answer. Raises BadAnswer."""
        with map_json_errors():
            answer, body = lenient.decode(body, _decoder)
        return Plain(replace_model(body, answer.model, self.model), _tokens(answer))

    def stream(self, request_id: str | None = None) -> "InfillStream":
        return InfillStream()


class InfillStream(FrameStream):
    """llama.cpp's stream of an infill: events without names, of which the last one has `stop`."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = Tokens()

    def fit(self, max_tokens: int | None, input_tokens: int | None) -> None:
        """Do nothing: no event has a limit or a count of cortex's."""

    def open(self) -> bytes:
        return b""

    def ping(self, reason: str = "") -> bytes:
        return comment(reason or "waiting") + b"\n" if not self.over else b""

    def _relay(self, frame: Event, out: list[bytes]) -> None:
        if is_empty(frame.data):
            return
        with map_json_errors():
            answer, data = lenient.decode(frame.data, _decoder)
        if answer.error is not None:
            raise BadAnswer("the worker reported an error in its stream")
        self._rough_tokens += 1
        if answer.stop:
            self.over, self.tokens = True, _tokens(answer)
        out.append(b"data: %b\n\n" % data)

    def _relay_last(self, frame: Event, out: list[bytes]) -> None:
        if not self.over and frame.data.endswith(b"}"):
            self._relay(frame, out)

    def _end(self, out: list[bytes]) -> None:
        raise truncated_answer()

    def _encode_fault(self, fault: Fault) -> bytes:
        return b"data: %b\n\n" % msgspec.json.encode(openai_error(fault))


# A worker's reports about itself.

_SETTINGS = FIELDS["llama"]["infill"] - {
    "model", "prompt", "input_prefix", "input_suffix", "stream", "grammar", "json_schema", "stop", "logit_bias",
}  # fmt: skip
"""Those that hold no text: some versions report the settings of a slot's last request."""


class _Generation(Struct, omit_defaults=True):
    n_ctx: int | None = None
    params: dict[str, Any] | None = None


class _Props(Struct, omit_defaults=True):
    """The fields of llama-server's `/props` that clients see."""

    default_generation_settings: _Generation | None = None
    total_slots: int | None = None
    model_alias: str | None = None
    model_path: str | None = None
    """llama.cpp's web page shows it as the model's name, so it contains the name and no path."""
    modalities: dict[str, bool] | None = None
    chat_template: str | None = None
    chat_template_caps: dict[str, bool] | None = None
    bos_token: str | None = None
    eos_token: str | None = None
    build_info: str | None = None


class _Slot(Struct):
    """The fields of a slot that clients see: none describes a request."""

    id: int
    n_ctx: int | None = None
    is_processing: bool = False


def visible_part(path: str, body: bytes, name: str) -> bytes:
    """Return the part of a worker's answer at one of `STATES` that clients see; `name` is the client's for the
    model. Raises BadAnswer."""
    with map_json_errors():
        if path == "/slots":
            return msgspec.json.encode(lenient.decode(body, _slots)[0])
        props = lenient.decode(body, _props)[0]
    settings = props.default_generation_settings
    if settings is not None and settings.params is not None:
        settings.params = {k: v for k, v in settings.params.items() if k in _SETTINGS and not isinstance(v, dict)}
    props.model_alias = props.model_path = name
    return msgspec.json.encode(props)


_slots = msgspec.json.Decoder(list[_Slot])
_props = msgspec.json.Decoder(_Props)
