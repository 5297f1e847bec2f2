"""The script: everything a fake engine can be told to do, at the start or while it runs.

One struct is the options, their help, the body of `POST /fake` and the answer of `GET /fake`, so none of the
four can drift. Counted behaviours (`crash_after`, `fail_every`) count from the last change of the script.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Seconds = Annotated[float, Meta(ge=0)]
Amount = Annotated[int, Meta(ge=0)]
Nth = Annotated[int, Meta(ge=1)]
Status = Annotated[int, Meta(ge=400, le=599)]
ExitCode = Annotated[int, Meta(ge=0, le=255)]


class BadScript(Exception):
    """The script cannot be played; the message names the option."""


class Script(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the engine does from now on. Without a word said: loads at once and answers at once."""

    # Loading
    load_s: Annotated[Seconds, Meta(description="load for this long, logging progress")] = 0.0
    silent_load: Annotated[bool, Meta(description="log nothing while loading")] = False
    crash_on_load: Annotated[
        ExitCode | None, Meta(description="die with this exit code (1) when loading should be done")
    ] = None
    crash_message: Annotated[str, Meta(description="last log line of any crash")] = (
        "RuntimeError: Engine core initialization failed."
    )
    hang: Annotated[
        Literal["loading", "serving"] | None,
        Meta(
            description="loading: stop half way, say nothing more and never answer /health; "
            "serving: healthy, but requests are accepted and never answered"
        ),
    ] = None
    slow_health_s: Annotated[Seconds, Meta(description="answer /health only after this long")] = 0.0
    memory_mb: Annotated[
        Amount,
        Meta(
            description="device memory it claims to hold: shown in /fake and /metrics, and written to the "
            "file named by CORTEX_FAKE_MEMORY_FILE until a clean exit"
        ),
    ] = 0
    fill_log_mb: Annotated[Amount, Meta(description="write this much log; blocks when nobody reads it")] = 0

    # Answering
    tokens: Annotated[int, Meta(ge=0, le=100_000, description="length of an answer")] = 16
    tps: Annotated[Seconds, Meta(description="tokens per second; 0 is at once")] = 0.0
    ttft_s: Annotated[Seconds, Meta(description="time to the first token, the prefill")] = 0.0
    answer: Annotated[str | None, Meta(description="answer exactly this, whatever is asked")] = None
    echo: Annotated[bool, Meta(description="answer with the last user message")] = False
    reasoning_tokens: Annotated[int, Meta(ge=0, le=100_000, description="think this long first")] = 0
    call_tool: Annotated[
        bool,
        Meta(
            description="call the first tool a request offers, unless its last message is a tool's result; "
            "a request whose tool_choice demands a call gets one in any case"
        ),
    ] = False
    calls: Annotated[
        str | None,
        Meta(
            description="call these tools, all in one answer, as far as a request offers them and has no result yet: "
            'a JSON list of {"name": ..., "arguments": {...}}'
        ),
    ] = None
    report_results: Annotated[
        bool, Meta(description="answer tool results with how many of them and how many images there are")
    ] = False
    shape: Annotated[Literal["vllm", "llama"], Meta(description="word answers and streams as this engine does")] = (
        "vllm"
    )
    script: Annotated[
        str | None,
        Meta(
            description="replay this JSONL file instead of answering: a line a request, over and over; a line "
            "is a list of chunk objects (sent as SSE data, each counts as a token), raw strings (sent as they "
            "are) and numbers (seconds to wait)"
        ),
    ] = None
    check_model: Annotated[bool, Meta(description="404 for any other model, as vLLM does")] = False
    wrong_model: Annotated[str | None, Meta(description="the name /v1/models reports instead")] = None

    # Failing
    crash_after: Annotated[Nth | None, Meta(description="die when this many requests were served")] = None
    crash_mid_stream: Annotated[
        Amount | None,
        Meta(description="die after this many tokens of the first request after --crash-after N (0)"),
    ] = None
    crash_code: Annotated[ExitCode, Meta(description="exit code of a crash while serving")] = 1
    fail_status: Annotated[Status | None, Meta(description="answer requests with this error")] = None
    fail_every: Annotated[Nth, Meta(description="of those, only every nth")] = 1
    refuse_pattern: Annotated[
        bool, Meta(description="answer 400 to tool schemas with a `pattern`, which no grammar of its can say")
    ] = False
    cut_stream_after: Annotated[
        Amount | None, Meta(description="close the connection after this many tokens, without a finish")
    ] = None
    refuse: Annotated[bool, Meta(description="healthy, but inference connections are closed without an answer")] = False
    leak_mb_per_request: Annotated[Amount, Meta(description="host memory lost for good on each request")] = 0
    ignore_term: Annotated[bool, Meta(description="ignore SIGTERM")] = False


def changed(script: Script, changes: Mapping[str, object]) -> Script:
    """`script` with `changes` laid over it; `load-s` and `load_s` are the same option, null is its default."""
    return _converted({**msgspec.structs.asdict(script), **_without_nulls(changes)}, strict=True)


def from_words(words: Mapping[str, object]) -> Script:
    """A script from command line words, where every value is still text."""
    return _converted(words, strict=False)


def _without_nulls(changes: Mapping[str, object]) -> dict[str, object]:
    defaults = msgspec.structs.asdict(Script())
    named = {name.replace("-", "_"): value for name, value in changes.items()}
    return {name: defaults.get(name) if value is None else value for name, value in named.items()}


def _converted(options: Mapping[str, object], *, strict: bool) -> Script:
    try:
        return msgspec.convert(options, Script, strict=strict)
    except msgspec.ValidationError as error:
        raise BadScript(str(error).replace("$.", "")) from None
