"""A chat completions request on its way to a worker that speaks the same dialect.

The bytes pass untouched but for what must change, and what changes is a top-level field at a time: the others are
carried over as they were written. A field changes only for one of these reasons: the worker has another name for
the model; usage is asked for on every stream; the prompt's hygiene; the template, engine or function cannot take
the field as it is. Fields that nothing here depends on are the worker's to judge.
"""

from typing import Annotated, Any

import msgspec

from cortex.functions.capabilities import Sampling
from cortex.router.dialects import chat_messages, conversation, wire
from cortex.router.dialects.chat_stream import Reply
from cortex.router.dialects.errors import BadRequest
from cortex.router.dialects.traits import Traits

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
    n: Annotated[int, msgspec.Meta(ge=1, le=1024)] | None = None
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
    prompt: str | list[Any]


Fields = dict[str, msgspec.Raw]


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A request that was understood. `usage_is_ours`: the client did not ask, so it is not shown."""

    model: str
    stream: bool
    max_tokens: int | None
    choices: int
    usage_is_ours: bool
    fields: Fields
    changed: bool
    whole: bytes
    affinity: str | None = None
    notes: tuple[str, ...] = ()

    def body(self, model: str, max_tokens: int | None = None) -> bytes:
        """What to send; `max_tokens` replaces what the client asked for."""
        if not self.changed and max_tokens is None:
            return wire.renamed(self.whole, self.model, model)
        fields = self.fields | {"model": raw(model)}
        if max_tokens is not None:
            name = "max_completion_tokens" if "max_completion_tokens" in fields else "max_tokens"
            fields[name] = raw(max_tokens)
        return msgspec.json.encode(fields)

    def count(self, model: str) -> bytes:
        """What to send to a worker that only counts or templates the prompt."""
        prompt = {name: self.fields[name] for name in conversation.PROMPT_FIELDS if name in self.fields}
        return msgspec.json.encode({"model": raw(model), **prompt})

    def answer(self, id: str, created: int, input_tokens: int | None = None) -> Reply:
        """How to answer it."""
        return Reply(id=id, model=self.model, choices=self.choices, usage_is_ours=self.usage_is_ours)


@wire.parser
def read(body: bytes, traits: Traits) -> Asked:
    """A request to `/v1/chat/completions`; raises `BadRequest`."""
    said = wire.read(body, _Chat)
    if not said.messages:
        raise BadRequest("at least one message is required", "messages")
    chat_messages.check(said.messages, traits)
    fields = msgspec.json.decode(body, type=Fields)
    changes: Fields = {}
    dropped: set[str] = set()
    if (messages := chat_messages.rewritten(said.messages, fields["messages"], traits)) is not None:
        changes["messages"] = raw(messages)
    _change_tools(said, traits, changes, dropped)
    _change_effort(said, traits, changes, dropped)
    if said.response_format is not None and said.response_format.type == "json_schema" and not traits.json_schema:
        schema = said.response_format.json_schema
        changes["response_format"] = raw(conversation.json_format((schema and schema.schema) or {}, traits))
    asked = said.max_tokens if said.max_completion_tokens is None else said.max_completion_tokens
    limit = traits.output_tokens(asked)
    if limit != asked or (said.max_completion_tokens is not None and not traits.max_completion_tokens):
        dropped.add("max_completion_tokens")
        changes["max_tokens"] = raw(limit)
    _fill_in(fields, traits.sampling, changes)
    return _asked(said, body, fields, changes, dropped, limit)


@wire.parser
def read_completion(body: bytes, traits: Traits) -> Asked:
    """A request to the legacy `/v1/completions`; raises `BadRequest`."""
    said = wire.read(body, _Completion)
    fields = msgspec.json.decode(body, type=Fields)
    changes: Fields = {}
    limit = traits.output_tokens(said.max_tokens)
    if limit != said.max_tokens:
        changes["max_tokens"] = raw(limit)
    _fill_in(fields, traits.sampling, changes)
    prompts = len(said.prompt) if _is_batch(said.prompt) else 1
    return _asked(said, body, fields, changes, set(), limit, prompts)


def _asked(
    said: _Shared,
    body: bytes,
    fields: Fields,
    changes: Fields,
    dropped: set[str],
    limit: int | None,
    prompts: int = 1,
) -> Asked:
    if not said.model:
        raise BadRequest("expected a name", "model")
    wanted = said.stream_options is not None and bool(said.stream_options.include_usage)
    if said.stream and not wanted:
        changes["stream_options"] = raw(_with_usage(fields.get("stream_options")))
    dropped &= fields.keys()
    kept = {name: value for name, value in fields.items() if name not in dropped}
    return Asked(
        model=said.model,
        stream=bool(said.stream),
        max_tokens=limit,
        choices=(said.n or 1) * prompts,
        usage_is_ours=bool(said.stream) and not wanted,
        fields=kept | changes,
        changed=bool(changes or dropped),
        whole=body,
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
