"""The request to a worker, into which every dialect is translated.

It is the workers' chat dialect as structs: system, user, assistant and tool messages, tools, and settings. It does not
depend on the client's dialect. A field that is None is not sent.
"""

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from cortex.functions.capabilities import Sampling
from cortex.router.dialects.core.errors import BadRequest
from cortex.router.dialects.core.large_object import LARGE, Body, LargeObject, Values
from cortex.router.dialects.core.sizes import MAX_TEXT, too_much_text
from cortex.router.dialects.core.traits import Traits


class TextPart(msgspec.Struct, tag_field="type", tag="text"):
    text: str


class ImageUrl(msgspec.Struct, omit_defaults=True):
    url: str
    detail: str | None = None


class ImagePart(msgspec.Struct, tag_field="type", tag="image_url"):
    image_url: ImageUrl


Part = TextPart | ImagePart


class CallFunction(msgspec.Struct):
    name: str
    arguments: str


class Call(msgspec.Struct):
    id: str
    function: CallFunction
    type: Literal["function"] = "function"


class System(msgspec.Struct, tag_field="role", tag="system"):
    content: str


class User(msgspec.Struct, tag_field="role", tag="user"):
    content: str | list[Part]


class Assistant(msgspec.Struct, tag_field="role", tag="assistant", omit_defaults=True):
    content: str
    tool_calls: list[Call] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class Tool(msgspec.Struct, tag_field="role", tag="tool"):
    tool_call_id: str
    content: str


Message = System | User | Assistant | Tool


class Function(msgspec.Struct, omit_defaults=True):
    name: str
    parameters: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class FunctionTool(msgspec.Struct):
    function: Function
    type: Literal["function"] = "function"


class ToolName(msgspec.Struct):
    name: str


class NamedToolChoice(msgspec.Struct):
    function: ToolName
    type: Literal["function"] = "function"


ToolChoice = Literal["auto", "none", "required"] | NamedToolChoice


