"""What each server can do: one table. Pure.

A row is a program that answers requests, not an engine: llama.cpp has three different servers. Routers use the table to
reject what a worker cannot do, to queue requests for a server with one slot, and to choose how to count tokens. No
other code decides by the name of an engine what it can do.
"""

import functools
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from cortex.functions.memo import MOST_KNOWN
from cortex.functions.passing import Family
from cortex.functions.spec import Engine, Function, Task

TALKS = frozenset({"chat", "completions"})
MEDIA = frozenset({"transcriptions", "translations", "speech", "images", "image_edits"})
"""Endpoints whose requests or answers are audio or images."""


class Server(Struct, frozen=True, kw_only=True, gc=False):
    """The abilities of one server. `dialects` are its own endpoints; routers translate others into chat."""

    dialects: frozenset[str] = TALKS
    family: Family = "openai"
    """Its row of `passing.py`."""
    native: frozenset[str] = frozenset({"messages", "responses"})
    """Translated dialects that it also serves itself, for functions with `native`."""
    own: frozenset[str] = frozenset()
    """The engine's own paths that clients may call; never those for developers or operators, which change a worker or
    show other clients' requests."""
    tools: bool = True
    """Parses tool calls in a model's output."""
    parallel: int | Literal["target"] | None = None
    """Maximum concurrent requests: a number, `"target"` (the function's `target_concurrency`), or None for no limit."""
    counts: Literal["tokenize", "template", "no"] = "no"
    """How it counts a prompt's tokens: in one call, after a call that applies the template, or not at all."""
    reasoning_field: Literal["reasoning_content", "reasoning"] = "reasoning"
    """Its field for the reasoning of earlier turns."""
    thinking_budget: Literal["thinking_token_budget", "thinking_budget_tokens"] = "thinking_token_budget"
    """Its field for the limit of reasoning tokens."""
    named_tool_choice: bool = True
    """Supports a tool choice by name; llama-server silently treats it as "auto"."""
    prefill: bool = True
    """Can continue an answer that the client has begun."""
    json_schema: bool = True
    """Accepts `json_schema` as the response format; otherwise `json_object` with a schema."""
    lists_openly: bool = False
    """Lists its models for any key, so the list does not prove that the key is valid."""
    completion_tokens: int | None = 16
    """Default limit of a completion (not a chat) in tokens; None: until the model ends."""
    names_stop: bool = True
    """Names the stop string at which an answer ended."""
    takes_audio: bool = True
    """May take audio without taking images."""
    isolation: Literal["salt", "slots", "none"] = "none"
    """How it isolates the cached prompts of keys: by a salt in the request, by slot, or not."""
    loads_adapters: Literal["at start", "while it runs", "no"] = "no"
    """When it loads the adapters of variants. One that is loaded while it runs has a name, which requests have as
    `model`; those of a start have numbers."""
    saves_slots: bool = False
    """Saves and restores the prompt of a slot by `POST /slots/N?action=…`."""
    stops_when_client_leaves: bool = True
    """Stops an unstreamed request, too, when its connection closes."""
    keeps_connections: bool = True
    """Takes another request on a connection after an answer in chunks, unless it announces the close."""


_LLAMA = Server(
    dialects=TALKS | {"embeddings", "rerank", "transcriptions"},
    family="llama",
    own=frozenset({"/tokenize", "/detokenize", "/apply-template", "/infill", "/props", "/slots"}),
    completion_tokens=None,
    parallel="target",
    counts="template",
    reasoning_field="reasoning_content",
    thinking_budget="thinking_budget_tokens",
    named_tool_choice=False,
    names_stop=False,
    takes_audio=False,
    lists_openly=True,
    isolation="slots",
    loads_adapters="at start",
    saves_slots=True,
    # Observed: an unstreamed request of 30000 tokens continued for 27 s after its client had left.
    stops_when_client_leaves=False,
    # It closes a connection after a stream without announcing it: a request that is sent meanwhile is lost.
    keeps_connections=False,
)

COMMAND = "command"
"""Any program, by its command line."""

