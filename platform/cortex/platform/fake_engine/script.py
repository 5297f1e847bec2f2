"""The script: everything that a fake engine can be made to do, at the start or while it runs.

One struct defines the options, their help, the body of `POST /fake` and the answer of `GET /fake`. Options that count
requests (`crash_after`, `fail_every`) count from the last change of the script.
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
    """The script is invalid; the message names the option."""


class Script(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The engine's behaviour from now on. By default it loads and answers at once."""

    # Loading
    load_s: Annotated[Seconds, Meta(description="load for this long, logging progress")] = 0.0
    full_load_s: Annotated[
        Seconds | None, Meta(description="the same for a full start, which is one without --enforce-eager")
    ] = None
    enforce_eager: Annotated[bool, Meta(description="this is a fast start")] = False
    silent_load: Annotated[bool, Meta(description="log nothing while loading")] = False
    crash_on_load: Annotated[
        ExitCode | None, Meta(description="die with this exit code (1) when loading should be done")
    ] = None
    crash_in: Annotated[
        Literal["fast", "full"] | None, Meta(description="do that with 1 in a start of this kind only")
    ] = None
    crash_message: Annotated[str, Meta(description="last log line of any crash")] = (
        "RuntimeError: Engine core initialization failed."
    )
    hang: Annotated[
        Literal["loading", "serving"] | None,
        Meta(
            description="loading: stop half way, log nothing more and never answer /health; "
            "serving: healthy, but requests are accepted and never answered"
        ),
    ] = None
    slow_health_s: Annotated[Seconds, Meta(description="answer /health only after this long")] = 0.0
    memory_mb: Annotated[
        Amount,
        Meta(
            description="pretended device memory: shown in /fake and /metrics, and written to the "
            "file named by CORTEX_FAKE_MEMORY_FILE until a clean exit"
        ),
    ] = 0
    fill_log_mb: Annotated[Amount, Meta(description="write this much log; blocks while it is not read")] = 0

    # Answering
    tokens: Annotated[int, Meta(ge=0, le=100_000, description="length of an answer")] = 16
    tps: Annotated[Seconds, Meta(description="tokens per second; 0: no limit")] = 0.0
    ttft_s: Annotated[Seconds, Meta(description="time to the first token, the prefill")] = 0.0
    answer: Annotated[str | None, Meta(description="answer every request with this text")] = None
    echo: Annotated[bool, Meta(description="answer with the last user message")] = False
    reasoning_tokens: Annotated[
        int, Meta(ge=0, le=100_000, description="length of the reasoning before the answer")
    ] = 0
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
        bool, Meta(description="answer tool results with the number of results and of images")
    ] = False
    shape: Annotated[Literal["vllm", "llama"], Meta(description="wire form of answers and streams")] = "vllm"
    script: Annotated[
        str | None,
        Meta(
            description="replay this JSONL file instead of answering: one line per request, repeatedly; a line "
            "is a list of chunk objects (sent as SSE data, each counts as a token), raw strings (sent "
            "unchanged) and numbers (seconds to wait)"
        ),
    ] = None
    check_model: Annotated[bool, Meta(description="404 for any other model, as vLLM does")] = False
    wrong_model: Annotated[str | None, Meta(description="the name that /v1/models reports instead")] = None

    # Sleeping
    sleep_s: Annotated[Seconds, Meta(description="take this long for POST /sleep")] = 0.0
    wake_s: Annotated[Seconds, Meta(description="take this long for POST /wake_up")] = 0.0
    asleep_mb: Annotated[Amount, Meta(description="pretended device memory while asleep")] = 0
    on_sleep: Annotated[
        Literal["refuse", "crash", "hang"] | None,
        Meta(description="POST /sleep: refuse: 500, and stay awake; crash: die; hang: answer nothing"),
    ] = None
    on_wake: Annotated[
        Literal["refuse", "crash", "hang", "garble"] | None,
        Meta(
            description="POST /wake_up: refuse: 500, and sleep on; crash: die; hang: answer nothing; "
            "garble: wake, and give other answers than before"
        ),
    ] = None

    # Failing
    crash_after: Annotated[Nth | None, Meta(description="die after serving this many requests")] = None
    crash_mid_stream: Annotated[
        Amount | None,
        Meta(description="die after this many tokens of the first request after --crash-after N (0)"),
    ] = None
    crash_code: Annotated[ExitCode, Meta(description="exit code of a crash while serving")] = 1
    engine_dead: Annotated[
        bool,
        Meta(
            description="the engine behind the server has died: /health is 503, requests get vLLM's error for that, "
            "and the process lives on"
        ),
    ] = False
    fail_status: Annotated[Status | None, Meta(description="answer requests with this error")] = None
    fail_every: Annotated[Nth, Meta(description="fail only every nth request")] = 1
    refuse_pattern: Annotated[
        bool, Meta(description="answer 400 to tool schemas with a `pattern`, as an unsupported grammar")
    ] = False
    cut_stream_after: Annotated[
        Amount | None, Meta(description="close the connection after this many tokens, without a finish")
    ] = None
    refuse: Annotated[bool, Meta(description="healthy, but inference connections are closed without an answer")] = False
    leak_mb_per_request: Annotated[Amount, Meta(description="host memory to leak on each request")] = 0
    ignore_term: Annotated[bool, Meta(description="ignore SIGTERM")] = False

    @property
    def loading_s(self) -> float:
        """How long this start loads."""
        return self.load_s if self.enforce_eager or self.full_load_s is None else self.full_load_s

    @property
    def crashes_on_load(self) -> int | None:
        """The exit code with which this start ends."""
        this = "fast" if self.enforce_eager else "full"
        return 1 if self.crash_on_load is None and self.crash_in == this else self.crash_on_load


def with_changes(script: Script, changes: Mapping[str, object]) -> Script:
    """Return `script` with changes; `load-s` and `load_s` are the same option, null is its default."""
    return _convert({**msgspec.structs.asdict(script), **_without_nulls(changes)}, strict=True)


def from_words(words: Mapping[str, object]) -> Script:
    """Return a script from the words of a command line, whose values are text."""
    return _convert(words, strict=False)


def _without_nulls(changes: Mapping[str, object]) -> dict[str, object]:
    defaults = msgspec.structs.asdict(Script())
    options = {name.replace("-", "_"): value for name, value in changes.items()}
    return {name: defaults.get(name) if value is None else value for name, value in options.items()}


def _convert(options: Mapping[str, object], *, strict: bool) -> Script:
    try:
        return msgspec.convert(options, Script, strict=strict)
    except msgspec.ValidationError as error:
        raise BadScript(str(error).replace("$.", "")) from None