class Request(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Without `model` and `max_tokens`, which are set when an instance is chosen."""

    messages: list[Message]
    tools: list[FunctionTool] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    thinking_token_budget: int | None = None
    thinking_budget_tokens: int | None = None
    stop: list[str] | None = None
    timings_per_token: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    seed: int | None = None
    repeat_last_n: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    repeat_penalty: float | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None
    stream: bool = False
    stream_options: dict[str, bool] | None = None


# The fields that determine the prompt, hence its length in tokens.
PROMPT_FIELDS = (
    "messages",
    "tools",
    "chat_template_kwargs",
    "reasoning_effort",
    "continue_final_message",
    "add_generation_prompt",
)


def prompt_of(request: Request) -> Request:
    """Return the part of a request that determines its prompt, for counting."""
    return Request(**{name: getattr(request, name) for name in PROMPT_FIELDS})


def text_of(parts: list[Part]) -> str | list[Part]:
    """Join text parts into one string, which every template takes; images need the list. Raises BadRequest."""
    texts = [part.text for part in parts if isinstance(part, TextPart)]
    if sum(map(len, texts)) > MAX_TEXT:
        raise too_much_text()
    return parts if len(texts) < len(parts) else "\n".join(texts)


class Upstream(msgspec.Struct, frozen=True, kw_only=True):
    """A translated request, encoded without `model` and `max_tokens`."""

    request: Request
    max_tokens: int | None
    _encoded: bytes | Values

    def body(self, model: str, max_tokens: int | None = None) -> Body:
        """Return the body to send; `max_tokens` replaces the client's limit."""
        return _with(self._encoded, model, self.max_tokens if max_tokens is None else max_tokens)

    def count(self, model: str) -> Body:
        """Return the body for a worker's tokenizer endpoint."""
        return _with(_encode_request(prompt_of(self.request)), model, None)


class TranslatedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request of another dialect as one for the worker's chat endpoint. `max_tokens` is the worker's limit,
    `limit_field` the client's name for it; `limit_is_ours`: the client set none. `dropped`: what is not forwarded."""

    model: str
    stream: bool
    max_tokens: int | None
    upstream: Upstream
    affinity: str | None = None
    dropped: tuple[str, ...] = ()
    limit_is_ours: bool = False
    choices: int = 1
    cuts: tuple[str, ...] = ()
    completes: bool = False

    def body(self, model: str, max_tokens: int | None = None) -> Body:
        """Return the body to send; `max_tokens` replaces the client's limit."""
        return self.upstream.body(model, max_tokens)

    def count(self, model: str) -> Body:
        """Return the body for a worker's tokenizer endpoint."""
        return self.upstream.count(model)


def upstream(request: Request, max_tokens: int | None) -> Upstream:
    return Upstream(request=request, max_tokens=max_tokens, _encoded=_encode_request(request))


def _encode_request(request: Request) -> bytes | Values:
    """Encode a request message by message, so that a long conversation is not one long call."""
    messages: list[bytes] = []
    for message in request.messages:
        messages += (b",", *_encode_message(message))
    rest = _encode(msgspec.structs.replace(request, messages=[]))
    if sum(map(len, messages)) < LARGE:
        head = b'{"messages":['
        return b"".join((head, *messages[1:], rest[len(head) :]))
    fields = msgspec.json.decode(rest, type=dict[str, msgspec.Raw])
    return {name: (memoryview(value),) for name, value in fields.items()} | {"messages": (b"[", *messages[1:], b"]")}


_encode = msgspec.json.Encoder().encode


def _encode_message(message: Message) -> Sequence[bytes]:
    """Return a message's JSON, in pieces."""
    if isinstance(message.content, str) and len(message.content) > MAX_TEXT:
        raise too_much_text()
    if not isinstance(message, User) or isinstance(message.content, str):
        return (_encode(message),)
    parts = [piece for part in message.content for piece in (b",", _encode(part))]
    return (b'{"role":"user","content":[', *parts[1:], b"]}")


def _with(encoded: bytes | Values, model: str, max_tokens: int | None) -> Body:
    if not isinstance(encoded, bytes):
        limit = {} if max_tokens is None else {"max_tokens": (b"%d" % max_tokens,)}
        return LargeObject({"model": (_encode(model),), **limit, **encoded})
    head = b'{"model":' + _encode(model)
    if max_tokens is not None:
        head += b',"max_tokens":%d' % max_tokens
    return head + b"," + encoded[1:]


def fill_in(request: Request, traits: Traits) -> None:
    """Set the function's sampling and variables of the template where the client set none."""
    for name in Sampling.__struct_fields__:
        value = getattr(traits.sampling, name)
        if value is not None and getattr(request, name) is None:
            setattr(request, name, value)
    if traits.template_kwargs:
        request.chat_template_kwargs = {**traits.template_kwargs, **(request.chat_template_kwargs or {})}


def json_format(
    schema: dict[str, Any], traits: Traits, name: str = "answer", strict: bool | None = True
) -> dict[str, Any]:
    """Return a worker's `response_format` for a schema, which is forwarded unchanged."""
    if not traits.json_schema:
        return {"type": "json_object", "schema": schema}
    json_schema: dict[str, Any] = {"name": name, "schema": schema}
    if strict is not None:
        json_schema["strict"] = strict
    return {"type": "json_schema", "json_schema": json_schema}


def stop_thinking(request: Request, traits: Traits) -> None:
    """Disable thinking: engines read the effort, templates the switch; a model has one or both."""
    request.reasoning_effort = traits.effort.get("none")
    if traits.thinking_switch is not None:
        request.chat_template_kwargs = {traits.thinking_switch: False}


def start_thinking(request: Request, traits: Traits) -> None:
    """Enable thinking where the template has a switch."""
    if traits.thinking_switch is not None:
        request.chat_template_kwargs = {traits.thinking_switch: True}


def budget_thinking(request: Request, budget: int, traits: Traits) -> None:
    start_thinking(request, traits)
    if traits.thinking_budget is not None:
        setattr(request, traits.thinking_budget, budget)


def prefill(request: Request, traits: Traits) -> None:
    """Let the worker continue a final assistant message. Raises BadRequest if the model cannot."""
    last = request.messages[-1] if request.messages else None
    if not isinstance(last, Assistant) or last.tool_calls or not last.content:
        return
    if not traits.prefill:
        raise BadRequest("the last message is the assistant's; this model cannot continue it", "messages")
    request.continue_final_message, request.add_generation_prompt = True, False