SERVERS: dict[str, Server] = {
    "vllm": Server(
        dialects=TALKS | {"embeddings", "rerank", "transcriptions", "translations"},
        family="vllm",
        own=frozenset({"/tokenize", "/detokenize", "/score", "/pooling"}),
        counts="tokenize",
        isolation="salt",
        loads_adapters="while it runs",
    ),
    "llama-server": _LLAMA,
    "xllamacpp": _LLAMA,
    "llama_cpp.server": Server(
        dialects=TALKS | {"embeddings"},
        family="llama-python",
        native=frozenset(),
        tools=False,
        parallel=1,
        reasoning_field="reasoning_content",
        prefill=False,
        json_schema=False,
        names_stop=False,
        takes_audio=False,
        stops_when_client_leaves=False,
    ),
    COMMAND: Server(completion_tokens=None, keeps_connections=False),
    "fake": Server(
        native=frozenset(),
        dialects=TALKS | {"embeddings", "rerank"} | MEDIA,
        own=frozenset({"/tokenize", "/score", "/pooling"}),
        completion_tokens=None,
        counts="tokenize",
        isolation="salt",
    ),
}

_FAKE_LLAMA = replace(
    SERVERS["fake"],
    reasoning_field="reasoning_content",
    thinking_budget="thinking_budget_tokens",
    named_tool_choice=False,
    names_stop=False,
)
"""The fake engine that writes its answers as llama.cpp does."""

_BY_TASK: dict[Task, frozenset[str]] = {
    "generate": TALKS,
    "embed": frozenset({"embeddings"}),
    "rerank": frozenset({"rerank"}),
    "transcribe": frozenset({"transcriptions", "translations"}),
    "speech": frozenset({"speech"}),
    "image": frozenset({"images", "image_edits"}),
}
_UNTASKED = TALKS | {"embeddings", "rerank"}
"""What a server may do for a function without a task."""
_WRITES, _COMPARES = frozenset({"/apply-template", "/infill"}), frozenset({"/score", "/pooling"})
_NOT_BY_TASK: dict[Task, frozenset[str]] = {
    "generate": _COMPARES,
    "embed": _WRITES,
    "rerank": _WRITES,
    "transcribe": _WRITES | _COMPARES,
    "speech": _WRITES | _COMPARES,
    "image": _WRITES | _COMPARES,
}


def server_of(function: Function, running: str = "") -> Server:
    """Return the abilities of a function's server: of the one that an instance is `running`, else of the default one.

    (1) A command has the abilities that its entry declares, by `dialects` or else by its task.
    (2) A task restricts the server's dialects and routes.
    (3) With `auto`, vLLM derives the task from the model, but never one of media; llama.cpp generates.
    """
    known = _known.get((id(function), running))
    if known is not None and known[0] is function:
        return known[1]
    server = _server_of(function, running)
    if len(_known) >= MOST_KNOWN:
        _known.clear()
    _known[id(function), running] = function, server
    return server


_known: dict[tuple[int, str], tuple[Function, Server]] = {}
"""Functions with their servers. An entry holds its function, so no other one has its id meanwhile."""


def _server_of(function: Function, running: str) -> Server:
    if function.engine is Engine.LLAMACPP:
        server = SERVERS.get(running or function.server or "llama-server", _LLAMA)
    elif function.engine is Engine.FAKE and _shape(function.args) == "llama":
        server = _FAKE_LLAMA
    else:
        server = SERVERS[function.engine]
    task = function.task
    if function.engine is Engine.COMMAND:  # (1)
        return _with(server, frozenset(function.dialects) or _BY_TASK.get(task, server.dialects), server.own)
    if task == "auto" and function.engine is Engine.LLAMACPP:  # (3)
        task = "generate"
    dialects = server.dialects & _BY_TASK.get(task, _UNTASKED)
    return _with(server, dialects, server.own - _NOT_BY_TASK.get(task, frozenset()))  # (2)


@functools.lru_cache(maxsize=512)
def _with(server: Server, dialects: frozenset[str], own: frozenset[str]) -> Server:
    """Return a server with other abilities: one object for all functions that have them."""
    return replace(server, dialects=dialects, own=own)


def _shape(args: tuple[str, ...]) -> str:
    """Return the shape of the fake engine's answers."""
    shape = ""
    for word, following in zip(args, [*args[1:], *args[:1]], strict=True):
        if word == "--shape":
            shape = following
        elif word.startswith("--shape="):
            shape = word.partition("=")[2]
    return shape


def max_concurrency(function: Function, server: Server) -> int | None:
    """Return an instance's maximum of concurrent requests; None: no limit, or one set by the function's arguments."""
    if server.parallel != "target":
        return server.parallel
    own = any(word.partition("=")[0] in ("-np", "--parallel") for word in function.args)
    return None if own else function.target_concurrency
