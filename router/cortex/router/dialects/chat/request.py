"""A chat completions request on its way to a worker that speaks the same dialect.

What is sent is written from the fields that were read, so that a body which says a thing twice reaches the worker
saying it once. A field's own bytes stay as the client wrote them, but for one of these reasons: the worker has another
name for the model; usage is asked for on every stream; the prompt's hygiene; the template, engine or function cannot
take the field as it is; it holds what does not pass (`gate.py`). What passes and nothing here depends on is the
worker's to judge.
"""

from typing import Annotated, Any

import msgspec

from cortex.functions.capabilities import Sampling
from cortex.router.dialects import gate
from cortex.router.dialects.chat import messages as chat_messages
from cortex.router.dialects.chat.stream import Reply
from cortex.router.dialects.core import conversation, grammar, wire
from cortex.router.dialects.core.errors import BadRequest
from cortex.router.dialects.core.traits import Traits

_Count = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _JsonSchema(msgspec.Struct):
    schema: dict[str, Any] | None = None


class _Format(msgspec.Struct):
    type: str
    json_schema: _JsonSchema | None = None


class _Shared(msgspec.Struct):
    """What chat and legacy completions have in common."""

    model: str
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=gate.MAX_CHOICES)] | None = None
    max_tokens: _Count | None = None
    prompt_cache_key: str | None = None
    user: str | None = None


class _Chat(_Shared, kw_only=True):
    messages: list[chat_messages.Message]
    max_completion_tokens: _Count | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    reasoning_effort: str | None = None
    response_format: _Format | None = None


class _Completion(_Shared, kw_only=True):
    prompt: str | list[str | int | list[str | int]]
    best_of: Annotated[int, msgspec.Meta(ge=1, le=20)] | None = None


Fields = dict[str, msgspec.Raw]
Tools = list[dict[str, Any]]


class ChatRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request that was understood. `usage_is_ours`: the client did not ask, so it is not shown. `limit_is_ours`: it
    named no limit, so one that does not fit is made smaller, not refused."""

    model: str
    stream: bool
    max_tokens: int | None
    choices: int
    usage_is_ours: bool
    limit_is_ours: bool
    fields: Fields
    dropped: tuple[str, ...] = ()
    affinity: str | None = None
    notes: tuple[str, ...] = ()

    def body(self, model: str, max_tokens: int | None = None) -> bytes:
        """What to send; `max_tokens` replaces what the client asked for."""
        fields = self.fields
        if max_tokens is not None:
            name = "max_completion_tokens" if "max_completion_tokens" in fields else "max_tokens"
            fields = fields | {name: raw(max_tokens)}
        return wire.write(fields, model)

    def count(self, model: str) -> bytes:
        """What to send to a worker that only counts or templates the prompt."""
        prompt = {name: self.fields[name] for name in conversation.PROMPT_FIELDS if name in self.fields}
        return msgspec.json.encode({"model": raw(model), **prompt})

    def answer(self, id: str, created: int, input_tokens: int | None = None) -> Reply:
        """How to answer it."""
        return Reply(id=id, model=self.model, choices=self.choices, usage_is_ours=self.usage_is_ours)


@wire.parser
def read(body: bytes, traits: Traits) -> ChatRequest:
    """A request to `/v1/chat/completions`; raises `BadRequest`."""
    said, fields, trimmed = _decode(body)
    if not said.messages:
        raise BadRequest("at least one message is required", "messages")
    unlisted = chat_messages.check(said.messages, traits)
    passed = gate.admit(fields, traits.passing)
    fields = passed.fields
    changes: Fields = {}
    dropped: set[str] = set()
    messages = chat_messages.rewritten(said.messages, fields["messages"], traits, trim=bool(unlisted))
    if messages is not None:
        changes["messages"] = msgspec.Raw(wire.encode_parts(messages))
    names = [*passed.dropped, *trimmed, *unlisted]
    if said.response_format is not None:
        grammar.check_format(said.response_format.type, msgspec.json.decode(fields["response_format"]))
    if said.tools:
        said.tools = _fit_tools(said.tools, fields["tools"], changes, names)
    _change_tools(said, traits, changes, dropped)
    _change_effort(said, traits, changes, dropped)
    if said.response_format is not None and said.response_format.type == "json_schema" and not traits.json_schema:
        schema = said.response_format.json_schema
        changes["response_format"] = raw(conversation.json_format((schema and schema.schema) or {}, traits))
    asked = said.max_tokens if said.max_completion_tokens is None else said.max_completion_tokens
    limit = traits.each(asked, said.n or 1)
    twice = said.max_tokens is not None and said.max_completion_tokens is not None
    if limit != asked or twice or (said.max_completion_tokens is not None and not traits.max_completion_tokens):
        dropped.add("max_completion_tokens")
        changes["max_tokens"] = raw(limit)
    _bound_least(fields, limit, changes)
    _fill_in(fields, traits.sampling, changes)
    return _asked(said, fields, changes, dropped, limit, asked is None, names)


def _decode(body: bytes) -> tuple[_Chat, Fields, list[str]]:
    """The request, its fields, and the names of what its messages held that does not pass.

    Messages that hold no more than passes are the rule, and are read once.
    """
    try:
        return wire.read(body, _Chat), msgspec.json.decode(body, type=Fields), []
    except wire.UnknownField:
        fields = msgspec.json.decode(body, type=Fields)
        fields["messages"], trimmed = gate.plain_messages(fields["messages"])
        return wire.read(msgspec.json.encode(fields), _Chat), fields, trimmed


def _fit_tools(
    tools: list[dict[str, Any]], given: msgspec.Raw, changes: Fields, names: list[str]
) -> list[dict[str, Any]]:
    looser = grammar.fit(tools, given)
    if looser is None:
        return tools
    changes["tools"] = raw(looser)
    names.append("tools.function.parameters")
    return looser


def _bound_least(fields: Fields, limit: int | None, changes: Fields) -> None:
    """The least that may be written is no more than the most."""
    if limit is None or "min_tokens" not in fields:
        return
    least = msgspec.json.decode(fields["min_tokens"])
    if isinstance(least, (int, float)) and least > limit:
        changes["min_tokens"] = raw(limit)


@wire.parser
def read_completion(body: bytes, traits: Traits) -> ChatRequest:
    """A request to the legacy `/v1/completions`; raises `BadRequest`."""
    said = wire.read(body, _Completion)
    passed = gate.admit(msgspec.json.decode(body, type=Fields), traits.passing)
    fields = passed.fields
    changes: Fields = {}
    prompts = len(said.prompt) if _is_batch(said.prompt) else 1
    answers = prompts * max(said.n or 1, said.best_of or 1)
    if answers > gate.MAX_CHOICES:
        raise BadRequest(f"expected at most {gate.MAX_CHOICES} answers: prompts times n or best_of", "prompt")
    asked = said.max_tokens
    if asked is None and traits.max_output_tokens is not None and traits.default_output_tokens is None:
        asked = traits.completion_tokens
    limit = traits.each(asked, answers)
    if limit != said.max_tokens:
        changes["max_tokens"] = raw(limit)
    _bound_least(fields, limit, changes)
    if "response_format" in fields:
        form = msgspec.json.decode(fields["response_format"])
        grammar.check_format(str(form.get("type")) if isinstance(form, dict) else "", form)
    _fill_in(fields, traits.sampling, changes)
    return _asked(said, fields, changes, set(), limit, said.max_tokens is None, list(passed.dropped), prompts)


def _asked(
    said: _Shared,
    fields: Fields,
    changes: Fields,
    dropped: set[str],
    limit: int | None,
    limit_is_ours: bool,
    names: list[str],
    prompts: int = 1,
) -> ChatRequest:
    if not said.model:
        raise BadRequest("expected a name", "model")
    wanted = said.stream_options is not None and bool(said.stream_options.include_usage)
    if said.stream and not wanted:
        changes["stream_options"] = raw(_with_usage(fields.get("stream_options")))
    dropped &= fields.keys()
    kept = {name: value for name, value in fields.items() if name not in dropped}
    return ChatRequest(
        model=said.model,
        stream=bool(said.stream),
        max_tokens=limit,
        choices=(said.n or 1) * prompts,
        usage_is_ours=bool(said.stream) and not wanted,
        limit_is_ours=limit_is_ours,
        fields=kept | changes,
        dropped=tuple(names),
        affinity=said.prompt_cache_key or said.user,
    )


def _with_usage(options: msgspec.Raw | None) -> dict[str, Any]:
    given: dict[str, Any] | None = msgspec.json.decode(options) if options is not None else None
    return {**(given or {}), "include_usage": True}


def _is_batch(prompt: str | list[Any]) -> bool:
    """A list of prompts; a list of numbers is one prompt, of tokens."""
    return isinstance(prompt, list) and bool(prompt) and not isinstance(prompt[0], int)


def _change_tools(said: _Chat, traits: Traits, changes: Fields, dropped: set[str]) -> None:
    tools, choice = said.tools, said.tool_choice
    if tools is None:
        return
    if not tools:  # an empty list is an error to vLLM, and a choice without tools to others
        dropped.update(("tools", "tool_choice", "parallel_tool_calls"))
        return
    if not isinstance(choice, dict):
        return
    if choice.get("type") == "allowed_tools":
        allowed = choice.get("allowed_tools")
        spec = allowed if isinstance(allowed, dict) else choice
        named = spec.get("tools")
        names = {_name(one) for one in named if isinstance(one, dict)} if isinstance(named, list) else set()
        changes["tools"] = raw([tool for tool in tools if _name(tool) in names])
        changes["tool_choice"] = raw("required" if spec.get("mode") == "required" else "auto")
    elif choice.get("type") == "function" and not traits.named_tool_choice:
        only = [tool for tool in tools if _name(tool) == _name(choice)]
        if not only:
            raise BadRequest("names a tool that is not in tools", "tool_choice.function.name")
        changes["tools"], changes["tool_choice"] = raw(only), raw("required")


def _name(tool: dict[str, Any]) -> object:
    function = tool.get("function") or tool.get("custom")
    return function.get("name") if isinstance(function, dict) else tool.get("name")


def _change_effort(said: _Chat, traits: Traits, changes: Fields, dropped: set[str]) -> None:
    effort = said.reasoning_effort
    if effort is None:
        return
    known = traits.effort.get(effort)
    if known is None:
        dropped.add("reasoning_effort")
    elif known != effort:
        changes["reasoning_effort"] = raw(known)


def _fill_in(fields: Fields, sampling: Sampling, changes: Fields) -> None:
    for name in Sampling.__struct_fields__:
        value = getattr(sampling, name)
        if value is not None and bytes(fields.get(name, b"null")) == b"null":
            changes[name] = raw(value)


def raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))
