"""A chat completions request for a worker of the same dialect.

The body to send is encoded from the parsed fields, so a duplicate field reaches the worker once. Each field keeps the
client's bytes except: the model's name; usage, requested on every stream; the billing header; values that the template,
engine or function does not accept; and content that is not allowed (`gate.py`). The worker validates the rest.
"""

from typing import Annotated, Any

import msgspec

from cortex.functions.capabilities import Sampling
from cortex.router.dialects import gate
from cortex.router.dialects.chat import messages as chat_messages
from cortex.router.dialects.chat.stream import Reply
from cortex.router.dialects.core import conversation, grammar, wire
from cortex.router.dialects.core.errors import BadRequest
from cortex.router.dialects.core.large_object import Body
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
    """Fields of both chat and legacy completions."""

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
    """A parsed request. `usage_is_ours`: only cortex requested usage, so it is hidden. `limit_is_ours`: the client set
    no limit, so one that does not fit is reduced, not refused."""

    model: str
    stream: bool
    max_tokens: int | None
    choices: int
    usage_is_ours: bool
    limit_is_ours: bool
    limit_field: str
    fields: Fields
    dropped: tuple[str, ...] = ()
    affinity: str | None = None
    cuts: tuple[str, ...] = ()
    completes: bool = False

    def body(self, model: str, max_tokens: int | None = None) -> Body:
        """Return the body to send; `max_tokens` replaces the client's limit."""
        fields = self.fields
        if max_tokens is not None:
            name = "max_completion_tokens" if "max_completion_tokens" in fields else "max_tokens"
            fields = fields | {name: raw(max_tokens)}
        return wire.write(fields, model)

    def prompt(self) -> Fields:
        """Return the fields that determine the prompt; of several prompts, the longest."""
        prompt = {name: self.fields[name] for name in conversation.PROMPT_FIELDS if name in self.fields}
        if "prompt" in self.fields:
            prompt["prompt"] = raw(_longest(msgspec.json.decode(self.fields["prompt"])))
        return prompt

    def count(self, model: str) -> Body:
        """Return the body for a worker's tokenizer endpoint."""
        return wire.write(self.prompt(), model)

    def answer(self, id: str, created: int) -> Reply:
        return Reply(id=id, model=self.model, choices=self.choices, usage_is_ours=self.usage_is_ours)


@wire.parser
def read(body: bytes, traits: Traits) -> ChatRequest:
    """Parse a request to `/v1/chat/completions`. Raises `BadRequest`."""
    params, fields, message_fields = _decode(body)
    if not params.messages:
        raise BadRequest("at least one message is required", "messages")
    part_fields = chat_messages.check(params.messages, traits)
    result = gate.filter_fields(fields, traits.passing)
    fields = result.fields
    changes: Fields = {}
    dropped: set[str] = set()
    messages = chat_messages.rewrite(params.messages, fields["messages"], traits, trim=bool(part_fields))
    if messages is not None:
        changes["messages"] = msgspec.Raw(wire.encode_parts(messages))
    names = [*result.dropped, *message_fields, *part_fields]
    if not _CHANGED.isdisjoint(fields):
        _change(params, fields, traits, changes, dropped, names)
    client_limit = params.max_tokens if params.max_completion_tokens is None else params.max_completion_tokens
    limit = traits.limit_per_answer(client_limit, params.n or 1)
    has_newer = params.max_completion_tokens is not None
    if limit != client_limit or (has_newer and params.max_tokens is not None):
        dropped.add("max_completion_tokens")
        changes["max_tokens"] = raw(limit)
    if "min_tokens" in fields:
        _clamp_min_tokens(fields, limit, changes)
    _fill_in(fields, traits.sampling, changes)
    if traits.template_kwargs:
        _fill_in_template(fields, traits, changes)
    return _build(params, fields, changes, dropped, limit, client_limit is None, names)


_CHANGED = frozenset({"response_format", "tools", "tool_choice", "reasoning_effort"})
"""The fields that `_change` looks at. Most requests have none of them."""


