"""What each server can do: one table. Pure.

A row is a program that answers requests, not an engine: llama.cpp has three servers that differ. Routers read it to
refuse in so many words what a worker would break on, to queue for one that works on a single request, and to choose
how tokens are counted. Nothing else in cortex asks which engine it talks to in order to know what it can do.
"""

from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from cortex.functions.passing import Family
from cortex.functions.spec import Engine, Function

TALKS = frozenset({"chat", "completions"})


class Server(Struct, frozen=True, kw_only=True):
    """What one server can do. `dialects` are its own endpoints; routers translate others into chat."""

    dialects: frozenset[str] = TALKS
    family: Family = "openai"
    """Its row in the table of what clients may send (`passing.py`)."""
    native: frozenset[str] = frozenset({"messages", "responses"})
    """Those of the translated dialects that it speaks itself, for functions that want them handed over."""
    tools: bool = True
    """Parses what a model writes into tool calls."""
    reasoning: bool = True
    """Tells a model's thoughts from its answer."""
    parallel: int | Literal["asked"] | None = None
    """Requests it works on at a time: so many, as many as `target_concurrency` asks for, or (None) all that come."""
    counts: Literal["tokenize", "template", "no"] = "no"
    """Tells how many tokens a prompt has: at once, after its template was applied, or not at all."""
    sleep: bool = False
    """Can give its memory back and come back without a new start."""
    streamed_usage: bool = True
    """Says at a stream's end how many tokens there were."""
    reasoning_field: Literal["reasoning_content", "reasoning"] = "reasoning"
    """What it calls the thoughts of earlier turns."""
    thinking_budget: Literal["thinking_token_budget", "thinking_budget_tokens"] = "thinking_token_budget"
    """What it calls how much may be thought."""
    named_tool_choice: bool = True
    """Heeds a choice that names a tool; llama-server turns it into "auto" without a word."""
    prefill: bool = True
    """Goes on with an answer that the client has begun."""
    json_schema: bool = True
    """Takes a schema for the answer as such; without, as a `json_object` with a schema."""
    lists_openly: bool = False
    """Lists its models for any key: the list does not tell whether the key was right."""
    completion_tokens: int | None = 16
    """Tokens it writes for a completion (not a chat) that names no limit; None: until the model ends."""
    names_stop: bool = True
    """Names the stop string at which an answer ended."""
    takes_audio: bool = True
    """May take audio without taking images."""
    isolation: Literal["salt", "slots", "none"] = "none"
    """How it keeps the cached prompts of one key from others: by a salt in the request, by the slot, or not."""
    stops_when_client_leaves: bool = True
    """Gives up a plain request when its connection closes, not only a streamed one."""


_LLAMA = Server(
    dialects=TALKS | {"embeddings", "rerank"},
    family="llama",
    completion_tokens=None,
    parallel="asked",
    counts="template",
    reasoning_field="reasoning_content",
    thinking_budget="thinking_budget_tokens",
    named_tool_choice=False,
    names_stop=False,
    takes_audio=False,
    lists_openly=True,
    isolation="slots",
    # Seen: a plain request of 30000 tokens ran on for 27 s after its client had left.
    stops_when_client_leaves=False,
)

SERVERS: dict[str, Server] = {
    "vllm": Server(
        dialects=TALKS | {"embeddings", "rerank"}, family="vllm", counts="tokenize", sleep=True, isolation="salt"
    ),
    "llama-server": _LLAMA,
    "xllamacpp": _LLAMA,
    "llama_cpp.server": Server(
        dialects=TALKS | {"embeddings"},
        family="llama-python",
        native=frozenset(),
        tools=False,
        reasoning=False,
        parallel=1,
        streamed_usage=False,
        reasoning_field="reasoning_content",
        prefill=False,
        json_schema=False,
        names_stop=False,
        takes_audio=False,
        stops_when_client_leaves=False,
    ),
    "command": Server(completion_tokens=None),
    "fake": Server(
        native=frozenset(),
        dialects=TALKS | {"embeddings", "rerank"},
        completion_tokens=None,
        counts="tokenize",
        sleep=True,
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

_BY_TASK = {"generate": TALKS, "embed": frozenset({"embeddings"}), "rerank": frozenset({"rerank"})}


def server_of(function: Function, ran: str = "") -> Server:
    """Return what can be asked of a function: of the server an instance of it runs, else of the likeliest one.

    (1) a command does what its entry declares;
    (2) a task narrows what a server could do;
    (3) `auto` is for vLLM to find out from the model; llama.cpp generates unless told otherwise.
    """
    if function.engine is Engine.LLAMACPP:
        server = SERVERS.get(ran or function.server or "llama-server", _LLAMA)
    elif function.engine is Engine.FAKE and _shape(function.args) == "llama":
        server = _FAKE_LLAMA
    else:
        server = SERVERS[function.engine]
    if function.engine is Engine.COMMAND and function.dialects:  # (1)
        return replace(server, dialects=frozenset(function.dialects))
    task = function.task
    if task == "auto" and function.engine is Engine.LLAMACPP:  # (3)
        task = "generate"
    narrowed = _BY_TASK.get(task)
    return replace(server, dialects=server.dialects & narrowed) if narrowed else server  # (2)


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
    """Return how many requests an instance works on at a time; None: all that come, or as its arguments say."""
    if server.parallel != "asked":
        return server.parallel
    own = any(word.partition("=")[0] in ("-np", "--parallel") for word in function.args)
    return None if own else function.target_concurrency