def _change(
    params: _Chat, fields: Fields, traits: Traits, changes: Fields, dropped: set[str], names: list[str]
) -> None:
    """Change tools, effort and format to what the worker takes. Raises BadRequest."""
    if params.response_format is not None:
        grammar.check_format(params.response_format.type, msgspec.json.decode(fields["response_format"]))
    if params.tools:
        params.tools = _loosen_tools(params.tools, fields["tools"], changes, names)
    _change_tools(params, traits, changes, dropped)
    _change_effort(params, traits, changes, dropped)
    if params.response_format is not None and params.response_format.type == "json_schema" and not traits.json_schema:
        schema = params.response_format.json_schema
        changes["response_format"] = raw(conversation.json_format((schema and schema.schema) or {}, traits))


def _decode(body: bytes) -> tuple[_Chat, Fields, list[str]]:
    """Return the parsed request, its fields, and the names of dropped message fields. Long strings in the parsed
    messages, which are checked only, are cut.

    Messages are parsed once unless they have fields that are not allowed.
    """
    try:
        return *wire.read_fields(body, _Chat, partly="messages"), []
    except wire.UnknownField:
        fields = msgspec.json.decode(body, type=Fields)
        fields["messages"], message_fields = gate.plain_messages(fields["messages"])
        return *wire.read_fields(msgspec.json.encode(fields), _Chat, partly="messages"), message_fields


def _loosen_tools(
    tools: list[dict[str, Any]], raw_tools: msgspec.Raw, changes: Fields, names: list[str]
) -> list[dict[str, Any]]:
    looser = grammar.fit(tools, raw_tools)
    if looser is None:
        return tools
    changes["tools"] = raw(looser)
    names.append("tools.function.parameters")
    return looser


def _clamp_min_tokens(fields: Fields, limit: int | None, changes: Fields) -> None:
    """Reduce `min_tokens` to the limit."""
    if limit is None:
        return
    min_tokens = msgspec.json.decode(fields["min_tokens"])
    if isinstance(min_tokens, (int, float)) and min_tokens > limit:
        changes["min_tokens"] = raw(limit)


@wire.parser
def read_completion(body: bytes, traits: Traits) -> ChatRequest:
    """Parse a request to the legacy `/v1/completions`. Raises `BadRequest`."""
    params, fields = wire.read_fields(body, _Completion)
    result = gate.filter_fields(fields, traits.passing)
    fields = result.fields
    changes: Fields = {}
    prompts = len(params.prompt) if _is_batch(params.prompt) else 1
    answers = prompts * max(params.n or 1, params.best_of or 1)
    if answers > gate.MAX_CHOICES:
        raise BadRequest(f"expected at most {gate.MAX_CHOICES} answers: prompts times n or best_of", "prompt")
    client_limit = params.max_tokens
    if client_limit is None and traits.max_output_tokens is not None and traits.default_output_tokens is None:
        client_limit = traits.completion_tokens
    limit = traits.limit_per_answer(client_limit, answers)
    if limit != params.max_tokens:
        changes["max_tokens"] = raw(limit)
    if "min_tokens" in fields:
        _clamp_min_tokens(fields, limit, changes)
    if "response_format" in fields:
        form = msgspec.json.decode(fields["response_format"])
        grammar.check_format(str(form.get("type")) if isinstance(form, dict) else "", form)
    _fill_in(fields, traits.sampling, changes)
    built = _build(params, fields, changes, set(), limit, params.max_tokens is None, list(result.dropped), prompts)
    return msgspec.structs.replace(built, completes=True)


def _build(
    params: _Shared,
    fields: Fields,
    changes: Fields,
    dropped: set[str],
    limit: int | None,
    limit_is_ours: bool,
    names: list[str],
    prompts: int = 1,
) -> ChatRequest:
    if not params.model:
        raise BadRequest("expected a name", "model")
    wants_usage = params.stream_options is not None and bool(params.stream_options.include_usage)
    if params.stream and not wants_usage:
        changes["stream_options"] = raw(_with_usage(fields.get("stream_options")))
    if dropped:
        fields = {name: value for name, value in fields.items() if name not in dropped}
    return ChatRequest(
        model=params.model,
        stream=bool(params.stream),
        max_tokens=limit,
        choices=(params.n or 1) * prompts,
        usage_is_ours=bool(params.stream) and not wants_usage,
        limit_is_ours=limit_is_ours,
        limit_field="max_completion_tokens" if getattr(params, "max_completion_tokens", None) else "max_tokens",
        fields=fields | changes if changes else fields,
        dropped=tuple(names),
        affinity=params.prompt_cache_key or params.user,
    )


def _with_usage(options: msgspec.Raw | None) -> dict[str, Any]:
    current: dict[str, Any] | None = msgspec.json.decode(options) if options is not None else None
    return {**(current or {}), "include_usage": True}


def _is_batch(prompt: str | list[Any]) -> bool:
    """Whether a prompt is a list of prompts; a list with numbers in it is one prompt of token ids, and of texts."""
    return isinstance(prompt, list) and bool(prompt) and not any(isinstance(element, int) for element in prompt)


def _longest(prompt: str | list[Any]) -> str | list[str | int]:
    """Return the longest prompt of a completion."""
    longest: str | list[str | int] = max(prompt, key=len) if isinstance(prompt, list) and _is_batch(prompt) else prompt
    return longest


_TOOLS = frozenset({"tools", "tool_choice", "parallel_tool_calls"})


def _change_tools(params: _Chat, traits: Traits, changes: Fields, dropped: set[str]) -> None:
    tools, choice = params.tools, params.tool_choice
    if _demands_call(choice):
        traits.check_demand(bool(tools), "tool_choice")
    if tools is None:
        return
    if not tools:  # vLLM rejects an empty list, others a choice without tools
        dropped.update(_TOOLS)
        return
    if not isinstance(choice, dict):
        return
    if choice.get("type") == "allowed_tools":
        allowed = choice.get("allowed_tools")
        spec = allowed if isinstance(allowed, dict) else choice
        listed = spec.get("tools")
        names = [_name(tool) for tool in listed if isinstance(tool, dict)] if isinstance(listed, list) else []
        left = [tool for tool in tools if _name(tool) in names]
        if not left and spec.get("mode") == "required":
            raise BadRequest("expected the names of tools in tools", "tool_choice.allowed_tools")
        if not left:
            dropped.update(_TOOLS)
            return
        changes["tools"] = raw(left)
        changes["tool_choice"] = raw("required" if spec.get("mode") == "required" else "auto")
        return
    only = [tool for tool in tools if _name(tool) == _name(choice)]
    if choice.get("type") == "function" and not only:
        raise BadRequest("expected the name of a tool in tools", "tool_choice.function.name")
    if choice.get("type") == "function" and not traits.named_tool_choice:
        changes["tools"], changes["tool_choice"] = raw(only), raw("required")


def _demands_call(choice: str | dict[str, Any] | None) -> bool:
    if not isinstance(choice, dict):
        return choice == "required"
    allowed = choice.get("allowed_tools")
    modes = (choice.get("mode"), allowed.get("mode") if isinstance(allowed, dict) else None)
    return choice.get("type") in ("function", "custom") or "required" in modes


def _name(tool: dict[str, Any]) -> object:
    function = tool.get("function") or tool.get("custom")
    return function.get("name") if isinstance(function, dict) else tool.get("name")


def _change_effort(params: _Chat, traits: Traits, changes: Fields, dropped: set[str]) -> None:
    effort = params.reasoning_effort
    if effort is None:
        return
    supported = traits.effort.get(effort)
    if supported is None:
        dropped.add("reasoning_effort")
    elif supported != effort:
        changes["reasoning_effort"] = raw(supported)


_NO_SAMPLING = Sampling()


def _fill_in(fields: Fields, sampling: Sampling, changes: Fields) -> None:
    """Set the function's sampling where the client set none."""
    if sampling == _NO_SAMPLING:
        return
    for name in Sampling.__struct_fields__:
        value = getattr(sampling, name)
        if value is not None and bytes(fields.get(name, b"null")) == b"null":
            changes[name] = raw(value)


def _fill_in_template(fields: Fields, traits: Traits, changes: Fields) -> None:
    """Set the function's variables of the template where the client set none."""
    clients = msgspec.json.decode(fields.get("chat_template_kwargs", b"null")) or {}
    if not isinstance(clients, dict):
        raise BadRequest("expected an object", "chat_template_kwargs")
    changes["chat_template_kwargs"] = raw({**traits.template_kwargs, **clients})


def raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))
